(* Averages over random signs: a flat orthogonal matrix (a normalized Hadamard matrix) applied after
   a random diagonal sign matrix. The averages are finite sums over all 2^n sign patterns.
   Over any real closed field: no axioms. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From Gonio Require Import Frobenius Gauge SignQuantization.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Rademacher.
Variable R : rcfType.

(* random signs: t ranges over all 2^n lists of n signs *)
Definition sg (b : bool) : R := (-1) ^+ b.
Definition rade n (t : n.-tuple bool) (a : 'I_n -> R) : R := \sum_i sg (tnth t i) * a i.
Definition mean n (F : n.-tuple bool -> R) : R := (\sum_t F t) / (2 ^ n)%:R.

Lemma sum_tuple_cons n (F : n.+1.-tuple bool -> R) :
  \sum_t F t = \sum_(t : n.-tuple bool) (F [tuple of true :: t] + F [tuple of false :: t]).
Proof.
transitivity (\sum_(p : bool * n.-tuple bool) F [tuple of p.1 :: p.2]).
  rewrite (reindex (fun p : bool * n.-tuple bool => [tuple of p.1 :: p.2])) //=.
  exists (fun t => (thead t, [tuple of behead t])) => [[b t] _|t _] /=.
    by congr pair; apply: val_inj.
  by rewrite [RHS]tuple_eta; apply: val_inj.
rewrite -(pair_big xpredT xpredT (fun (b : bool) (t : n.-tuple bool) => F [tuple of b :: t])) /=
  exchange_big /=.
by apply: eq_bigr => t _; rewrite big_bool.
Qed.

Lemma rade_cons n b (t : n.-tuple bool) (a : 'I_n.+1 -> R) :
  rade [tuple of b :: t] a = sg b * a ord0 + rade t (fun i => a (lift ord0 i)).
Proof.
rewrite /rade big_ord_recl tnth0; congr (_ + _); apply: eq_bigr => i _.
by rewrite tnthS.
Qed.

Let q2 n (a : 'I_n -> R) := \sum_i a i ^+ 2.
Let q4 n (a : 'I_n -> R) := \sum_i a i ^+ 4.

Lemma mean_rec n (F : n.+1.-tuple bool -> R) :
  mean F = mean (fun t : n.-tuple bool => (F [tuple of true :: t] + F [tuple of false :: t]) /
    2%:R).
Proof.
rewrite /mean sum_tuple_cons -mulr_suml expnS natrM invfM mulrA.
by [].
Qed.

Lemma mean0 (F : 0.-tuple bool -> R) : mean F = F [tuple].
Proof.
rewrite /mean expn0 divr1 (big_pred1 [tuple]) // => t.
by apply/esym/eqP; rewrite tuple0.
Qed.

Lemma mean_moments n (a : 'I_n -> R) x :
  mean (fun t => (x + rade t a) ^+ 2) = x ^+ 2 + q2 a /\
  mean (fun t => (x + rade t a) ^+ 4) =
     x ^+ 4 + 6%:R * x ^+ 2 * q2 a + 3%:R * q2 a ^+ 2 - 2%:R * q4 a.
Proof.
elim: n a x => [|n IH] a x.
  rewrite !mean0 /q2 /q4 /rade !big_ord0; split; ring.
pose a' i := a (lift ord0 i); pose y := a ord0.
have lin k : mean (fun t => (x + rade t a) ^+ k) =
   (mean (fun t => (x - y + rade t a') ^+ k) + mean (fun t => (x + y + rade t a') ^+ k)) / 2%:R.
  rewrite mean_rec /mean -mulr_suml [LHS]mulrAC -mulrDl -big_split /=; congr (_ / _ / _).
  apply: eq_bigr => t _; rewrite !rade_cons /sg /= expr1 expr0 mulN1r mul1r.
  by rewrite !addrA.
have [h1 h2] := IH a' (x - y); have [h3 h4] := IH a' (x + y).
rewrite !lin h1 h2 h3 h4 /q2 /q4 !big_ord_recl -/y.
rewrite -/(q2 a') -/(q4 a'); move: (q2 a') (q4 a') => A B.
by split; field.
Qed.

Lemma mean_ge n (F G : n.-tuple bool -> R) : (forall t, F t <= G t) -> mean F <= mean G.
Proof. by move=> h; rewrite /mean ler_wpmul2r ?invr_ge0 ?ler0n //; apply: ler_sum. Qed.
Lemma meanD n (F G : n.-tuple bool -> R) : mean (fun t => F t + G t) = mean F + mean G.
Proof. by rewrite /mean big_split mulrDl. Qed.
Lemma meanZ n c (F : n.-tuple bool -> R) : mean (fun t => c * F t) = c * mean F.
Proof. by rewrite /mean -mulr_sumr mulrA. Qed.
Lemma mean_cst n c : mean (fun _ : n.-tuple bool => c) = c.
Proof.
by rewrite /mean sumr_const card_tuple card_bool -[c *+ _]mulr_natr mulfK // pnatr_eq0 expn_eq0.
Qed.
Lemma mean_sum n (I : finType) (F : I -> n.-tuple bool -> R) :
  mean (fun t => \sum_i F i t) = \sum_i mean (F i).
Proof. by rewrite /mean exchange_big /= mulr_suml. Qed.

Lemma mean_exists_ge n (F : n.-tuple bool -> R) c : c <= mean F -> exists t, c <= F t.
Proof.
move=> h; pose t0 : n.-tuple bool := [tuple of nseq n true].
case: (@arg_maxP _ _ _ t0 xpredT F isT) => t _ ht; exists t.
apply: le_trans h _; rewrite -[leRHS](mean_cst n).
by apply: mean_ge => t'; apply: ht.
Qed.

(* E|X| >= sigma / sqrt 3, through |x| >= 3 x^2/(2s) - x^4/(2 s^3) *)
Lemma abs_quartic (x s : R) : 0 < s ->
  3%:R * x ^+ 2 / (2%:R * s) - x ^+ 4 / (2%:R * s ^+ 3) <= `|x|.
Proof.
move=> s0; rewrite -subr_ge0.
have -> : x ^+ 2 = `|x| ^+ 2 by rewrite -normrX ger0_norm ?sqr_ge0.
have -> : x ^+ 4 = `|x| ^+ 4 by rewrite -normrX ger0_norm // exprn_even_ge0.
move: `|x| (normr_ge0 x) => u u0.
have -> : u - (3%:R * u ^+ 2 / (2%:R * s) - u ^+ 4 / (2%:R * s ^+ 3)) =
   u * (u - s) ^+ 2 * (u + 2%:R * s) / (2%:R * s ^+ 3).
  by field; rewrite gt_eqF.
rewrite divr_ge0 //; last by rewrite mulr_ge0 ?exprn_ge0 ?ler0n ?(ltW s0).
apply: mulr_ge0; first by rewrite mulr_ge0 ?sqr_ge0.
by rewrite addr_ge0 // mulr_ge0 ?ler0n // ltW.
Qed.

(* Khintchine, constant 1/sqrt 3: the mean of |sum of +-a_i| is at least |a|_2/sqrt 3 *)
Lemma khintchine n (a : 'I_n -> R) :
  Num.sqrt (q2 a / 3%:R) <= mean (fun t => `|rade t a|).
Proof.
have q20 : 0 <= q2 a by apply: sumr_ge0 => i _; apply: sqr_ge0.
have q40 : 0 <= q4 a by apply: sumr_ge0 => i _; apply: exprn_even_ge0.
have [q0|qn0] := eqVneq (q2 a) 0.
  by rewrite q0 mul0r sqrtr0 -(mean_cst n 0) mean_ge.
have qp : 0 < q2 a by rewrite lt_def qn0.
pose s := Num.sqrt (3%:R * q2 a).
have s0 : 0 < s by rewrite sqrtr_gt0 mulr_gt0 ?ltr0n.
have ss : s ^+ 2 = 3%:R * q2 a by rewrite sqr_sqrtr // mulr_ge0 ?ler0n.
pose c1 := 3%:R / (2%:R * s); pose c2 := - (2%:R * s ^+ 3)^-1.
have [m2 m4] := mean_moments a 0.
have mm : mean (fun t => c1 * (0 + rade t a) ^+ 2 + c2 * (0 + rade t a) ^+ 4) <=
   mean (fun t => `|rade t a|).
  apply: mean_ge => t; rewrite add0r; apply: le_trans _ (abs_quartic (rade t a) s0).
  by rewrite /c1 /c2 le_eqVlt; apply/orP; left; apply/eqP; field; rewrite gt_eqF.
apply: le_trans mm; rewrite meanD !meanZ m2 m4.
rewrite expr0n expr0n /= mulr0 !add0r mul0r add0r.
have E : Num.sqrt (q2 a / 3%:R) = s / 3%:R.
  apply/eqP; rewrite -(@eqr_expn2 _ 2) ?sqrtr_ge0 ?divr_ge0 ?ler0n ?(ltW s0) //.
  rewrite sqr_sqrtr ?divr_ge0 ?ler0n // expr_div_n ss; apply/eqP; by field.
rewrite E; have hq : q2 a = s ^+ 2 / 3%:R by rewrite ss; field.
rewrite hq -subr_ge0 /c1 /c2.
have -> : 3%:R / (2%:R * s) * (s ^+ 2 / 3%:R) + - (2%:R * s ^+ 3)^-1 *
   (3%:R * (s ^+ 2 / 3%:R) ^+ 2 - 2%:R * q4 a) - s / 3%:R = q4 a / s ^+ 3.
  by field; rewrite gt_eqF.
by rewrite divr_ge0 // exprn_ge0 // ltW.
Qed.

(* H flat: all entries have square 1/d (e.g. a normalised Hadamard matrix) *)
Definition flat n (H : 'M[R]_n) := forall i j, H i j ^+ 2 = n%:R^-1.
Definition dsign n (t : n.-tuple bool) : 'M[R]_n := diag_mx (\row_i sg (tnth t i)).

Lemma dsign_orth n (t : n.-tuple bool) : orthogonal (dsign t).
Proof.
rewrite /orthogonal tr_diag_mx; apply/matrixP => i j; rewrite mul_diag_mx !mxE.
have [->|] := eqVneq i j; last by rewrite mulr0n mulr0.
by rewrite mulr1n -expr2 /sg sqrr_sign.
Qed.

(* the mean of |H D w|_1 over all 2^d diagonal sign matrices D *)
Lemma randomized_hadamard_mean n (H : 'M[R]_n.+1) (w : 'cV[R]_n.+1) : flat H ->
  norm2 w * Num.sqrt (n.+1%:R / 3%:R) <= mean (fun t => l1Norm (H *m dsign t *m w)).
Proof.
move=> fH.
pose a i j := H i j * w j 0.
have ent t i : (H *m dsign t *m w) i 0 = rade t (a i).
  rewrite mxE; apply: eq_bigr => j _; rewrite /dsign mul_mx_diag !mxE /a.
  by rewrite mulrAC mulrC.
rewrite /l1Norm mean_sum.
have q2a i : q2 (a i) = frobeniusSq w / n.+1%:R.
  rewrite /q2 /frobeniusSq mulr_suml; apply: eq_bigr => j _.
  by rewrite big_ord1 /a exprMn fH mulrC.
apply: (@le_trans _ _ (\sum_(i < n.+1) Num.sqrt (q2 (a i) / 3%:R))); last first.
  apply: ler_sum => i _; apply: le_trans (khintchine (a i)) _.
  by apply: mean_ge => t; rewrite ent.
rewrite (eq_bigr (fun=> Num.sqrt (frobeniusSq w / n.+1%:R / 3%:R))) => [|i _]; last by rewrite q2a.
rewrite sumr_const card_ord /norm2.
have w0 := frobeniusSq_nonneg w.
have : n.+1%:R != 0 :> R by rewrite pnatr_eq0.
have : (0 : R) <= n.+1%:R by rewrite ler0n.
rewrite -[Num.sqrt (_ / _ / _) *+ _]mulr_natl.
move: (n.+1%:R : R) => D D0 hD; move: (frobeniusSq w) w0 => W w0.
have p1 : 0 <= W / D / 3%:R by rewrite !divr_ge0 ?ler0n.
have p2 : 0 <= D / 3%:R by rewrite divr_ge0 ?ler0n.
rewrite le_eqVlt; apply/orP; left.
rewrite -(@eqr_expn2 _ 2) ?mulr_ge0 ?sqrtr_ge0 // !exprMn !sqr_sqrtr //.
by apply/eqP; field.
Qed.

(* hence some sign pattern gives cosine at least 1/sqrt 3 *)
Lemma exists_good_signs n (H : 'M[R]_n.+1) (w : 'cV[R]_n.+1) :
  flat H -> orthogonal H -> w != 0 ->
  exists t, orthogonal (H *m dsign t) /\
    (Num.sqrt 3%:R)^-1 <= cosine (H *m dsign t *m w) (signVector (H *m dsign t *m w)).
Proof.
move=> fH oH w0; have [t ht] := mean_exists_ge (randomized_hadamard_mean w fH).
have oHt : orthogonal (H *m dsign t).
  by rewrite /orthogonal trmx_mul -mulmxA (mulmxA H^T) oH mul1mx dsign_orth.
exists t; split=> //; rewrite cos_sign_quant_formula.
have -> : norm2 (H *m dsign t *m w) = norm2 w by rewrite /norm2 (frob_mull_orth _ oHt).
have nw : 0 < norm2 w by rewrite sqrtr_gt0 frob_gt0.
have sd : 0 < Num.sqrt n.+1%:R :> R by rewrite sqrtr_gt0 ltr0n.
rewrite ler_pdivl_mulr ?mulr_gt0 //; apply: le_trans ht.
have -> : Num.sqrt (n.+1%:R / 3%:R) = Num.sqrt n.+1%:R / Num.sqrt 3%:R :> R.
  by rewrite sqrtrM ?ler0n // sqrtrV ?ler0n.
by rewrite mulrC [Num.sqrt _ * norm2 w]mulrC mulrA.
Qed.
End Rademacher.
