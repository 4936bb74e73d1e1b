(* Softmax: blind to a common shift, and 1-Lipschitz from the largest change of a logit to the
   l1 change of the probabilities.
   Over any complete ordered field; exp and derivatives bring in the three axioms of boolp. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From mathcomp.classical Require Import boolp classical_sets functions mathcomp_extra.
From mathcomp Require Import reals topology normedtype derive sequences exp.
From Gonio Require Import Frobenius Reweighting.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Import numFieldNormedType.Exports.
Local Open Scope ring_scope.
Local Open Scope classical_set_scope.

Section Exponential.
Variable R : realType.

Lemma exp_below (t : R) : 0 <= t -> 0 <= (t - 1) * expR t + 1.
Proof.
move=> t0; pose f : R -> R := fun u => (u - 1) * expR u + 1.
pose df : R -> R := fun u => u * expR u.
have dfE (u : R) : is_derive u 1 f (df u).
  by rewrite /f /df; apply: is_derive_eq; rewrite /GRing.scale /=; ring.
have cf : {within `[0, t], continuous f}.
  by apply: continuous_subspaceT => x; apply/differentiable_continuous/derivable1_diffP.
have [c cin h] := MVT_segment t0 (fun x _ => dfE x) cf.
have -> : (t - 1) * expR t + 1 = f t - f 0 by rewrite /f expR0; ring.
rewrite h subr0 /df; have /andP[c0 _] : 0 <= c <= t by move: cin; rewrite in_itv.
by rewrite !mulr_ge0 // ltW // expR_gt0.
Qed.

(* 2 tanh(t/2) <= t *)
Lemma tanh_le (t : R) : 0 <= t -> 2%:R * (expR t - 1) / (expR t + 1) <= t.
Proof.
move=> t0; pose f : R -> R := fun u => u * (expR u + 1) - 2%:R * (expR u - 1).
pose df : R -> R := fun u => (u - 1) * expR u + 1.
have dfE (u : R) : is_derive u 1 f (df u).
  by rewrite /f /df; apply: is_derive_eq; rewrite /GRing.scale /=; ring.
have cf : {within `[0, t], continuous f}.
  by apply: continuous_subspaceT => x; apply/differentiable_continuous/derivable1_diffP.
have [c cin h] := MVT_segment t0 (fun x _ => dfE x) cf.
rewrite ler_pdivr_mulr ?addr_gt0 ?expR_gt0 ?ltr01 // -subr_ge0.
have -> : t * (expR t + 1) - 2%:R * (expR t - 1) = f t - f 0 by rewrite /f expR0; ring.
rewrite h subr0; have /andP[c0 _] : 0 <= c <= t by move: cin; rewrite in_itv.
by rewrite mulr_ge0 // exp_below.
Qed.

(* 2 tanh(t/2) >= t / (1 + t/2) *)
Lemma tanh_ge (t : R) : 0 <= t -> t / (1 + t / 2%:R) <= 2%:R * (expR t - 1) / (expR t + 1).
Proof.
move=> t0; have e1 := expR_ge1Dx t0; have e0 : 0 < expR t + 1 by rewrite addr_gt0 ?expR_gt0 ?ltr01.
have h2 : 0 < 1 + t / 2%:R by rewrite ltr_paddr ?ltr01 // divr_ge0 ?ler0n.
rewrite ler_pdivl_mulr // mulrAC ler_pdivr_mulr // -subr_ge0.
have -> : 2%:R * (expR t - 1) * (1 + t / 2%:R) - t * (expR t + 1) = 2%:R * (expR t - (1 + t)).
  by field.
by apply: mulr_ge0; rewrite ?ler0n // subr_ge0.
Qed.
End Exponential.

Section Softmax.
Variables (R : realType) (n : nat).
Local Notation tokens := 'I_n.+1.
Implicit Types x y : tokens -> R.

Definition softmax x (i : tokens) : R := expR (x i) / \sum_j expR (x j).
Definition l1Distance x y : R := \sum_i `|x i - y i|.
Definition linfDistance x y : R := \big[Num.max/0]_i `|x i - y i|.

Lemma partition_gt0 x : 0 < \sum_j expR (x j).
Proof.
rewrite (bigD1 ord0) //= ltr_paddr ?expR_gt0 //.
by apply: sumr_ge0 => i _; apply/ltW/expR_gt0.
Qed.
Lemma softmax_gt0 x i : 0 < softmax x i.
Proof. by rewrite divr_gt0 ?expR_gt0 ?partition_gt0. Qed.
Lemma softmax_sum1 x : \sum_i softmax x i = 1.
Proof. by rewrite -mulr_suml divff // gt_eqF // partition_gt0. Qed.
Lemma softmax_shift x c i : softmax (fun j => x j + c) i = softmax x i.
Proof.
rewrite /softmax expRD (eq_bigr (fun j => expR (x j) * expR c)) => [|j _]; last exact: expRD.
by rewrite -mulr_suml invfM mulrACA divff ?mulr1 // gt_eqF ?expR_gt0.
Qed.

(* Subtracting one vector mu from every key leaves the attention probabilities of any query q as
   they were: centering keys by a channel mean costs nothing. *)
Theorem softmax_shift_invariance d (q mu : 'cV[R]_d) (k : tokens -> 'cV[R]_d) i :
  softmax (fun t => mdot q (k t - mu)) i = softmax (fun t => mdot q (k t)) i.
Proof.
rewrite -(softmax_shift (fun t => mdot q (k t)) (- mdot q mu)).
by rewrite /softmax !mdotBr; congr (_ / _); apply: eq_bigr => j _; rewrite mdotBr.
Qed.

(* logits that move by at most t move the probabilities by at most 2 tanh(t/2) *)
Lemma softmax_tanh x y t : (forall i, `|x i - y i| <= t) ->
  l1Distance (softmax x) (softmax y) <= 2%:R * (expR t - 1) / (expR t + 1).
Proof.
move=> h; have t0 : 0 <= t by rewrite (le_trans _ (h ord0)).
pose w i := expR (x i - y i).
have s1 : 1 <= expR t by rewrite -expR0 ler_expR.
have wl i : (expR t)^-1 <= w i.
  by rewrite -expRN ler_expR ler_oppl (le_trans (ler_norm _)) // normrN.
have wu i : w i <= expR t by rewrite ler_expR (le_trans (ler_norm _)).
have := reweight_tv (fun i => ltW (softmax_gt0 y i)) (softmax_sum1 y) s1 wl wu.
suff E i : softmax y i * w i / (\sum_i softmax y i * w i) = softmax x i.
  by rewrite (eq_bigr (fun i => `|softmax x i - softmax y i|)) => // i _; rewrite E.
have wE j : softmax y j * w j = expR (x j) / \sum_k expR (y k).
  by rewrite /softmax /w mulrAC -expRD addrCA subrr addr0.
rewrite wE (eq_bigr _ (fun j _ => wE j)) -mulr_suml /softmax invfM invrK mulrACA mulVf ?mulr1 //.
by rewrite gt_eqF ?partition_gt0.
Qed.

(* |softmax x - softmax y|_1 <= |x - y|_inf, for any two logit vectors. *)
Theorem softmax_linf_l1_lipschitz x y :
  l1Distance (softmax x) (softmax y) <= linfDistance x y.
Proof.
have h i : `|x i - y i| <= linfDistance x y by apply: le_bigmax.
by rewrite (le_trans (softmax_tanh h)) // tanh_le // (le_trans _ (h ord0)).
Qed.
End Softmax.

Section Sharp.
Variable R : realType.

(* The constant 1 is the best: for every c < 1 there are two different logit vectors over two tokens
   whose probabilities differ by more than c times their largest difference. *)
Theorem softmax_linf_l1_lipschitz_sharp (c : R) : c < 1 -> exists x y : 'I_2 -> R,
  0 < linfDistance x y /\ c * linfDistance x y < l1Distance (softmax x) (softmax y).
Proof.
move=> c1; pose b := Num.max c 2%:R^-1.
have b0 : 0 < b by rewrite lt_maxr invr_gt0 ltr0n orbT.
have b1 : b < 1 by rewrite lt_maxl c1 /= invf_lt1 ?ltr1n ?ltr0n.
pose t : R := 1 - b; have t0 : 0 < t by rewrite subr_gt0.
pose x (i : 'I_2) : R := if i == 0 then t else 0.
pose y (i : 'I_2) : R := if i == 0 then 0 else t.
have dist i : `|x i - y i| = t.
  by rewrite /x /y; case: ifP => _; rewrite ?subr0 ?sub0r ?normrN gtr0_norm.
have linf : linfDistance x y = t.
  rewrite /linfDistance (eq_bigr (fun=> t)) => [|i _]; last exact: dist.
  by rewrite !big_ord_recl big_ord0 (max_l (ltW t0)) maxxx.
have l1 : l1Distance (softmax x) (softmax y) = 2%:R * (expR t - 1) / (expR t + 1).
  have e0 : 0 < expR t + 1 by rewrite addr_gt0 ?expR_gt0 ?ltr01.
  have et : 0 <= expR t - 1 by rewrite subr_ge0 -expR0 ler_expR ltW.
  rewrite /l1Distance /softmax !big_ord_recl !big_ord0 /x /y /= expR0 !addr0 (addrC 1 (expR t)).
  rewrite -!mulrBl !normrM (ger0_norm et) distrC (ger0_norm et) ger0_norm ?invr_ge0 ?(ltW e0) //.
  by ring.
exists x, y; rewrite linf l1; split=> //.
apply: lt_le_trans (tanh_ge (ltW t0)).
have h2 : 0 < 1 + t / 2%:R by rewrite ltr_paddr ?ltr01 // divr_ge0 ?ler0n ?ltW.
rewrite ltr_pdivl_mulr // mulrAC -[ltRHS]mul1r ltr_pmul2r //.
have cb : c <= b by rewrite le_maxr lexx.
apply: le_lt_trans (_ : b * (1 + t / 2%:R) < 1); first by rewrite ler_pmul2r.
rewrite -subr_gt0 (_ : 1 - _ = t * (1 - b / 2%:R)); last by rewrite /t; field.
by rewrite mulr_gt0 // subr_gt0 ltr_pdivr_mulr ?ltr0n // mul1r (lt_trans b1) // ltr1n.
Qed.
End Sharp.
