(* How far a probability vector moves when its entries are reweighted: the algebra behind the
   softmax bound. Over any ordered field: no axioms. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Reweighting.
Variable R : realFieldType.

(* A, B: reweighted mass of the entries that grow and that shrink; P: old mass of those that grow *)
Lemma tv_core (A B P s : R) : 0 <= A -> 0 <= P <= 1 -> 1 <= s ->
  A <= s * P -> (1 - P) / s <= B ->
  (A - (A + B) * P) * (s + 1) <= (s - 1) * (A + B).
Proof.
move=> A0 /andP[P0 P1] s1 AP BP.
have s0 : 0 < s by rewrite (lt_le_trans ltr01).
rewrite -subr_ge0.
have -> : (s - 1) * (A + B) - (A - (A + B) * P) * (s + 1) =
  A * (P * (s + 1) - 2%:R) + B * (s - 1 + P * (s + 1)) by ring.
have k0 : 0 <= s - 1 + P * (s + 1).
  apply: addr_ge0; rewrite ?subr_ge0 //; apply: mulr_ge0 => //.
  by rewrite addr_ge0 ?ler01 ?(ltW s0).
have hB : (1 - P) / s * (s - 1 + P * (s + 1)) <= B * (s - 1 + P * (s + 1)).
  by rewrite ler_wpmul2r.
case: (lerP 0 (P * (s + 1) - 2%:R)) => c0.
  rewrite addr_ge0 ?mulr_ge0 //; apply: le_trans BP.
  by rewrite divr_ge0 ?subr_ge0 // ltW.
have hA : s * P * (P * (s + 1) - 2%:R) <= A * (P * (s + 1) - 2%:R).
  by rewrite ler_wnmul2r // ltW.
apply: le_trans (ler_add hA hB).
have -> : s * P * (P * (s + 1) - 2%:R) + (1 - P) / s * (s - 1 + P * (s + 1)) =
   (s - 1) * ((s + 1) * P - 1) ^+ 2 / s.
  by field; rewrite gt_eqF.
by rewrite mulr_ge0 ?invr_ge0 ?(ltW s0) // mulr_ge0 ?sqr_ge0 // subr_ge0.
Qed.

(* p is a probability vector, the weights w lie between 1/s and s *)
Variables (n : nat) (p w : 'I_n -> R) (s : R).
Hypotheses (p0 : forall i, 0 <= p i) (p1 : \sum_i p i = 1) (s1 : 1 <= s).
Hypotheses (wl : forall i, s^-1 <= w i) (wu : forall i, w i <= s).
Let Z := \sum_i p i * w i.

Let s0 : 0 < s. Proof. by rewrite (lt_le_trans ltr01). Qed.
Lemma Z_gt0 : 0 < Z.
Proof.
apply: (@lt_le_trans _ _ s^-1); first by rewrite invr_gt0.
rewrite -[leLHS]mul1r -p1 mulr_suml; apply: ler_sum => i _.
by rewrite ler_wpmul2l.
Qed.

(* the reweighted and renormalized vector is at most 2 (s - 1)/(s + 1) away in l1 *)
Lemma reweight_tv : \sum_i `|p i * w i / Z - p i| <= 2%:R * (s - 1) / (s + 1).
Proof.
have Z0 := Z_gt0.
pose S := fun i => Z <= w i.
pose P := \sum_(i | S i) p i; pose A := \sum_(i | S i) p i * w i.
pose B := \sum_(i | ~~ S i) p i * w i.
have ZE : Z = A + B by rewrite /Z (bigID S).
have PE : \sum_(i | ~~ S i) p i = 1 - P by rewrite -p1 [X in X - _](bigID S) /= addrC addKr.
have -> : \sum_i `|p i * w i / Z - p i| = 2%:R * (A - Z * P) / Z.
  have -> : \sum_i `|p i * w i / Z - p i| =
     (\sum_(i | S i) (p i * w i - Z * p i) + \sum_(i | ~~ S i) (Z * p i - p i * w i)) / Z.
    rewrite (bigID S) /= mulrDl !mulr_suml; congr (_ + _); apply: eq_bigr => i hi.
      have -> : p i * w i / Z - p i = p i * (w i - Z) / Z by field; rewrite gt_eqF.
      rewrite ger0_norm; first by field; rewrite gt_eqF.
      by rewrite mulr_ge0 ?invr_ge0 ?(ltW Z0) // mulr_ge0 // subr_ge0.
    have -> : p i * w i / Z - p i = - (p i * (Z - w i) / Z) by field; rewrite gt_eqF.
    rewrite normrN ger0_norm; first by field; rewrite gt_eqF.
    rewrite mulr_ge0 ?invr_ge0 ?(ltW Z0) // mulr_ge0 // subr_ge0.
    by move: hi; rewrite -ltNge; apply: ltW.
  rewrite !sumrB -!mulr_sumr PE -/P -/A -/B.
  have BE : B = Z - A by rewrite ZE addrC addKr.
  by congr (_ / _); rewrite BE; ring.
have s10 : 0 < s + 1 by rewrite addr_gt0 ?ltr01.
rewrite ler_pdivr_mulr // [leRHS]mulrAC ler_pdivl_mulr // -!mulrA ler_pmul2l ?ltr0n // ZE.
apply: tv_core => //.
- by apply: sumr_ge0 => i _; rewrite mulr_ge0 // (le_trans _ (wl i)) // invr_ge0 ltW.
- apply/andP; split; first by apply: sumr_ge0.
  by rewrite -subr_ge0 -PE sumr_ge0.
- by rewrite mulr_sumr; apply: ler_sum => i _; rewrite mulrC ler_wpmul2r.
- rewrite -PE mulr_suml; apply: ler_sum => i _; by rewrite ler_wpmul2l.
Qed.
End Reweighting.
