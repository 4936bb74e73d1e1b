(* Signed permutation matrices: their average is isotropic, and so is every random orthonormal
   frame whose law they leave alone, such as a uniformly random one. No integral is used: an
   expectation is whatever has the properties of MomentRatio's isExpectation. Over any real closed
   field: no axioms. *)
From mathcomp Require Import all_ssreflect all_fingroup all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From Gonio Require Import Frobenius Gauge MomentRatio Isotropy.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section SignedPermutations.
Variables (R : rcfType) (n : nat).
Local Notation signs := {ffun 'I_n -> bool}.

Definition signOf (e : signs) (i : 'I_n) : R := (-1) ^+ e i.
Definition signedPerm (e : signs) (s : 'S_n) : 'M[R]_n :=
  diag_mx (\row_i signOf e i) *m perm_mx s.
(* the mean of F over all 2^n n! signed permutation matrices *)
Definition signedPermAverage (F : 'M[R]_n -> R) : R :=
  (\sum_(e : signs) \sum_(s : 'S_n) F (signedPerm e s)) / ((2 ^ n) * n`!)%:R.

Lemma signedPerm_mul p e s (M : 'M[R]_(n, p)) i j :
  (signedPerm e s *m M) i j = signOf e i * M (s i) j.
Proof. by rewrite -mulmxA -row_permE mul_diag_mx !mxE. Qed.

Lemma signedPerm_entry e s i j : signedPerm e s i j = signOf e i * (s i == j)%:R.
Proof. by rewrite -[signedPerm e s]mulmx1 signedPerm_mul mxE. Qed.

Lemma signedPerm_orthogonal e s : orthogonal (signedPerm e s).
Proof.
rewrite /orthogonal /signedPerm trmx_mul tr_diag_mx mulmxA -(mulmxA (perm_mx s)^T).
rewrite (_ : _ *m diag_mx _ = 1%:M) ?mulmx1 ?tr_perm_mx -?perm_mxM ?mulVg ?perm_mx1 //.
apply/matrixP => i j; rewrite mul_diag_mx !mxE.
have [->|] := eqVneq i j; last by rewrite mulr0n mulr0.
by rewrite mulr1n /signOf -expr2 sqrr_sign.
Qed.

(* ---------- the finite average ---------- *)
Definition flip (j : 'I_n) (e : signs) : signs := [ffun i => if i == j then ~~ e i else e i].
Lemma flipK j : involutive (flip j).
Proof. by move=> e; apply/ffunP => i; rewrite /flip !ffunE; case: (i == j); rewrite ?negbK. Qed.

(* signs are uncorrelated *)
Lemma sum_signs i j : \sum_(e : signs) signOf e i * signOf e j = (i == j)%:R * (2 ^ n)%:R.
Proof.
have [->|ij] := eqVneq i j.
  rewrite mul1r (eq_bigr (fun=> 1)) => [|e _]; last by rewrite /signOf -expr2 sqrr_sign.
  by rewrite sumr_const card_ffun card_bool card_ord.
rewrite mul0r; apply/eqP; rewrite -[_ == 0](mulrn_eq0 _ 2%N) //.
set S := \sum_ _ _; have -> : S *+ 2 = S + S by rewrite mulr2n.
rewrite {2}/S (reindex_inj (inv_inj (flipK i))) /= -big_split big1 //= => e _.
by rewrite /signOf !ffunE eqxx eq_sym (negPf ij) signrN mulNr subrr.
Qed.

(* a random permutation sends j to each place equally often *)
Lemma sum_perm (f : 'I_n -> R) j :
  n%:R * (\sum_(s : 'S_n) f (s j)) = (n`!)%:R * \sum_i f i.
Proof.
have indep j' : \sum_(s : 'S_n) f (s j') = \sum_(s : 'S_n) f (s j).
  rewrite (reindex_inj (mulgI (tperm j j'))) /=.
  by apply: eq_bigr => s _; rewrite permM tpermR.
have -> : n%:R * (\sum_(s : 'S_n) f (s j)) = \sum_j' \sum_(s : 'S_n) f (s j').
  by rewrite (eq_bigr _ (fun j' _ => indep j')) sumr_const card_ord mulr_natl.
rewrite exchange_big /= (eq_bigr (fun=> \sum_i f i)) => [|s _].
  by rewrite sumr_const card_Sn mulr_natl.
by rewrite [RHS](reindex_inj (@perm_inj _ s)).
Qed.

Local Notation N := ((2 ^ n) * n`!)%:R.
Local Notation weighted := (fun f : signs * 'S_n -> R => \sum_x N^-1 * f x).

Lemma N_neq0 : N != 0 :> R.
Proof. by rewrite pnatr_eq0 muln_eq0 expn_eq0 /= -lt0n fact_gt0. Qed.

Lemma signedPermAverageE (F : 'M[R]_n -> R) :
  signedPermAverage F = \sum_x N^-1 * F (signedPerm x.1 x.2).
Proof.
by rewrite -mulr_sumr -(pair_bigA _ (fun e s => F (signedPerm e s))) /= mulrC.
Qed.

Lemma signedPerm_expectation : isExpectation (fun=> True) weighted.
Proof.
apply: finite_isExpectation => [x|]; first by rewrite invr_ge0 ler0n.
rewrite sumr_const card_prod card_ffun card_bool card_ord card_Sn -[_^-1 *+ _]mulr_natr.
by rewrite mulVf ?N_neq0.
Qed.

Lemma signedPerm_isotropic :
  isotropic (fun=> True) weighted (fun x => signedPerm x.1 x.2).
Proof.
move=> i j k l; split=> //.
have n0 : n%:R != 0 :> R by rewrite pnatr_eq0 -lt0n (leq_ltn_trans _ (ltn_ord i)).
rewrite /= -mulr_sumr -(pair_bigA _ (fun e s => signedPerm e s i j * signedPerm e s k l)) /=.
pose g (e : signs) := signOf e i * signOf e k * \sum_(s : 'S_n) (s i == j)%:R * (s k == l)%:R.
rewrite (eq_bigr g) => [|e _]; last first.
  by rewrite /g mulr_sumr; apply: eq_bigr => s _; rewrite !signedPerm_entry mulrACA.
rewrite -mulr_suml sum_signs; have [<-|_] := eqVneq i k; last by rewrite !mul0r mulr0.
rewrite mul1r /= (eq_bigr (fun s : 'S_n => (j == l)%:R * (s i == j)%:R)) => [|s _]; last first.
  have [->|jl] := eqVneq j l; first by rewrite mul1r; case: (_ == _); rewrite ?mulr1 ?mulr0.
  by rewrite mul0r; case: eqP => [->|_]; rewrite ?(negPf jl) ?mulr0 ?mul0r.
rewrite -mulr_sumr; have h := sum_perm (fun a => (a == j)%:R) i.
have {}h : \sum_(s : 'S_n) ((s i == j)%:R : R) = (n`!)%:R / n%:R.
  apply: (mulfI n0); rewrite h (bigD1 j) //= eqxx big1 ?addr0 ?mulr1 => [|a /negPf -> //].
  by rewrite mulrCA divff ?mulr1.
have := N_neq0; rewrite h natrM mulf_eq0 negb_or => /andP[]; move: n0.
move: (n%:R : R) ((2 ^ n)%:R : R) ((n`!)%:R : R) ((j == l)%:R : R) => a b c x a0 b0 c0.
by field; rewrite a0 b0 c0.
Qed.

(* holds for all matrices, orthonormal or not *)
Lemma average_energy k l (Q : 'M[R]_(k, n)) (W : 'M[R]_(n, l)) :
  signedPermAverage (fun P => frobeniusSq (Q *m P *m W)) = frobeniusSq Q * frobeniusSq W / n%:R.
Proof.
rewrite signedPermAverageE; have hE := signedPerm_expectation.
exact: (hasMean_eq hE I (isotropic_energy Q W hE signedPerm_isotropic)).
Qed.

(* ---------- laws that signed permutations leave alone ---------- *)
Section Invariant.
Variables (T : Type) (integrable : (T -> R) -> Prop) (E : (T -> R) -> R).
Variables (p : nat) (X : T -> 'M[R]_(n, p)).

(* X is a random frame of p orthonormal columns in R^n, and P X has the law of X for every signed
   permutation P: a Haar-distributed rotation (p = n), a uniformly random subspace given by a frame,
   or a uniformly random unit vector (p = 1) *)
Record isInvariantFrame : Prop := {
  frame_orthonormal : forall t, (X t)^T *m X t = 1%:M;
  frame_integrable : forall i j k l, integrable (fun t => X t i j * X t k l);
  frame_invariant : forall e s (f : 'M[R]_(n, p) -> R), integrable (fun t => f (X t)) ->
    integrable (fun t => f (signedPerm e s *m X t)) /\
    E (fun t => f (signedPerm e s *m X t)) = E (fun t => f (X t)) }.

Lemma invariant_isotropic :
  isExpectation integrable E -> isInvariantFrame -> isotropic integrable E X.
Proof.
move=> hE [hO hI hinv] i j k l; split; first exact: hI.
have [<-|ik] := eqVneq i k; last first.
  have [h1 h2] := hinv [ffun a => a == i] 1%g (fun A => A i j * A k l) (hI i j k l).
  pose g t := -1 * (X t i j * X t k l) + 0.
  have hg : integrable g by apply: (integrable_lin hE) => //; apply: (integrable_cst hE).
  have gE : E g = - E (fun t => X t i j * X t k l).
    rewrite (expectation_lin hE) ?(expectation_cst hE) ?mulN1r ?addr0 //.
    exact: (integrable_cst hE).
  have : E g = E (fun t => X t i j * X t k l).
    rewrite -h2; apply: (expectation_ext hE) => // t; rewrite !signedPerm_mul !perm1 /signOf !ffunE.
    rewrite eqxx [k == i]eq_sym (negPf ik) expr1 expr0 /g.
    by move: (X t i j) (X t k l) => a b; ring.
  by rewrite gE mul0r => /eqP; rewrite eq_sym -addr_eq0 -mulr2n mulrn_eq0 /= => /eqP.
have n0 : n%:R != 0 :> R by rewrite pnatr_eq0 -lt0n (leq_ltn_trans _ (ltn_ord i)).
have same a : E (fun t => X t a j * X t a l) = E (fun t => X t i j * X t i l).
  have [h1 <-] := hinv [ffun=> false] (tperm i a) (fun A => A i j * A i l) (hI i j i l).
  apply: (expectation_ext hE) => // t; rewrite !signedPerm_mul tpermL /signOf ffunE.
  by rewrite expr0 !mul1r.
apply: (mulfI n0); rewrite mulrCA divff // mulr1.
have hF a : hasMean integrable E (fun t => X t a j * X t a l) (E (fun t => X t i j * X t i l)).
  by exists (fun t => X t a j * X t a l).
have := hasMean_sum (index_enum _) (fun=> 1) hE hF.
rewrite (eq_bigr (fun=> E (fun t => X t i j * X t i l))) => [|a _]; last by rewrite mul1r.
rewrite sumr_const card_ord mulr_natl => h.
rewrite -(hasMean_eq hE (integrable_cst hE (j == l)%:R) (hasMean_ext _ h)) ?(expectation_cst hE) //.
move=> t; have := congr1 (fun A : 'M_p => A j l) (hO t); rewrite !mxE => <-.
by apply: eq_bigr => a _; rewrite mxE mul1r.
Qed.
End Invariant.

(* such laws exist: the signed permutations of a fixed frame, all equally likely *)
Lemma signedPerm_comp e s e' s' :
  signedPerm e s *m signedPerm e' s' = signedPerm [ffun i => e i (+) e' (s i)] (s * s').
Proof.
apply/matrixP => i j; rewrite signedPerm_mul !signedPerm_entry permM mulrA.
by rewrite /signOf ffunE signr_addb.
Qed.

Lemma signedPerm_invariant p (W : 'M[R]_(n, p)) : W^T *m W = 1%:M ->
  isInvariantFrame (fun=> True) weighted (fun x => signedPerm x.1 x.2 *m W).
Proof.
move=> hW; split=> // [x|e s f _].
  by rewrite trmx_mul -mulmxA (mulmxA (signedPerm _ _)^T) signedPerm_orthogonal mul1mx.
split=> //=; pose g (x : signs * 'S_n) := ([ffun i => e i (+) x.1 (s i)], (s * x.2)%g).
have g_inj : injective g.
  move=> [e1 s1] [e2 s2] [/ffunP h /mulgI ->]; congr (_, _); apply/ffunP => i.
  by have := h (s^-1%g i); rewrite !ffunE permKV => /addbI.
rewrite [RHS](reindex_inj g_inj) /=; apply: eq_bigr => x _.
by rewrite mulmxA signedPerm_comp.
Qed.
End SignedPermutations.
