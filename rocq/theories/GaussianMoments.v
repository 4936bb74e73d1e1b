(* The Gaussian integral from scratch, the moments of the normal law, and the ratio 2/pi.
   Method: the square of G(x), the integral of exp(-t^2) over [0, x], plus the integral B(x) of
   exp(-x^2 (1 + t^2))/(1 + t^2) over [0, 1] is constant in x, hence pi/4; B tends to 0.
   Over the real numbers of Coq's standard library, with their classical axioms. *)
From Coq Require Import Reals Psatz.
From Coquelicot Require Import Coquelicot.
From Gonio Require Import MomentIntegrals.
Open Scope R_scope.

Definition gaussKernel (t : R) := exp (- t ^ 2).
Definition gaussPartial (x : R) := RInt gaussKernel 0 x.
Definition h (x t : R) := exp (- x ^ 2 * (1 + t ^ 2)) / (1 + t ^ 2).
Definition gaussRest (x : R) := RInt (h x) 0 1.

Ltac ringR := match goal with |- @eq _ ?a ?b => change (@eq R a b) end; ring.
Lemma g_cont x : continuous gaussKernel x.
Proof. apply (ex_derive_continuous gaussKernel). unfold gaussKernel. auto_derive; easy. Qed.
Lemma g_int a b : ex_RInt gaussKernel a b.
Proof. apply (@ex_RInt_continuous R_CompleteNormedModule). intros; apply g_cont. Qed.
Lemma G_derive x : is_derive gaussPartial x (gaussKernel x).
Proof.
apply (is_derive_RInt gaussKernel gaussPartial 0 x).
- exists (mkposreal 1 Rlt_0_1). intros y _. apply (RInt_correct (V := R_CompleteNormedModule)
  gaussKernel 0 y), g_int.
- apply g_cont.
Qed.
Lemma pos1 t : 0 < 1 + t ^ 2. Proof. nra. Qed.
Lemma h_cont x t : continuous (h x) t.
Proof.
apply (ex_derive_continuous (h x)). unfold h. auto_derive. assert (P := pos1 t). lra.
Qed.
Lemma h_int x a b : ex_RInt (h x) a b.
Proof. apply (@ex_RInt_continuous R_CompleteNormedModule). intros; apply h_cont. Qed.
Lemma h_derive x t : is_derive (fun u => h u t) x (-2 * x * exp (- x ^ 2 * (1 + t ^ 2))).
Proof. unfold h. auto_derive. { assert (P := pos1 t); lra. } change (x * (x * 1)) with (x ^ 2).
  change (t * (t * 1)) with (t ^ 2).
generalize (exp (- x ^ 2 * (1 + t ^ 2))). intros e. field. assert (P := pos1 t); lra. Qed.

Lemma B_derive x : is_derive gaussRest x (RInt (fun t => -2 * x * exp (- x ^ 2 * (1 + t ^ 2))) 0 1).
Proof.
replace (RInt (fun t => -2 * x * exp (- x ^ 2 * (1 + t ^ 2))) 0 1)
  with (RInt (fun t => Derive (fun u => h u t) x) 0 1).
2: { apply RInt_ext; intros t _. apply is_derive_unique, h_derive. }
apply (is_derive_RInt_param h 0 1 x).
- exists (mkposreal 1 Rlt_0_1). intros y _ t _. eexists. apply h_derive.
- intros t _.
  apply (continuity_2d_pt_ext (fun u v => -2 * u * exp (- u ^ 2 * (1 + v ^ 2)))).
  { intros u v. symmetry. apply is_derive_unique, h_derive. }
  apply continuity_2d_pt_mult.
  + apply continuity_2d_pt_mult; [apply continuity_2d_pt_const|apply continuity_2d_pt_id1].
  + apply (continuity_1d_2d_pt_comp exp (fun u v => - u ^ 2 * (1 + v ^ 2))).
    * apply derivable_continuous_pt, derivable_pt_exp.
    * apply (continuity_2d_pt_ext (fun u v => - (u * u) * (1 + v * v))). { intros; ring. }
      apply continuity_2d_pt_mult.
      -- apply continuity_2d_pt_opp, continuity_2d_pt_mult; apply continuity_2d_pt_id1.
      -- apply continuity_2d_pt_plus; [apply continuity_2d_pt_const|].
         apply continuity_2d_pt_mult; apply continuity_2d_pt_id2.
- exists (mkposreal 1 Rlt_0_1). intros y _. apply h_int.
Qed.

Lemma B_derive' x : is_derive gaussRest x (-2 * gaussKernel x * gaussPartial x).
Proof.
replace (-2 * gaussKernel x * gaussPartial x) with (RInt (fun t => -2 * x * exp (- x ^ 2 * (1 + t
  ^ 2))) 0 1).
{ apply B_derive. }
assert (E : RInt (fun t => x * gaussKernel (x * t)) 0 1 = gaussPartial x).
{ unfold gaussPartial. transitivity (RInt gaussKernel (x * 0 + 0) (x * 1 + 0)). 2: { f_equal;
  ring. }
  rewrite <- (RInt_comp_lin gaussKernel x 0 0 1) by apply g_int.
  apply RInt_ext. intros t _. unfold scal; simpl; unfold mult; simpl.
  rewrite Rplus_0_r. reflexivity. }
rewrite <- E.
assert (I : ex_RInt (fun t => x * gaussKernel (x * t)) 0 1).
{ apply (@ex_RInt_continuous R_CompleteNormedModule). intros z _.
  apply (ex_derive_continuous (fun t => x * gaussKernel (x * t))). unfold gaussKernel.
    auto_derive; easy. }
assert (S := RInt_scal (V := R_CompleteNormedModule) (fun t => x * gaussKernel (x * t)) 0 1 (-2 *
  gaussKernel x) I).
unfold scal in S; simpl in S; unfold mult in S; simpl in S.
transitivity (RInt (fun t => -2 * gaussKernel x * (x * gaussKernel (x * t))) 0 1); [|exact S].
apply RInt_ext. intros t _. unfold gaussKernel.
replace (- x ^ 2 * (1 + t ^ 2)) with (- x ^ 2 + - (x * t) ^ 2) by ring.
rewrite exp_plus. ringR.
Qed.

Lemma GB_const x : gaussPartial x ^ 2 + gaussRest x = gaussPartial 0 ^ 2 + gaussRest 0.
Proof.
assert (D : forall y, is_derive (fun x => gaussPartial x ^ 2 + gaussRest x) y 0).
{ intros y. replace 0 with (plus (2 * gaussKernel y * gaussPartial y) (-2 * gaussKernel y *
  gaussPartial y)) by (unfold plus; simpl; ringR).
  apply (is_derive_plus (fun x => gaussPartial x ^ 2) gaussRest).
  - apply (is_derive_ext (fun x => gaussPartial x * gaussPartial x)). { intros; simpl; ringR. }
    replace (2 * gaussKernel y * gaussPartial y) with (plus (mult (gaussKernel y) (gaussPartial
      y)) (mult (gaussPartial y) (gaussKernel y))) by (unfold plus, mult; simpl; ringR).
    apply (is_derive_mult gaussPartial gaussPartial y); try apply G_derive. intros; apply
      Rmult_comm.
  - apply B_derive'. }
destruct (MVT_gen (fun x => gaussPartial x ^ 2 + gaussRest x) 0 x (fun _ => 0)) as [c [_ Hc]].
- intros y _. apply D.
- intros y _. apply continuity_pt_filterlim, (ex_derive_continuous (fun x => gaussPartial x ^ 2 +
  gaussRest x)). eexists; apply D.
- lra.
Qed.

Lemma B0 : gaussRest 0 = PI / 4.
Proof.
unfold gaussRest.
rewrite (RInt_ext _ (fun t => / (1 + t ^ 2))).
2: { intros t _. unfold h. replace (- 0 ^ 2 * (1 + t ^ 2)) with 0 by ring. rewrite exp_0.
     match goal with |- @eq _ ?a ?b => change (@eq R a b) end. field. assert (P := pos1 t); lra. }
apply is_RInt_unique. replace (PI / 4) with (minus (atan 1) (atan 0)).
2: { rewrite atan_1, atan_0. unfold minus, plus, opp; simpl; field. }
apply (@is_RInt_derive R_CompleteNormedModule atan).
- intros x _. apply is_derive_Reals, derivable_pt_lim_atan.
- intros x _. apply (ex_derive_continuous (fun t => / (1 + t ^ 2))). auto_derive. assert (P :=
  pos1 x); lra.
Qed.

Lemma B_bound x : 0 <= gaussRest x <= exp (- x ^ 2).
Proof.
split.
- apply RInt_ge_0; [lra|apply h_int|]. intros t _. unfold h.
  apply Rlt_le, Rdiv_lt_0_compat; [apply exp_pos|apply pos1].
- replace (exp (- x ^ 2)) with (RInt (fun _ => exp (- x ^ 2)) 0 1).
  2: { rewrite RInt_const. unfold scal; simpl; unfold mult; simpl; ring. }
  apply RInt_le; [lra|apply h_int|apply ex_RInt_const|]. intros t _. unfold h.
  assert (P := pos1 t).
  apply (Rmult_le_reg_r (1 + t ^ 2)); [easy|].
  unfold Rdiv. rewrite Rmult_assoc, Rinv_l, Rmult_1_r by lra.
  assert (E : exp (- x ^ 2 * (1 + t ^ 2)) <= exp (- x ^ 2)).
  { destruct (Req_dec (x * t) 0) as [z|z].
    - right. f_equal. replace (- x ^ 2 * (1 + t ^ 2)) with (- x ^ 2 - (x * t) ^ 2) by ring.
      rewrite z. ring.
    - left. apply exp_increasing. nra. }
  assert (E2 := exp_pos (- x ^ 2)). nra.
Qed.

Lemma G_sq x : gaussPartial x ^ 2 = PI / 4 - gaussRest x.
Proof.
assert (H := GB_const x). rewrite B0 in H.
replace (gaussPartial 0) with 0 in H. { lra. }
symmetry. unfold gaussPartial. exact (RInt_point 0 gaussKernel).
Qed.

Lemma lim_gauss0 : is_lim (fun x => exp (- x ^ 2)) p_infty 0.
Proof.
apply (is_lim_comp exp (fun x => - x ^ 2) p_infty 0 m_infty).
- apply is_lim_exp_m.
- replace m_infty with (Rbar_opp p_infty) by easy. apply is_lim_opp.
  apply (is_lim_ext (fun x => x * x)). { intros; ring. }
  apply (is_lim_mult (fun x => x) (fun x => x) p_infty p_infty p_infty); try apply is_lim_id. easy.
- exists 0; easy.
Qed.

(* the integral of exp(-t^2) over [0, oo) is sqrt(pi)/2 *)
Lemma gaussian_integral_lim : is_lim gaussPartial p_infty (sqrt PI / 2).
Proof.
assert (L : is_lim (fun x => gaussPartial x ^ 2) p_infty (PI / 4)).
{ apply (is_lim_ext (fun x => PI / 4 - gaussRest x)). { intros; symmetry; apply G_sq. }
  replace (Finite (PI / 4)) with (Finite (PI / 4 - 0)) by (f_equal; ring).
  apply is_lim_minus'. { apply is_lim_const. }
  apply (is_lim_le_le_loc (fun _ => 0) (fun x => exp (- x ^ 2))).
  - exists 0. intros x _. apply B_bound.
  - apply is_lim_const.
  - apply lim_gauss0. }
replace (sqrt PI / 2) with (sqrt (PI / 4)).
2: { rewrite sqrt_div; [|apply Rlt_le, PI_RGT_0|lra].
     replace 4 with (2 * 2) by ring. rewrite sqrt_square; lra. }
apply (is_lim_ext_loc (fun x => sqrt (gaussPartial x ^ 2))).
{ exists 0. intros x hx. apply sqrt_pow2. apply RInt_ge_0; [lra|apply g_int|].
  intros; apply Rlt_le, exp_pos. }
apply (is_lim_comp_continuous (fun x => gaussPartial x ^ 2) sqrt p_infty (PI / 4)); [exact L|].
apply continuous_sqrt.
Qed.

(* ---------- the normal law ---------- *)
(* the density of the standard normal law *)
Definition normalDensity (x : R) := exp (- x ^ 2 / 2) / sqrt (2 * PI).
Lemma sqrt2PI_pos : 0 < sqrt (2 * PI).
Proof. apply sqrt_lt_R0. assert (P := PI_RGT_0). lra. Qed.
Lemma sqrtPI_pos : 0 < sqrt PI. Proof. apply sqrt_lt_R0, PI_RGT_0. Qed.
Lemma sqrt2_pos : 0 < sqrt 2. Proof. apply sqrt_lt_R0; lra. Qed.
Definition F0 (x : R) := gaussPartial (x / sqrt 2) / sqrt PI.

Lemma normalDensity_derive x : is_derive normalDensity x (- x * normalDensity x).
Proof.
unfold normalDensity. assert (P := sqrt2PI_pos). auto_derive; [easy|].
change (x * (x * 1)) with (x ^ 2). unfold Rdiv. generalize (exp (- x ^ 2 * / 2)). intros e. field.
  lra.
Qed.
Lemma F0_derive x : is_derive F0 x (normalDensity x).
Proof.
assert (P1 := sqrtPI_pos). assert (P2 := sqrt2_pos).
assert (E : normalDensity x = / sqrt PI * (/ sqrt 2 * gaussKernel (x / sqrt 2))).
{ unfold normalDensity, gaussKernel. rewrite sqrt_mult by (try lra; apply Rlt_le, PI_RGT_0).
  replace (- (x / sqrt 2) ^ 2) with (- x ^ 2 / 2).
  { field; lra. }
  replace ((x / sqrt 2) ^ 2) with (x ^ 2 / (sqrt 2 ^ 2)) by (field; lra).
  rewrite pow2_sqrt by lra. field. }
rewrite E. unfold F0.
apply (is_derive_ext (fun x => / sqrt PI * gaussPartial (x / sqrt 2))). { intros t. apply
  Rmult_comm. }
apply (is_derive_scal (fun x => gaussPartial (x / sqrt 2)) x (/ sqrt PI)).
apply (is_derive_comp gaussPartial (fun x => x / sqrt 2)). { apply G_derive. }
auto_derive; [easy|]. field. lra.
Qed.
Lemma F0_0 : F0 0 = 0.
Proof. unfold F0. replace (0 / sqrt 2) with 0 by (field; apply Rgt_not_eq, sqrt2_pos).
unfold gaussPartial. rewrite (RInt_point 0 gaussKernel). unfold zero; simpl. field. apply
  Rgt_not_eq, sqrtPI_pos. Qed.
Lemma lim_div_sqrt2 : is_lim (fun x => x / sqrt 2) p_infty p_infty.
Proof.
assert (P : 0 < / sqrt 2) by apply Rinv_0_lt_compat, sqrt2_pos.
apply (is_lim_ext (fun x => / sqrt 2 * x)). { intros; unfold Rdiv; ring. }
assert (H0 := is_lim_scal_l (fun x => x) (/ sqrt 2) p_infty p_infty (is_lim_id p_infty)).
replace (Rbar_mult (/ sqrt 2) p_infty) with p_infty in H0; [exact H0|].
unfold Rbar_mult, Rbar_mult'. destruct (Rle_dec 0 (/ sqrt 2)) as [h'|h']; [|exfalso; lra].
destruct (Rle_lt_or_eq_dec 0 (/ sqrt 2) h') as [k|k]; [easy|exfalso; lra].
Qed.
Lemma F0_lim : is_lim F0 p_infty (1 / 2).
Proof.
assert (P1 := sqrtPI_pos).
replace (Finite (1 / 2)) with (Rbar_mult (sqrt PI / 2) (/ sqrt PI)) by (simpl; f_equal; field; lra).
apply (is_lim_scal_r (fun x => gaussPartial (x / sqrt 2)) (/ sqrt PI) p_infty (sqrt PI / 2)).
apply (is_lim_comp gaussPartial (fun x => x / sqrt 2) p_infty (sqrt PI / 2) p_infty).
- apply gaussian_integral_lim.
- apply lim_div_sqrt2.
- exists 0; easy.
Qed.
Lemma normalDensity_cont k x : continuous (fun t => t ^ k * normalDensity t) x.
Proof. apply (ex_derive_continuous (fun t => t ^ k * normalDensity t)). unfold normalDensity.
  auto_derive; easy. Qed.

Lemma lim_normalDensity : is_lim normalDensity p_infty 0.
Proof.
apply (is_lim_ext (fun x => exp (- (x / sqrt 2) ^ 2) * / sqrt (2 * PI))).
{ intros x. unfold normalDensity. unfold Rdiv at 2. f_equal. f_equal.
  assert (P := sqrt2_pos). replace ((x / sqrt 2) ^ 2) with (x ^ 2 / (sqrt 2 ^ 2)) by (field; lra).
  rewrite pow2_sqrt by lra. field. }
replace (Finite 0) with (Rbar_mult 0 (/ sqrt (2 * PI))) by (simpl; f_equal; ring).
apply (is_lim_scal_r (fun x => exp (- (x / sqrt 2) ^ 2)) (/ sqrt (2 * PI)) p_infty 0).
apply (is_lim_comp (fun y => exp (- y ^ 2)) (fun x => x / sqrt 2) p_infty 0 p_infty).
- apply lim_gauss0.
- apply lim_div_sqrt2.
- exists 0; easy.
Qed.

Lemma lim_xnormalDensity : is_lim (fun x => x * normalDensity x) p_infty 0.
Proof.
assert (P := sqrt2PI_pos).
apply (is_lim_le_le_loc (fun _ => 0) (fun x => (2 / sqrt (2 * PI)) * (x / 2 * exp (- (x / 2))))).
- exists 1. intros x hx. assert (e1 := exp_pos (- x ^ 2 / 2)). unfold normalDensity. split.
  + apply Rmult_le_pos; [lra|]. apply Rlt_le, Rdiv_lt_0_compat; lra.
  + assert (E : exp (- x ^ 2 / 2) <= exp (- (x / 2))).
    { destruct (Req_dec x 1) as [->|n1]; [right; f_equal; field|left; apply exp_increasing; nra]. }
    replace (2 / sqrt (2 * PI) * (x / 2 * exp (- (x / 2)))) with (x * (exp (- (x / 2)) / sqrt (2 *
      PI))) by (field; lra).
    apply Rmult_le_compat_l; [lra|]. unfold Rdiv. apply Rmult_le_compat_r; [|exact E].
    apply Rlt_le, Rinv_0_lt_compat; lra.
- apply is_lim_const.
- replace (Finite 0) with (Rbar_mult (2 / sqrt (2 * PI)) 0) by (simpl; f_equal; ring).
  apply is_lim_scal_l.
  apply (is_lim_comp (fun y => y * exp (- y)) (fun x => x / 2) p_infty 0 p_infty).
  + apply lim_xexp_m.
  + apply (is_lim_ext (fun x => / 2 * x)). { intros; field. }
    assert (H0 := is_lim_scal_l (fun x => x) (/ 2) p_infty p_infty (is_lim_id p_infty)).
    replace (Rbar_mult (/ 2) p_infty) with p_infty in H0; [exact H0|].
    unfold Rbar_mult, Rbar_mult'. destruct (Rle_dec 0 (/ 2)) as [h|h]; [|exfalso; lra].
    destruct (Rle_lt_or_eq_dec 0 (/ 2) h) as [h'|h']; [easy|exfalso; lra].
  + exists 0; easy.
Qed.

(* Normal with standard deviation s: (E|X|)^2 / E X^2 = 2/pi. *)
Theorem gaussian_moment_ratio_floor_eq s : 0 < s ->
  hasMomentRatio (scaled normalDensity s) (2 / PI).
Proof.
intros s0. assert (PP := PI_RGT_0). assert (P := sqrt2PI_pos).
assert (p0 : normalDensity 0 = / sqrt (2 * PI)).
{ unfold normalDensity. replace (- 0 ^ 2 / 2) with 0 by field. rewrite exp_0. field. lra. }
replace (2 / PI) with (2 * (normalDensity 0) ^ 2 / (1 / 2)).
2: { rewrite p0, pow_inv, pow2_sqrt by lra. field. lra. }
assert (cont : forall k x, 0 <= x -> continuous (fun t => t ^ k * normalDensity t) x).
{ intros k x _. apply normalDensity_cont. }
apply even_hasMomentRatio; try lra.
- intros x. unfold normalDensity. assert (E := exp_pos (- x ^ 2 / 2)).
  apply Rlt_le, Rdiv_lt_0_compat; lra.
- intros x. unfold normalDensity. now replace ((- x) ^ 2) with (x ^ 2) by ring.
- replace (1 / 2) with (1 / 2 - F0 0) by (rewrite F0_0; ring).
  apply halfMoment_antiderivative; [|apply cont|exact F0_lim]. intros x _. simpl pow.
  rewrite Rmult_1_l. apply F0_derive.
- replace (normalDensity 0) with (0 - - normalDensity 0) by ring.
  apply (halfMoment_antiderivative _ _ (fun x => - normalDensity x)); [|apply cont|].
  + intros x _. replace (x ^ 1 * normalDensity x) with (opp (- x * normalDensity x)).
    * apply (is_derive_opp normalDensity), normalDensity_derive.
    * unfold opp; simpl. ringR.
  + replace (Finite 0) with (Rbar_opp 0) by (simpl; f_equal; ring).
    apply (is_lim_opp normalDensity p_infty 0), lim_normalDensity.
- replace (1 / 2) with (1 / 2 - (- (0 * normalDensity 0) + F0 0)) by (rewrite F0_0; ring).
  apply (halfMoment_antiderivative _ _ (fun x => - (x * normalDensity x) + F0 x)); [|apply cont|].
  + intros x _. replace (x ^ 2 * normalDensity x) with (plus (opp (plus
      (mult 1 (normalDensity x)) (mult x (- x * normalDensity x)))) (normalDensity x))
      by (unfold plus, opp, mult; simpl; ringR).
    apply (is_derive_plus (fun t => - (t * normalDensity t)) F0); [|apply F0_derive].
    apply (is_derive_opp (fun t => t * normalDensity t)).
    apply (is_derive_mult (fun t => t) normalDensity x 1).
    * apply is_derive_Reals, derivable_pt_lim_id.
    * apply normalDensity_derive.
    * intros; apply Rmult_comm.
  + replace (Finite (1 / 2)) with (Finite (- 0 + 1 / 2)) by (f_equal; field).
    apply (is_lim_plus' (fun x => - (x * normalDensity x)) F0 p_infty (- 0) (1 / 2)).
    * apply (is_lim_opp (fun x => x * normalDensity x) p_infty 0), lim_xnormalDensity.
    * apply F0_lim.
Qed.

(* 0 < 1 - 2/pi: the energy that one bit per entry loses on normal entries is never 0. *)
Theorem isotropic_floor_pos : 0 < 1 - 2 / PI.
Proof.
assert (H := PI2_1). assert (P := PI_RGT_0).
apply Rlt_Rminus, (Rmult_lt_reg_r PI); [easy|].
replace (2 / PI * PI) with 2 by (field; lra). lra.
Qed.
