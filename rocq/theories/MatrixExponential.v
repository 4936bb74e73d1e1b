(* The exponential of a square matrix, its derivative along t A, and: the exponential of a skew
   matrix is orthogonal.
   Over any complete ordered field; limits and derivatives bring in the three axioms of boolp. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From mathcomp.classical Require Import boolp classical_sets functions mathcomp_extra.
From mathcomp Require Import reals topology normedtype derive realfun sequences exp.
From Gonio Require Import Frobenius Gauge.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Import numFieldNormedType.Exports.
Local Open Scope ring_scope.
Local Open Scope classical_set_scope.

Section MatrixExponential.
Variables (R : realType) (n : nat).
Local Notation d := (n.+1).
Implicit Types (A B : 'M[R]_d) (t : R).

(* exp A = 1 + A + A^2/2! + ..., entry by entry *)
Definition matrixExp A : 'M[R]_d :=
  \matrix_(i, j) lim (series (fun k => (A ^+ k) i j / k`!%:R)).

(* the coefficients of t -> (exp(t A) B) i j *)
Let coef A B i j : R^nat := fun k => (A ^+ k *m B) i j / k`!%:R.
Let entrySum B := \sum_i \sum_j `|B i j|.

Lemma row_le_entrySum B i : \sum_j `|B i j| <= entrySum B.
Proof.
rewrite /entrySum [leRHS](bigD1 i) //= ler_addl sumr_ge0 // => j _.
by apply: sumr_ge0.
Qed.
Lemma entry_le_entrySum B i j : `|B i j| <= entrySum B.
Proof.
by apply: le_trans (row_le_entrySum B i); rewrite [leRHS](bigD1 j) //= ler_addl sumr_ge0.
Qed.

Lemma power_entry_le A B k i j : `|(A ^+ k *m B) i j| <= entrySum A ^+ k * entrySum B.
Proof.
elim: k i => [|k IH] i; first by rewrite !expr0 mul1r mul1mx entry_le_entrySum.
rewrite !exprS -[A * _]/(A *m _) -mulmxA mxE; apply: le_trans (ler_norm_sum _ _ _) _.
rewrite -mulrA; apply: le_trans (_ : (\sum_l `|A i l|) * (entrySum A ^+ k * entrySum B) <= _).
  by rewrite mulr_suml; apply: ler_sum => l _; rewrite normrM ler_wpmul2l.
rewrite ler_wpmul2r ?row_le_entrySum //.
by rewrite (le_trans _ (IH i)).
Qed.

Lemma coef_cvg A B i j t : cvg (pseries (coef A B i j) t).
Proof.
apply: normed_cvg; pose b := entrySum B.
have b0 : 0 <= b by rewrite (le_trans _ (entry_le_entrySum B i j)).
apply: (@series_le_cvg _ _ (b *: exp_coeff (entrySum A * `|t|))) => [k|k|k|].
- by rewrite normr_ge0.
- rewrite /exp_coeff /= mulr_ge0 // divr_ge0 ?ler0n // exprn_ge0 // mulr_ge0 //.
  by rewrite (le_trans _ (entry_le_entrySum A i j)).
- rewrite /coef /exp_coeff /= normrM normrX normrM [`|_^-1|]ger0_norm ?invr_ge0 ?ler0n //.
  rewrite /GRing.scale /= exprMn mulrAC [leRHS]mulrA ler_wpmul2r ?invr_ge0 ?ler0n //.
  by rewrite mulrA ler_wpmul2r ?exprn_ge0 // [leRHS]mulrC power_entry_le.
- by apply: is_cvg_seriesZ; apply: is_cvg_series_exp_coeff.
Qed.

Lemma cvg_finite_sum m (f : 'I_m -> R^nat) (l : 'I_m -> R) :
  (forall i, f i --> l i) -> (fun k => \sum_i f i k) --> \sum_i l i.
Proof.
elim: m f l => [|m IH] f l h.
  rewrite big_ord0 (_ : (fun k => _) = fun=> 0); first exact: cvg_cst.
  by apply/funext => k; rewrite big_ord0.
rewrite big_ord_recr /= (_ : (fun k => _) =
    (fun k => \sum_(i < m) f (widen_ord (leqnSn m) i) k) \+ f ord_max).
  by apply: cvgD; [apply: IH | apply: h].
by apply/funext => k; rewrite big_ord_recr.
Qed.

Lemma matrixExp_entry A t i j : matrixExp (t *: A) i j = lim (pseries (coef A 1%:M i j) t).
Proof.
rewrite mxE; congr (lim _); rewrite /pseries; congr series; apply/funext => k.
by rewrite /coef /= mulmx1 exprZn mxE -[LHS]mulrA [LHS]mulrC.
Qed.

(* (exp(t A) B) i j and (B exp(t A)) i j as power series in t *)
Lemma matrixExp_mulr A B t i j : (matrixExp (t *: A) *m B) i j = lim (pseries (coef A B i j) t).
Proof.
rewrite mxE; apply/esym/cvg_lim => //.
have -> : pseries (coef A B i j) t = (fun k => \sum_l pseries (coef A 1%:M i l) t k * B l j).
  apply/funext => k; rewrite /pseries /series /=.
  under [RHS]eq_bigr do rewrite mulr_suml.
  rewrite exchange_big /=; apply: eq_bigr => m _.
  rewrite /coef /= mxE !mulr_suml; apply: eq_bigr => l _.
  by rewrite mulmx1 -!mulrA; congr (_ * _); rewrite [LHS]mulrC -mulrA.
apply: cvg_finite_sum => l; apply: cvgMl; rewrite matrixExp_entry; exact: coef_cvg.
Qed.

Lemma matrixExp_comm A t : matrixExp (t *: A) *m A = A *m matrixExp (t *: A).
Proof.
apply/matrixP => i j; rewrite matrixExp_mulr [RHS]mxE; apply/cvg_lim => //.
have -> : pseries (coef A A i j) t = (fun k => \sum_l A i l * pseries (coef A 1%:M l j) t k).
  apply/funext => k; rewrite /pseries /series /=.
  under [RHS]eq_bigr do rewrite mulr_sumr.
  rewrite exchange_big /=; apply: eq_bigr => m _.
  rewrite /coef mulmx1 -[A ^+ m *m A]/(A ^+ m * A) -exprSr exprS -[A * _]/(A *m _) mxE.
  by rewrite !mulr_suml; apply: eq_bigr => l _; rewrite !mulrA.
apply: cvg_finite_sum => l; apply: cvgMr; rewrite matrixExp_entry; exact: coef_cvg.
Qed.

Lemma matrixExp0 : matrixExp 0 = 1%:M.
Proof.
apply/matrixP => i j; rewrite -(scale0r (1%:M : 'M[R]_d)) matrixExp_entry.
apply/cvg_lim => //; apply: cvg_near_cst.
near=> k; rewrite /pseries /series /=.
have k0 : (0 < k)%N by near: k; exists 1%N.
rewrite big_ltn // big_nat_cond big1 ?addr0 => [|m /andP[/andP[m0 _] _]].
  by rewrite /coef expr0 mulmx1 fact0 divr1 expr0 mulr1.
by rewrite expr0n (gtn_eqF m0) mulr0.
Unshelve. all: end_near. Qed.

(* d/dt exp(t A) = exp(t A) A *)
Lemma matrixExp_derive A t i j :
  is_derive t 1 (fun u => matrixExp (u *: A) i j) ((matrixExp (t *: A) *m A) i j).
Proof.
have diffs B : pseries_diffs (coef A B i j) = coef A (A *m B) i j.
  apply/funext => k; rewrite /pseries_diffs /coef factS natrM invfM mulrCA.
  by rewrite mulVKf ?pnatr_eq0 // exprSr -[_ * A]/(_ *m A) -mulmxA.
have -> : (fun u => matrixExp (u *: A) i j) = (fun u => lim (pseries (coef A 1%:M i j) u)).
  by apply/funext => u; rewrite matrixExp_entry.
rewrite matrixExp_mulr; have := diffs 1%:M; rewrite mulmx1 => <-.
apply: (@pseries_snd_diffs _ _ (`|t| + 1)); rewrite ?diffs; try exact: coef_cvg.
by rewrite [ltRHS]ger0_norm ?ltr_addl ?ltr01 // addr_ge0 ?ler01.
Qed.

(* ---------- skew matrices ---------- *)
(* the derivative of t -> <exp(t A) u, w> *)
Lemma flow_derive A (u w : 'cV[R]_d) t :
  is_derive t 1 (fun x => mdot (matrixExp (x *: A) *m u) w)
    (mdot (matrixExp (t *: A) *m (A *m u)) w).
Proof.
have mulE (M : 'M[R]_d) : mdot (M *m u) w = \sum_i \sum_j M i j * (u j 0 * w i 0).
  rewrite /mdot; apply: eq_bigr => i _; rewrite big_ord1 mxE mulr_suml.
  by apply: eq_bigr => j _; rewrite mulrA.
have -> : (fun x => mdot (matrixExp (x *: A) *m u) w) =
    \sum_i \sum_j (u j 0 * w i 0) \*: (fun x => matrixExp (x *: A) i j).
  apply/funext => x; rewrite mulE fct_sumE; apply: eq_bigr => i _.
  by rewrite fct_sumE; apply: eq_bigr => j _; rewrite mulrC.
rewrite mulmxA mulE; apply: is_derive_sum => i; apply: is_derive_sum => j.
apply: is_derive_eq; first exact: (is_deriveZ _ (matrixExp_derive A t i j)).
by rewrite /GRing.scale /= mulrC.
Qed.

(* for a skew A, exp(t A) keeps inner products: it is orthogonal *)
Lemma matrixExp_mdot A (u w : 'cV[R]_d) t : A^T = - A ->
  mdot (matrixExp (t *: A) *m u) (matrixExp (t *: A) *m w) = mdot u w.
Proof.
move=> skew; pose E x := matrixExp (x *: A); pose e i : 'cV[R]_d := delta_mx i 0.
pose f x := mdot (E x *m u) (E x *m w).
have entry (v : 'cV[R]_d) i : v i 0 = mdot v (e i).
  rewrite /mdot (bigD1 i) //= big_ord1 mxE !eqxx mulr1 big1 ?addr0 // => j ji.
  by rewrite big_ord1 mxE (negPf ji) mulr0.
have dotE (a b : 'cV[R]_d) : mdot a b = \sum_i mdot a (e i) * mdot b (e i).
  by apply: eq_bigr => i _; rewrite big_ord1 -!entry.
have fE : f = \sum_i (fun x => mdot (E x *m u) (e i)) * (fun x => mdot (E x *m w) (e i)).
  by apply/funext => x; rewrite /f fct_sumE dotE.
have f' x : is_derive x 1 f 0.
  rewrite fE; apply: is_derive_eq.
    by apply: is_derive_sum => i; apply: is_deriveM; apply: flow_derive.
  rewrite big_split /= [X in X + _](_ : _ = mdot (E x *m u) (E x *m (A *m w))); last first.
    by rewrite dotE.
  rewrite [X in _ + X](_ : _ = mdot (E x *m w) (E x *m (A *m u))); last by rewrite dotE.
  rewrite !mulmxA !matrixExp_comm -!mulmxA (mdot_mull _ _ A) skew mulNmx mdotNl.
  by rewrite [X in _ + X]mdotC addNr.
have : f t = f 0 by apply: is_derive_0_is_cst.
by rewrite /f /E scale0r matrixExp0 !mul1mx.
Qed.

Lemma matrixExp_orthogonal A t : A^T = - A -> orthogonal (matrixExp (t *: A)).
Proof.
move=> skew; apply/matrixP => i j; rewrite mxE.
have dotE (a b : 'cV[R]_d) : \sum_k a k 0 * b k 0 = mdot a b.
  by apply: eq_bigr => k _; rewrite big_ord1.
have := matrixExp_mdot (delta_mx i 0) (delta_mx j 0) t skew.
rewrite -!colE -!dotE => h; transitivity (\sum_k (delta_mx i 0 : 'cV[R]_d) k 0 *
    (delta_mx j 0 : 'cV[R]_d) k 0).
  by rewrite -h; apply: eq_bigr => k _; rewrite !mxE.
rewrite (bigD1 i) //= !mxE !eqxx mul1r big1 ?addr0 => [|k ki]; last first.
  by rewrite mxE (negPf ki) mul0r.
by rewrite andbT.
Qed.
End MatrixExponential.
