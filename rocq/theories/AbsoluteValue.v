(* The absolute value as a uniform limit of polynomials in x^2 on [-1, 1]; so the mean of |X|, for a
   bounded X, depends on the even moments of X alone.
   Over any ordered field, archimedean where a limit is taken: no axioms. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From Gonio Require Import MomentRatio Isotropy.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section AbsoluteValue.
Variable R : realFieldType.

(* p_0 = 0, p_(n+1)(y) = p_n(y) + (y - p_n(y)^2)/2: approximates sqrt y on [0, 1] from below *)
Fixpoint absPoly n : {poly R} :=
  if n is k.+1 then absPoly k + (2%:R^-1)%:P * ('X - absPoly k ^+ 2) else 0.

Lemma bernoulli_le (z : R) n : 0 <= z <= 1 -> (1 - z) ^+ n * (1 + n%:R * z) <= 1.
Proof.
move=> /andP[z0 z1]; elim: n => [|n IH]; first by rewrite expr0 mul0r addr0 mul1r.
apply: le_trans IH; rewrite exprSr -mulrA ler_wpmul2l ?exprn_ge0 ?subr_ge0 //.
rewrite -subr_ge0 -addn1 natrD; move: (n%:R : R) (ler0n R n) => k k0.
have -> : 1 + k * z - (1 - z) * (1 + (k + 1) * z) = (k + 1) * z ^+ 2 by ring.
by rewrite mulr_ge0 ?addr_ge0 ?ler01 ?sqr_ge0.
Qed.

Lemma absPoly_bounds n (x : R) : 0 <= x <= 1 ->
  0 <= (absPoly n).[x ^+ 2] <= x /\ x - (absPoly n).[x ^+ 2] <= x * (1 - x / 2%:R) ^+ n.
Proof.
move=> /andP[x0 x1]; elim: n => [|n [/andP[p0 px] IH]].
  by rewrite /= horner0 lexx x0 subr0 expr0 mulr1.
rewrite /= hornerD hornerM hornerC hornerD hornerN hornerX horner_exp.
move: (absPoly n).[x ^+ 2] p0 px IH => p p0 px IH.
have E : x - (p + 2%:R^-1 * (x ^+ 2 - p ^+ 2)) = (x - p) * (1 - (x + p) / 2%:R) by field.
have f0 : 0 <= 1 - (x + p) / 2%:R.
  by rewrite subr_ge0 ler_pdivr_mulr ?ltr0n // mul1r ler_add // (le_trans px).
have f1 : 1 - (x + p) / 2%:R <= 1 - x / 2%:R.
  by rewrite ler_add2l ler_opp2 ler_pmul2r ?invr_gt0 ?ltr0n // ler_addl.
have xp : 0 <= x - p by rewrite subr_ge0.
split; last by rewrite E exprSr mulrA; apply: ler_pmul.
apply/andP; split; last by rewrite -subr_ge0 E mulr_ge0.
rewrite addr_ge0 // mulr_ge0 ?invr_ge0 ?ler0n // subr_ge0.
by rewrite ler_expn2r ?nnegrE.
Qed.

(* the error is at most 2/n on [-1, 1] *)
Lemma absPoly_error n (x : R) : `|x| <= 1 ->
  `| `|x| - (absPoly n.+1).[x ^+ 2]| <= 2%:R / n.+1%:R.
Proof.
move=> x1; have -> : x ^+ 2 = `|x| ^+ 2 by rewrite -normrX ger0_norm ?sqr_ge0.
move: `|x| (normr_ge0 x) x1 => y y0 y1; have hy : 0 <= y <= 1 by rewrite y0.
have [/andP[_ py] le] := absPoly_bounds n.+1 hy.
rewrite ger0_norm ?subr_ge0 //; apply: le_trans le _.
have hz : 0 <= y / 2%:R <= 1.
  by rewrite divr_ge0 ?ler0n //= ler_pdivr_mulr ?ltr0n // mul1r (le_trans y1) ?ler1n.
have B := bernoulli_le n.+1 hz; have p0 : 0 <= (1 - y / 2%:R) ^+ n.+1.
  by rewrite exprn_ge0 // subr_ge0; case/andP: hz.
rewrite ler_pdivl_mulr ?ltr0n //.
rewrite -[leRHS]mulr1; apply: le_trans (ler_wpmul2l (ler0n _ 2) B).
rewrite -subr_ge0 (_ : _ - _ = 2%:R * (1 - y / 2%:R) ^+ n.+1) ?mulr_ge0 ?ler0n //.
by move: (_ ^+ n.+1) => w; field.
Qed.
End AbsoluteValue.

Section Determined.
Variable R : archiFieldType.
Variables (T T' : Type) (integrable : (T -> R) -> Prop) (integrable' : (T' -> R) -> Prop).
Variables (E : (T -> R) -> R) (E' : (T' -> R) -> R) (X : T -> R) (X' : T' -> R).

Lemma close_eq (a b c : R) : (forall n, `|a - b| <= c / n.+1%:R) -> a = b.
Proof.
move=> h; apply/eqP; rewrite -subr_eq0 -normr_le0 leNgt; apply/negP => p.
have c0 : 0 <= c by have := h 0%N; rewrite divr1; apply: le_trans.
have q0 : 0 <= c / `|a - b| by rewrite divr_ge0 ?(ltW p).
have := h (Num.bound (c / `|a - b|)); have := archi_boundP q0.
rewrite ltr_pdivr_mulr // ler_pdivl_mulr ?ltr0n // => h1 h2.
have := le_lt_trans h2 h1; rewrite mulrC ltr_pmul2r // ltr_nat ltnNge leqnSn.
by [].
Qed.

Lemma expectation_close S (int : (S -> R) -> Prop) (M : (S -> R) -> R) f g c :
  isExpectation int M -> int f -> int g -> (forall t, `|f t - g t| <= c) -> `|M f - M g| <= c.
Proof.
move=> hM hf hg h; have ic := integrable_cst hM c.
have key f' g' : int f' -> int g' -> (forall t, f' t - g' t <= c) -> M f' - M g' <= c.
  move=> hf' hg' le; rewrite ler_subl_addr -subr_ge0.
  have i1 := integrable_lin hM 1 hg' ic.
  have := expectation_ge0 hM (integrable_lin hM (-1) hf' i1).
  rewrite !(expectation_lin hM) // (expectation_cst hM) mulN1r mul1r addrC [M g' + c]addrC.
  apply=> t; rewrite mulN1r mul1r addrC [g' t + c]addrC subr_ge0.
  by rewrite -ler_subl_addr.
rewrite ler_norml; apply/andP; split; last by apply: key => // t; rewrite (le_trans (ler_norm _)).
rewrite ler_oppl opprB; apply: key => // t; rewrite (le_trans (ler_norm _)) //.
by rewrite distrC.
Qed.

Lemma poly_hasMean S (int : (S -> R) -> Prop) (M : (S -> R) -> R) (Y : S -> R) (p : {poly R}) :
  isExpectation int M -> (forall k, int (fun t => Y t ^+ (2 * k))) ->
  hasMean int M (fun t => p.[Y t ^+ 2]) (\sum_(k < size p) p`_k * M (fun t => Y t ^+ (2 * k))).
Proof.
move=> hM hi; have hF k : hasMean int M (fun t => Y t ^+ (2 * k)) (M (fun t => Y t ^+ (2 * k))).
  by exists (fun t => Y t ^+ (2 * k)).
have := hasMean_sum (index_enum _) (fun k : 'I_(size p) => p`_k) hM (fun k => hF k).
by apply: hasMean_ext => t; rewrite horner_coef; apply: eq_bigr => k _; rewrite exprM.
Qed.

(* two bounded variables with the same even moments have the same mean absolute value *)
Lemma mean_abs_determined : isExpectation integrable E -> isExpectation integrable' E' ->
  (forall t, `|X t| <= 1) -> (forall t, `|X' t| <= 1) ->
  (forall k, integrable (fun t => X t ^+ (2 * k))) ->
  (forall k, integrable' (fun t => X' t ^+ (2 * k))) ->
  (forall k, E (fun t => X t ^+ (2 * k)) = E' (fun t => X' t ^+ (2 * k))) ->
  integrable (fun t => `|X t|) -> integrable' (fun t => `|X' t|) ->
  E (fun t => `|X t|) = E' (fun t => `|X' t|).
Proof.
move=> hE hE' b b' i i' m ia ia'; apply: (@close_eq _ _ 4%:R) => n.
have [g [ig gp Eg]] := poly_hasMean (absPoly R n.+1) hE i.
have [g' [ig' gp' Eg']] := poly_hasMean (absPoly R n.+1) hE' i'.
have eg : E g = E' g' by rewrite Eg Eg'; apply: eq_bigr => k _; rewrite m.
have c : `|E (fun t => `|X t|) - E g| <= 2%:R / n.+1%:R.
  by apply: (expectation_close hE ia ig) => t; rewrite gp absPoly_error.
have c' : `|E' (fun t => `|X' t|) - E' g'| <= 2%:R / n.+1%:R.
  by apply: (expectation_close hE' ia' ig') => t; rewrite gp' absPoly_error.
apply: le_trans (ler_dist_add (E g) _ _) _.
rewrite (_ : 4%:R / _ = 2%:R / n.+1%:R + 2%:R / n.+1%:R); last by rewrite -mulrDl -natrD.
by apply: ler_add => //; rewrite eg distrC.
Qed.
End Determined.
