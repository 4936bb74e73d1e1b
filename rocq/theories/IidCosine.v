(* Independent, identically distributed coordinates: the squared 1-bit cosine tends to
   beta = (E|X|)^2 / E X^2 as the dimension d grows, in mean, at the rate 1/sqrt d.
   Finite probability spaces, over any real closed field: no axioms. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From Gonio Require Import Frobenius Gauge SignQuantization.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section IidCosine.
Variables (R : rcfType) (T : finType) (p : T -> R).
Implicit Types f g : T -> R.

Definition isProbability := (forall t, 0 <= p t) /\ \sum_t p t = 1.
Definition expect f : R := \sum_t p t * f t.

Lemma expect_eq f g : f =1 g -> expect f = expect g.
Proof. by move=> fg; apply: eq_bigr => t _; rewrite fg. Qed.
Lemma expect_lin c f g : expect (fun t => c * f t + g t) = c * expect f + expect g.
Proof. by rewrite /expect mulr_sumr -big_split; apply: eq_bigr => t _ /=; ring. Qed.
Lemma expect_sum m (F : 'I_m -> T -> R) :
  expect (fun t => \sum_i F i t) = \sum_i expect (F i).
Proof.
rewrite /expect exchange_big /=; apply: eq_bigr => t _; exact: mulr_sumr.
Qed.
Lemma expect_cst c : isProbability -> expect (fun=> c) = c.
Proof. by case=> _ p1; rewrite /expect -mulr_suml p1 mul1r. Qed.
Lemma expect_le f g : isProbability -> (forall t, f t <= g t) -> expect f <= expect g.
Proof. by case=> p0 _ fg; apply: ler_sum => t _; rewrite ler_wpmul2l. Qed.

(* E|f| <= sqrt(E f^2) *)
Lemma expect_norm_le f : isProbability ->
  expect (fun t => `|f t|) <= Num.sqrt (expect (fun t => f t ^+ 2)).
Proof.
move=> hp; set a := expect _.
have := expect_le hp (fun t => sqr_ge0 (`|f t| - a)); rewrite (expect_cst 0 hp).
rewrite (@expect_eq _ (fun t => (- (2%:R * a)) * `|f t| + (1 * f t ^+ 2 + a ^+ 2))); last first.
  by move=> t; rewrite -[f t ^+ 2](real_normK (num_real (f t))); move: `|f t| => z; ring.
rewrite !expect_lin (expect_cst _ hp) -/a => h; apply: le_trans (ler_norm a) _.
rewrite -sqrtr_sqr ler_wsqrtr // -subr_ge0; apply: le_trans h _.
by move: (expect _) => z; rewrite le_eqVlt; apply/orP; left; apply/eqP; ring.
Qed.

(* the variance of a mean of d uncorrelated variables *)
Lemma variance_mean n (F : 'I_n.+1 -> T -> R) mu s : isProbability ->
  (forall i, expect (F i) = mu) ->
  (forall i j, expect (fun t => F i t * F j t) = if i == j then s else mu ^+ 2) ->
  expect (fun t => ((\sum_i F i t) / n.+1%:R - mu) ^+ 2) = (s - mu ^+ 2) / n.+1%:R.
Proof.
move=> hp h1 h2; have D0 : n.+1%:R != 0 :> R by rewrite pnatr_eq0.
have e1 : expect (fun t => \sum_i F i t) = n.+1%:R * mu.
  by rewrite expect_sum (eq_bigr _ (fun i _ => h1 i)) sumr_const card_ord mulr_natl.
have e2 : expect (fun t => (\sum_i F i t) ^+ 2) = n.+1%:R * (s - mu ^+ 2) + n.+1%:R ^+ 2 * mu ^+ 2.
  rewrite (@expect_eq _ (fun t => \sum_i \sum_j F i t * F j t)); last first.
    by move=> t; rewrite expr2 mulr_suml; apply: eq_bigr => i _; rewrite mulr_sumr.
  rewrite expect_sum (eq_bigr (fun=> (s - mu ^+ 2) + n.+1%:R * mu ^+ 2)) => [|i _].
    by rewrite sumr_const card_ord -mulr_natl; ring.
  rewrite expect_sum (eq_bigr (fun j => (i == j)%:R * (s - mu ^+ 2) + mu ^+ 2)) => [|j _].
    rewrite big_split /= sumr_const card_ord -[X in _ + X]mulr_natl; congr (_ + _).
    rewrite (bigD1 i) //= eqxx mul1r big1 ?addr0 // => j ji.
    by rewrite eq_sym (negPf ji) mul0r.
  by rewrite h2; case: eqP => _; rewrite ?mul1r ?mul0r ?subrK ?add0r.
rewrite (@expect_eq _ (fun t => n.+1%:R ^- 2 * (\sum_i F i t) ^+ 2
    + ((- (2%:R * mu / n.+1%:R)) * (\sum_i F i t) + mu ^+ 2))); last first.
  by move=> t; move: (\sum_i F i t) (n.+1%:R : R) D0 => z D D0; field.
rewrite !expect_lin e1 e2 (expect_cst _ hp); move: (n.+1%:R : R) D0 => D D0.
by field.
Qed.

(* the random vector (X_1, .., X_d) *)
Definition vectorOf n (X : 'I_n.+1 -> T -> R) t : 'cV[R]_n.+1 := \col_i X i t.

(* Let X_1 .. X_d be random variables with E|X_i| = m1, E X_i^2 = m2 > 0, E X_i^4 = m4, whose
  absolute
   values are pairwise uncorrelated and whose squares are too: true of independent, identically
   distributed ones. Then the squared 1-bit cosine of (X_1, .., X_d) differs from m1^2/m2 by at most
   (sqrt(v2/d) + 2 m1 sqrt(v1/d) + v1/d)/m2 on average, v1 = m2 - m1^2 and v2 = m4 - m2^2; so it
     tends
   to m1^2/m2 in mean and (Markov) in probability. (Laws of finite support.) *)
Theorem iid_coord_moment_ratio_floor n (X : 'I_n.+1 -> T -> R) m1 m2 m4 :
  isProbability -> 0 < m2 -> 0 <= m1 ->
  (forall i, expect (fun t => `|X i t|) = m1) -> (forall i, expect (fun t => X i t ^+ 2) = m2) ->
  (forall i j, expect (fun t => `|X i t| * `|X j t|) = if i == j then m2 else m1 ^+ 2) ->
  (forall i j, expect (fun t => X i t ^+ 2 * X j t ^+ 2) = if i == j then m4 else m2 ^+ 2) ->
  expect (fun t => `|cosine (vectorOf X t) (signVector (vectorOf X t)) ^+ 2 - m1 ^+ 2 / m2|) <=
    (Num.sqrt ((m4 - m2 ^+ 2) / n.+1%:R) + 2%:R * m1 * Num.sqrt ((m2 - m1 ^+ 2) / n.+1%:R)
       + (m2 - m1 ^+ 2) / n.+1%:R) / m2.
Proof.
move=> hp m20 m10 e1 e2 c1 c2; set k := vectorOf X; have D0 : n.+1%:R != 0 :> R by rewrite
  pnatr_eq0.
have Dp : 0 < n.+1%:R :> R by rewrite ltr0n.
pose a t := (\sum_i `|X i t|) / n.+1%:R; pose b t := (\sum_i X i t ^+ 2) / n.+1%:R.
have l1E t : l1Norm (k t) = n.+1%:R * a t.
  by rewrite /a mulrC divfK // /l1Norm; apply: eq_bigr => i _; rewrite mxE.
have frE t : frobeniusSq (k t) = n.+1%:R * b t.
  by rewrite /b mulrC divfK // /frobeniusSq; apply: eq_bigr => i _; rewrite big_ord1 mxE.
have b0 t : 0 <= b t by rewrite -(pmulr_rge0 _ Dp) -frE frobeniusSq_nonneg.
have ab t : a t ^+ 2 <= b t.
  have := l1_lagrange (k t); rewrite l1E frE => h.
  rewrite -subr_ge0 -(pmulr_rge0 _ (mulr_gt0 Dp Dp)).
  have -> : n.+1%:R * n.+1%:R * (b t - a t ^+ 2) =
      n.+1%:R * (n.+1%:R * b t) - (n.+1%:R * a t) ^+ 2 by ring.
  rewrite h mulr_ge0 ?invr_ge0 ?ler0n //.
  by apply: sumr_ge0 => i _; apply: sumr_ge0 => j _; apply: sqr_ge0.
have cosE t : cosine (k t) (signVector (k t)) ^+ 2 = a t ^+ 2 / b t.
  rewrite cos_sign_quant_formula /norm2 expr_div_n exprMn !sqr_sqrtr ?ler0n ?frobeniusSq_nonneg //.
  rewrite l1E frE; move: (n.+1%:R : R) D0 (a t) (b t) => D D0 x y.
  by rewrite exprMn [D * (D * y)]mulrA -(expr2 D) invfM mulrACA divff ?mul1r // expf_neq0.
have pt t : `|cosine (k t) (signVector (k t)) ^+ 2 - m1 ^+ 2 / m2| <=
    m2^-1 * `|b t - m2| + (2%:R * m1 / m2 * `|a t - m1| + m2^-1 * (a t - m1) ^+ 2).
  have q0 : 0 <= a t ^+ 2 / b t by rewrite divr_ge0 ?sqr_ge0.
  have q1 : a t ^+ 2 / b t <= 1.
    have [z|nz] := eqVneq (b t) 0; first by rewrite z invr0 mulr0 ler01.
    by rewrite ler_pdivr_mulr ?mul1r // lt_def nz b0.
  have -> : cosine (k t) (signVector (k t)) ^+ 2 - m1 ^+ 2 / m2 =
      m2^-1 * (a t ^+ 2 / b t * (m2 - b t)) +
      (2%:R * m1 / m2 * (a t - m1) + m2^-1 * (a t - m1) ^+ 2).
    have qb : a t ^+ 2 / b t * b t = a t ^+ 2.
      have [z|nz] := eqVneq (b t) 0; last by rewrite divfK.
      rewrite z mulr0; apply/esym/eqP; rewrite eq_le sqr_ge0 andbT.
      by rewrite -z ab.
    rewrite cosE mulrBr qb; move: (_ / b t) => q; move: (a t) => x.
    by field; rewrite gt_eqF.
  have i0 : 0 <= m2^-1 by rewrite invr_ge0 ltW.
  apply: le_trans (ler_norm_add _ _) (ler_add _ _).
    rewrite normrM (ger0_norm i0) ler_wpmul2l // normrM (ger0_norm q0) distrC.
    by rewrite -[leRHS]mul1r ler_wpmul2r.
  apply: le_trans (ler_norm_add _ _) (ler_add _ _).
    by rewrite normrM [X in X * _]ger0_norm // mulr_ge0 // mulr_ge0 ?ler0n.
  by rewrite ger0_norm // mulr_ge0 ?sqr_ge0.
apply: le_trans (expect_le hp pt) _; rewrite !expect_lin.
have va : expect (fun t => (a t - m1) ^+ 2) = (m2 - m1 ^+ 2) / n.+1%:R.
  exact: (variance_mean hp e1 c1).
have vb : expect (fun t => (b t - m2) ^+ 2) = (m4 - m2 ^+ 2) / n.+1%:R.
  exact: (variance_mean hp e2 c2).
have la := expect_norm_le (fun t => a t - m1) hp; rewrite va in la.
have lb := expect_norm_le (fun t => b t - m2) hp; rewrite vb in lb.
have -> : expect (fun t => m2^-1 * (a t - m1) ^+ 2) = m2^-1 * ((m2 - m1 ^+ 2) / n.+1%:R).
  by rewrite -va /expect mulr_sumr; apply: eq_bigr => t _; ring.
rewrite [leRHS]mulrC !mulrDr -addrA; apply: ler_add.
  by rewrite ler_wpmul2l // invr_ge0 ltW.
rewrite ler_add2r [leRHS]mulrA [_^-1 * _]mulrC ler_wpmul2l //.
by rewrite mulr_ge0 ?invr_ge0 ?(ltW m20) // mulr_ge0 ?ler0n.
Qed.
End IidCosine.
