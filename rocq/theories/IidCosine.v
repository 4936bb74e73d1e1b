(* Independent coordinates of one law: the squared 1-bit cosine tends to beta = (E|X|)^2 / E X^2 as
   the dimension d grows, in mean and in probability, at the rate 1/sqrt d. Under any expectation
   in the sense of MomentRatio.v, over any complete ordered field; no axioms. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From mathcomp Require Import reals.
From Gonio Require Import Frobenius Gauge SignQuantization MomentRatio Isotropy.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Bounds.
Variable R : rcfType.

(* |x| through x^2, for a scale s *)
Lemma abs_le_square (x s : R) : 0 < s -> `|x| <= 2%:R^-1 * s + (2%:R * s)^-1 * x ^+ 2.
Proof.
move=> s0; have -> : x ^+ 2 = `|x| ^+ 2 by rewrite -normrX ger0_norm ?sqr_ge0.
move: `|x| => y; rewrite -subr_ge0.
have -> : 2%:R^-1 * s + (2%:R * s)^-1 * y ^+ 2 - y = (y - s) ^+ 2 / (2%:R * s).
  by field; rewrite gt_eqF.
by rewrite divr_ge0 ?sqr_ge0 // mulr_ge0 ?ler0n // ltW.
Qed.

(* the squared 1-bit cosine of k, through the means a of |k_i| and b of k_i^2 *)
Lemma cosine_sq_error n (k : 'cV[R]_n.+1) (m1 m2 a b : R) : 0 < m2 -> 0 <= m1 ->
  a = (\sum_i `|k i 0|) / n.+1%:R -> b = (\sum_i k i 0 ^+ 2) / n.+1%:R ->
  `|cosine k (signVector k) ^+ 2 - m1 ^+ 2 / m2| <=
    m2^-1 * `|b - m2| + (2%:R * m1 / m2 * `|a - m1| + m2^-1 * (a - m1) ^+ 2).
Proof.
move=> m20 m10 aE bE; have D0 : n.+1%:R != 0 :> R by rewrite pnatr_eq0.
have Dp : 0 < n.+1%:R :> R by rewrite ltr0n.
have l1E : l1Norm k = n.+1%:R * a by rewrite aE mulrC divfK.
have frE : frobeniusSq k = n.+1%:R * b.
  by rewrite bE mulrC divfK // /frobeniusSq; apply: eq_bigr => i _; rewrite big_ord1.
have b0 : 0 <= b by rewrite -(pmulr_rge0 _ Dp) -frE frobeniusSq_nonneg.
have ab : a ^+ 2 <= b.
  have := l1_lagrange k; rewrite l1E frE => h.
  rewrite -subr_ge0 -(pmulr_rge0 _ (mulr_gt0 Dp Dp)).
  have -> : n.+1%:R * n.+1%:R * (b - a ^+ 2) = n.+1%:R * (n.+1%:R * b) - (n.+1%:R * a) ^+ 2 by ring.
  rewrite h mulr_ge0 ?invr_ge0 ?ler0n //.
  by apply: sumr_ge0 => i _; apply: sumr_ge0 => j _; apply: sqr_ge0.
have cosE : cosine k (signVector k) ^+ 2 = a ^+ 2 / b.
  rewrite cos_sign_quant_formula /norm2 expr_div_n exprMn !sqr_sqrtr ?ler0n ?frobeniusSq_nonneg //.
  rewrite l1E frE; move: (n.+1%:R : R) D0 => D D0; move: a b {aE bE l1E frE b0 ab} => x y.
  by rewrite exprMn [D * (D * y)]mulrA -(expr2 D) invfM mulrACA divff ?mul1r // expf_neq0.
have q0 : 0 <= a ^+ 2 / b by rewrite divr_ge0 ?sqr_ge0.
have q1 : a ^+ 2 / b <= 1.
  have [z|nz] := eqVneq b 0; first by rewrite z invr0 mulr0 ler01.
  by rewrite ler_pdivr_mulr ?mul1r // lt_def nz b0.
have -> : cosine k (signVector k) ^+ 2 - m1 ^+ 2 / m2 =
    m2^-1 * (a ^+ 2 / b * (m2 - b)) + (2%:R * m1 / m2 * (a - m1) + m2^-1 * (a - m1) ^+ 2).
  have qb : a ^+ 2 / b * b = a ^+ 2.
    have [z|nz] := eqVneq b 0; last by rewrite divfK.
    by rewrite z mulr0; apply/esym/eqP; rewrite eq_le sqr_ge0 andbT -z.
  rewrite cosE mulrBr qb; move: (_ / b) => q; move: a {aE l1E ab cosE q0 q1 qb} => x.
  by field; rewrite gt_eqF.
have i0 : 0 <= m2^-1 by rewrite invr_ge0 ltW.
apply: le_trans (ler_norm_add _ _) (ler_add _ _).
  rewrite normrM (ger0_norm i0) ler_wpmul2l // normrM (ger0_norm q0) distrC.
  by rewrite -[leRHS]mul1r ler_wpmul2r.
apply: le_trans (ler_norm_add _ _) (ler_add _ _).
  by rewrite normrM [X in X * _]ger0_norm // mulr_ge0 // mulr_ge0 ?ler0n.
by rewrite ger0_norm // mulr_ge0 ?sqr_ge0.
Qed.
End Bounds.

Section Iid.
Variables (R : rcfType) (T : Type) (integrable : (T -> R) -> Prop) (E : (T -> R) -> R).
Hypothesis hE : isExpectation integrable E.
Local Notation means := (hasMean integrable E).

(* the variance of a mean of d uncorrelated variables *)
Lemma variance_mean n (F : 'I_n.+1 -> T -> R) mu s : (forall i, means (F i) mu) ->
  (forall i j, means (fun t => F i t * F j t) (if i == j then s else mu ^+ 2)) ->
  means (fun t => ((\sum_i F i t) / n.+1%:R - mu) ^+ 2) ((s - mu ^+ 2) / n.+1%:R).
Proof.
move=> h1 h2; have D0 : n.+1%:R != 0 :> R by rewrite pnatr_eq0.
pose P (p : 'I_n.+1 * 'I_n.+1) t := F p.1 t * F p.2 t.
have hP p : means (P p) (if p.1 == p.2 then s else mu ^+ 2) by apply: h2.
have A := hasMean_sum (index_enum _) (fun=> n.+1%:R ^- 2) hE hP.
have B := hasMean_sum (index_enum _) (fun=> - (2%:R * mu / n.+1%:R)) hE h1.
have := hasMean_lin 1 hE A (hasMean_lin 1 hE B (hasMean_cst (mu ^+ 2) hE)).
have -> : 1 * (\sum_(p : 'I_n.+1 * 'I_n.+1) n.+1%:R ^- 2 * (if p.1 == p.2 then s else mu ^+ 2)) +
  (1 * (\sum_(i < n.+1) - (2%:R * mu / n.+1%:R) * mu) + mu ^+ 2) = (s - mu ^+ 2) / n.+1%:R.
  rewrite -mulr_sumr -(pair_bigA _ (fun i j => if i == j then s else mu ^+ 2)) /=.
  rewrite (eq_bigr (fun=> (s - mu ^+ 2) + n.+1%:R * mu ^+ 2)) => [|i _].
    rewrite !sumr_const card_ord -(mulr_natl (_ + _)) -(mulr_natl (- _ * _)).
    by move: (n.+1%:R : R) D0 => D D0; field.
  rewrite (eq_bigr (fun j => (i == j)%:R * (s - mu ^+ 2) + mu ^+ 2)) => [|j _].
    rewrite big_split /= sumr_const card_ord -[X in _ + X]mulr_natl; congr (_ + _).
    rewrite (bigD1 i) //= eqxx mul1r big1 ?addr0 // => j ji.
    by rewrite eq_sym (negPf ji) mul0r.
  by case: eqP => _; rewrite ?mul1r ?mul0r ?subrK ?add0r.
apply: hasMean_ext => t; rewrite -!mulr_sumr.
have -> : \sum_(p : 'I_n.+1 * 'I_n.+1) P p t = (\sum_i F i t) ^+ 2.
  rewrite -(pair_bigA _ (fun i j => F i t * F j t)) /= expr2 mulr_suml.
  by apply: eq_bigr => i _; rewrite mulr_sumr.
by move: (\sum_i _) (n.+1%:R : R) D0 => z D D0; field.
Qed.

Lemma means_le f g v : means g v -> integrable f -> (forall t, f t <= g t) -> E f <= v.
Proof.
move=> [h [ih hg <-]] hf fg; rewrite -subr_ge0.
have := expectation_ge0 hE (integrable_lin hE (-1) hf ih).
rewrite (expectation_lin hE) // mulN1r addrC; apply=> t.
by rewrite mulN1r addrC subr_ge0 hg.
Qed.

(* Markov's inequality *)
Lemma markov f g v e : means g v -> 0 < e -> (forall t, 0 <= f t) -> (forall t, f t <= g t) ->
  integrable (fun t => (e < f t)%R%:R) -> E (fun t => (e < f t)%R%:R) <= v / e.
Proof.
move=> hg e0 f0 le ie; have := hasMean_lin e^-1 hE hg (hasMean_cst 0 hE).
rewrite addr0 mulrC => hg'; apply: (means_le hg' ie) => t; rewrite addr0.
case: ltP => [lt|_]; first by rewrite mulrC ler_pdivl_mulr // mul1r (le_trans (ltW lt)).
by rewrite mulr_ge0 ?invr_ge0 ?(ltW e0) //; apply: le_trans (le t).
Qed.

(* X_0, X_1, .. are pairwise independent with one law: for f and g of a class (such as the Borel
   functions), f(X_i) has the mean of f(X_j), and f(X_i) g(X_j) the product of their means *)
Record isIid (borel : (R -> R) -> Prop) (X : nat -> T -> R) : Prop := {
  iid_law : forall f i j, borel f -> integrable (fun t => f (X i t)) ->
    integrable (fun t => f (X j t)) /\ E (fun t => f (X j t)) = E (fun t => f (X i t));
  iid_independent : forall f g i j, borel f -> borel g -> i != j ->
    integrable (fun t => f (X i t)) -> integrable (fun t => g (X j t)) ->
    integrable (fun t => f (X i t) * g (X j t)) /\
    E (fun t => f (X i t) * g (X j t)) = E (fun t => f (X i t)) * E (fun t => g (X j t)) }.

(* the class has the functions that are used here: |x|, x^2, x^2 cut off at k, and products *)
Record isBorelClass (borel : (R -> R) -> Prop) : Prop := {
  borel_abs : borel (fun x => `|x|);
  borel_square : borel (fun x => x ^+ 2);
  borel_cut : forall k, borel (fun x => Num.min (x ^+ 2) k);
  borel_mul : forall f g, borel f -> borel g -> borel (fun x => f x * g x) }.

(* the first d = n + 1 of them as a vector, and the distance of its squared 1-bit cosine to beta *)
Definition firstOf (X : nat -> T -> R) n t : 'cV[R]_n.+1 := \col_i X i t.
Definition cosineError X (beta : R) n t : R :=
  `|cosine (firstOf X n t) (signVector (firstOf X n t)) ^+ 2 - beta|.

Variables (borel : (R -> R) -> Prop) (X : nat -> T -> R).
Hypotheses (hb : isBorelClass borel) (iid : isIid borel X).
Hypotheses (i1 : integrable (fun t => `|X 0%N t|)) (i2 : integrable (fun t => X 0%N t ^+ 2)).
Let m1 := E (fun t => `|X 0%N t|).
Let m2 := E (fun t => X 0%N t ^+ 2).
Hypothesis m2_gt0 : 0 < m2.

Lemma m1_ge0 : 0 <= m1.
Proof. by apply: (expectation_ge0 hE i1) => t. Qed.

Lemma law_means f i : borel f -> integrable (fun t => f (X 0%N t)) ->
  means (fun t => f (X i t)) (E (fun t => f (X 0%N t))).
Proof. by move=> bf h; have [h' e] := iid_law iid i bf h; exists (fun t => f (X i t)). Qed.

(* E (mean of the f(X_i) - E f(X))^2 = (E f(X)^2 - (E f(X))^2)/d *)
Lemma variance_of f s n : borel f -> integrable (fun t => f (X 0%N t)) ->
  (forall i, means (fun t => f (X i t) * f (X i t)) s) -> let mu := E (fun t => f (X 0%N t)) in
  means (fun t => ((\sum_(i < n.+1) f (X i t)) / n.+1%:R - mu) ^+ 2) ((s - mu ^+ 2) / n.+1%:R).
Proof.
move=> bf h hs mu.
apply: (@variance_mean n (fun i t => f (X i t))) => [i|i j]; first exact: law_means.
case: eqP => [->|/eqP ij]; first exact: hs.
have [p1 q1] := iid_law iid i bf h; have [p2 q2] := iid_law iid j bf h.
have [p3 q3] := iid_independent iid bf bf (i := i) (j := j) ij p1 p2.
by exists (fun t => f (X i t) * f (X j t)); split=> //; rewrite q3 q1 q2 expr2.
Qed.

Lemma variance_abs n :
  means (fun t => ((\sum_(i < n.+1) `|X i t|) / n.+1%:R - m1) ^+ 2) ((m2 - m1 ^+ 2) / n.+1%:R).
Proof.
apply: (variance_of n (borel_abs hb) i1) => i.
apply: hasMean_ext (law_means i (borel_square hb) i2) => t.
by rewrite -expr2 -normrX ger0_norm ?sqr_ge0.
Qed.

(* a bound for the error, from one for the mean of the squares; s is a scale *)
Lemma error_le n t b s : 0 < s -> `|(\sum_(i < n.+1) X i t ^+ 2) / n.+1%:R - m2| <= b ->
  cosineError X (m1 ^+ 2 / m2) n t <= m2^-1 * b + ((2%:R * m1 / m2 * (2%:R * s)^-1 + m2^-1) *
    ((\sum_(i < n.+1) `|X i t|) / n.+1%:R - m1) ^+ 2 + 2%:R * m1 / m2 * (2%:R^-1 * s)).
Proof.
move=> s0 hbd; have aE : (\sum_(i < n.+1) `|X i t|) / n.+1%:R =
    (\sum_i `|firstOf X n t i 0|) / n.+1%:R.
  by congr (_ / _); apply: eq_bigr => i _; rewrite mxE.
have bE : (\sum_(i < n.+1) X i t ^+ 2) / n.+1%:R = (\sum_i firstOf X n t i 0 ^+ 2) / n.+1%:R.
  by congr (_ / _); apply: eq_bigr => i _; rewrite mxE.
apply: le_trans (cosine_sq_error m2_gt0 m1_ge0 aE bE) _.
move: {aE bE} ((\sum_(i < n.+1) `|X i t|) / n.+1%:R) ((\sum_(i < n.+1) X i t ^+ 2) / n.+1%:R) hbd.
move=> a b' hbd; apply: ler_add; first by rewrite ler_wpmul2l // invr_ge0 ltW.
have h1 := abs_le_square (a - m1) s0.
apply: le_trans (_ : 2%:R * m1 / m2 * (2%:R^-1 * s + (2%:R * s)^-1 * (a - m1) ^+ 2) +
  m2^-1 * (a - m1) ^+ 2 <= _).
  by rewrite ler_add2r ler_wpmul2l // mulr_ge0 ?invr_ge0 ?(ltW m2_gt0) // mulr_ge0 ?ler0n ?m1_ge0.
rewrite le_eqVlt; apply/orP; left; apply/eqP.
by move: (m2^-1) ((2%:R * s)^-1) (2%:R^-1 : R) => x y w; ring.
Qed.

Lemma coefficients_ge0 s : 0 < s -> 0 <= m2^-1 /\ 0 <= 2%:R * m1 / m2 * (2%:R * s)^-1 + m2^-1.
Proof.
move=> s0; have i0 : 0 <= m2^-1 by rewrite invr_ge0 ltW.
split=> //; apply: addr_ge0 => //; apply: mulr_ge0; last by rewrite invr_ge0 mulr_ge0 ?ler0n // ltW.
by apply: mulr_ge0 => //; apply: mulr_ge0; rewrite ?ler0n ?m1_ge0.
Qed.

Lemma variance_le (x y : R) n : (x - y ^+ 2) / n.+1%:R <= x / n.+1%:R.
Proof. by rewrite ler_pmul2r ?invr_gt0 ?ltr0n // ger_addl oppr_le0 sqr_ge0. Qed.

(* ---------- with a fourth moment ---------- *)
Section FourthMoment.
Hypothesis i4 : integrable (fun t => X 0%N t ^+ 2 * X 0%N t ^+ 2).
Let m4 := E (fun t => X 0%N t ^+ 2 * X 0%N t ^+ 2).
Definition iidConstant : R := (Num.sqrt m4 + 2%:R * m1 * Num.sqrt m2 + m2) / m2.

(* a function above the error, of mean at most K / sqrt d *)
Lemma iid_bound n : exists g v, [/\ means g v, v <= iidConstant / Num.sqrt n.+1%:R &
  forall t, cosineError X (m1 ^+ 2 / m2) n t <= g t].
Proof.
have VA := variance_abs n.
have VB := variance_of n (borel_square hb) i2
  (fun i => law_means i (borel_mul hb (borel_square hb) (borel_square hb)) i4).
rewrite /= -/m2 -/m4 in VB.
pose D : R := n.+1%:R; have Dp : 0 < D by rewrite ltr0n.
have m4_gt0 : 0 < m4.
  have h0 : 0 <= (m4 - m2 ^+ 2) / D.
    by have [h [ih hh <-]] := VB; apply: (expectation_ge0 hE ih) => t; rewrite hh sqr_ge0.
  have : m2 ^+ 2 <= m4 by rewrite -subr_ge0; move: h0; rewrite pmulr_lge0 ?invr_gt0.
  by apply: lt_le_trans; rewrite exprn_gt0.
pose s2 := Num.sqrt m4 / Num.sqrt D; pose s1 := Num.sqrt m2 / Num.sqrt D.
have sD : 0 < Num.sqrt D by rewrite sqrtr_gt0.
have s20 : 0 < s2 by rewrite divr_gt0 ?sqrtr_gt0.
have s10 : 0 < s1 by rewrite divr_gt0 ?sqrtr_gt0.
have s2s : s2 ^+ 2 = m4 / D by rewrite expr_div_n !sqr_sqrtr ?ltW.
have s1s : s1 ^+ 2 = m2 / D by rewrite expr_div_n !sqr_sqrtr ?ltW.
pose c2 := m2^-1 * (2%:R * s2)^-1; pose c1 := 2%:R * m1 / m2 * (2%:R * s1)^-1 + m2^-1.
pose c0 := m2^-1 * (2%:R^-1 * s2) + 2%:R * m1 / m2 * (2%:R^-1 * s1).
have [i0 c10] := coefficients_ge0 s10; rewrite -/c1 in c10.
have c20 : 0 <= c2 by apply: mulr_ge0 => //; rewrite invr_ge0 mulr_ge0 ?ler0n // ltW.
eexists; eexists; split.
- exact: (hasMean_lin c2 hE VB (hasMean_lin c1 hE VA (hasMean_cst c0 hE))).
- apply: le_trans (_ : c2 * s2 ^+ 2 + (c1 * s1 ^+ 2 + c0) <= _).
    by apply: ler_add; rewrite ?ler_add2r ler_wpmul2l // ?s2s ?s1s variance_le.
  have -> : c2 * s2 ^+ 2 + (c1 * s1 ^+ 2 + c0) = (s2 + 2%:R * m1 * s1 + s1 ^+ 2) / m2.
    by rewrite /c2 /c1 /c0; field; rewrite !gt_eqF.
  rewrite /iidConstant [leRHS]mulrAC ler_pmul2r ?invr_gt0 //.
  have -> : (Num.sqrt m4 + 2%:R * m1 * Num.sqrt m2 + m2) / Num.sqrt D =
      s2 + 2%:R * m1 * s1 + m2 / Num.sqrt D by rewrite /s2 /s1; field; rewrite gt_eqF.
  rewrite ler_add2l s1s ler_pmul2l // lef_pinv ?posrE //.
  have DD : D = Num.sqrt D ^+ 2 by rewrite sqr_sqrtr // ltW.
  rewrite [leRHS]DD expr2 ler_pemull ?(ltW sD) //.
  by rewrite -sqrtr1 ler_wsqrtr // ler1n.
move=> t; apply: le_trans (error_le s10 (abs_le_square _ s20)) _.
rewrite -/c1 le_eqVlt; apply/orP; left; apply/eqP; rewrite /c2 /c0.
by move: (m2^-1) ((2%:R * s2)^-1) (2%:R^-1 : R) (_ ^+ 2) (_ ^+ 2) => x y w p q; ring.
Qed.
End FourthMoment.

(* ---------- with a second moment ---------- *)
(* the squares, cut off at k, have almost the mean m2 (monotone convergence), and a second moment *)
Definition cutsApproximate : Prop := forall c, 0 < c -> exists k,
  [/\ integrable (fun t => Num.min (X 0%N t ^+ 2) k),
      integrable (fun t => Num.min (X 0%N t ^+ 2) k * Num.min (X 0%N t ^+ 2) k) &
      m2 - E (fun t => Num.min (X 0%N t ^+ 2) k) <= c].

(* for every c > 0 a function above the error, of mean at most A c + B/d, A independent of c *)
Lemma iid_cut_bound c : cutsApproximate -> 0 < c -> exists B, 0 <= B /\ forall n, exists g v,
  [/\ means g v, v <= (3%:R + m1) / m2 * c + B / n.+1%:R &
    forall t, cosineError X (m1 ^+ 2 / m2) n t <= g t].
Proof.
move=> cut c0; have [k [ik ikk mk]] := cut c c0.
pose f x : R := Num.min (x ^+ 2) k; pose m := E (fun t => f (X 0%N t)).
pose s := E (fun t => f (X 0%N t) * f (X 0%N t)).
have s0 : 0 <= s by apply: (expectation_ge0 hE ikk) => t; rewrite -expr2 sqr_ge0.
pose c1 := 2%:R * m1 / m2 * (2%:R * c)^-1 + m2^-1.
have [i0 c10] := coefficients_ge0 c0; rewrite -/c1 in c10.
pose c2 := m2^-1 * (2%:R * c)^-1.
have c20 : 0 <= c2 by apply: mulr_ge0 => //; rewrite invr_ge0 mulr_ge0 ?ler0n // ltW.
exists (c2 * s + c1 * m2); split=> [|n].
  by rewrite addr_ge0 // mulr_ge0 // ltW.
have VA := variance_abs n; pose D : R := n.+1%:R; have Dp : 0 < D by rewrite ltr0n.
have VB := variance_of n (borel_cut hb k) ik
  (fun i => law_means i (borel_mul hb (borel_cut hb k) (borel_cut hb k)) ikk).
rewrite /= -/m -/s in VB.
have hX i : means (fun t => X i t ^+ 2 - f (X i t)) (m2 - m).
  have := hasMean_lin (-1) hE (law_means i (borel_cut hb k) ik) (law_means i (borel_square hb) i2).
  by rewrite mulN1r addrC; apply: hasMean_ext => t; rewrite mulN1r addrC.
have HB := hasMean_sum (index_enum _) (fun=> D^-1) hE (fun i : 'I_n.+1 => hX i).
pose c3 := m2^-1 * (2%:R^-1 * c + (m2 - m)) + 2%:R * m1 / m2 * (2%:R^-1 * c).
eexists; eexists; split.
- exact: (hasMean_lin m2^-1 hE HB (hasMean_lin c2 hE VB (hasMean_lin c1 hE VA (hasMean_cst c3
  hE)))).
- rewrite sumr_const card_ord -[_ *+ _]mulr_natl mulVKf ?gt_eqF //.
  apply: le_trans (_ : m2^-1 * c + (c2 * (s / D) + (c1 * (m2 / D) +
     (m2^-1 * (2%:R^-1 * c + c) + 2%:R * m1 / m2 * (2%:R^-1 * c)))) <= _).
    apply: ler_add; first by rewrite ler_wpmul2l.
    apply: ler_add; first by rewrite ler_wpmul2l // variance_le.
    apply: ler_add; first by rewrite ler_wpmul2l // variance_le.
    by rewrite ler_add2r ler_wpmul2l // ler_add2l.
  rewrite -subr_ge0 -/D.
  have -> : (3%:R + m1) / m2 * c + (c2 * s + c1 * m2) / D - (m2^-1 * c + (c2 * (s / D) +
     (c1 * (m2 / D) + (m2^-1 * (2%:R^-1 * c + c) + 2%:R * m1 / m2 * (2%:R^-1 * c))))) =
     c / (2%:R * m2).
    by move: c1 c2 {c10 c20} => x y; field; rewrite !gt_eqF.
  by rewrite divr_ge0 ?(ltW c0) // mulr_ge0 ?ler0n // ltW.
move=> t; pose p := \sum_(i < n.+1) D^-1 * (X i t ^+ 2 - f (X i t)).
pose q := (\sum_(i < n.+1) f (X i t)) / D.
have pq : (\sum_(i < n.+1) X i t ^+ 2) / D - m2 = p + (q - m) - (m2 - m).
  by rewrite /p -mulr_sumr sumrB /q mulrC; move: (\sum_i _) (\sum_i _) => x y; ring.
have p0 : 0 <= p.
  apply: sumr_ge0 => i _; rewrite mulr_ge0 ?invr_ge0 ?(ltW Dp) // subr_ge0.
  by rewrite /f le_minl lexx.
have mm : 0 <= m2 - m.
  have [h [ih hh <-]] := hX 0%N; apply: (expectation_ge0 hE ih) => t'.
  by rewrite hh subr_ge0 /f le_minl lexx.
have hbd : `|(\sum_(i < n.+1) X i t ^+ 2) / n.+1%:R - m2| <=
    p + (2%:R^-1 * c + (2%:R * c)^-1 * (q - m) ^+ 2) + (m2 - m).
  rewrite -/D pq; apply: le_trans (ler_norm_sub _ _) _; apply: ler_add; last by rewrite ger0_norm.
  apply: le_trans (ler_norm_add _ _) _; apply: ler_add; first by rewrite ger0_norm.
  exact: abs_le_square.
apply: le_trans (error_le c0 hbd) _; rewrite -/c1 -/p -/D -/q /c3 /c2.
rewrite le_eqVlt; apply/orP; left; apply/eqP.
by move: (m2^-1) ((2%:R * c)^-1) (2%:R^-1 : R) (_ ^+ 2) ((q - m) ^+ 2) => x y w z r; ring.
Qed.
End Iid.

(* Let X_0, X_1, .. be pairwise independent with one law, m1 = E|X|, m2 = E X^2 > 0 finite. The
   squared 1-bit cosine of (X_0, .., X_n), in dimension d = n + 1, tends to m1^2/m2 in probability
   and in mean. (Where the error, or the event that it exceeds e, has a mean, as they have for
   every probability measure; cutsApproximate is monotone convergence, true for every measure.) *)
Theorem iid_coord_moment_ratio_floor (R : realType) T (integrable : (T -> R) -> Prop)
    (E : (T -> R) -> R) (borel : (R -> R) -> Prop) (X : nat -> T -> R) :
  isExpectation integrable E -> isBorelClass borel -> isIid integrable E borel X ->
  integrable (fun t => `|X 0%N t|) -> integrable (fun t => X 0%N t ^+ 2) ->
  cutsApproximate integrable E X ->
  let m1 := E (fun t => `|X 0%N t|) in let m2 := E (fun t => X 0%N t ^+ 2) in
  let error := cosineError X (m1 ^+ 2 / m2) in
  0 < m2 -> forall h : R, 0 < h ->
  (exists N, forall n, (N <= n)%N -> integrable (error n) -> E (error n) <= h) /\
  (forall e : R, 0 < e -> exists N, forall n, (N <= n)%N ->
     integrable (fun t => (e < error n t)%R%:R) -> E (fun t => (e < error n t)%R%:R) <= h).
Proof.
move=> hE hb iid i1 i2 cut m1 m2 error m20.
have small h : 0 < h -> exists N, forall n, (N <= n)%N -> exists g v,
    [/\ hasMean integrable E g v, v <= h & forall t, error n t <= g t].
  move=> h0; pose A := (3%:R + m1) / m2; have m10 : 0 <= m1 := m1_ge0 hE i1.
  have A0 : 0 < A by rewrite divr_gt0 // ltr_spaddl ?ltr0n.
  pose c := h / (2%:R * A); have c0 : 0 < c by rewrite divr_gt0 // mulr_gt0 ?ltr0n.
  have [B [B0 bound]] := iid_cut_bound hE hb iid i1 i2 m20 cut c0.
  exists (Num.bound (2%:R * B / h)) => n Nn; have [g [v [hg hv le]]] := bound n.
  exists g, v; split=> //; apply: le_trans hv _; rewrite -/m1 -/m2 -/A.
  have -> : A * c = h / 2%:R by rewrite /c; field; rewrite gt_eqF.
  have h2 : h = h / 2%:R + h / 2%:R by field.
  have nB : 2%:R * B <= n.+1%:R * h.
    rewrite -ler_pdivr_mulr //; apply: ltW; apply: lt_le_trans (archi_boundP _) _.
      by rewrite divr_ge0 ?(ltW h0) // mulr_ge0 ?ler0n.
    by rewrite ler_nat leqW.
  rewrite [leRHS]h2 ler_add2l ler_pdivr_mulr ?ltr0n // -(ler_pmul2l (_ : 0 < 2%:R)) ?ltr0n //.
  by apply: le_trans nB _; rewrite le_eqVlt; apply/orP; left; apply/eqP; field.
move=> h h0; split=> [|e e0].
  have [N hN] := small h h0; exists N => n /hN [g [v [hg hv le]]] ie.
  exact: le_trans (means_le hE hg ie le) hv.
have [N hN] := small _ (mulr_gt0 e0 h0); exists N => n /hN [g [v [hg hv le]]] ie.
apply: le_trans (markov hE hg e0 (fun t => normr_ge0 _) le ie) _; rewrite ler_pdivr_mulr // mulrC.
exact: hv.
Qed.

(* If m4 = E X^4 is finite too, the squared 1-bit cosine differs from m1^2/m2 by at most K/sqrt d on
   average, K = (sqrt m4 + 2 m1 sqrt m2 + m2)/m2, and by more than e with probability at most
   K/(e sqrt d). *)
Theorem iid_coord_rate (R : rcfType) T (integrable : (T -> R) -> Prop)
    (E : (T -> R) -> R) (borel : (R -> R) -> Prop) (X : nat -> T -> R) n :
  isExpectation integrable E -> isBorelClass borel -> isIid integrable E borel X ->
  integrable (fun t => `|X 0%N t|) -> integrable (fun t => X 0%N t ^+ 2) ->
  integrable (fun t => X 0%N t ^+ 2 * X 0%N t ^+ 2) ->
  let m1 := E (fun t => `|X 0%N t|) in let m2 := E (fun t => X 0%N t ^+ 2) in
  let m4 := E (fun t => X 0%N t ^+ 2 * X 0%N t ^+ 2) in
  let K := (Num.sqrt m4 + 2%:R * m1 * Num.sqrt m2 + m2) / m2 in
  let error := cosineError X (m1 ^+ 2 / m2) n in
  0 < m2 -> (integrable error -> E error <= K / Num.sqrt n.+1%:R) /\
  (forall e : R, 0 < e -> integrable (fun t => (e < error t)%R%:R) ->
     E (fun t => (e < error t)%R%:R) <= K / Num.sqrt n.+1%:R / e).
Proof.
move=> hE hb iid i1 i2 i4 m1 m2 m4 K error m20.
have [g [v [hg hv le]]] := iid_bound hE hb iid i1 i2 m20 i4 n.
split=> [ie|e e0 ie]; first exact: le_trans (means_le hE hg ie le) hv.
apply: le_trans (markov hE hg e0 (fun t => normr_ge0 _) le ie) _.
by rewrite ler_pmul2r ?invr_gt0.
Qed.
