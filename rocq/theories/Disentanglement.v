(* Energy and stable rank are independent: each can be chosen freely beside the other.
   Axioms: those of the supremum (see SpectralNorm). *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import reals.
From Gonio Require Import Frobenius SpectralNorm StableRank.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Disentanglement.
Variable R : realType.
Implicit Types c e a : R.

(* If |M|_F^2 = d and |M|_2^2 = sqrt d, then the stable rank is sqrt d. This is the definition of
   stable rank and d / sqrt d = sqrt d, nothing more. *)
Theorem stable_rank_acoustic_scaling m n (M : 'M[R]_(m, n)) (d : R) : 0 < d ->
  frobeniusSq M = d -> spectralSq M = Num.sqrt d -> stableRank M = Num.sqrt d.
Proof.
move=> d0 hF hS; rewrite /stableRank hF hS -{1}(sqr_sqrtr (ltW d0)) expr2 mulfK //.
by rewrite gt_eqF // sqrtr_gt0.
Qed.

Lemma rescale_energy m n (M : 'M[R]_(m, n)) e : M != 0 -> 0 < e ->
  exists c, frobeniusSq (c *: M) = e /\ stableRank (c *: M) = stableRank M.
Proof.
rewrite -frob_gt0 => M0 e0; have ch : 0 < e / frobeniusSq M by rewrite divr_gt0.
exists (Num.sqrt (e / frobeniusSq M)); split; last first.
  by rewrite stableRank_smul_invariant // gt_eqF // sqrtr_gt0.
by rewrite frobeniusSq_smul sqr_sqrtr ?(ltW ch) // divfK // gt_eqF.
Qed.

(* the m x n matrix with s_0, s_1, ... on its diagonal *)
Definition rect_diag m n (s : nat -> R) : 'M[R]_(m, n) :=
  \matrix_(i, j) (if i == j :> nat then s i else 0).

Lemma rect_diag_mul m n s (x : 'cV[R]_n) (i : 'I_m) :
  (rect_diag m n s *m x) i 0 = if insub (i : nat) is Some j then s i * x j 0 else 0.
Proof.
rewrite mxE; case: insubP => [j _ ji|ni].
  rewrite (bigD1 j) //= mxE ji eqxx big1 ?addr0 // => k kj; rewrite mxE -ji.
  by rewrite eq_sym -val_eqE in kj *; rewrite (negPf kj) mul0r.
rewrite big1 // => k _; rewrite mxE; case: eqP => [ik|_]; last by rewrite mul0r.
by move: ni; rewrite ik ltn_ord.
Qed.

Lemma frob_rect_diag m n s :
  frobeniusSq (rect_diag m n s) = \sum_(i < minn m n) s i ^+ 2.
Proof.
transitivity (\sum_(i < m | (i < n)%N) s i ^+ 2).
  rewrite [RHS]big_mkcond; apply: eq_bigr => i _; case: ifP => [h|/negbT h].
    rewrite (bigD1 (Ordinal h)) //= mxE eqxx big1 ?addr0 // => k kj; rewrite mxE.
    by rewrite -val_eqE /= eq_sym in kj; rewrite (negPf kj) expr0n.
  rewrite big1 // => k _; rewrite mxE; case: eqP => [ik|_]; last by rewrite expr0n.
  by move: h; rewrite ik ltn_ord.
case: (leqP m n) => [mn|/ltnW nm].
  by apply: eq_bigl => i; rewrite (leq_trans (ltn_ord i)).
by rewrite (big_ord_widen _ (fun i => s i ^+ 2) nm).
Qed.

Lemma spectral_rect_diag m n s : s 0%N = 1 -> (forall i, s i ^+ 2 <= 1) ->
  spectralSq (rect_diag m.+1 n.+1 s) = 1.
Proof.
move=> s0 s1; apply/eqP; rewrite eq_le; apply/andP; split.
  apply: spectral_le => [|x hx]; [exact: ler01 | rewrite -hx].
  have -> : frobeniusSq (rect_diag m.+1 n.+1 s *m x) = \sum_(i < m.+1)
      (if insub (i : nat) is Some j then (s i * x j 0) ^+ 2 else 0).
    apply: eq_bigr => i _; rewrite big_ord1 rect_diag_mul.
    by case: insubP => // _; rewrite expr0n.
  apply: (@le_trans _ _ (\sum_(i < m.+1)
      (if insub (i : nat) is Some j then (x (j : 'I_n.+1) 0) ^+ 2 else 0))).
    apply: ler_sum => i _; case: insubP => // j _ _.
    by rewrite exprMn ler_pimull ?sqr_ge0.
  pose f (i : nat) := if insub i is Some j then (x (j : 'I_n.+1) 0) ^+ 2 else 0.
  have f0 i : 0 <= f i by rewrite /f; case: insubP => // j _ _; rewrite sqr_ge0.
  have -> : frobeniusSq x = \sum_(i < n.+1) f i.
    by apply: eq_bigr => j _; rewrite big_ord1 /f valK.
  have f1 i : (n.+1 <= i)%N -> f i = 0.
    by move=> ni; rewrite /f; case: insubP => // j; rewrite ltnNge ni.
  rewrite -[leRHS](big_mkord xpredT f) -[leLHS](big_mkord xpredT f).
  case: (leqP m.+1 n.+1) => h.
    by rewrite [leRHS](big_cat_nat _ _ _ (leq0n m.+1) h) ler_addl sumr_ge0.
  rewrite [leLHS](big_cat_nat _ _ _ (leq0n n.+1) (ltnW h)) /= big_nat_cond.
  rewrite [X in _ + X]big_nat_cond [X in _ + X]big1 ?addr0 => [|i]; last first.
    by rewrite andbT => /andP[h1 _]; rewrite f1.
  by rewrite -big_nat_cond.
have := spectral_ub (rect_diag m.+1 n.+1 s) (frob_delta R (0 : 'I_n.+1)).
apply: le_trans; rewrite /frobeniusSq (bigD1 0) //= big_ord1 rect_diag_mul.
case: insubP => // j _ /= j0; have -> : j = 0 by apply: val_inj.
rewrite s0 mxE eqxx mulr1 expr1n ler_addl; apply: sumr_ge0 => i _.
by apply: sumr_ge0 => k _; rewrite sqr_ge0.
Qed.

(* Energy says nothing about stable rank, and the other way round: any matrix other than 0 can be
   scaled to any energy e > 0 with its stable rank kept, and for every a between 1 and min(m, n)
   some m x n matrix has energy e and stable rank a. *)
Theorem stable_rank_disentanglement m n e : 0 < e ->
  (forall M : 'M[R]_(m, n), M != 0 ->
     exists c, frobeniusSq (c *: M) = e /\ stableRank (c *: M) = stableRank M) /\
  (forall a, 1 <= a <= (minn m n)%:R ->
     exists M : 'M[R]_(m, n), frobeniusSq M = e /\ stableRank M = a).
Proof.
move=> e0; split=> [M M0|a /andP[a1 ap]]; first exact: rescale_energy.
suff [M [M0 hM]] : exists M : 'M[R]_(m, n), M != 0 /\ stableRank M = a.
  by have [c [h1 h2]] := rescale_energy M0 e0; exists (c *: M); rewrite h1 h2.
have p0 : (0 < minn m n)%N by rewrite -(ltr0n R) (lt_le_trans ltr01) // (le_trans a1).
case: m n p0 ap => [|m] [|n] //; rewrite minnSS => _ ap.
set p := minn m n in ap.
pose t := Num.sqrt ((a - 1) / p%:R); pose s i : R := if i is 0%N then 1 else t.
have a10 : 0 <= a - 1 by rewrite subr_ge0.
have tp : p%:R * t ^+ 2 = a - 1.
  rewrite sqr_sqrtr ?divr_ge0 ?ler0n //; have [p0|p0] := eqVneq (p%:R : R) 0.
    apply/eqP; rewrite p0 mul0r eq_sym eq_le a10 andbT subr_le0.
    by rewrite -addn1 natrD p0 add0r in ap.
  by rewrite mulrC divfK.
have t1 : t ^+ 2 <= 1.
  rewrite sqr_sqrtr ?divr_ge0 ?ler0n //; have [->|p0] := eqVneq (p%:R : R) 0.
    by rewrite invr0 mulr0 ler01.
  rewrite ler_pdivr_mulr ?lt_def ?p0 ?ler0n // mul1r ler_subl_addr.
  by rewrite -addn1 natrD in ap.
have hF : frobeniusSq (rect_diag m.+1 n.+1 s) = a.
  rewrite frob_rect_diag minnSS big_ord_recl expr1n (eq_bigr (fun=> t ^+ 2)) //.
  rewrite sumr_const card_ord -mulr_natl.
  by rewrite -/p tp addrC subrK.
exists (rect_diag m.+1 n.+1 s); split; first by rewrite -frob_gt0 hF (lt_le_trans ltr01).
by rewrite /stableRank hF spectral_rect_diag ?divr1 // => -[|i]; rewrite ?expr1n.
Qed.
End Disentanglement.
