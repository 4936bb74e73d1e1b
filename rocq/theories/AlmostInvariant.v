(* Finite averages of rotations that are almost invariant: for a representation r (a multiplicative
   map from O(n) to orthogonal matrices) the image X = sum p_i r(Q_i) of the average hardly changes
   when multiplied by any r(Q). They exist, because a point of almost least energy in the convex
   hull of r(O(n)) is one. HaarMean.v builds the invariant mean on O(n) from them. Over any
   complete ordered field; axioms: the three of boolp. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From mathcomp.classical Require Import boolp classical_sets.
From mathcomp Require Import reals.
From Gonio Require Import Frobenius Gauge.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.
Local Open Scope classical_set_scope.

Section AlmostInvariant.
Variables (R : realType) (n : nat).

(* ---------- the orthogonal group ---------- *)
Definition rotation := {Q : 'M[R]_n | orthogonal Q}.
Implicit Types (g h : rotation).

Lemma orthogonal_mul m (P Q : 'M[R]_m) : orthogonal P -> orthogonal Q -> orthogonal (P *m Q).
Proof. by move=> hP hQ; rewrite /orthogonal trmx_mul -mulmxA (mulmxA P^T) hP mul1mx. Qed.
Definition rotationMul g h : rotation :=
  exist _ (sval g *m sval h) (orthogonal_mul (svalP g) (svalP h)).

(* r is a representation of O(n) by orthogonal N x N matrices *)
Definition isRep N (r : 'M[R]_n -> 'M[R]_N) : Prop :=
  (forall P Q, r (P *m Q) = r P *m r Q) /\ forall Q, orthogonal Q -> orthogonal (r Q).

(* ---------- finite averages of rotations ---------- *)
Definition weights := seq (R * rotation).
Implicit Types (mu : weights) (f : rotation -> R).
Definition isProb mu := all (fun x => 0 <= x.1) mu /\ \sum_(x <- mu) x.1 = 1.
Definition avg mu f : R := \sum_(x <- mu) x.1 * f x.2.
Definition image N (r : 'M[R]_n -> 'M[R]_N) mu : 'M[R]_N := \sum_(x <- mu) x.1 *: r (sval x.2).

Lemma avg_lin mu a f f' : avg mu (fun g => a * f g + f' g) = a * avg mu f + avg mu f'.
Proof.
rewrite /avg mulr_sumr -big_split; apply: eq_bigr => x _ /=.
by rewrite mulrDr mulrCA.
Qed.
Lemma avg_cst mu c : isProb mu -> avg mu (fun=> c) = c.
Proof. by move=> [_ m1]; rewrite /avg -mulr_suml m1 mul1r. Qed.
Lemma avg_ge0 mu f : isProb mu -> (forall g, 0 <= f g) -> 0 <= avg mu f.
Proof.
move=> [+ _] f0; rewrite /avg; elim: mu => [|x mu IH]; first by rewrite big_nil.
by rewrite big_cons /= => /andP[x0 h]; rewrite addr_ge0 ?IH // mulr_ge0.
Qed.
Lemma avg_dist mu f f' c : isProb mu -> (forall g, `|f g - f' g| <= c) ->
  `|avg mu f - avg mu f'| <= c.
Proof.
move=> pm h; have E f1 f2 : avg mu f1 - avg mu f2 = avg mu (fun g => -1 * f2 g + f1 g).
  by rewrite avg_lin mulN1r addrC.
have key f1 f2 : (forall g, f1 g - f2 g <= c) -> avg mu f1 - avg mu f2 <= c.
  move=> le; rewrite E -subr_ge0 -[c in c - _](avg_cst c pm) [_ - _](E (fun=> c)).
  apply: avg_ge0 => // g; rewrite mulN1r addrC subr_ge0 mulN1r addrC; exact: le.
rewrite ler_norml ler_oppl opprB !key // => g; rewrite (le_trans (ler_norm _)) //.
by rewrite distrC.
Qed.

(* a matrix that every r(Q) hardly moves stays almost where it is under averages *)
Lemma frob_convex N (F : rotation -> 'M[R]_N) mu c : isProb mu ->
  (forall g, frobeniusSq (F g) <= c) -> frobeniusSq (\sum_(x <- mu) x.1 *: F x.2) <= c.
Proof.
move=> [p0 p1] h; set S := \sum_(x <- mu) _.
(* |S|^2 = sum_x p_x <F_x, S> <= sum_x p_x (|F_x|^2 + |S|^2)/2 *)
have E : frobeniusSq S = \sum_(x <- mu) x.1 * mdot (F x.2) S.
  rewrite frobE {1}/S; elim: (mu) => [|x m IH]; first by rewrite !big_nil mdot0l.
  by rewrite !big_cons mdotDl mdotZl IH.
have le : frobeniusSq S <= \sum_(x <- mu) x.1 * ((c + frobeniusSq S) / 2%:R).
  rewrite {1}E; move: p0; elim: (mu) => [|x m IH]; first by rewrite !big_nil.
  rewrite !big_cons /= => /andP[x0 m0]; apply: ler_add; last exact: IH.
  rewrite ler_wpmul2l // ler_pdivl_mulr ?ltr0n //.
  apply: le_trans (_ : frobeniusSq (F x.2) + frobeniusSq S <= _); last by rewrite ler_add2r.
  rewrite -subr_ge0; have := frobeniusSq_nonneg (F x.2 - S); rewrite frobB.
  by rewrite [mdot _ _ * _]mulrC addrAC.
move: le; rewrite -mulr_suml p1 mul1r ler_pdivl_mulr ?ltr0n // mulr_natr mulr2n.
by rewrite ler_add2r.
Qed.

(* mu, moved by h *)
Definition moved h mu : weights := [seq (x.1, rotationMul h x.2) | x <- mu].
Lemma moved_prob h mu : isProb mu -> isProb (moved h mu).
Proof.
move=> [p0 p1]; split; last by rewrite big_map.
by rewrite all_map; apply: sub_all p0.
Qed.
Lemma avg_moved h mu f : avg (moved h mu) f = avg mu (fun g => f (rotationMul h g)).
Proof. by rewrite /avg big_map. Qed.

Section Representation.
Variables (N : nat) (r : 'M[R]_n -> 'M[R]_N).
Hypothesis hr : isRep r.

Lemma rep_orth g : orthogonal (r (sval g)).
Proof. exact: (proj2 hr) (svalP g). Qed.
Lemma rep_orthT g : r (sval g) *m (r (sval g))^T = 1%:M.
Proof. by apply: mulmx1C; apply: rep_orth. Qed.
Lemma image_moved h mu : image r (moved h mu) = r (sval h) *m image r mu.
Proof.
rewrite /image big_map mulmx_sumr; apply: eq_bigr => x _ /=.
by rewrite (proj1 hr) scalemxAr.
Qed.

(* almost invariant, on both sides *)
Definition almostInvariant (e : R) mu : Prop := isProb mu /\ forall g,
  frobeniusSq (r (sval g) *m image r mu - image r mu) <= e /\
  frobeniusSq (image r mu *m r (sval g) - image r mu) <= e.

Lemma half_sum mu (mu' : weights) : isProb mu -> isProb mu' ->
  let h (x : R * rotation) := (x.1 / 2%:R, x.2) in
  isProb (map h mu ++ map h mu') /\
  image r (map h mu ++ map h mu') = 2%:R^-1 *: (image r mu + image r mu').
Proof.
move=> [p0 p1] [q0 q1] h; split.
  split; last by rewrite big_cat !big_map /= -!mulr_suml p1 q1; field.
  rewrite all_cat !all_map; apply/andP; split; [apply: sub_all p0|apply: sub_all q0] => x /= x0;
    by rewrite divr_ge0 ?ler0n.
rewrite /image big_cat !big_map scalerDr !scaler_sumr; congr (_ + _); apply: eq_bigr => x _ /=;
  by rewrite scalerA mulrC.
Qed.

Lemma image_right h mu : isProb mu -> exists mu', isProb mu' /\ image r mu' = image r mu *m r (sval
  h).
Proof.
move=> [p0 p1]; exists [seq (x.1, rotationMul x.2 h) | x <- mu]; split.
  by split; [rewrite all_map; apply: sub_all p0 | rewrite big_map].
rewrite /image big_map mulmx_suml; apply: eq_bigr => x _ /=.
by rewrite (proj1 hr) scalemxAl.
Qed.

Lemma almostInvariant_exists e : 0 < e -> exists mu, almostInvariant e mu.
Proof.
move=> e0; pose S : set R := [set y | exists mu, isProb mu /\ y = frobeniusSq (image r mu)].
have one : orthogonal (1%:M : 'M[R]_n) by rewrite /orthogonal trmx1 mul1mx.
pose mu0 : weights := [:: (1, exist _ 1%:M one)].
have S0 : S !=set0.
  exists (frobeniusSq (image r mu0)), mu0; split=> //.
  by split; rewrite /= ?ler01 // big_seq1.
have hinf : has_inf S.
  by split=> //; exists 0 => y [mu [_ ->]]; apply: frobeniusSq_nonneg.
have e4 : 0 < e / 4%:R by rewrite divr_gt0 ?ltr0n.
have [y [mu [pm ->]] lt] := inf_adherent e4 hinf.
exists mu; split=> // g; set X := image r mu in lt *.
have key Y mu' : isProb mu' -> image r mu' = Y -> frobeniusSq Y = frobeniusSq X ->
    frobeniusSq (Y - X) <= e.
  move=> pm' imY nY; have [p h] := half_sum pm' pm.
  have : inf S <= frobeniusSq (2%:R^-1 *: (Y + X)).
    by apply: inf_lb; [case: hinf | eexists; split; [exact: p | rewrite h imY]].
  rewrite frobeniusSq_smul frobD frobB nY; move: (mdot Y X) (frobeniusSq X) (inf S) lt => a x i lt
    le.
  have {}lt : 4%:R * x < 4%:R * i + e.
    by rewrite -ltr_subl_addl -mulrBr mulrC -ltr_pdivl_mulr ?ltr0n // ltr_subl_addl.
  have {}le : 4%:R * i <= x + 2%:R * a + x.
    rewrite -ler_pdivl_mull ?ltr0n //; apply: le_trans le _.
    by rewrite le_eqVlt; apply/orP; left; apply/eqP; field.
  have -> : x - 2%:R * a + x = 4%:R * x - (x + 2%:R * a + x) by ring.
  rewrite ler_subl_addr (le_trans (ltW lt)) // addrC; exact: ler_add.
split.
  apply: (key _ _ (moved_prob g pm) (image_moved g mu)).
  by rewrite frob_mull_orth //; apply: rep_orth.
have [mu' [pm' im]] := image_right g pm.
by apply: (key _ _ pm' im); rewrite frob_mulr_orth // rep_orthT.
Qed.

Lemma almostInvariant_mono e e' mu : e <= e' -> almostInvariant e mu -> almostInvariant e' mu.
Proof. by move=> le [pm h]; split=> // g; have [h1 h2] := h g; split; apply: le_trans le. Qed.

Lemma almostInvariant_moved e h mu :
  almostInvariant (e / 4%:R) mu -> 0 <= e -> almostInvariant e (moved h mu).
Proof.
move=> [pm hm] e0; split=> [|g]; first exact: moved_prob.
rewrite image_moved; set X := image r mu in hm *; split; last first.
  rewrite -mulmxA -mulmxBr frob_mull_orth; last exact: rep_orth.
  have [_ h2] := hm g; apply: le_trans h2 _.
  by rewrite ler_pdivr_mulr ?ltr0n // ler_pemulr // ler1n.
have [h1 _] := hm (rotationMul g h); have [h2 _] := hm h.
rewrite /= (proj1 hr) -mulmxA in h1.
set A := r (sval g) *m _ in h1 *; set B := r (sval h) *m X in h2 *.
have -> : A - B = (A - X) - (B - X) by rewrite opprB addrA subrK.
have := frobeniusSq_nonneg ((A - X) + (B - X)); rewrite frobD => p0.
rewrite frobB; move: (mdot _ _) (frobeniusSq _) (frobeniusSq _) h1 h2 p0 => a x y h1 h2 p0.
apply: le_trans (_ : 2%:R * (x + y) <= _).
  by rewrite -subr_ge0 (_ : _ - _ = y + 2%:R * a + x) //; ring.
rewrite (_ : e = 2%:R * (e / 4%:R + e / 4%:R)); last by field.
by rewrite ler_wpmul2l ?ler0n // ler_add.
Qed.

(* two almost invariant averages have nearly the same image *)
Lemma image_close e mu mu' : almostInvariant e mu -> almostInvariant e mu' ->
  frobeniusSq (image r mu - image r mu') <= 4%:R * e.
Proof.
move=> [pm hm] [pm' hm']; set X := image r mu in hm *; set Y := image r mu' in hm' *.
have h1 : frobeniusSq (X *m Y - X) <= e.
  have -> : X *m Y - X = \sum_(x <- mu') x.1 *: (X *m r (sval x.2) - X).
    rewrite (eq_bigr (fun x => x.1 *: (X *m r (sval x.2)) + x.1 *: - X)) => [|x _].
      rewrite big_split /= -scaler_suml (proj2 pm') scale1r; congr (_ - _).
      by rewrite mulmx_sumr; apply: eq_bigr => x _; rewrite scalemxAr.
    by rewrite scalerBr scalerN.
  by apply: (@frob_convex _ (fun g => X *m r (sval g) - X)) => // g; have [] := hm g.
have h2 : frobeniusSq (X *m Y - Y) <= e.
  have -> : X *m Y - Y = \sum_(x <- mu) x.1 *: (r (sval x.2) *m Y - Y).
    rewrite (eq_bigr (fun x => x.1 *: (r (sval x.2) *m Y) + x.1 *: - Y)) => [|x _].
      rewrite big_split /= -scaler_suml (proj2 pm) scale1r; congr (_ - _).
      by rewrite mulmx_suml; apply: eq_bigr => x _; rewrite scalemxAl.
    by rewrite scalerBr scalerN.
  by apply: (@frob_convex _ (fun g => r (sval g) *m Y - Y)) => // g; have [] := hm' g.
have -> : X - Y = (X *m Y - Y) - (X *m Y - X) by rewrite opprB [RHS]addrC addrA subrK.
have := frobeniusSq_nonneg ((X *m Y - Y) + (X *m Y - X)); rewrite frobD => p0.
rewrite frobB; move: (mdot _ _) (frobeniusSq _) (frobeniusSq _) h1 h2 p0 => a x y h1 h2 p0.
apply: le_trans (_ : 2%:R * (x + y) <= _).
  by rewrite -subr_ge0 (_ : _ - _ = x + 2%:R * a + y) //; ring.
rewrite (_ : 4%:R * e = 2%:R * (e + e)); last by ring.
by rewrite ler_wpmul2l ?ler0n // ler_add.
Qed.
End Representation.

(* ---------- two representations at once ---------- *)
Definition blockRep N N' (r : 'M[R]_n -> 'M[R]_N) (r' : 'M[R]_n -> 'M[R]_N') Q : 'M[R]_(N + N') :=
  block_mx (r Q) 0 0 (r' Q).

Lemma frob_block N N' (A : 'M[R]_N) (B : 'M[R]_N') :
  frobeniusSq (block_mx A 0 0 B) = frobeniusSq A + frobeniusSq B.
Proof.
rewrite /frobeniusSq big_split_ord; congr (_ + _); apply: eq_bigr => i _; rewrite big_split_ord /=.
  rewrite [X in _ + X]big1 ?addr0 => [|j _]; last by rewrite block_mxEur mxE expr0n.
  by apply: eq_bigr => j _; rewrite block_mxEul.
rewrite [X in X + _]big1 ?add0r => [|j _]; last by rewrite block_mxEdl mxE expr0n.
by apply: eq_bigr => j _; rewrite block_mxEdr.
Qed.

Lemma blockRep_rep N N' (r : 'M[R]_n -> 'M[R]_N) (r' : 'M[R]_n -> 'M[R]_N') :
  isRep r -> isRep r' -> isRep (blockRep r r').
Proof.
move=> [m o] [m' o']; split=> [P Q|Q oQ].
  by rewrite /blockRep mulmx_block !mul0mx !mulmx0 !addr0 !add0r m m'.
rewrite /orthogonal /blockRep tr_block_mx !trmx0 mulmx_block !mul0mx !mulmx0 !addr0 !add0r.
by rewrite o // o' // -scalar_mx_block.
Qed.

Lemma block_image N N' (r : 'M[R]_n -> 'M[R]_N) (r' : 'M[R]_n -> 'M[R]_N') mu :
  image (blockRep r r') mu = block_mx (image r mu) 0 0 (image r' mu).
Proof.
rewrite /image; elim: mu => [|x mu IH]; first by rewrite !big_nil block_mx0.
by rewrite !big_cons IH /blockRep scale_block_mx !scaler0 add_block_mx !addr0.
Qed.

Lemma almostInvariant_block N N' (r : 'M[R]_n -> 'M[R]_N) (r' : 'M[R]_n -> 'M[R]_N') e mu :
  almostInvariant (blockRep r r') e mu -> almostInvariant r e mu /\ almostInvariant r' e mu.
Proof.
move=> [pm h]; split; split=> // g; have [] := h g; rewrite block_image /blockRep;
  rewrite !mulmx_block !mul0mx !mulmx0 !addr0 !add0r !opp_block_mx !oppr0 !add_block_mx !addr0;
  rewrite !frob_block => h1 h2; (split; [apply: le_trans h1|apply: le_trans h2]);
  by rewrite ?ler_addl ?ler_addr frobeniusSq_nonneg.
Qed.
End AlmostInvariant.
