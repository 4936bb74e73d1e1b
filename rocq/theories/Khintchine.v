(* Khintchine's inequality with its best constant: the mean of |sum of +-a_i| over all signs is at
   least |a|_2/sqrt 2, with equality for (1, 1). The proof is that of Latala and Oleszkiewicz
   (Studia Math. 109, 1994): the spectral gap of the hypercube, twice as large for even functions.
   Over any real closed field: no axioms. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From Gonio Require Import RandomSigns.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Khintchine.
Variable R : rcfType.

Lemma mean_eq n (F G : n.-tuple bool -> R) : F =1 G -> mean F = mean G.
Proof. by move=> h; rewrite /mean; congr (_ / _); apply: eq_bigr => t _. Qed.

Lemma mean_sq_le n (F : n.-tuple bool -> R) : mean F ^+ 2 <= mean (fun t => F t ^+ 2).
Proof.
have := mean_ge (fun t => sqr_ge0 (F t - mean F)); rewrite mean_cst.
rewrite (@mean_eq _ _ (fun t => F t ^+ 2 + ((- (2%:R * mean F)) * F t + mean F ^+ 2))).
  rewrite meanD meanD meanZ mean_cst; move: (mean F) (mean _) => x y.
  by rewrite (_ : _ + _ = y - x ^+ 2) ?subr_ge0 //; ring.
by move=> t; move: (mean F) => x; ring.
Qed.

(* ---------- one sign flipped, all signs flipped ---------- *)
Definition flipAt n (i : 'I_n) (t : n.-tuple bool) : n.-tuple bool :=
  [tuple if j == i then ~~ tnth t j else tnth t j | j < n].
Definition flipAll n (t : n.-tuple bool) : n.-tuple bool := [tuple ~~ tnth t j | j < n].

Lemma flipAllK n : involutive (@flipAll n).
Proof. by move=> t; apply: eq_from_tnth => j; rewrite !tnth_mktuple negbK. Qed.
Lemma flipAll_flipAt n (i : 'I_n) t : flipAll (flipAt i t) = flipAt i (flipAll t).
Proof. by apply: eq_from_tnth => j; rewrite !tnth_mktuple; case: (j == i). Qed.
Lemma mean_flipAll n (F : n.-tuple bool -> R) : mean (fun t => F (flipAll t)) = mean F.
Proof. by rewrite /mean [in RHS](reindex_inj (inv_inj (@flipAllK n))). Qed.

Lemma flipAt_head n b (t : n.-tuple bool) :
  flipAt ord0 [tuple of b :: t] = [tuple of ~~ b :: t].
Proof.
apply: eq_from_tnth => j; rewrite tnth_mktuple.
by case: (unliftP ord0 j) => [k|] ->; rewrite ?tnthS ?tnth0.
Qed.
Lemma flipAt_tail n b (i : 'I_n) (t : n.-tuple bool) :
  flipAt (lift ord0 i) [tuple of b :: t] = [tuple of b :: flipAt i t].
Proof.
apply: eq_from_tnth => j; rewrite tnth_mktuple.
case: (unliftP ord0 j) => [k|] ->; last by rewrite !tnth0.
by rewrite !tnthS tnth_mktuple (inj_eq lift_inj).
Qed.
Lemma flipAll_cons n b (t : n.-tuple bool) :
  flipAll [tuple of b :: t] = [tuple of ~~ b :: flipAll t].
Proof.
apply: eq_from_tnth => j; rewrite tnth_mktuple.
by case: (unliftP ord0 j) => [k|] ->; rewrite ?tnthS ?tnth0 ?tnth_mktuple.
Qed.

(* how much F changes when one sign is flipped, summed over the signs *)
Definition dirichlet n (F : n.-tuple bool -> R) : R :=
  \sum_i mean (fun t => (F t - F (flipAt i t)) ^+ 2) / 4%:R.

Lemma dirichlet_eq n (F G : n.-tuple bool -> R) : F =1 G -> dirichlet F = dirichlet G.
Proof. by move=> h; apply: eq_bigr => i _; congr (_ / _); apply: mean_eq => t; rewrite !h. Qed.

Lemma dirichlet_rec n (F : n.+1.-tuple bool -> R) :
  let T (t : n.-tuple bool) := F [tuple of true :: t] in
  let L (t : n.-tuple bool) := F [tuple of false :: t] in
  dirichlet F = mean (fun t => (T t - L t) ^+ 2) / 4%:R + (dirichlet T + dirichlet L) / 2%:R.
Proof.
move=> T L; rewrite /dirichlet big_ord_recl; congr (_ / _ + _).
  rewrite mean_rec; apply: mean_eq => t; rewrite !flipAt_head /= -/(T t) -/(L t); by field.
rewrite -big_split mulr_suml; apply: eq_bigr => i _ /=.
rewrite mean_rec (@mean_eq _ _ (fun t => 2%:R^-1 * ((T t - T (flipAt i t)) ^+ 2 +
  (L t - L (flipAt i t)) ^+ 2))); last first.
  by move=> t; rewrite !flipAt_tail /T /L mulrC.
by rewrite meanZ meanD; move: (mean _) (mean _) => x y; field.
Qed.

Lemma dirichlet_flipAll n (F : n.-tuple bool -> R) :
  dirichlet (fun t => F (flipAll t)) = dirichlet F.
Proof.
apply: eq_bigr => i _; congr (_ / _).
rewrite -[RHS]mean_flipAll; by apply: mean_eq => t; rewrite flipAll_flipAt.
Qed.

(* parallelogram law *)
Lemma dirichlet_parallelogram n (F G : n.-tuple bool -> R) :
  dirichlet F + dirichlet G = 2%:R * (dirichlet (fun t => (F t + G t) / 2%:R) +
    dirichlet (fun t => (F t - G t) / 2%:R)).
Proof.
rewrite /dirichlet -!big_split mulr_sumr; apply: eq_bigr => i _ /=.
have h : mean (fun t => (F t - F (flipAt i t)) ^+ 2) + mean (fun t => (G t - G (flipAt i t)) ^+ 2) =
    2%:R * (mean (fun t => ((F t + G t) / 2%:R - (F (flipAt i t) + G (flipAt i t)) / 2%:R) ^+ 2) +
      mean (fun t => ((F t - G t) / 2%:R - (F (flipAt i t) - G (flipAt i t)) / 2%:R) ^+ 2)).
  by rewrite -!meanD -meanZ; apply: mean_eq => t; field.
move: (mean _) (mean _) (mean _) (mean _) h => a b c d h.
by rewrite -!mulrDl h mulrA.
Qed.
Lemma mean_parallelogram n (F G : n.-tuple bool -> R) :
  mean (fun t => F t ^+ 2) + mean (fun t => G t ^+ 2) =
  2%:R * (mean (fun t => ((F t + G t) / 2%:R) ^+ 2) + mean (fun t => ((F t - G t) / 2%:R) ^+ 2)).
Proof. by rewrite -!meanD -meanZ; apply: mean_eq => t; field. Qed.

(* ---------- the spectral gap ---------- *)
Local Notation variance F := (mean (fun t => F t ^+ 2) - mean F ^+ 2).

Lemma gap n (F : n.-tuple bool -> R) : variance F <= dirichlet F.
Proof.
elim: n F => [|n IH] F; first by rewrite /dirichlet big_ord0 !mean0 subrr.
rewrite dirichlet_rec; set T := fun t : n.-tuple bool => F _; set L := fun t : n.-tuple bool => F _.
have h := mean_sq_le (fun t => T t - L t).
have e1 : mean F = (mean T + mean L) / 2%:R.
  rewrite mean_rec (@mean_eq _ _ (fun t => 2%:R^-1 * (T t + L t))) ?meanZ ?meanD 1?mulrC // => t.
  by rewrite mulrC.
have e2 : mean (fun t => F t ^+ 2) = (mean (fun t => T t ^+ 2) + mean (fun t => L t ^+ 2)) / 2%:R.
  rewrite mean_rec (@mean_eq _ _ (fun t => 2%:R^-1 * (T t ^+ 2 + L t ^+ 2))) ?meanZ ?meanD 1?mulrC
    //.
  by move=> t; rewrite mulrC.
have e3 : mean (fun t => T t - L t) = mean T - mean L.
  by rewrite (@mean_eq _ _ (fun t => T t + -1 * L t)) ?meanD ?meanZ ?mulN1r // => t; rewrite mulN1r.
have hT := IH T; have hL := IH L; rewrite e1 e2; rewrite e3 in h.
move: (mean (fun t => (T t - L t) ^+ 2)) (dirichlet T) (dirichlet L) h hT hL => a b c.
move: (mean T) (mean L) (mean (fun t => T t ^+ 2)) (mean (fun t => L t ^+ 2)) => x y z w h hT hL.
rewrite -subr_ge0.
have -> : a / 4%:R + (b + c) / 2%:R - ((z + w) / 2%:R - ((x + y) / 2%:R) ^+ 2) =
  (a - (x - y) ^+ 2) / 4%:R + ((b - (z - x ^+ 2)) + (c - (w - y ^+ 2))) / 2%:R by field.
apply: addr_ge0; apply: divr_ge0; rewrite ?ler0n ?subr_ge0 //.
by apply: addr_ge0; rewrite subr_ge0.
Qed.

Lemma gap_even n (F : n.-tuple bool -> R) : (forall t, F (flipAll t) = F t) ->
  2%:R * variance F <= dirichlet F.
Proof.
elim: n F => [|n IH] F even; first by rewrite /dirichlet big_ord0 !mean0 subrr mulr0.
rewrite dirichlet_rec; set T := fun t : n.-tuple bool => F _; set L := fun t : n.-tuple bool => F _.
have LT t : L t = T (flipAll t) by rewrite /T /L -even flipAll_cons.
have mL : mean L = mean T by rewrite (mean_eq LT) mean_flipAll.
have mL2 : mean (fun t => L t ^+ 2) = mean (fun t => T t ^+ 2).
  by rewrite -[RHS]mean_flipAll; apply: mean_eq => t; rewrite LT.
have dL : dirichlet L = dirichlet T by rewrite (dirichlet_eq LT) dirichlet_flipAll.
have e1 : mean F = mean T.
  rewrite mean_rec (@mean_eq _ _ (fun t => 2%:R^-1 * (T t + L t))) => [|t]; last by rewrite mulrC.
  by rewrite meanZ meanD mL; field.
have e2 : mean (fun t => F t ^+ 2) = mean (fun t => T t ^+ 2).
  rewrite mean_rec (@mean_eq _ _ (fun t => 2%:R^-1 * (T t ^+ 2 + L t ^+ 2))) => [|t].
    by rewrite meanZ meanD mL2; field.
  by rewrite mulrC.
pose e t := (T t + L t) / 2%:R; pose o t := (T t - L t) / 2%:R.
have P := dirichlet_parallelogram T L; rewrite dL -/e -/o in P.
have Q := mean_parallelogram T L; rewrite mL2 -/e -/o in Q.
have ee t : e (flipAll t) = e t by rewrite /e !LT flipAllK addrC.
have me : mean e = mean T.
  rewrite /e (@mean_eq _ _ (fun t => 2%:R^-1 * (T t + L t))) => [|t]; last by rewrite mulrC.
  by rewrite meanZ meanD mL; field.
have mo : mean o = 0.
  rewrite /o (@mean_eq _ _ (fun t => 2%:R^-1 * (T t + -1 * L t))) => [|t]; last first.
    by rewrite mulN1r mulrC.
  by rewrite meanZ meanD meanZ mL mulN1r subrr mulr0.
have o2 : mean (fun t => (T t - L t) ^+ 2) / 4%:R = mean (fun t => o t ^+ 2).
  rewrite (@mean_eq _ (fun t => (T t - L t) ^+ 2) (fun t => 4%:R * o t ^+ 2)) => [|t].
    by rewrite meanZ; field.
  by rewrite /o; field.
have he := IH e ee; have ho := gap o; rewrite e1 e2 o2 dL.
rewrite mo expr0n subr0 in ho; rewrite me in he.
move: (dirichlet T) (dirichlet e) (dirichlet o) P he ho => d x y P he ho.
have -> : (d + d) / 2%:R = x + y by rewrite P; field.
move: (mean (fun t => T t ^+ 2)) (mean (fun t => e t ^+ 2)) (mean (fun t => o t ^+ 2)) Q he ho.
move: (mean T) => t a b c Q he ho.
have -> : a = b + c by apply: (@mulfI _ 2%:R); rewrite ?pnatr_eq0 // -Q; ring.
rewrite -subr_ge0.
have -> : c + (x + y) - 2%:R * (b + c - t ^+ 2) = (x - 2%:R * (b - t ^+ 2)) + (y - c) by ring.
by apply: addr_ge0; rewrite subr_ge0.
Qed.

(* ---------- the inequality ---------- *)
Lemma rade_flipAt n (a : 'I_n -> R) i t :
  rade (flipAt i t) a = rade t a - 2%:R * (sg R (tnth t i) * a i).
Proof.
rewrite /rade (bigD1 i) //= [in RHS](bigD1 i) //= tnth_mktuple eqxx.
rewrite (eq_bigr (fun j => sg R (tnth t j) * a j)) => [|j ji]; last first.
  by rewrite tnth_mktuple (negPf ji).
have -> : sg R (~~ tnth t i) = - sg R (tnth t i) by rewrite /sg signrN.
by move: (\sum_(_ | _) _) => S; ring.
Qed.

Lemma rade_flipAll n (a : 'I_n -> R) t : rade (flipAll t) a = - rade t a.
Proof.
rewrite /rade -sumrN; apply: eq_bigr => i _; rewrite tnth_mktuple.
by rewrite /sg signrN mulNr.
Qed.

Lemma dirichlet_rade n (a : 'I_n -> R) :
  dirichlet (fun t => `|rade t a|) <= mean (fun t => rade t a ^+ 2).
Proof.
have sumE : dirichlet (fun t => `|rade t a|) =
  mean (fun t => (\sum_i (`|rade t a| - `|rade (flipAt i t) a|) * `|rade t a|)) / 2%:R.
  rewrite /dirichlet mean_sum mulr_suml; apply: eq_bigr => i _.
  pose f t := `|rade t a|; pose g t := `|rade (flipAt i t) a|.
  have gf : mean (fun t => g t ^+ 2) = mean (fun t => f t ^+ 2).
    have inv : involutive (@flipAt n i).
      move=> t; apply: eq_from_tnth => j; rewrite !tnth_mktuple.
      by case: (j == i); rewrite ?negbK.
    by rewrite /mean [in RHS](reindex_inj (inv_inj inv)).
  rewrite (@mean_eq _ _ (fun t => f t ^+ 2 + (- 2%:R * (f t * g t) + g t ^+ 2))) => [|t].
    rewrite meanD meanD meanZ gf.
    rewrite (@mean_eq _ (fun t => (_ - _) * _) (fun t => f t ^+ 2 + -1 * (f t * g t))) => [|t].
      by rewrite meanD meanZ; move: (mean _) (mean _) => x y; field.
    by rewrite -/(f t) -/(g t); ring.
  by rewrite -/(f t) -/(g t); ring.
rewrite sumE ler_pdivr_mulr ?ltr0n // mulrC -meanZ; apply: mean_ge => t.
rewrite -mulr_suml sumrB sumr_const card_ord.
have -> : rade t a ^+ 2 = `|rade t a| * `|rade t a|.
  by rewrite -expr2 -normrX ger0_norm ?sqr_ge0.
rewrite mulrA ler_wpmul2r //.
have low : `|rade t a| *+ n - 2%:R * `|rade t a| <= \sum_(i < n) `|rade (flipAt i t) a|.
  apply: le_trans (ler_norm_sum _ _ _).
  rewrite (eq_bigr _ (fun i _ => rade_flipAt a i t)) sumrB -mulr_sumr sumr_const card_ord.
  rewrite -/(rade t a) -[leLHS]/(_ - _); apply: le_trans (ler_sub_dist _ _).
  by rewrite normrM normrMn (ger0_norm (ler0n _ 2)).
by rewrite ler_subl_addr -ler_subl_addl.
Qed.

(* |a|_2^2 <= 2 (E |sum of +-a_i|)^2 *)
Lemma khintchine_best n (a : 'I_n -> R) :
  Num.sqrt (\sum_i a i ^+ 2) / Num.sqrt 2%:R <= mean (fun t => `|rade t a|).
Proof.
have even t : `|rade (flipAll t) a| = `|rade t a| by rewrite rade_flipAll normrN.
have m0 : 0 <= mean (fun t => `|rade t a|).
  by rewrite -(mean_cst n 0); apply: mean_ge => t; rewrite normr_ge0.
have sq t : `|rade t a| ^+ 2 = rade t a ^+ 2 by rewrite -normrX ger0_norm ?sqr_ge0.
have := le_trans (gap_even even) (dirichlet_rade a).
rewrite (mean_eq sq) mean_square; move: (mean _) m0 (\sum_i _) => m m0 q h.
rewrite ler_pdivr_mulr ?sqrtr_gt0 ?ltr0n // -[m]ger0_norm // -sqrtr_sqr -sqrtrM ?sqr_ge0 //.
apply: ler_wsqrtr; rewrite -subr_ge0.
have -> : m ^+ 2 * 2%:R - q = q - 2%:R * (q - m ^+ 2) by ring.
by rewrite subr_ge0.
Qed.
End Khintchine.
