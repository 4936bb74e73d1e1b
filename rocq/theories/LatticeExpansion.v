(* The 1-bit cosine near the sign lattice: a vector a s (a > 0, all entries of s +1 or -1) has
   cosine 1; turning it by exp(t A), A skew, costs (t^2/2) |A s|^2/d to second order.
   Over any complete ordered field; the exponential brings in the three axioms of boolp. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From mathcomp.classical Require Import boolp classical_sets functions.
From mathcomp Require Import reals topology normedtype derive realfun sequences exp.
From Gonio Require Import Frobenius Gauge SignQuantization MatrixExponential.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Import numFieldNormedType.Exports.
Local Open Scope ring_scope.
Local Open Scope classical_set_scope.

Section LatticeExpansion.
Variables (R : realType) (n : nat).
Local Notation d := (n.+1).
Implicit Types (A : 'M[R]_d) (s u v w : 'cV[R]_d) (a t : R).

Lemma norm2_ge0 v : 0 <= norm2 v. Proof. exact: sqrtr_ge0. Qed.
Lemma norm2_sq v : norm2 v ^+ 2 = frobeniusSq v.
Proof. by rewrite sqr_sqrtr // frobeniusSq_nonneg. Qed.
Lemma norm2_0 : norm2 (0 : 'cV[R]_d) = 0.
Proof. by rewrite /norm2 frobE mdot0l sqrtr0. Qed.
Lemma norm2Z a v : norm2 (a *: v) = `|a| * norm2 v.
Proof. by rewrite /norm2 frobeniusSq_smul sqrtrM ?sqr_ge0 // sqrtr_sqr. Qed.
Lemma mdot_norm2_le u w : `|mdot u w| <= norm2 u * norm2 w.
Proof.
by rewrite /norm2 -sqrtrM ?frobeniusSq_nonneg // -sqrtr_sqr ler_wsqrtr // cauchy_schwarz.
Qed.

(* a vector whose inner products are all small is short *)
Lemma norm2_le_dual v b : (forall w, `|mdot v w| <= b * norm2 w) -> norm2 v <= b.
Proof.
move=> h; have [v0|v0] := eqVneq v 0.
  have := h (\col_i (i == ord0)%:R); rewrite v0 mdot0l normr0 norm2_0 => hb.
  have p : 0 < norm2 (\col_i (i == ord0)%:R : 'cV[R]_d).
    rewrite sqrtr_gt0 frob_gt0; apply/eqP => /matrixP /(_ ord0 0).
    by rewrite !mxE eqxx => /eqP; rewrite oner_eq0.
  by rewrite -(pmulr_lge0 b p).
have p : 0 < norm2 v by rewrite sqrtr_gt0 frob_gt0.
have := h v; rewrite -frobE -norm2_sq ger0_norm ?sqr_ge0 // expr2.
by rewrite ler_pmul2r.
Qed.

(* mean value inequality on [0, t] *)
Lemma mean_value_le (f f' : R -> R) b t : 0 <= t -> (forall x, is_derive x 1 f (f' x)) ->
  (forall x, 0 <= x <= t -> `|f' x| <= b) -> `|f t - f 0| <= t * b.
Proof.
move=> t0 df fb; have cf : {within `[0, t], continuous f}.
  apply: continuous_subspaceT => x; apply/differentiable_continuous/derivable1_diffP.
  by have [] := df x.
have [c cin ->] := MVT_segment t0 (fun x _ => df x) cf.
by rewrite subr0 normrM (ger0_norm t0) mulrC ler_wpmul2l // fb //.
Qed.

Section Flow.
Variables (A : 'M[R]_d) (skew : A^T = - A).
Local Notation E t := (matrixExp (t *: A)).

Lemma flow_norm2 v t : norm2 (E t *m v) = norm2 v.
Proof. by rewrite /norm2 !frobE matrixExp_mdot. Qed.
Lemma flow0 v : E 0 *m v = v. Proof. by rewrite scale0r matrixExp0 mul1mx. Qed.

(* the flow moves v by at most t |A v|, and leaves its tangent by at most t^2 |A^2 v| *)
Lemma flow_first v t : 0 <= t -> norm2 (E t *m v - v) <= t * norm2 (A *m v).
Proof.
move=> t0; apply: norm2_le_dual => w; rewrite -mulrA.
rewrite mdotBl -[X in _ - mdot X _](flow0 v).
apply: (@mean_value_le (fun x => mdot (E x *m v) w)) => // [x|x _]; first exact: flow_derive.
by rewrite (le_trans (mdot_norm2_le _ _)) // flow_norm2.
Qed.

Lemma flow_second v t : 0 <= t ->
  norm2 (E t *m v - v - t *: (A *m v)) <= t ^+ 2 * norm2 (A *m (A *m v)).
Proof.
move=> t0; apply: norm2_le_dual => w; rewrite expr2 -!mulrA.
pose f x := mdot (E x *m v) w - mdot (A *m v) w * x.
have -> : mdot (E t *m v - v - t *: (A *m v)) w = f t - f 0.
  by rewrite /f flow0 !mdotBl mdotZl; ring.
have df x : is_derive x 1 f (mdot (E x *m (A *m v) - A *m v) w).
  have -> : f = (fun x => mdot (E x *m v) w) - mdot (A *m v) w \*: id by apply/funext.
  rewrite mdotBl -[X in _ - X]mulr1.
  by apply: is_deriveB; apply: flow_derive.
apply: (mean_value_le t0 df) => x /andP[x0 xt].
rewrite (le_trans (mdot_norm2_le _ _)) // mulrA ler_wpmul2r ?norm2_ge0 //.
by rewrite (le_trans (flow_first _ x0)) // ler_wpmul2r ?norm2_ge0.
Qed.
End Flow.

(* the same for t of either sign *)
Lemma flow_bounds A v t : A^T = - A ->
  norm2 (matrixExp (t *: A) *m v - v) <= `|t| * norm2 (A *m v) /\
  norm2 (matrixExp (t *: A) *m v - v - t *: (A *m v)) <= t ^+ 2 * norm2 (A *m (A *m v)).
Proof.
move=> skew; case: (lerP 0 t) => t0.
  by rewrite ger0_norm //; split; [apply: flow_first | apply: flow_second].
rewrite ltr0_norm //.
have skew' : (- A)^T = - - A by rewrite linearN /= skew.
have t1 : 0 <= - t by rewrite oppr_ge0 ltW.
have := flow_first skew' v t1; have := flow_second skew' v t1.
rewrite scaleNr scalerN opprK !mulNmx !mulmxN opprK sqrrN scaleNr scalerN opprK => h1 h2.
split=> //; apply: le_trans h2 _.
by rewrite -[X in _ * norm2 X]scaleN1r norm2Z normrN1 mul1r.
Qed.

(* one-bit cosine of a vector with the signs of s and the length of a s *)
Lemma cosine_near_lattice a s v : 0 < a -> isSignVector s -> frobeniusSq v = d%:R ->
  cosine (a *: v) s = 1 - frobeniusSq (v - s) / (2%:R * d%:R).
Proof.
move=> a0 hs hv; rewrite /cosine mdotZl /norm2 frobeniusSq_smul hv (frob_isSign hs).
rewrite frobB hv (frob_isSign hs) sqrtrM ?sqr_ge0 // sqrtr_sqr gtr0_norm //.
rewrite [X in _ / X](_ : _ = a * d%:R); last by rewrite -mulrA -expr2 sqr_sqrtr ?ler0n.
have := d_neq0 R n; move: (d%:R) (mdot v s) => D m D0.
by field; rewrite D0 gt_eqF.
Qed.

Lemma signs_kept a s v : 0 < a -> isSignVector s -> norm2 (v - s) < 1 ->
  signVector (a *: v) = s.
Proof.
move=> a0 hs close; apply/matrixP => i j; rewrite ord1 !mxE.
have lt1 : `|v i 0 - s i 0| < 1.
  apply: le_lt_trans close; rewrite -sqrtr_sqr ler_wsqrtr //.
  rewrite /frobeniusSq (bigD1 i) //= big_ord1 !mxE ler_addl.
  by apply: sumr_ge0 => k _; apply: sumr_ge0 => l _; apply: sqr_ge0.
have /eqP := hs i; rewrite sqrf_eq1 => /orP[]/eqP si; move: lt1; rewrite si ltr_norml /sgn1.
  by rewrite ltr_subr_addr addNr => /andP[p _]; rewrite pmulr_rge0 // ltW.
rewrite opprK -ltr_subr_addr subrr => /andP[_ p].
by rewrite pmulr_rge0 // leNgt p.
Qed.

(* Let s have entries +1 and -1, a > 0 and A skew, and let |t| |A s| < 1. Then no sign of
   exp(t A)(a s) has flipped, and its 1-bit cosine is 1 - (t^2/2) |A s|^2/d up to an error of third
   order, at most |t|^3 |A s| |A^2 s|/d + t^4 |A^2 s|^2/(2 d). *)
Theorem beta_local_quadratic_expansion A s a t :
  A^T = - A -> isSignVector s -> 0 < a -> `|t| * norm2 (A *m s) < 1 ->
  let k := matrixExp (t *: A) *m (a *: s) in
  signVector k = s /\
  `|cosine k (signVector k) - (1 - t ^+ 2 / 2%:R * (frobeniusSq (A *m s) / d%:R))|
    <= `|t| ^+ 3 * norm2 (A *m s) * norm2 (A *m (A *m s)) / d%:R
       + t ^+ 4 * frobeniusSq (A *m (A *m s)) / (2%:R * d%:R).
Proof.
move=> skew hs a0 small k; pose x := matrixExp (t *: A) *m s.
have kE : k = a *: x by rewrite /k -scalemxAr.
have [b1 b2] := flow_bounds s t skew.
have sk : signVector k = s by rewrite kE (signs_kept a0 hs) // (le_lt_trans b1).
split=> //; rewrite sk kE cosine_near_lattice //; last first.
  by rewrite frobE matrixExp_mdot // -frobE frob_isSign.
pose u := A *m s; have [r rE] : {r | r = x - s - t *: u} by exists (x - s - t *: u).
have xs : x - s = t *: u + r by rewrite rE [RHS]addrC subrK.
have -> : frobeniusSq (x - s) = t ^+ 2 * frobeniusSq u + (2%:R * t * mdot u r + frobeniusSq r).
  rewrite xs !frobE mdotDl !mdotDr !mdotZl !mdotZr (mdotC r u).
  by move: (mdot u u) (mdot u r) (mdot r r) => p q z; ring.
rewrite -/u; set N := norm2 u; set M := norm2 (A *m u).
have rM : norm2 r <= t ^+ 2 * M by rewrite rE.
have bound : `|2%:R * t * mdot u r + frobeniusSq r| <=
    2%:R * (`|t| ^+ 3 * N * M) + t ^+ 4 * M ^+ 2.
  apply: le_trans (ler_norm_add _ _) (ler_add _ _).
    rewrite !normrM ger0_norm ?ler0n // -!mulrA ler_wpmul2l ?ler0n // ler_wpmul2l //.
    have -> : `|t| * (`|t| * (N * M)) = N * (t ^+ 2 * M).
      by rewrite -[t ^+ 2](real_normK (num_real t)); move: `|t| => z; ring.
    by apply: le_trans (mdot_norm2_le _ _) _; rewrite ler_wpmul2l ?norm2_ge0.
  rewrite ger0_norm ?frobeniusSq_nonneg // -norm2_sq -[4%N]/(2 * 2)%N exprM -exprMn.
  by rewrite ler_expn2r ?nnegrE ?norm2_ge0 // mulr_ge0 ?sqr_ge0 ?norm2_ge0.
rewrite -(norm2_sq (A *m u)) -/M.
set e := 2%:R * t * mdot u r + frobeniusSq r in bound *.
have D0 := d_neq0 R n; have Dp := d_gt0 R n; move: (d%:R : R) D0 Dp => D D0 Dp.
have -> : 1 - (t ^+ 2 * frobeniusSq u + e) / (2%:R * D) -
    (1 - t ^+ 2 / 2%:R * (frobeniusSq u / D)) = - (e / (2%:R * D)) by field.
rewrite normrN normrM [X in _ * X]ger0_norm ?invr_ge0 ?mulr_ge0 ?ler0n ?(ltW Dp) //.
rewrite ler_pdivr_mulr ?mulr_gt0 ?ltr0n //; apply: le_trans bound _.
by rewrite le_eqVlt; apply/orP; left; apply/eqP; field.
Qed.

(* The second-order cost |A s|^2/d is not negative. (A sum of squares: true by definition; what
   makes it the cost is beta_local_quadratic_expansion.) *)
Theorem beta_hessian_nonneg A s : 0 <= frobeniusSq (A *m s) / d%:R.
Proof. by rewrite divr_ge0 ?frobeniusSq_nonneg ?ler0n. Qed.

(* If turning a s by exp(t A), |t| |A s| < 1, brings the 1-bit cosine to 1 - e, then |t| |A s| is at
   least sqrt(2 d e) and exceeds it by at most t^2 |A^2 s|: the angle is sqrt(2 d e)/|A s| to
   leading order. (A lower bound on the angle; the source prints the opposite inequality.) *)
Theorem beta_last_mile_quadratic_hardness A s a t e :
  A^T = - A -> isSignVector s -> 0 < a -> `|t| * norm2 (A *m s) < 1 ->
  let k := matrixExp (t *: A) *m (a *: s) in cosine k (signVector k) = 1 - e ->
  Num.sqrt (2%:R * d%:R * e) <= `|t| * norm2 (A *m s)
    <= Num.sqrt (2%:R * d%:R * e) + t ^+ 2 * norm2 (A *m (A *m s)).
Proof.
move=> skew hs a0 small k; have [-> _] := beta_local_quadratic_expansion skew hs a0 small.
have -> : k = a *: (matrixExp (t *: A) *m s) by rewrite /k -scalemxAr.
set x := matrixExp _ *m s; have [b1 b2] := flow_bounds s t skew.
rewrite cosine_near_lattice //; last by rewrite frobE matrixExp_mdot // -frobE frob_isSign.
move=> h; have -> : 2%:R * d%:R * e = frobeniusSq (x - s).
  have D0 := d_neq0 R n; move: (d%:R : R) h D0 => D h D0.
  have -> : e = frobeniusSq (x - s) / (2%:R * D) by apply/eqP; rewrite -(can_eq (subKr 1)) h.
  by rewrite mulrC divfK // mulf_neq0 ?pnatr_eq0.
apply/andP; split=> //; rewrite -/(norm2 (x - s)) -norm2Z.
pose r := x - s - t *: (A *m s).
have -> : t *: (A *m s) = (x - s) - r by rewrite /r opprB addrC subrK.
apply: le_trans (_ : norm2 (x - s) + norm2 r <= _); last by rewrite ler_add2l.
rewrite -(@ler_pexpn2r _ 2) ?nnegrE ?addr_ge0 ?norm2_ge0 //.
rewrite norm2_sq frobB sqrrD !norm2_sq ler_add2r ler_add2l.
rewrite -[leRHS]mulr_natl -mulrN ler_pmul2l ?ltr0n //.
by rewrite (le_trans (ler_norm _)) // normrN mdot_norm2_le.
Qed.
End LatticeExpansion.
