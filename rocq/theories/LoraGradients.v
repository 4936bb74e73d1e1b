(* Gradients of the factors of a low-rank update s B A, for any differentiable loss.
   Over any real closed field: no axioms. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From Gonio Require Import Frobenius Gauge.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Gradients.
Variable R : rcfType.

(* L is differentiable at W with gradient G: L(W + D) = L(W) + <G, D> + o(|D|) *)
Definition hasGradient m n (L : 'M[R]_(m, n) -> R) W G : Prop := forall e, 0 < e ->
  exists c, 0 < c /\ forall D, norm2 D <= c -> `|L (W + D) - L W - mdot G D| <= e * norm2 D.

Lemma norm2M m n p (A : 'M[R]_(m, n)) (B : 'M[R]_(n, p)) : norm2 (A *m B) <= norm2 A * norm2 B.
Proof. by rewrite /norm2 -sqrtrM ?frobeniusSq_nonneg // ler_wsqrtr // frob_mul_le. Qed.
Lemma norm2_scale m n a (A : 'M[R]_(m, n)) : norm2 (a *: A) = `|a| * norm2 A.
Proof. by rewrite /norm2 frobeniusSq_smul sqrtrM ?sqr_ge0 // sqrtr_sqr. Qed.
Lemma mdot_abs m n (A B : 'M[R]_(m, n)) : `|mdot A B| <= norm2 A * norm2 B.
Proof.
by rewrite -sqrtr_sqr -sqrtrM ?frobeniusSq_nonneg // ler_wsqrtr // cauchy_schwarz.
Qed.

(* the gradient is unique *)
Lemma gradient_unique m n (L : 'M[R]_(m, n) -> R) W G G' :
  hasGradient L W G -> hasGradient L W G' -> G = G'.
Proof.
move=> h h'; apply/eqP; rewrite -subr_eq0; apply: contraT => D0; set D := G - G' in D0.
have nD : 0 < norm2 D by rewrite sqrtr_gt0 frob_gt0.
have e0 : 0 < norm2 D / 3%:R by rewrite divr_gt0 ?ltr0n.
have [c [c0 hc]] := h _ e0; have [c' [c'0 hc']] := h' _ e0.
pose t := Num.min c c' / norm2 D; have t0 : 0 < t by rewrite divr_gt0 // lt_minr c0.
have nt : norm2 (t *: D) = Num.min c c'.
  by rewrite norm2_scale ger0_norm ?(ltW t0) // divfK // gt_eqF.
have l1 : norm2 (t *: D) <= c by rewrite nt le_minl lexx.
have l2 : norm2 (t *: D) <= c' by rewrite nt le_minl lexx orbT.
set x := L (W + t *: D) - L W in hc hc' *.
have key : mdot D (t *: D) <= 2%:R / 3%:R * norm2 D * norm2 (t *: D).
  have h1 := hc _ l1; have h2 := hc' _ l2; rewrite -/x in h1 h2.
  apply: le_trans (_ : `|x - mdot G' (t *: D)| + `|x - mdot G (t *: D)| <= _).
    rewrite -[X in _ + X]normrN; apply: le_trans (ler_norm_add _ _); apply: le_trans (ler_norm _).
    by rewrite /D mdotBl; move: (mdot G _) (mdot G' _) => u v;
      rewrite le_eqVlt; apply/orP; left; apply/eqP; ring.
  by apply: le_trans (ler_add h2 h1) _; rewrite le_eqVlt; apply/orP; left; apply/eqP; field.
move: key; rewrite mdotZr -frobE -norm2_sq norm2_scale (ger0_norm (ltW t0)).
rewrite (_ : _ * (t * norm2 D) = 2%:R / 3%:R * (t * norm2 D ^+ 2)); last by field.
have q : 0 < t * norm2 D ^+ 2 by rewrite mulr_gt0 ?exprn_gt0.
rewrite -[X in X <= _]mul1r (ler_pmul2r q).
by rewrite ler_pdivl_mulr ?ltr0n // mul1r ler_nat.
Qed.

(* ---------- the factors ---------- *)
Variables (m r n : nat) (G : 'M[R]_(m, n)) (s : R).
Implicit Types (B H : 'M[R]_(m, r)) (A K : 'M[R]_(r, n)).

(* G is the gradient of the loss at the current weights; s = alpha/r, or alpha/sqrt r *)
Definition gradB A : 'M[R]_(m, r) := s *: (G *m A^T).
Definition gradA B : 'M[R]_(r, n) := s *: (B^T *m G).

(* Let the loss L be differentiable at W + s B A, with gradient G. Then L(W + s (B + H)(A + K)) is
   L(W + s B A) + <s G A^T, H> + <s B^T G, K> + o(|H| + |K|): as a function of both factors it is
   differentiable, with gradients dB = s G A^T and dA = s B^T G; and no other matrices are gradients
   in B and in A. *)
Theorem lora_gradients (L : 'M[R]_(m, n) -> R) W B A : hasGradient L (W + s *: (B *m A)) G ->
  [/\ forall e, 0 < e -> exists c, 0 < c /\ forall H K, norm2 H + norm2 K <= c ->
        `|L (W + s *: ((B + H) *m (A + K))) - L (W + s *: (B *m A))
          - (mdot (gradB A) H + mdot (gradA B) K)| <= e * (norm2 H + norm2 K),
      forall X, hasGradient (fun B' => L (W + s *: (B' *m A))) B X <-> X = gradB A &
      forall Y, hasGradient (fun A' => L (W + s *: (B *m A'))) A Y <-> Y = gradA B].
Proof.
move=> hG; suff joint : forall e, 0 < e -> exists c, 0 < c /\ forall H K, norm2 H + norm2 K <= c ->
    `|L (W + s *: ((B + H) *m (A + K))) - L (W + s *: (B *m A))
      - (mdot (gradB A) H + mdot (gradA B) K)| <= e * (norm2 H + norm2 K).
  have n0 p q : norm2 (0 : 'M[R]_(p, q)) = 0 by rewrite /norm2 frobE mdot0l sqrtr0.
  have gB : hasGradient (fun B' => L (W + s *: (B' *m A))) B (gradB A).
    move=> e e0; have [c [c0 h]] := joint e e0; exists c; split=> // H hH.
    by have := h H 0; rewrite n0 !addr0 mdot0r addr0; apply.
  have gA : hasGradient (fun A' => L (W + s *: (B *m A'))) A (gradA B).
    move=> e e0; have [c [c0 h]] := joint e e0; exists c; split=> // K hK.
    by have := h 0 K; rewrite n0 !addr0 !add0r mdot0r add0r; apply.
  split=> // X; split=> [hX|-> //]; first exact: gradient_unique hX gB.
  exact: gradient_unique hX gA.
move=> e e0; pose a := `|s| * (norm2 A + norm2 B + 1) + 1; pose b := `|s| * norm2 G + 1.
have s0 : 0 <= `|s| := normr_ge0 s.
have a1 : 0 < a by rewrite ltr_paddl ?ltr01 // mulr_ge0 // !addr_ge0 ?norm2_ge0 ?ler01.
have b1 : 0 < b by rewrite ltr_paddl ?ltr01 // mulr_ge0 // norm2_ge0.
have e1 : 0 < e / (2%:R * a) by rewrite divr_gt0 // mulr_gt0 ?ltr0n.
have [c [c0 hc]] := hG _ e1.
have p1 : 0 < c / a by rewrite divr_gt0.
have p2 : 0 < e / (2%:R * b) by rewrite divr_gt0 // mulr_gt0 ?ltr0n.
exists (Num.min 1 (Num.min (c / a) (e / (2%:R * b)))); split=> [|H K].
  by rewrite !lt_minr ltr01 p1 p2.
set t := norm2 H + norm2 K; rewrite !le_minr => /and3P[t1 ta tb].
have H0 := norm2_ge0 H; have K0 := norm2_ge0 K; have t0 : 0 <= t by rewrite addr_ge0.
have Ht : norm2 H <= t by rewrite ler_addl.
have Kt : norm2 K <= t by rewrite ler_addr.
pose D := s *: (H *m A + B *m K + H *m K).
have DE : W + s *: ((B + H) *m (A + K)) = W + s *: (B *m A) + D.
  rewrite -addrA -scalerDr mulmxDl !mulmxDr; congr (_ + _ *: _).
  by rewrite -!addrA; congr (_ + _); rewrite addrCA addrA.
have Dt : norm2 D <= a * t.
  rewrite norm2_scale; apply: le_trans (_ : `|s| * ((norm2 A + norm2 B + 1) * t) <= _); last first.
    by rewrite mulrA mulrDl ler_addl mul1r.
  rewrite ler_wpmul2l //; apply: le_trans (norm2D _ _) _; rewrite mulrDl mul1r.
  apply: ler_add; last first.
    apply: le_trans (norm2M _ _) _; rewrite -[leRHS]mulr1; apply: ler_pmul => //.
    exact: le_trans Kt t1.
  apply: le_trans (norm2D _ _) _; rewrite mulrDl; apply: ler_add.
    by apply: le_trans (norm2M _ _) _; rewrite mulrC ler_wpmul2l ?norm2_ge0.
  by apply: le_trans (norm2M _ _) _; rewrite ler_wpmul2l ?norm2_ge0.
have Dc : norm2 D <= c by apply: le_trans Dt _; rewrite mulrC -ler_pdivl_mulr.
have hD := hc _ Dc.
have GD : mdot G D = mdot (gradB A) H + mdot (gradA B) K + s * mdot G (H *m K).
  rewrite /D mdotZr !mdotDr /gradB /gradA !mdotZl -(mdot_mulr G H A) -(mdot_mull G K B).
  by move: (mdot G (H *m A)) (mdot G (B *m K)) (mdot G (H *m K)) => x y z; ring.
rewrite DE; set x := L _ - L _ in hD *.
have -> : x - (mdot (gradB A) H + mdot (gradA B) K) = (x - mdot G D) + s * mdot G (H *m K).
  by rewrite GD; ring.
apply: le_trans (ler_norm_add _ _) _.
rewrite (_ : e * t = e / (2%:R * a) * (a * t) + e / 2%:R * t); last by field; rewrite gt_eqF.
apply: ler_add; first by apply: le_trans hD _; rewrite ler_wpmul2l // ltW.
rewrite normrM; apply: le_trans (_ : b * (t * t) <= _).
  apply: le_trans (_ : `|s| * (norm2 G * (t * t)) <= _); last first.
    by rewrite [leLHS]mulrA /b mulrDl ler_addl mul1r mulr_ge0.
  rewrite ler_wpmul2l //; apply: le_trans (mdot_abs _ _) _; rewrite ler_wpmul2l ?norm2_ge0 //.
  by apply: le_trans (norm2M _ _) _; apply: ler_pmul.
rewrite mulrA ler_wpmul2r // mulrC -ler_pdivl_mulr //; apply: le_trans tb _.
by rewrite invfM mulrA.
Qed.

(* With B = 0 the update s B A is 0, the gradient of A is 0, and that of B is not 0 as long as
   G A^T is not; with A = 0 the same holds with the roles exchanged. If both are 0, both gradients
   are: training cannot start. So the gradient that vanishes is the one of the factor that is not
   0. *)
Theorem zero_init B A : s != 0 ->
  [/\ s *: ((0 : 'M_(m, r)) *m A) = 0, gradA 0 = 0 & (gradB A = 0 <-> G *m A^T = 0)] /\
  [/\ s *: (B *m (0 : 'M_(r, n))) = 0, gradB 0 = 0 & (gradA B = 0 <-> B^T *m G = 0)].
Proof.
move=> s0; rewrite /gradA /gradB mul0mx mulmx0 !trmx0 mulmx0 mul0mx !scaler0.
have Z k l (X : 'M[R]_(k, l)) : s *: X = 0 <-> X = 0.
  split=> [/eqP|->]; last by rewrite scaler0.
  by rewrite scaler_eq0 (negPf s0) => /eqP.
by split; split=> //; apply: Z.
Qed.
End Gradients.
