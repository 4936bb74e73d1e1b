(* The invariant mean on the orthogonal group O(n): the values of the Haar integral on polynomials
   in the entries of a rotation and on their uniform limits (all continuous functions), without
   measure theory. The mean of f is the number that the averages of f over almost invariant finite
   sets of rotations (AlmostInvariant.v) approach. Over any complete ordered field; axioms: the
   three of boolp. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From mathcomp.classical Require Import boolp classical_sets.
From mathcomp Require Import reals.
From Gonio Require Import Frobenius Gauge MomentRatio Isotropy AlmostInvariant.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.
Local Open Scope classical_set_scope.

Section HaarMean.
Variables (R : realType) (n : nat).
Implicit Types (f : rotation R n -> R) (g h : rotation R n) (mu : weights R n).

(* a condition on averages holds for all that are almost invariant for some representation *)
Definition eventually (P : weights R n -> Prop) : Prop :=
  exists N (r : 'M[R]_n -> 'M[R]_N) e, [/\ isRep r, 0 < e &
    forall mu, almostInvariant r e mu -> P mu].
(* averages of f over almost invariant mu approach v *)
Definition hasHaarMean f v : Prop :=
  forall c, 0 < c -> eventually (fun mu => `|avg mu f - v| <= c).
Definition haarIntegrable f : Prop := exists v, hasHaarMean f v.
(* the Haar mean of f; 0 if it has none *)
Definition haarMean f : R :=
  if pselect (haarIntegrable f) is left h then projT1 (cid h) else 0.

Lemma eventually_witness P : eventually P -> exists mu, isProb mu /\ P mu.
Proof.
move=> [N [r [e [hr e0 h]]]]; have [mu hmu] := almostInvariant_exists hr e0.
by exists mu; split; [case: hmu | apply: h].
Qed.

Lemma eventually_and P P' : eventually P -> eventually P' -> eventually (fun mu => P mu /\ P' mu).
Proof.
move=> [N [r [e [hr e0 h]]]] [N' [r' [e' [hr' e'0 h']]]].
exists (N + N')%N, (blockRep r r'), (Num.min e e'); split.
- exact: blockRep_rep.
- by rewrite lt_minr e0.
move=> mu /almostInvariant_block[i i']; split; [apply: h|apply: h'].
  by apply: almostInvariant_mono i; rewrite le_minl lexx.
by apply: almostInvariant_mono i'; rewrite le_minl lexx orbT.
Qed.

Lemma eventually_imp (P P' : weights R n -> Prop) : (forall mu, isProb mu -> P mu -> P' mu) ->
  eventually P -> eventually P'.
Proof.
move=> PP [N [r [e [hr e0 h]]]]; exists N, r, e; split=> // mu hmu.
by apply: PP; [case: hmu | apply: h].
Qed.

Lemma haar_unique f v w : hasHaarMean f v -> hasHaarMean f w -> v = w.
Proof.
move=> hv hw; apply/eqP; rewrite -subr_eq0 -normr_le0 leNgt; apply/negP => p.
have p3 : 0 < `|v - w| / 3%:R by rewrite divr_gt0 ?ltr0n.
have [mu [_ [h1 h2]]] := eventually_witness (eventually_and (hv _ p3) (hw _ p3)).
have := ler_dist_add (avg mu f) v w; rewrite distrC in h1; move/le_trans/(_ (ler_add h1 h2)).
rewrite -mulrDl ler_pdivl_mulr ?ltr0n // -[leRHS]mulr2n -[leRHS]mulr_natr.
by rewrite ler_pmul2l // ler_nat.
Qed.

Lemma haarMeanE f v : hasHaarMean f v -> haarMean f = v.
Proof.
move=> h; rewrite /haarMean; case: pselect => [i|[]]; last by exists v.
exact: haar_unique (projT2 (cid i)) h.
Qed.
Lemma haarMeanP f : haarIntegrable f -> hasHaarMean f (haarMean f).
Proof. by move=> [v h]; rewrite (haarMeanE h). Qed.

(* Cauchy's criterion *)
Lemma haar_cauchy f : (forall c, 0 < c -> exists a, eventually (fun mu => `|avg mu f - a| <= c)) ->
  haarIntegrable f.
Proof.
move=> cauchy; pose S : set R := [set y | eventually (fun mu => y <= avg mu f)].
have near c a : 0 < c -> eventually (fun mu => `|avg mu f - a| <= c) ->
    S (a - c) /\ ubound S (a + c).
  move=> c0 h; split=> [|y hy].
    apply: eventually_imp h => mu _; rewrite ler_norml ler_subr_addl => /andP[+ _].
    by rewrite addrC.
  have [mu [_ [h1 h2]]] := eventually_witness (eventually_and hy h).
  apply: le_trans h1 _; rewrite ler_norml in h2; case/andP: h2 => _.
  by rewrite ler_subl_addl.
exists (sup S) => c c0; have c2 : 0 < c / 2%:R by rewrite divr_gt0 ?ltr0n.
have [a h] := cauchy _ c2; have [Sa ub] := near _ _ c2 h.
have s1 : a - c / 2%:R <= sup S by apply: sup_ub => //; exists (a + c / 2%:R).
have s2 : sup S <= a + c / 2%:R by apply: sup_le_ub => //; exists (a - c / 2%:R).
apply: eventually_imp h => mu _ h.
apply: le_trans (ler_dist_add a _ _) _; rewrite [leRHS](_ : c = c / 2%:R + c / 2%:R); last by field.
apply: ler_add => //; rewrite distrC ler_norml ler_subl_addl s2 andbT.
by rewrite ler_subr_addl.
Qed.

Lemma haar_uniform_limit f : (forall c, 0 < c -> exists f', haarIntegrable f' /\
  forall g, `|f g - f' g| <= c) -> haarIntegrable f.
Proof.
move=> h; apply: haar_cauchy => c c0; have c2 : 0 < c / 2%:R by rewrite divr_gt0 ?ltr0n.
have [f' [[v hv] close]] := h _ c2; exists v; apply: eventually_imp (hv _ c2) => mu pm le.
apply: le_trans (ler_dist_add (avg mu f') _ _) _.
rewrite [leRHS](_ : c = c / 2%:R + c / 2%:R); last by field.
by apply: ler_add => //; apply: avg_dist.
Qed.

(* ---------- it is an expectation, invariant under rotations ---------- *)
Lemma haar_cst c : hasHaarMean (fun=> c) c.
Proof.
move=> e e0; exists 1%N, (fun=> 1%:M), 1; split=> //; rewrite ?ltr01 //.
  by split=> *; rewrite ?mul1mx // /orthogonal trmx1 mul1mx.
by move=> mu [pm _]; rewrite avg_cst // subrr normr0 ltW.
Qed.

Lemma haar_lin a f f' v v' : hasHaarMean f v -> hasHaarMean f' v' ->
  hasHaarMean (fun g => a * f g + f' g) (a * v + v').
Proof.
move=> h h' c c0; pose b := c / (`|a| + 1).
have a1 : 0 < `|a| + 1 by rewrite ltr_paddl ?ltr01.
have b0 : 0 < b by rewrite divr_gt0.
apply: eventually_imp (eventually_and (h _ b0) (h' _ b0)) => mu pm [l l'].
rewrite avg_lin (_ : _ - _ = a * (avg mu f - v) + (avg mu f' - v')); last by ring.
apply: le_trans (ler_norm_add _ _) _; rewrite normrM.
rewrite (_ : c = `|a| * b + b); last by rewrite /b; field; rewrite gt_eqF.
by rewrite ler_add // ler_wpmul2l.
Qed.

Lemma haar_expectation : isExpectation haarIntegrable haarMean.
Proof.
split.
- by move=> c; exists c; apply: haar_cst.
- by move=> a f f' [v h] [v' h']; exists (a * v + v'); apply: haar_lin.
- by move=> c; apply/haarMeanE/haar_cst.
- by move=> a f f' h h'; apply: haarMeanE; apply: haar_lin; apply: haarMeanP.
move=> f hf f0; rewrite leNgt; apply/negP => neg.
have c0 : 0 < - haarMean f / 2%:R by rewrite divr_gt0 ?ltr0n ?oppr_gt0.
have [mu [pm]] := eventually_witness (haarMeanP hf c0).
rewrite ler_norml => /andP[_]; have := avg_ge0 pm f0.
move: (avg mu f) (haarMean f) neg c0 => x y neg c0 x0.
rewrite ler_subl_addl => h; have := le_trans x0 h.
rewrite (_ : y + - y / 2%:R = - (- y / 2%:R)); last by field.
by rewrite oppr_ge0 leNgt c0.
Qed.

(* moving the argument by a rotation h does not change the mean *)
Lemma haar_moved h f v : hasHaarMean f v -> hasHaarMean (fun g => f (rotationMul h g)) v.
Proof.
move=> hf c c0; have [N [r [e [hr e0 H]]]] := hf c c0.
exists N, r, (e / 4%:R); split=> //; first by rewrite divr_gt0 ?ltr0n.
move=> mu hmu; rewrite -avg_moved; apply: H; apply: almostInvariant_moved => //.
exact: ltW.
Qed.

Lemma haar_invariant h f : haarIntegrable f ->
  haarIntegrable (fun g => f (rotationMul h g)) /\
  haarMean (fun g => f (rotationMul h g)) = haarMean f.
Proof.
move=> /haarMeanP hf; have h' := haar_moved h hf.
by split; [exists (haarMean f) | apply: haarMeanE].
Qed.

Lemma haar_hasMean f v : hasMean haarIntegrable haarMean f v -> haarIntegrable f.
Proof. by move=> [f' [i ff _]]; rewrite (_ : f = f') //; apply/funext => g; rewrite ff. Qed.

(* ---------- polynomials in the entries ---------- *)
(* matrix coefficients of representations *)
Definition isCoefficient f : Prop := exists N (r : 'M[R]_n -> 'M[R]_N) (C : 'M[R]_N),
  isRep r /\ forall g, f g = mdot C (r (sval g)).

Lemma avg_coefficient N (r : 'M[R]_n -> 'M[R]_N) C f mu :
  (forall g, f g = mdot C (r (sval g))) -> avg mu f = mdot C (image r mu).
Proof.
move=> h; rewrite /avg /image; elim: mu => [|x mu IH]; first by rewrite !big_nil mdot0r.
by rewrite !big_cons mdotDr mdotZr IH h.
Qed.

Lemma coefficient_integrable f : isCoefficient f -> haarIntegrable f.
Proof.
move=> [N [r [C [hr hf]]]]; apply: haar_cauchy => c c0.
pose K := frobeniusSq C; pose e := c ^+ 2 / (4%:R * (K + 1)).
have K0 : 0 <= K := frobeniusSq_nonneg C.
have K1 : 0 < K + 1 by rewrite ltr_paddl ?ltr01.
have e0 : 0 < e by rewrite divr_gt0 ?exprn_gt0 ?mulr_gt0 ?ltr0n.
have [mu0 h0] := almostInvariant_exists hr e0; exists (avg mu0 f), N, r, e; split=> // mu h.
rewrite !(avg_coefficient _ hf) -mdotBr.
suff le2 : mdot C (image r mu - image r mu0) ^+ 2 <= c ^+ 2.
  by rewrite -[leRHS](ger0_norm (ltW c0)) -!sqrtr_sqr ler_wsqrtr.
apply: le_trans (cauchy_schwarz _ _) _; rewrite -/K.
apply: le_trans (ler_wpmul2l K0 (image_close h h0)) _.
rewrite -subr_ge0 (_ : _ - _ = c ^+ 2 / (K + 1)) ?divr_ge0 ?sqr_ge0 ?(ltW K1) //.
by rewrite /e; field; rewrite gt_eqF.
Qed.

(* an entry of Q W, and constants *)
Lemma coefficient_entry p (W : 'M[R]_(n, p)) i j : isCoefficient (fun g => (sval g *m W) i j).
Proof.
exists n, id, (delta_mx i j *m W^T); split=> // g.
by rewrite -mdot_delta mdot_mulr.
Qed.
Lemma coefficient_cst c : isCoefficient (fun=> c).
Proof.
exists 1%N, (fun=> 1%:M), (c%:M); split=> [|g].
  by split=> *; rewrite ?mul1mx // /orthogonal trmx1 mul1mx.
by rewrite mdotE trmx1 mulmx1 mxtrace_scalar.
Qed.

(* products, through the tensor product of matrices *)
Section Tensor.
Variables (N N' : nat).
Local Notation I := {: 'I_N * 'I_N'}.
Local Notation K := #|I|.
Definition tensor (A : 'M[R]_N) (B : 'M[R]_N') : 'M[R]_K := \matrix_(i, j)
  (A (enum_val i).1 (enum_val j).1 * B (enum_val i).2 (enum_val j).2).

Lemma sum_pairs (F : I -> R) : \sum_(k < K) F (enum_val k) = \sum_i \sum_j F (i, j).
Proof.
rewrite (reindex (@enum_rank [finType of I])) /=; last by apply: onW_bij; apply: enum_rank_bij.
rewrite (eq_bigr F) => [|p _]; last by rewrite enum_rankK.
by rewrite pair_bigA; apply: eq_bigr => -[i j].
Qed.

Lemma tensor_mul A B A' B' : tensor A B *m tensor A' B' = tensor (A *m A') (B *m B').
Proof.
apply/matrixP => i j; pose F (p : I) := A (enum_val i).1 p.1 * A' p.1 (enum_val j).1 *
  (B (enum_val i).2 p.2 * B' p.2 (enum_val j).2).
have -> : (tensor A B *m tensor A' B') i j = \sum_(k < K) F (enum_val k).
  by rewrite mxE; apply: eq_bigr => k _; rewrite !mxE mulrACA.
rewrite (sum_pairs F) !mxE mulr_suml; apply: eq_bigr => k _.
by rewrite mulr_sumr.
Qed.
Lemma tensor_tr A B : (tensor A B)^T = tensor A^T B^T.
Proof. by apply/matrixP => i j; rewrite !mxE. Qed.
Lemma tensor1 : tensor 1%:M 1%:M = 1%:M.
Proof.
apply/matrixP => i j; rewrite !mxE -natrM mulnb -xpair_eqE -!surjective_pairing.
by rewrite (inj_eq enum_val_inj).
Qed.
Lemma tensor_dot A B A' B' : mdot (tensor A B) (tensor A' B') = mdot A A' * mdot B B'.
Proof.
rewrite !mdotE tensor_tr tensor_mul; move: (A *m _) (B *m _) => P Q.
pose F (p : I) := P p.1 p.1 * Q p.2 p.2.
have -> : \tr (tensor P Q) = \sum_(k < K) F (enum_val k) by apply: eq_bigr => k _; rewrite mxE.
by rewrite (sum_pairs F) /mxtrace mulr_suml; apply: eq_bigr => i _; rewrite mulr_sumr.
Qed.
End Tensor.

Lemma coefficient_mul f f' : isCoefficient f -> isCoefficient f' -> isCoefficient (fun g => f g *
  f' g).
Proof.
move=> [N [r [C [[m o] hf]]]] [N' [r' [C' [[m' o'] hf']]]].
exists _, (fun Q => tensor (r Q) (r' Q)), (tensor C C'); split=> [|g].
  split=> [P Q|Q oQ]; first by rewrite m m' tensor_mul.
  by rewrite /orthogonal tensor_tr tensor_mul o // o' // tensor1.
by rewrite tensor_dot hf hf'.
Qed.

Lemma coefficient_exp f k : isCoefficient f -> isCoefficient (fun g => f g ^+ k).
Proof.
move=> hf; elim: k => [|k IH]; first exact: coefficient_cst.
have := coefficient_mul hf IH; rewrite (_ : (fun g => f g * f g ^+ k) = (fun g => f g ^+ k.+1)) //.
by apply/funext => g; rewrite exprS.
Qed.
End HaarMean.
