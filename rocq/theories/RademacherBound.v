(* The Rademacher complexity of low-rank updates on a sample: how well the best update can follow
   random signs. Averages over all 2^N sign patterns, suprema over the updates.
   Over any complete ordered field; suprema bring in the three axioms of boolp. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From mathcomp.classical Require Import boolp classical_sets.
From mathcomp Require Import reals topology sequences exp.
From Gonio Require Import Frobenius Gauge SpectralNorm StableRank RandomSigns Khintchine.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.
Local Open Scope classical_set_scope.

Section Rademacher.
Variables (R : realType) (N m n : nat).
Implicit Types (t : N.-tuple bool) (X : 'I_N -> 'M[R]_(m, n)).

(* the sample, summed with the signs t *)
Definition signedSum X t : 'M[R]_(m, n) := \sum_i sg R (tnth t i) *: X i.

Lemma mean_energy X : mean (fun t => frobeniusSq (signedSum X t)) = \sum_i frobeniusSq (X i).
Proof.
have e t : frobeniusSq (signedSum X t) = \sum_a \sum_b rade t (fun i => X i a b) ^+ 2.
  apply: eq_bigr => a _; apply: eq_bigr => b _; rewrite /signedSum summxE.
  by congr (_ ^+ 2); apply: eq_bigr => i _; rewrite mxE.
rewrite (mean_eq e) mean_sum exchange_big /=; apply: eq_bigr => a _.
rewrite mean_sum exchange_big /=; apply: eq_bigr => b _.
exact: mean_square.
Qed.

Lemma mean_le_sqrt (f : N.-tuple bool -> R) :
  mean f <= Num.sqrt (mean (fun t => f t ^+ 2)).
Proof.
apply: le_trans (ler_norm _) _; rewrite -sqrtr_sqr; apply: ler_wsqrtr; exact: mean_sq_le.
Qed.

(* updates of rank at most r and spectral norm at most a *)
Definition lowRank r a : set 'M[R]_(m, n) :=
  [set D | (\rank D <= r)%N /\ spectralSq D <= a ^+ 2].
(* the mean, over the signs, of the largest correlation of an update with the signed sample *)
Definition complexity (F : set 'M[R]_(m, n)) X : R :=
  mean (fun t => sup [set mdot D (signedSum X t) | D in F]) / N%:R.

Lemma lowRank_dot r a D S : 0 <= a -> lowRank r a D ->
  mdot D S <= a * Num.sqrt r%:R * norm2 S.
Proof.
move=> a0 [rD sD]; apply: le_trans (mdot_le_norm2 D S) _; rewrite ler_wpmul2r ?norm2_ge0 //.
rewrite mulrC -{1}(ger0_norm a0) -sqrtr_sqr -sqrtrM ?ler0n //; apply: ler_wsqrtr.
apply: le_trans (frob_le_rank_spectral D) _.
by rewrite ler_pmul ?ler0n ?spectralSq_nonneg ?ler_nat.
Qed.

Lemma lowRank0 r a : lowRank r a 0.
Proof.
by split; rewrite ?mxrank0 // (_ : spectralSq _ = 0) ?sqr_ge0 //; apply/spectralSq_eq_zero_iff.
Qed.

Lemma lowRank_delta r a (c : R) j k : (0 < r)%N -> c ^+ 2 <= a ^+ 2 ->
  lowRank r a (c *: delta_mx j k).
Proof.
move=> r0 ca; split.
  by rewrite (leq_trans (mxrank_scale _ _)) // mxrank_delta.
rewrite spectralSq_smul; apply: le_trans ca; rewrite -[leRHS]mulr1 ler_wpmul2l ?sqr_ge0 //.
apply: le_trans (spectralSq_le_frob _) _.
rewrite /frobeniusSq (bigD1 j) //= (bigD1 k) //= mxE !eqxx expr1n big1 => [|l lk].
  rewrite addr0 big1 ?addr0 // => i ij; rewrite big1 // => l _.
  by rewrite mxE (negPf ij) expr0n.
by rewrite mxE (negPf lk) andbF expr0n.
Qed.

Lemma complexity_ge r X a j k : (0 < N)%N -> 0 <= a -> (0 < r)%N ->
  a * mean (fun t => `|signedSum X t j k|) / N%:R <= complexity (lowRank r a) X.
Proof.
move=> N0 a0 r0; rewrite /complexity ler_pmul2r ?invr_gt0 ?ltr0n // -meanZ; apply: mean_ge => t.
apply: sup_ub.
  exists (a * Num.sqrt r%:R * norm2 (signedSum X t)) => y [D hD <-].
  exact: lowRank_dot.
case: (lerP 0 (signedSum X t j k)) => h.
  exists (a *: delta_mx j k); first exact: lowRank_delta.
  by rewrite mdotZl mdot_delta ger0_norm.
exists ((- a) *: delta_mx j k); first by apply: lowRank_delta; rewrite ?sqrrN.
by rewrite mdotZl mdot_delta ltr0_norm // mulNr mulrN.
Qed.

(* Let 0 <= a and |X_i|_F <= x for each of the N >= 1 examples. The complexity of the updates of
   rank at most r and spectral norm at most a is at most a x sqrt(r/N); and, if r >= 1, at least
   a/(sqrt 2 N) times the length of any one entry (j, k) over the examples. (For linear functions X
   -> <D, X> of an example.) *)
Theorem rademacher_bounds r X a x : (0 < N)%N -> 0 <= a -> 0 <= x ->
  ((forall i, norm2 (X i) <= x) -> complexity (lowRank r a) X <= a * x * Num.sqrt (r%:R / N%:R)) /\
  ((0 < r)%N -> forall j k,
     a / (Num.sqrt 2%:R * N%:R) * Num.sqrt (\sum_i X i j k ^+ 2) <= complexity (lowRank r a) X).
Proof.
move=> N0 a0 x0; have Np : 0 < N%:R :> R by rewrite ltr0n.
split=> [hX|r0 j k]; last first.
  apply: le_trans (complexity_ge X j k N0 a0 r0).
  have := khintchine_best (fun i => X i j k).
  rewrite (@mean_eq _ _ _ (fun t => `|signedSum X t j k|)) => [|t]; last first.
    by rewrite /signedSum summxE; congr Num.norm; apply: eq_bigr => i _; rewrite mxE.
  have s2 : Num.sqrt 2%:R != 0 :> R by rewrite gt_eqF // sqrtr_gt0 ltr0n.
  move: (mean _) (Num.sqrt (\sum_i _)) (Num.sqrt _) s2 => u v w w0 vu.
  rewrite (_ : a / (w * N%:R) * v = a * (v / w) / N%:R); last by field; rewrite w0 gt_eqF.
  by rewrite ler_pmul2r ?invr_gt0 // ler_wpmul2l.
pose c := a * Num.sqrt r%:R; have c0 : 0 <= c by rewrite mulr_ge0 ?sqrtr_ge0.
rewrite /complexity ler_pdivr_mulr //.
apply: le_trans (_ : mean (fun t => c * norm2 (signedSum X t)) <= _).
  apply: mean_ge => t; apply: sup_le_ub; last by move=> y [D hD <-]; apply: lowRank_dot.
  by exists (mdot 0 (signedSum X t)), 0 => //; apply: lowRank0.
have -> : a * x * Num.sqrt (r%:R / N%:R) * N%:R = c * (x * Num.sqrt N%:R).
  have NN : N%:R = Num.sqrt N%:R ^+ 2 :> R by rewrite sqr_sqrtr ?ler0n.
  rewrite sqrtrM ?ler0n // sqrtrV ?ler0n // [X in _ * X = _]NN /c.
  have : Num.sqrt N%:R != 0 :> R by rewrite gt_eqF // sqrtr_gt0.
  by move: (Num.sqrt _) (Num.sqrt _) => u v; move=> v0; field.
rewrite meanZ ler_wpmul2l //; apply: le_trans (mean_le_sqrt _) _.
have -> : x * Num.sqrt N%:R = Num.sqrt (N%:R * x ^+ 2).
  by rewrite sqrtrM ?ler0n // sqrtr_sqr ger0_norm // mulrC.
apply: ler_wsqrtr; have -> : N%:R * x ^+ 2 = \sum_(i < N) x ^+ 2.
  by rewrite sumr_const card_ord mulr_natl.
apply: le_trans (_ : mean (fun t => frobeniusSq (signedSum X t)) <= _).
  by apply: mean_ge => t; rewrite sqr_sqrtr ?frobeniusSq_nonneg.
rewrite mean_energy; apply: ler_sum => i _.
rewrite -[leLHS]sqr_sqrtr ?frobeniusSq_nonneg //.
by rewrite ler_expn2r ?nnegrE ?sqrtr_ge0 // hX.
Qed.
End Rademacher.

(* ---------- the bound in print ---------- *)
Section Printed.
Variable R : realType.

Definition printedBound alpha r m n N : R :=
  alpha * Num.sqrt (2%:R * r%:R * ln (2%:R * m%:R * n%:R)) / N%:R.

Lemma mean_abs_sum N : (3 <= N)%N ->
  3%:R / 2%:R <= mean (fun t : N.-tuple bool => `|rade t (fun=> 1 : R)|).
Proof.
have step k (x : R) : mean (fun t : k.-tuple bool => `|x + rade t (fun=> 1)|) <=
  mean (fun t : k.+1.-tuple bool => `|x + rade t (fun=> 1)|).
  rewrite mean_rec; apply: mean_ge => t; rewrite ler_pdivl_mulr ?ltr0n //.
  rewrite !rade_cons /sg expr1 expr0 !mulr1 mulr_natr mulr2n.
  move: (rade _ _) => y; rewrite [x + (-1 + y)](_ : _ = x + y - 1); last by ring.
  rewrite [x + (1 + y)](_ : _ = x + y + 1); last by ring.
  rewrite -[leLHS]mulr2n -[leLHS]mulr_natl -{1}[2%:R]ger0_norm ?ler0n // -normrM.
  rewrite (_ : 2%:R * (x + y) = (x + y - 1) + (x + y + 1)); last by ring.
  exact: ler_norm_add.
elim: N => // N IH; rewrite leq_eqVlt => /orP[/eqP [<-]|h].
  rewrite !mean_rec mean0 !rade_cons /rade !big_ord0 /sg.
  rewrite !expr1 !expr0 !mulr1 !addr0.
  have -> : -1 + (-1 - 1) = - 3%:R :> R by ring.
  have -> : 1 + (-1 - 1) = -1 :> R by ring.
  have -> : -1 + (1 + 1) = 1 :> R by ring.
  have -> : 1 + (1 + 1) = 3%:R :> R by ring.
  rewrite subrr addNr !addr0 !normrN normr1 normr_nat.
  by rewrite le_eqVlt; apply/orP; left; apply/eqP; field.
apply: le_trans (IH h) _; have := step N 0; rewrite /mean.
rewrite (eq_bigr (fun t => `|rade t (fun=> 1 : R)|)) => [|t _]; last by rewrite add0r.
rewrite [in leRHS](eq_bigr (fun t => `|rade t (fun=> 1 : R)|)) // => t _.
by rewrite add0r.
Qed.

(* The printed bound alpha sqrt(2 r log(2 m n))/N fails for the smallest model there is, one weight
   of size at most 1 (m = n = r = alpha = 1), on N >= 3 inputs equal to 1: the complexity is at
   least 3/(2 N), and 3/2 > sqrt(2 log 2). *)
Theorem rademacher_bounds_counterexample N : (3 <= N)%N ->
  let X (i : 'I_N) : 'M[R]_1 := 1%:M in
  printedBound 1 1 1 1 N < 3%:R / (2%:R * N%:R) /\
  3%:R / (2%:R * N%:R) <= complexity (lowRank 1 1) X.
Proof.
move=> N3 X; have N0 : (0 < N)%N by apply: leq_trans N3.
have Np : 0 < N%:R :> R by rewrite ltr0n.
rewrite (_ : 3%:R / (2%:R * N%:R) = 3%:R / 2%:R / N%:R :> R); last first.
  by field; rewrite gt_eqF.
split; last first.
  apply: le_trans (complexity_ge X 0 0 N0 ler01 (ltn0Sn 0)).
  rewrite mul1r ler_pmul2r ?invr_gt0 //; apply: le_trans (mean_abs_sum N3) _.
  rewrite (@mean_eq _ _ _ (fun t => `|signedSum X t 0 0|)) // => t.
  by rewrite /signedSum summxE; congr Num.norm; apply: eq_bigr => i _; rewrite !mxE.
rewrite /printedBound mul1r !mulr1 ltr_pmul2r ?invr_gt0 //.
have h0 : 0 <= 3%:R / 2%:R :> R by rewrite divr_ge0 ?ler0n.
rewrite -[ltRHS]ger0_norm // -sqrtr_sqr ltr_sqrt; last by rewrite exprn_gt0 // divr_gt0 ?ltr0n.
have e : (2%:R : R) < expR (9%:R / 8%:R).
  apply: lt_le_trans (expR_ge1Dx _); last by rewrite divr_ge0 ?ler0n.
  have -> : 1 + 9%:R / 8%:R = 2%:R + 1 / 8%:R :> R by field.
  by rewrite ltr_addl divr_gt0 ?ltr0n ?ltr01.
have l : ln 2%:R < 9%:R / 8%:R :> R by rewrite -[ltRHS]expK ltr_ln ?posrE ?expR_gt0 ?ltr0n.
rewrite (_ : (3%:R / 2%:R) ^+ 2 = 2%:R * (9%:R / 8%:R)); last by field.
by rewrite ltr_pmul2l ?ltr0n.
Qed.
End Printed.
