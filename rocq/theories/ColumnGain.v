(* How much of an update D is a change of column gains of W, D ~ W diag(g): the least-squares
   residual, and its chance level 1 - 1/m for matrices of m rows. Over any real closed field: no
   axioms. *)
From mathcomp Require Import all_ssreflect all_fingroup all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From Gonio Require Import Frobenius Gauge Householder MomentRatio Isotropy SignedPermutations.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section ColumnGain.
Variables (R : rcfType) (m n : nat).
Implicit Types D W : 'M[R]_(m, n).

(* 1 - sum_j (<D_j, W_j>^2 / |W_j|^2) / |D|_F^2, over columns; a zero column of W explains nothing
   *)
Definition gainResidual D W : R :=
  1 - (\sum_j mdot (col j D) (col j W) ^+ 2 / frobeniusSq (col j W)) / frobeniusSq D.
Definition bestGain D W : 'rV[R]_n :=
  \row_j (mdot (col j D) (col j W) / frobeniusSq (col j W)).

Lemma gain_columns D W (g : 'rV[R]_n) :
  frobeniusSq (D - W *m diag_mx g) = \sum_j frobeniusSq (col j D - g 0 j *: col j W).
Proof.
rewrite frob_cols; apply: eq_bigr => j _; congr frobeniusSq.
by apply/matrixP => i k; rewrite mul_mx_diag !mxE mulrC.
Qed.

(* the line through w: the nearest point to d, and what is left of d *)
Lemma gain_column (d w : 'cV[R]_m) (c : R) :
  frobeniusSq (d - (mdot d w / frobeniusSq w) *: w) =
    frobeniusSq d - mdot d w ^+ 2 / frobeniusSq w /\
  frobeniusSq d - mdot d w ^+ 2 / frobeniusSq w <= frobeniusSq (d - c *: w).
Proof.
have [->|] := eqVneq w 0.
  by rewrite !scaler0 !subr0 mdot0r expr0n /= mul0r subr0.
rewrite -frob_eq0 => w0; rewrite !frobB !mdotZr !frobeniusSq_smul; split.
  by move: (frobeniusSq w) w0 (mdot d w) (frobeniusSq d) => x x0 y z; field.
rewrite -subr_ge0.
have -> : frobeniusSq d - 2%:R * (c * mdot d w) + c ^+ 2 * frobeniusSq w -
    (frobeniusSq d - mdot d w ^+ 2 / frobeniusSq w) =
    (c * frobeniusSq w - mdot d w) ^+ 2 / frobeniusSq w.
  by move: (frobeniusSq w) w0 (mdot d w) (frobeniusSq d) => x x0 y z; field.
by rewrite divr_ge0 ?sqr_ge0 ?frobeniusSq_nonneg.
Qed.

(* ---------- the chance level ---------- *)
Lemma gain_mean D W (T : Type) (integrable : (T -> R) -> Prop) (E : (T -> R) -> R)
    (U : T -> 'M[R]_m) :
  isExpectation integrable E -> isotropic integrable E U -> (forall t, orthogonal (U t)) ->
  D != 0 -> (forall j, col j W != 0) ->
  hasMean integrable E (fun t => gainResidual (U t *m D) W) (1 - m%:R^-1).
Proof.
move=> hE hU oU; rewrite -frob_eq0 => D0 W0.
pose c j := - (frobeniusSq (col j W))^-1 * (frobeniusSq D)^-1.
have hF j := isotropic_energy (col j W)^T (col j D) hE hU.
have := hasMean_lin 1 hE (hasMean_sum (index_enum _) c hE hF) (hasMean_cst 1 hE).
have -> : 1 * (\sum_j c j * (frobeniusSq (col j W)^T * frobeniusSq (col j D) / m%:R)) + 1 =
    1 - m%:R^-1.
  rewrite mul1r addrC; congr (_ + _).
  rewrite (eq_bigr (fun j => - (m%:R^-1 / frobeniusSq D) * frobeniusSq (col j D))) => [|j _].
    by rewrite -mulr_sumr -frob_cols mulNr divfK.
  have w0 := W0 j; rewrite -frob_eq0 in w0; rewrite frob_tr /c.
  move: (frobeniusSq (col j W)) w0 (frobeniusSq (col j D)) (m%:R^-1 : R) => x x0 y z.
  by field; rewrite D0 x0.
apply: hasMean_ext => t; rewrite mul1r addrC /gainResidual (frob_mull_orth _ (oU t)).
congr (_ + _); rewrite mulr_suml -sumrN; apply: eq_bigr => j _; rewrite /c.
have -> : frobeniusSq ((col j W)^T *m U t *m col j D) = mdot (col j (U t *m D)) (col j W) ^+ 2.
  have -> : (col j W)^T *m U t *m col j D = (mdot (col j (U t *m D)) (col j W))%:M.
    by rewrite -mulmxA col_dot mdotC !colE mulmxA.
  by rewrite frob_scalar mul1r.
move: (mdot _ _) (frobeniusSq _)^-1 (frobeniusSq _)^-1 => a x y; ring.
Qed.

(* The relative residual |D - W diag(g)|^2 / |D|^2 of the best column gains g is gainResidual D W:
   no gains leave less, and g_j = <D_j, W_j> / |W_j|^2 leave just that. If no column of W is zero
   and the m rows of D are rotated at random, its mean is 1 - 1/m: exactly so for the average over
   the signed permutations, and under any expectation E and random orthogonal matrix X whose law
   signed permutations leave alone, which the uniform (Haar) law is. *)
Theorem column_gain_residual D W : D != 0 ->
  [/\ forall g, gainResidual D W <= frobeniusSq (D - W *m diag_mx g) / frobeniusSq D,
      frobeniusSq (D - W *m diag_mx (bestGain D W)) / frobeniusSq D = gainResidual D W,
      (forall j, col j W != 0) ->
        signedPermAverage (fun P => gainResidual (P *m D) W) = 1 - m%:R^-1 &
      (forall j, col j W != 0) ->
        forall (T : Type) (integrable : (T -> R) -> Prop) (E : (T -> R) -> R) (X : T -> 'M[R]_m),
        isExpectation integrable E -> isInvariantFrame integrable E X ->
        integrable (fun t => gainResidual (X t *m D) W) ->
        E (fun t => gainResidual (X t *m D) W) = 1 - m%:R^-1].
Proof.
move=> Dn0; have := Dn0; rewrite -frob_gt0 => D0.
have D0' : frobeniusSq D != 0 by rewrite gt_eqF.
have resE : gainResidual D W = (\sum_j (frobeniusSq (col j D) -
    mdot (col j D) (col j W) ^+ 2 / frobeniusSq (col j W))) / frobeniusSq D.
  by rewrite sumrB -frob_cols mulrBl divff.
split=> [g||W0|W0 T integrable E X hE hX hI].
- rewrite resE gain_columns ler_wpmul2r ?invr_ge0 ?(ltW D0) //; apply: ler_sum => j _.
  by have [] := gain_column (col j D) (col j W) (g 0 j).
- rewrite resE gain_columns; congr (_ / _); apply: eq_bigr => j _; rewrite mxE.
  by have [] := gain_column (col j D) (col j W) 0.
- rewrite signedPermAverageE; have hE := signedPerm_expectation R m.
  have oP (x : {ffun 'I_m -> bool} * 'S_m) := signedPerm_orthogonal R x.1 x.2.
  exact: (hasMean_eq hE I (gain_mean hE (@signedPerm_isotropic R m) oP Dn0 W0)).
apply: (hasMean_eq hE hI).
exact: (gain_mean hE (invariant_isotropic hE hX) (frame_orthonormal hX) Dn0 W0).
Qed.
End ColumnGain.
