(* Low-rank updates B A, B of shape m x r, A of shape r x n: rank, parameter count, composition.
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
