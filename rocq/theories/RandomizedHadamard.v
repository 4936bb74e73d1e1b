(* A flat rotation (a normalized Hadamard matrix) after random signs: the mean 1-bit cosine of
   every vector is at least 1/sqrt 2. A rotation that can be written down; c_d of IsotropicMean.v
   is the mean over all rotations. Over any real closed field: no axioms. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From Gonio Require Import Frobenius Gauge SignQuantization RandomSigns Khintchine.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section RandomizedHadamard.
Variable R : rcfType.

(* H flat: all entries have square 1/d (e.g. a normalised Hadamard matrix) *)
Definition flat n (H : 'M[R]_n) := forall i j, H i j ^+ 2 = n%:R^-1.
Definition dsign n (t : n.-tuple bool) : 'M[R]_n := diag_mx (\row_i sg R (tnth t i)).

Lemma dsign_orth n (t : n.-tuple bool) : orthogonal (dsign t).
Proof.
rewrite /orthogonal tr_diag_mx; apply/matrixP => i j; rewrite mul_diag_mx !mxE.
have [->|] := eqVneq i j; last by rewrite mulr0n mulr0.
by rewrite mulr1n -expr2 /sg sqrr_sign.
Qed.

(* the mean of |H D w|_1 over all 2^d diagonal sign matrices D *)
Lemma randomized_hadamard_mean n (H : 'M[R]_n.+1) (w : 'cV[R]_n.+1) : flat H ->
  norm2 w * Num.sqrt (n.+1%:R / 2%:R) <= mean (fun t => l1Norm (H *m dsign t *m w)).
Proof.
move=> fH.
pose a i j := H i j * w j 0.
have ent t i : (H *m dsign t *m w) i 0 = rade t (a i).
  rewrite mxE; apply: eq_bigr => j _; rewrite /dsign mul_mx_diag !mxE /a.
  by rewrite mulrAC mulrC.
rewrite /l1Norm mean_sum.
have q2a i : \sum_j a i j ^+ 2 = frobeniusSq w / n.+1%:R.
  rewrite /frobeniusSq mulr_suml; apply: eq_bigr => j _.
  by rewrite big_ord1 /a exprMn fH mulrC.
apply: (@le_trans _ _ (\sum_(i < n.+1) Num.sqrt ((\sum_j a i j ^+ 2) / 2%:R))); last first.
  apply: ler_sum => i _; apply: le_trans (_ : mean (fun t => `|rade t (a i)|) <= _).
    apply: le_trans (khintchine_best (a i)); rewrite sqrtrM ?sqrtrV ?ler0n //.
    by apply: sumr_ge0 => j _; apply: sqr_ge0.
  by apply: mean_ge => t; rewrite ent.
rewrite (eq_bigr (fun=> Num.sqrt (frobeniusSq w / n.+1%:R / 2%:R))) => [|i _]; last by rewrite q2a.
rewrite sumr_const card_ord /norm2.
have w0 := frobeniusSq_nonneg w.
have : n.+1%:R != 0 :> R by rewrite pnatr_eq0.
have : (0 : R) <= n.+1%:R by rewrite ler0n.
rewrite -[Num.sqrt (_ / _ / _) *+ _]mulr_natl.
move: (n.+1%:R : R) => D D0 hD; move: (frobeniusSq w) w0 => W w0.
have p1 : 0 <= W / D / 2%:R by rewrite !divr_ge0 ?ler0n.
have p2 : 0 <= D / 2%:R by rewrite divr_ge0 ?ler0n.
rewrite le_eqVlt; apply/orP; left.
rewrite -(@eqr_expn2 _ 2) ?mulr_ge0 ?sqrtr_ge0 // !exprMn !sqr_sqrtr //.
by apply/eqP; field.
Qed.

(* Let H be orthogonal with all entries +-1/sqrt d. For every w <> 0 the 1-bit cosine of H D w is at
   least 1/sqrt 2 on average over all diagonal sign matrices D, so some D reaches that. *)
Theorem randomized_hadamard_cosine n (H : 'M[R]_n.+1) (w : 'cV[R]_n.+1) :
  flat H -> orthogonal H -> w != 0 ->
  let k t := H *m dsign t *m w in
  (Num.sqrt 2%:R)^-1 <= mean (fun t => cosine (k t) (signVector (k t))) /\
  exists t, orthogonal (H *m dsign t) /\ (Num.sqrt 2%:R)^-1 <= cosine (k t) (signVector (k t)).
Proof.
move=> fH oH w0 k.
have oHt t : orthogonal (H *m dsign t).
  by rewrite /orthogonal trmx_mul -mulmxA (mulmxA H^T) oH mul1mx dsign_orth.
have nw : 0 < norm2 w by rewrite sqrtr_gt0 frob_gt0.
have sd : 0 < Num.sqrt n.+1%:R :> R by rewrite sqrtr_gt0 ltr0n.
have main : (Num.sqrt 2%:R)^-1 <= mean (fun t => cosine (k t) (signVector (k t))).
  rewrite (@mean_eq _ _ _ (fun t => (Num.sqrt n.+1%:R * norm2 w)^-1 * l1Norm (k t))) => [|t].
    rewrite meanZ mulrC ler_pdivl_mulr ?mulr_gt0 //; apply: le_trans (randomized_hadamard_mean w
      fH).
    rewrite sqrtrM ?ler0n // sqrtrV ?ler0n //.
    by rewrite mulrC [Num.sqrt _ * norm2 w]mulrC mulrA.
  by rewrite cos_sign_quant_formula {1}/norm2 (frob_mull_orth _ (oHt t)) mulrC.
split=> //; have [t ht] := mean_exists_ge main.
by exists t.
Qed.
End RandomizedHadamard.
