(* Low-rank updates s B A, B of shape m x r, A of shape r x n: rank, parameter count, gradients at a
   product, zero initialization, composition.
   Ranks over any field, the rest over any ordered field: no axioms. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From Gonio Require Import Frobenius.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(* how many numbers an m x n matrix holds: the dimension of the space of these matrices *)
Definition entries (F : fieldType) m n : nat := \dim {: matrix_vectType F m n}.
Lemma entriesE F m n : entries F m n = (m * n)%N.
Proof. by rewrite /entries dimvf. Qed.

Section Rank.
Variable F : fieldType.

(* rank(B A) <= min(rank B, rank A) <= r, for every inner dimension r. *)
Theorem rank_product_le m r n (B : 'M[F]_(m, r)) (A : 'M[F]_(r, n)) :
  (\rank (B *m A) <= minn (\rank B) (\rank A))%N /\ (minn (\rank B) (\rank A) <= r)%N.
Proof.
by rewrite leq_min mxrankM_maxl mxrankM_maxr geq_min rank_leq_col.
Qed.

(* The sum of K updates of ranks r_k has rank at most the sum of the r_k, and their factors hold
   (sum of the r_k) (m + n) numbers: K r (m + n) when all ranks are r. *)
Theorem composition_rank K m n (r : 'I_K -> nat)
    (B : forall k, 'M[F]_(m, r k)) (A : forall k, 'M[F]_(r k, n)) :
  (\rank (\sum_k B k *m A k)%R <= \sum_k r k)%N /\
  (\sum_k (entries F m (r k) + entries F (r k) n) = (\sum_k r k) * (m + n))%N.
Proof.
split.
  apply: leq_trans (_ : (\sum_k \rank (B k *m A k)%R <= _)%N); last first.
    by apply: leq_sum => k _; have [h /(leq_trans h)] := rank_product_le (B k) (A k).
  elim/big_ind2: _ => [|a M b N hM hN|//]; first by rewrite mxrank0.
  by rewrite (leq_trans (mxrank_add _ _)) // leq_add.
rewrite big_distrl; apply: eq_bigr => k _ /=.
by rewrite !entriesE (mulnC m) mulnDr.
Qed.
End Rank.

Section ParameterCount.
Variable R : realFieldType.

(* Numbers stored by a full update over numbers stored by its factors, as dimensions of the spaces
   they range over. *)
Definition loraGain m n r : R :=
  (entries R m n)%:R / (entries R m r + entries R r n)%:R.

(* The gain is m n/(r (m + n)); it exceeds 1 exactly when r (m + n) < m n; for m = n = 1000 and
   r = 10 it is 50 (the source says about 100). *)
Theorem lora_parameter_gain m n r : (0 < m)%N -> (0 < r)%N ->
  [/\ loraGain m n r = (m * n)%:R / (r * (m + n))%:R,
      (1 < loraGain m n r) = (r * (m + n) < m * n)%N & loraGain 1000 1000 10 = 50%:R].
Proof.
have E a b c : loraGain a b c = (a * b)%:R / (c * (a + b))%:R.
  by rewrite /loraGain !entriesE (mulnC a c) -mulnDr.
move=> m0 r0; rewrite !E; split=> //.
  by rewrite ltr_pdivl_mulr ?mul1r ?ltr_nat // ltr0n muln_gt0 r0 addn_gt0 m0.
have -> : 1000%N = (20 * 50)%N by [].
have := pnatr_eq0 R 50; rewrite !natrM natrD !natrM; move: (50%:R : R) => y /negbT y0.
by field; rewrite -mulrDl mulf_neq0 // -natrD pnatr_eq0.
Qed.
End ParameterCount.

Section Gradients.
Variable R : realFieldType.
Variables (m r n : nat) (G : 'M[R]_(m, n)) (s : R).
Implicit Types (B H : 'M[R]_(m, r)) (A K : 'M[R]_(r, n)).

(* G is the gradient of the loss at the current weights; s = alpha/r, or alpha/sqrt r *)
Definition gradB A : 'M[R]_(m, r) := s *: (G *m A^T).
Definition gradA B : 'M[R]_(r, n) := s *: (B^T *m G).

(* a matrix is known from its inner products *)
Lemma mdot_inj k l (X Y : 'M[R]_(k, l)) : (forall Z, mdot X Z = mdot Y Z) -> X = Y.
Proof.
by move=> h; apply/eqP; rewrite -subr_eq0 -frob_eq0 frobE mdotBl h subrr.
Qed.

(* Moving B by t H and A by t K moves the linearized loss <G, s B A> by
   t (<s G A^T, H> + <s B^T G, K>) plus a multiple of t^2: the gradients are dB = s G A^T and
   dA = s B^T G. They are the only matrices that give the slope in every direction. (That a
   differentiable loss has the same slopes as its linearization is the chain rule, not proved
     here.) *)
Theorem lora_gradients B A :
  (forall H K t, mdot G (s *: ((B + t *: H) *m (A + t *: K))) = mdot G (s *: (B *m A))
     + t * (mdot (gradB A) H + mdot (gradA B) K) + t ^+ 2 * (s * mdot G (H *m K))) /\
  (forall X Y, (forall H K, mdot X H + mdot Y K = mdot (gradB A) H + mdot (gradA B) K) ->
     X = gradB A /\ Y = gradA B).
Proof.
split=> [H K t|X Y h]; last first.
  split; apply: mdot_inj => Z.
    by have := h Z 0; rewrite !mdot0r !addr0.
  by have := h 0 Z; rewrite !mdot0r !add0r.
rewrite mulmxDl !mulmxDr -!scalemxAl -!scalemxAr !mdotZr !mdotDr !mdotZr.
rewrite /gradB /gradA !mdotZl -(mdot_mulr G H A) -(mdot_mull G K B).
move: (mdot G (B *m A)) (mdot G (B *m K)) (mdot G (H *m A)) (mdot G (H *m K)) => a b c e.
by ring.
Qed.

(* With B = 0 the update s B A is 0, the gradient of A is 0, and that of B is not 0 as long as
   G A^T is not; with A = 0 the same holds with the roles exchanged. If both are 0, both gradients
   are: training cannot start. So the gradient that vanishes is the one of the factor that is not
   0. *)
Theorem zero_init B A : s != 0 ->
  [/\ s *: ((0 : 'M_(m, r)) *m A) = 0, gradA 0 = 0 & (gradB A = 0 <-> G *m A^T = 0)] /\
  [/\ s *: (B *m (0 : 'M_(r, n))) = 0, gradB 0 = 0 & (gradA B = 0 <-> B^T *m G = 0)].
Proof.
move=> s0; rewrite /gradA /gradB mul0mx mulmx0 !trmx0 mulmx0 mul0mx !scaler0.
have Z k l (X : 'M[R]_(k, l)) : s *: X = 0 <-> X = 0.
  split=> [/eqP|->]; last by rewrite scaler0.
  by rewrite scaler_eq0 (negPf s0) => /eqP.
by split; split=> //; apply: Z.
Qed.
End Gradients.
