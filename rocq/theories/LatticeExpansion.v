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

(* the flow moves v by at most t |A v| *)
Lemma flow_first v t : 0 <= t -> norm2 (E t *m v - v) <= t * norm2 (A *m v).
Proof.
move=> t0; apply: norm2_le_dual => w; rewrite -mulrA.
rewrite mdotBl -[X in _ - mdot X _](flow0 v).
apply: (@mean_value_le (fun x => mdot (E x *m v) w)) => // [x|x _]; first exact: flow_derive.
by rewrite (le_trans (mdot_norm2_le _ _)) // flow_norm2.
Qed.
End Flow.

(* the same for t of either sign *)
Lemma flow_bound A v t : A^T = - A -> norm2 (matrixExp (t *: A) *m v - v) <= `|t| * norm2 (A *m v).
Proof.
move=> skew; case: (lerP 0 t) => t0; first by rewrite ger0_norm //; apply: flow_first.
have skew' : (- A)^T = - - A by rewrite linearN /= skew.
have t1 : 0 <= - t by rewrite oppr_ge0 ltW.
have := flow_first skew' v t1; rewrite scaleNr scalerN opprK mulNmx ltr0_norm //.
by rewrite (_ : norm2 (- (A *m v)) = norm2 (A *m v)) // -scaleN1r norm2Z normrN1 mul1r.
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

(* ---------- fourth order ---------- *)
(* a derivative of at most c (k + 1) x^k makes a function of at most c x^(k + 1) *)
Lemma power_step (g g' : R -> R) c k : (forall x, is_derive x 1 g (g' x)) -> g 0 = 0 ->
  (forall x, 0 <= x -> `|g' x| <= c * (k.+1%:R * x ^+ k)) -> forall x, 0 <= x -> `|g x| <= c * x ^+
    k.+1.
Proof.
move=> dg g0 hg; have key (h h' : R -> R) : (forall x, is_derive x 1 h (h' x)) -> h 0 = 0 ->
    (forall x, 0 <= x -> 0 <= h' x) -> forall x, 0 <= x -> 0 <= h x.
  move=> dh h0 hp x x0; have ch : {within `[0, x], continuous h}.
    apply: continuous_subspaceT => y; apply/differentiable_continuous/derivable1_diffP.
    by have [] := dh y.
  have [y yin] := MVT_segment x0 (fun x _ => dh x) ch.
  rewrite h0 !subr0 => ->; rewrite mulr_ge0 // hp //.
  by move: yin; rewrite in_itv /= => /andP[].
have dp x : is_derive x 1 (fun x : R => c * x ^+ k.+1) (c * (k.+1%:R * x ^+ k)).
  have -> : (fun x : R => c * x ^+ k.+1) = c \*: ((@id R) ^+ k.+1).
    by apply/funext => y; rewrite exprfctE.
  apply: is_derive_eq; rewrite /GRing.scale /=.
  by rewrite mulr1.
move=> x x0; rewrite ler_norml; apply/andP; split.
  rewrite -subr_ge0 opprK.
  apply: (key (g + (fun x => c * x ^+ k.+1)) (fun x => g' x + c * (k.+1%:R * x ^+ k))) => //.
  - by rewrite !fctE g0 expr0n /= mulr0 addr0.
  by move=> y y0; have := hg y y0; rewrite ler_norml => /andP[+ _]; rewrite -subr_ge0 opprK.
have := key ((fun x => c * x ^+ k.+1) - g) (fun x => c * (k.+1%:R * x ^+ k) - g' x).
move/(_ _ _ _ x x0); rewrite !fctE subr_ge0; apply.
- by rewrite g0 expr0n /= mulr0 subr0.
by move=> y y0; have := hg y y0; rewrite ler_norml subr_ge0 => /andP[].
Qed.

Lemma mdot_skew A u : A^T = - A -> mdot (A *m u) u = 0.
Proof.
move=> skew; apply/eqP; rewrite -[_ == 0](mulrn_eq0 _ 2) // mulr2n.
by rewrite {2}mdotC (mdot_mull u) skew mulNmx mdotNl subrr.
Qed.

Lemma flow_fourth A v t : A^T = - A -> 0 <= t ->
  `|mdot (matrixExp (t *: A) *m v) v - frobeniusSq v + t ^+ 2 / 2%:R * frobeniusSq (A *m v)| <=
    frobeniusSq (A *m (A *m v)) / 24%:R * t ^+ 4.
Proof.
move=> skew t0; pose E x := matrixExp (x *: A); pose b := frobeniusSq (A *m (A *m v)).
pose f0 x := mdot (E x *m v) v; pose f1 x := mdot (E x *m (A *m v)) v.
pose f2 x := mdot (E x *m (A *m (A *m v))) v.
pose f3 x := mdot (E x *m (A *m (A *m (A *m v)))) v.
have E0 u : E 0 *m u = u by rewrite /E scale0r matrixExp0 mul1mx.
have turn u w : mdot (A *m u) w = - mdot u (A *m w) by rewrite (mdot_mull u) skew mulNmx mdotNl
  opprK.
have comm x u : E x *m (A *m u) = A *m (E x *m u) by rewrite /E !mulmxA matrixExp_comm.
have f10 : f1 0 = 0 by rewrite /f1 E0 mdot_skew.
have f20 : f2 0 = - frobeniusSq (A *m v) by rewrite /f2 E0 turn -frobE.
have f30 : f3 0 = 0 by rewrite /f3 E0 turn mdot_skew // oppr0.
pose f4 x := mdot (E x *m (A *m (A *m (A *m (A *m v))))) v.
have h4 x : `|f4 x| <= b.
  rewrite /f4 !comm 2!turn opprK -!comm; apply: le_trans (mdot_norm2_le _ _) _.
  by rewrite flow_norm2 // -expr2 norm2_sq.
have h3 x : 0 <= x -> `|f3 x| <= b * x ^+ 1.
  apply: (@power_step f3 f4) => // [y|y y0]; first exact: flow_derive.
  by rewrite expr0 !mulr1.
have h2 x : 0 <= x -> `|f2 x - f2 0| <= b / 2%:R * x ^+ 2.
  apply: (@power_step (f2 - cst (f2 0)) f3) => [y||y y0].
  - by rewrite -[f3 y]subr0; apply: is_deriveB; apply: flow_derive.
  - by rewrite !fctE subrr.
  apply: le_trans (h3 y y0) _; rewrite le_eqVlt; apply/orP; left; apply/eqP; by field.
have h1 x : 0 <= x -> `|f1 x - f2 0 * x| <= b / 6%:R * x ^+ 3.
  apply: (@power_step (f1 - f2 0 \*: id) (fun x => f2 x - f2 0)) => [y||y y0].
  - by rewrite -[X in _ - X]mulr1; apply: is_deriveB; apply: flow_derive.
  - have -> : (f1 - f2 0 \*: id) 0 = f1 0 - f2 0 * 0 by [].
    by rewrite f10 mulr0 subr0.
  apply: le_trans (h2 y y0) _; rewrite le_eqVlt; apply/orP; left; apply/eqP; by field.
have h0 : `|f0 t - f0 0 - f2 0 / 2%:R * t ^+ 2| <= b / 24%:R * t ^+ 4.
  apply: (@power_step (f0 - cst (f0 0) - f2 0 / 2%:R \*: ((@id R) ^+ 2)) (fun x => f1 x - f2 0 * x))
    => // [y||y y0].
  - rewrite -[f1 y]subr0; apply: is_deriveB; first by apply: is_deriveB; apply: flow_derive.
    apply: is_derive_eq; rewrite /GRing.scale /= expr1 mulr1; by field.
  - rewrite exprfctE; have -> : (f0 - cst (f0 0) - f2 0 / 2%:R \*: (fun x => id x ^+ 2)) 0 =
        f0 0 - f0 0 - f2 0 / 2%:R * 0 ^+ 2 by [].
    by rewrite subrr expr0n mulr0 subr0.
  apply: le_trans (h1 y y0) _; rewrite le_eqVlt; apply/orP; left; apply/eqP; by field.
move: h0; rewrite f20 /f0 E0 -frobE; rewrite (_ : _ - _ - _ = mdot (E t *m v) v - frobeniusSq v +
  t ^+ 2 / 2%:R * frobeniusSq (A *m v)) //.
by move: (mdot _ _) (frobeniusSq _) (frobeniusSq _) => x y z; field.
Qed.

(* Let s have entries +1 and -1, a > 0 and A skew. As long as |t| |A s| < 1 no sign of exp(t A)(a s)
   flips; and as long as none does, its 1-bit cosine is 1 - (t^2/2) |A s|^2/d up to an error of at
   most t^4 |A^2 s|^2/(24 d). *)
Theorem beta_local_quadratic_expansion A s a t : A^T = - A -> isSignVector s -> 0 < a ->
  let k := matrixExp (t *: A) *m (a *: s) in
  (`|t| * norm2 (A *m s) < 1 -> signVector k = s) /\
  (signVector k = s ->
   `|cosine k (signVector k) - (1 - t ^+ 2 / 2%:R * (frobeniusSq (A *m s) / d%:R))|
     <= t ^+ 4 * frobeniusSq (A *m (A *m s)) / (24%:R * d%:R)).
Proof.
move=> skew hs a0 k; pose x := matrixExp (t *: A) *m s.
have kE : k = a *: x by rewrite /k -scalemxAr.
split=> [small|->].
  by have b1 := flow_bound s t skew; rewrite kE (signs_kept a0 hs) // (le_lt_trans b1).
have fx : frobeniusSq x = d%:R by rewrite frobE matrixExp_mdot // -frobE frob_isSign.
have bound : `|mdot x s - d%:R + t ^+ 2 / 2%:R * frobeniusSq (A *m s)| <=
    frobeniusSq (A *m (A *m s)) / 24%:R * t ^+ 4.
  rewrite -(frob_isSign hs); case: (lerP 0 t) => t0; first exact: flow_fourth.
  have skew' : (- A)^T = - - A by rewrite linearN /= skew.
  have t1 : 0 <= - t by rewrite oppr_ge0 ltW.
  have := flow_fourth s skew' t1; rewrite scaleNr scalerN opprK !mulNmx !mulmxN opprK sqrrN.
  rewrite (_ : frobeniusSq (- (A *m s)) = frobeniusSq (A *m s)); last first.
    by rewrite -scaleN1r frobeniusSq_smul sqrrN expr1n mul1r.
  by rewrite -[4%N]/(2 * 2)%N exprM sqrrN -exprM.
rewrite kE cosine_near_lattice // frobB fx (frob_isSign hs).
have D0 := d_neq0 R n; have Dp := d_gt0 R n.
move: (d%:R : R) (mdot x s) D0 Dp bound => D m D0 Dp bound.
have -> : 1 - (D - 2%:R * m + D) / (2%:R * D) - (1 - t ^+ 2 / 2%:R * (frobeniusSq (A *m s) / D)) =
    (m - D + t ^+ 2 / 2%:R * frobeniusSq (A *m s)) / D by field.
rewrite normrM [X in _ * X]ger0_norm ?invr_ge0 ?(ltW Dp) // ler_pdivr_mulr //.
apply: le_trans bound _; rewrite le_eqVlt; apply/orP; left; apply/eqP; by field.
Qed.

(* The second-order cost |A s|^2/d is not negative. (A sum of squares: true by definition; what
   makes it the cost is beta_local_quadratic_expansion.) *)
Theorem beta_hessian_nonneg A s : 0 <= frobeniusSq (A *m s) / d%:R.
Proof. by rewrite divr_ge0 ?frobeniusSq_nonneg ?ler0n. Qed.

(* If turning a s by exp(t A), |t| |A s| < 1, brings the 1-bit cosine to 1 - e, then |t| |A s| is at
   least sqrt(2 d e), and its square exceeds 2 d e by at most t^4 |A^2 s|^2/12: the angle is
   sqrt(2 d e)/|A s| to leading order. (A lower bound on the angle; the source prints the opposite
   inequality.) *)
Theorem beta_last_mile_quadratic_hardness A s a t e :
  A^T = - A -> isSignVector s -> 0 < a -> `|t| * norm2 (A *m s) < 1 ->
  let k := matrixExp (t *: A) *m (a *: s) in cosine k (signVector k) = 1 - e ->
  Num.sqrt (2%:R * d%:R * e) <= `|t| * norm2 (A *m s) /\
  (`|t| * norm2 (A *m s)) ^+ 2 - 2%:R * d%:R * e <= t ^+ 4 * frobeniusSq (A *m (A *m s)) / 12%:R.
Proof.
move=> skew hs a0 small k; have [kept near] := beta_local_quadratic_expansion t skew hs a0.
have {}near := near (kept small); rewrite -/k in kept near; move=> h.
rewrite h in near; split; last first.
  rewrite exprMn real_normK ?num_real // norm2_sq.
  have Dp := d_gt0 R n; have D0 := d_neq0 R n; move: (d%:R : R) Dp D0 near => D Dp D0.
  move=> /(le_trans (ler_norm _)) near.
  rewrite -(ler_pmul2r (_ : 0 < (2%:R * D)^-1)) ?invr_gt0 ?mulr_gt0 ?ltr0n //.
  rewrite (_ : (t ^+ 2 * _ - _) * _ = 1 - e - (1 - t ^+ 2 / 2%:R * (frobeniusSq (A *m s) / D))).
    by apply: le_trans near _; rewrite le_eqVlt; apply/orP; left; apply/eqP; field.
  by field.
have kE : k = a *: (matrixExp (t *: A) *m s) by rewrite /k -scalemxAr.
have b1 := flow_bound s t skew; move: h; rewrite (kept small) kE.
set x := matrixExp _ *m s in b1 *.
rewrite cosine_near_lattice //; last by rewrite frobE matrixExp_mdot // -frobE frob_isSign.
move=> h; have -> : 2%:R * d%:R * e = frobeniusSq (x - s); last exact: b1.
have D0 := d_neq0 R n; move: (d%:R : R) h D0 => D h D0.
have -> : e = frobeniusSq (x - s) / (2%:R * D) by apply/eqP; rewrite -(can_eq (subKr 1)) h.
by rewrite mulrC divfK // mulf_neq0 ?pnatr_eq0.
Qed.
End LatticeExpansion.
