(* One-bit (sign) quantization of a vector k in R^d, d >= 1.
   Over any real closed field: no axioms. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From Gonio Require Import Frobenius Gauge.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section SignQuantization.
Variables (R : rcfType) (n : nat).
Local Notation d := (n.+1).
Implicit Types k s : 'cV[R]_d.

(* sign with sgn(0) = +1, entry by entry *)
Definition sgn1 (x : R) : R := if 0 <= x then 1 else -1.
Definition signVector k : 'cV[R]_d := \col_i sgn1 (k i 0).
Definition l1Norm k : R := \sum_i `|k i 0|.
(* what one bit per entry and one scale per vector can store: (|k|_1 / d) sgn(k) *)
Definition signQuant k : 'cV[R]_d := (l1Norm k / d%:R) *: signVector k.
(* every entry is +1 or -1 *)
Definition isSignVector s := forall i, s i 0 ^+ 2 = 1.

Lemma sgn1_sq x : sgn1 x ^+ 2 = 1.
Proof. by rewrite /sgn1; case: ifP => _; rewrite ?sqrrN expr1n. Qed.
Lemma mul_sgn1 x : x * sgn1 x = `|x|.
Proof.
rewrite /sgn1; case: ifP => [h|/negbT h]; first by rewrite mulr1 ger0_norm.
by rewrite mulrN1 ltr0_norm // ltNge.
Qed.
Lemma d_gt0 : 0 < d%:R :> R. Proof. by rewrite ltr0n. Qed.
Lemma d_neq0 : d%:R != 0 :> R. Proof. by rewrite pnatr_eq0. Qed.
Lemma l1_ge0 k : 0 <= l1Norm k. Proof. by apply: sumr_ge0. Qed.

Lemma l1_gt0 k : k != 0 -> 0 < l1Norm k.
Proof.
move=> k0; rewrite lt_def l1_ge0 andbT; apply: contraNN k0 => /eqP h.
apply/eqP/matrixP => i j; rewrite ord1 mxE; apply/eqP; rewrite -normr_eq0; apply/eqP.
exact: (psumr_eq0P (fun i _ => normr_ge0 (k i 0)) h).
Qed.

Lemma frob_isSign s : isSignVector s -> frobeniusSq s = d%:R.
Proof.
move=> hs; rewrite /frobeniusSq (eq_bigr (fun=> 1)) => [|i _]; last by rewrite big_ord1 hs.
by rewrite sumr_const card_ord.
Qed.
Lemma signVector_isSign k : isSignVector (signVector k).
Proof. by move=> i; rewrite mxE sgn1_sq. Qed.
Lemma frob_signVector k : frobeniusSq (signVector k) = d%:R.
Proof. exact/frob_isSign/signVector_isSign. Qed.

(* the signs of k are the sign vector most aligned with k *)
Lemma dot_signVector k : mdot k (signVector k) = l1Norm k.
Proof. by apply: eq_bigr => i _; rewrite big_ord1 mxE mul_sgn1. Qed.
Lemma dot_sign_le k s : isSignVector s -> mdot k s <= l1Norm k.
Proof.
move=> hs; apply: ler_sum => i _; rewrite big_ord1.
rewrite (le_trans (ler_norm _)) // normrM.
have -> : `|s i 0| = 1 by apply/eqP; rewrite -sqrp_eq1 // -normrX hs normr1.
by rewrite mulr1.
Qed.

(* The 1-bit cosine, between k and its signs, is |k|_1 / (sqrt d |k|_2). *)
Theorem cos_sign_quant_formula k :
  cosine k (signVector k) = l1Norm k / (Num.sqrt d%:R * norm2 k).
Proof. by rewrite /cosine dot_signVector /norm2 frob_signVector [X in _ / X]mulrC. Qed.

(* Lagrange's identity: how far d |k|_2^2 is above |k|_1^2 *)
Lemma l1_lagrange k : d%:R * frobeniusSq k - l1Norm k ^+ 2 =
  2%:R^-1 * \sum_i \sum_j (`|k i 0| - `|k j 0|) ^+ 2.
Proof.
have hS : frobeniusSq k = \sum_i `|k i 0| ^+ 2.
  by apply: eq_bigr => i _; rewrite big_ord1 -normrX ger0_norm ?sqr_ge0.
have -> : \sum_i \sum_j (`|k i 0| - `|k j 0|) ^+ 2 =
   \sum_i (d%:R * `|k i 0| ^+ 2 - 2%:R * `|k i 0| * l1Norm k + frobeniusSq k).
  apply: eq_bigr => i _; rewrite (eq_bigr (fun j =>
     `|k i 0| ^+ 2 - 2%:R * `|k i 0| * `|k j 0| + `|k j 0| ^+ 2)) => [|j _]; last by ring.
  rewrite !big_split /= sumr_const card_ord -[X in X + _ + _]mulr_natl sumrN -mulr_sumr hS.
  exact: erefl.
rewrite !big_split /= sumr_const card_ord -mulr_sumr -hS sumrN -mulr_suml -mulr_sumr.
by rewrite -/(l1Norm k) -[frobeniusSq k *+ _]mulr_natl; field.
Qed.

Lemma l1_eq_iff k :
  l1Norm k ^+ 2 = d%:R * frobeniusSq k <-> (forall i j, `|k i 0| = `|k j 0|).
Proof.
split=> [h i j|h]; last first.
  apply/eqP; rewrite eq_sym -subr_eq0 l1_lagrange big1 ?mulr0 // => i _.
  by rewrite big1 // => j _; rewrite (h i j) subrr expr0n.
have := l1_lagrange k; rewrite h subrr => /esym/eqP; rewrite mulf_eq0 invr_eq0 pnatr_eq0 /=.
move/eqP => h0.
have pos i' : 0 <= \sum_j' (`|k i' 0| - `|k j' 0|) ^+ 2.
  by apply: sumr_ge0 => j' _; apply: sqr_ge0.
have hi := psumr_eq0P (fun i' _ => pos i') h0.
have hj := psumr_eq0P (fun j' _ => sqr_ge0 (`|k i 0| - `|k j' 0|)) (hi i isT).
by have := hj j isT; move/eqP; rewrite sqrf_eq0 subr_eq0 => /eqP.
Qed.

(* The 1-bit cosine of k <> 0 is 1 exactly when all entries of k have the same absolute value. *)
Theorem cos_eq_one_iff_sign_lattice k : k != 0 ->
  cosine k (signVector k) = 1 <-> (forall i j, `|k i 0| = `|k j 0|).
Proof.
move=> k0; rewrite cos_sign_quant_formula -l1_eq_iff /norm2 -sqrtrM ?ler0n //.
have p : 0 < d%:R * frobeniusSq k by rewrite mulr_gt0 ?d_gt0 ?frob_gt0.
have s0 : Num.sqrt (d%:R * frobeniusSq k) != 0 by rewrite gt_eqF // sqrtr_gt0.
split=> [h|h].
  rewrite -[RHS]sqr_sqrtr ?(ltW p) //; congr (_ ^+ 2).
  by rewrite -[l1Norm k](divfK s0) h mul1r.
by rewrite -h sqrtr_sqr ger0_norm ?l1_ge0 // divff // gt_eqF // l1_gt0.
Qed.

Lemma residual_energy k :
  frobeniusSq (k - signQuant k) = frobeniusSq k - l1Norm k ^+ 2 / d%:R.
Proof.
rewrite frobB mdotZr dot_signVector frobeniusSq_smul frob_signVector.
by move: (d%:R) d_neq0 => D hD; field.
Qed.

Lemma signQuant_optimal k s a : isSignVector s ->
  frobeniusSq (k - signQuant k) <= frobeniusSq (k - a *: s).
Proof.
move=> hs; rewrite residual_energy frobB mdotZr frobeniusSq_smul (frob_isSign hs).
have hl : mdot k s ^+ 2 <= l1Norm k ^+ 2.
  rewrite -[leRHS]ger0_norm ?sqr_ge0 // -[leLHS]ger0_norm ?sqr_ge0 // !normrX.
  rewrite ler_expn2r ?nnegrE // [leRHS]ger0_norm ?l1_ge0 // ler_norml dot_sign_le // andbT.
  by rewrite ler_oppl -mdotNr dot_sign_le // => i; rewrite mxE sqrrN.
rewrite -subr_ge0.
have -> : frobeniusSq k - 2%:R * (a * mdot k s) + a ^+ 2 * d%:R -
    (frobeniusSq k - l1Norm k ^+ 2 / d%:R)
  = (a * d%:R - mdot k s) ^+ 2 / d%:R + (l1Norm k ^+ 2 - mdot k s ^+ 2) / d%:R.
  by move: (d%:R) d_neq0 => D hD; field.
by rewrite addr_ge0 // mulr_ge0 ?invr_ge0 ?ler0n ?sqr_ge0 // subr_ge0.
Qed.

(* For k <> 0, sign quantization loses the share 1 - |k|_1^2/(d |k|_2^2) of the energy, which is
   the squared sine of the 1-bit angle; no sign vector with any scale loses less. *)
Theorem residual_energy_formula k : k != 0 ->
  [/\ frobeniusSq (k - signQuant k) / frobeniusSq k
        = 1 - l1Norm k ^+ 2 / (d%:R * frobeniusSq k),
      frobeniusSq (k - signQuant k) / frobeniusSq k = 1 - cosine k (signVector k) ^+ 2 &
      forall s a, isSignVector s -> frobeniusSq (k - signQuant k) <= frobeniusSq (k - a *: s)].
Proof.
move=> k0; have f0 : frobeniusSq k != 0 by rewrite frob_eq0.
have ratio : frobeniusSq (k - signQuant k) / frobeniusSq k
    = 1 - l1Norm k ^+ 2 / (d%:R * frobeniusSq k).
  by rewrite residual_energy; move: (d%:R) d_neq0 => D hD; field; rewrite f0.
split=> [||s a]; [exact: ratio | | exact: signQuant_optimal].
rewrite ratio cos_sign_quant_formula /norm2 expr_div_n exprMn.
by rewrite !sqr_sqrtr ?ler0n ?frobeniusSq_nonneg.
Qed.
End SignQuantization.
