(* The ratio of moments (E|X|)^2 / E X^2 of a law with a density, by integration over the whole
  line;
   its value for the uniform and the Laplace law, at every scale.
   Over the real numbers of Coq's standard library, with their classical axioms. *)
From Coq Require Import Reals Psatz.
From Coquelicot Require Import Coquelicot.
Open Scope R_scope.

(* m is the improper integral over the line of |x|^k p(x) *)
Definition absMoment (p : R -> R) (k : nat) (m : R) : Prop :=
  is_RInt_gen (fun x => Rabs x ^ k * p x) (Rbar_locally m_infty) (Rbar_locally p_infty) m.

(* p is a probability density with finite second moment and (E|X|)^2 / E X^2 = beta *)
Definition hasMomentRatio (p : R -> R) (beta : R) : Prop :=
  (forall x, 0 <= p x) /\ absMoment p 0 1 /\
  exists m1 m2, absMoment p 1 m1 /\ absMoment p 2 m2 /\ 0 < m2 /\ m1 ^ 2 / m2 = beta.

(* the density of s X when p is that of X, s > 0 *)
Definition scaled (p : R -> R) (s x : R) : R := p (x / s) / s.

(* the integral of t^k p(t) over [0, oo) is l *)
Definition halfMoment (p : R -> R) (k : nat) (l : R) : Prop := exists F : R -> R,
  (forall x, 0 <= x -> is_RInt (fun t => t ^ k * p t) 0 x (F x)) /\ is_lim F p_infty l.

(* ---------- from the half line to the line, at every scale ---------- *)
Lemma even_whole_line f F (l : R) : (forall x, f (- x) = f x) ->
  (forall x, 0 <= x -> is_RInt f 0 x (F x)) -> is_lim F p_infty l ->
  is_RInt_gen f (Rbar_locally m_infty) (Rbar_locally p_infty) (2 * l).
Proof.
intros ev IF lF P [eps HP].
assert (E2 : 0 < eps / 2) by (assert (H := cond_pos eps); lra).
apply is_lim_spec in lF. unfold is_lim' in lF. destruct (lF (mkposreal _ E2)) as [M HM]. simpl in
  HM.
exists (fun a => a < - Rmax M 0) (fun b => Rmax M 0 < b).
- exists (- Rmax M 0); easy.
- exists (Rmax M 0); easy.
- intros a b Ha Hb. simpl.
  assert (HmM := Rmax_l M 0). assert (Hm0 := Rmax_r M 0).
  exists (F (- a) + F b). split.
  + apply (@is_RInt_Chasles R_NormedModule) with 0; [|apply IF; lra].
    replace (F (- a)) with (opp (opp (F (- a)))) by (unfold opp; simpl; ring).
    apply (@is_RInt_swap R_NormedModule).
    apply (is_RInt_ext (fun y => opp (opp (f (- y))))).
    { intros x _. unfold opp; simpl. rewrite ev. ring. }
    apply (@is_RInt_opp R_NormedModule).
    apply (@is_RInt_comp_opp R_NormedModule). rewrite Ropp_0. apply IF. lra.
  + apply HP. assert (A1 := HM (- a)). assert (A2 := HM b).
    unfold ball; simpl; unfold AbsRing_ball, abs, minus, plus, opp; simpl.
    replace (F (- a) + F b + - (2 * l)) with ((F (- a) - l) + (F b - l)) by ring.
    apply (Rle_lt_trans _ _ _ (Rabs_triang _ _)).
    assert (H1 : Rabs (F (- a) - l) < eps / 2) by (apply A1; lra).
    assert (H2 : Rabs (F b - l) < eps / 2) by (apply A2; lra). lra.
Qed.

Lemma lim_scale c : 0 < c -> is_lim (fun x => c * x) p_infty p_infty.
Proof.
intros c0. apply is_lim_spec. intros M. exists (M / c). intros x Hx.
apply (Rmult_lt_reg_r (/ c)); [apply Rinv_0_lt_compat; lra|].
replace (c * x * / c) with x by (field; lra). exact Hx.
Qed.

Lemma halfMoment_scaled p k l s : 0 < s -> halfMoment p k l -> halfMoment (scaled p s) k (s ^ k *
  l).
Proof.
intros s0 [F [IF lF]]. exists (fun x => s ^ k * F (/ s * x)).
assert (si : 0 < / s) by (apply Rinv_0_lt_compat; lra). split.
- intros x x0.
  apply (is_RInt_ext (fun y => scal (s ^ k) (scal (/ s) ((/ s * y + 0) ^ k * p (/ s * y + 0))))).
  { intros t _. unfold scaled, scal; simpl; unfold mult; simpl. rewrite Rplus_0_r.
    replace (t / s) with (/ s * t) by (field; lra). rewrite Rpow_mult_distr, pow_inv by lra.
    field. repeat split; try apply pow_nonzero; lra. }
  apply (@is_RInt_scal R_NormedModule).
  apply (@is_RInt_comp_lin R_NormedModule (fun t => t ^ k * p t)).
  rewrite Rmult_0_r, !Rplus_0_r. apply IF. apply Rmult_le_pos; lra.
- apply (is_lim_scal_l _ (s ^ k) p_infty l).
  apply (is_lim_comp F (fun x => / s * x) p_infty l p_infty); [exact lF|apply lim_scale, si|].
  exists 0; easy.
Qed.

Lemma halfMoment_absMoment p k l : (forall x, p (- x) = p x) -> halfMoment p k l ->
  absMoment p k (2 * l).
Proof.
intros ev [F [IF lF]]. apply (even_whole_line _ F); [|intros x x0|exact lF].
- intros x. rewrite ev, Rabs_Ropp. easy.
- apply (is_RInt_ext (fun t => t ^ k * p t)); [|apply IF, x0].
  rewrite Rmin_left by exact x0. intros t [t0 _]. rewrite Rabs_right by lra. easy.
Qed.

Lemma even_hasMomentRatio p s l1 l2 : 0 < s -> 0 < l2 ->
  (forall x, 0 <= p x) -> (forall x, p (- x) = p x) ->
  halfMoment p 0 (1 / 2) -> halfMoment p 1 l1 -> halfMoment p 2 l2 ->
  hasMomentRatio (scaled p s) (2 * l1 ^ 2 / l2).
Proof.
intros s0 l20 pos ev h0 h1 h2.
assert (ev' : forall x, scaled p s (- x) = scaled p s x).
{ intros x. unfold scaled. replace (- x / s) with (- (x / s)) by (field; lra). now rewrite ev. }
assert (M := fun k l h => halfMoment_absMoment _ k _ ev' (halfMoment_scaled p k l s s0 h)).
split; [|split].
- intros x. unfold scaled, Rdiv.
  apply Rmult_le_pos; [apply pos|]. apply Rlt_le, Rinv_0_lt_compat, s0.
- replace 1 with (2 * (s ^ 0 * (1 / 2))) by (simpl; field). apply M, h0.
- exists (2 * (s ^ 1 * l1)), (2 * (s ^ 2 * l2)).
  split; [apply M, h1|]. split; [apply M, h2|]. split; [|field; lra].
  assert (0 < s ^ 2) by (apply pow_lt; lra). nra.
Qed.

(* an improper integral from an antiderivative with a limit *)
Lemma halfMoment_antiderivative p k (F : R -> R) (l : R) :
  (forall x, 0 <= x -> is_derive F x (x ^ k * p x)) ->
  (forall x, 0 <= x -> continuous (fun t => t ^ k * p t) x) ->
  is_lim F p_infty l -> halfMoment p k (l - F 0).
Proof.
intros dF cf lF. exists (fun x => F x - F 0). split.
- intros x x0. apply (@is_RInt_derive R_CompleteNormedModule F).
  + rewrite Rmin_left by exact x0. intros t [t0 _]. apply dF, t0.
  + rewrite Rmin_left by exact x0. intros t [t0 _]. apply cf, t0.
- apply (is_lim_minus' F (fun _ => F 0) p_infty l (F 0) lF), is_lim_const.
Qed.

(* ---------- the uniform law ---------- *)
(* the uniform law on [-1, 1]; scaled by s, on [-s, s] *)
Definition uniformDensity (x : R) : R := if Rle_dec (Rabs x) 1 then / 2 else 0.

Lemma uniform_halfMoment k : halfMoment uniformDensity k (/ (2 * INR (S k))).
Proof.
assert (k0 : INR (S k) <> 0) by (apply not_0_INR; easy).
pose (G := fun x => x ^ S k / (2 * INR (S k))).
assert (I : forall x, 0 <= x <= 1 -> is_RInt (fun t => t ^ k * uniformDensity t) 0 x (G x)).
{ intros x [x0 x1].
  replace (G x) with (minus (G x) (G 0)).
  2: { unfold minus, plus, opp, G; simpl. unfold Rdiv. rewrite Rmult_0_l. ring. }
  apply (is_RInt_ext (fun t => t ^ k / 2)).
  { rewrite Rmin_left, Rmax_right by exact x0. intros t [t0 t1]. unfold uniformDensity.
    destruct (Rle_dec (Rabs t) 1) as [_|n]; [easy|]. rewrite Rabs_right in n; lra. }
  apply (@is_RInt_derive R_CompleteNormedModule G); intros t _.
  - unfold G. auto_derive; [easy|]. simpl pred. field. try split; try lra; try exact k0.
  - apply (ex_derive_continuous (fun t => t ^ k / 2)). auto_derive; easy. }
exists (fun x => G (Rmin x 1)). split.
- intros x x0. destruct (Rle_dec x 1) as [x1|x1].
  { rewrite Rmin_left by exact x1. apply I; lra. }
  rewrite Rmin_right by lra. replace (G 1) with (plus (G 1) 0) by (apply Rplus_0_r).
  apply (@is_RInt_Chasles R_NormedModule) with 1; [apply I; lra|].
  apply (is_RInt_ext (fun _ => 0)).
  { rewrite Rmin_left, Rmax_right by lra. intros t [t0 t1]. unfold uniformDensity.
    destruct (Rle_dec (Rabs t) 1) as [y|_]; [|symmetry; apply Rmult_0_r]. rewrite Rabs_right in y;
      lra. }
  assert (C := @is_RInt_const R_NormedModule 1 x 0).
  exact (eq_ind _ (fun v : R => is_RInt (fun _ => 0) 1 x v) C _ (Rmult_0_r (x - 1))).
- apply (is_lim_ext_loc (fun _ => / (2 * INR (S k)))); [|apply is_lim_const].
  exists 1. intros x x1. rewrite Rmin_right by lra. unfold G. rewrite pow1. field. exact k0.
Qed.

(* Uniform on [-s, s]: (E|X|)^2 / E X^2 = 3/4. *)
Theorem uniform_moment_ratio_floor_eq s : 0 < s ->
  hasMomentRatio (scaled uniformDensity s) (3 / 4).
Proof.
intros s0. replace (3 / 4) with (2 * (/ (2 * INR 2)) ^ 2 / (/ (2 * INR 3))) by (simpl; field).
apply even_hasMomentRatio; try easy.
- apply Rinv_0_lt_compat. simpl; lra.
- intros x. unfold uniformDensity. destruct (Rle_dec (Rabs x) 1); lra.
- intros x. unfold uniformDensity. now rewrite Rabs_Ropp.
- replace (1 / 2) with (/ (2 * INR 1)) by (simpl; field). apply uniform_halfMoment.
- apply uniform_halfMoment.
- apply uniform_halfMoment.
Qed.

(* ---------- the Laplace law ---------- *)
(* the Laplace law of scale 1 *)
Definition laplaceDensity (x : R) : R := exp (- Rabs x) / 2.

Lemma lim_exp_m : is_lim (fun x => exp (- x)) p_infty 0.
Proof.
apply (is_lim_comp exp Ropp p_infty 0 m_infty).
- apply is_lim_exp_m.
- apply (is_lim_opp (fun x => x) p_infty p_infty), is_lim_id.
- exists 0; easy.
Qed.
Lemma lim_xexp_m : is_lim (fun x => x * exp (- x)) p_infty 0.
Proof.
apply (is_lim_ext (fun x => - ((- x) * exp (- x)))). { intros; ring. }
replace (Finite 0) with (Rbar_opp 0) by (simpl; f_equal; ring).
apply is_lim_opp.
apply (is_lim_comp (fun y => y * exp y) Ropp p_infty 0 m_infty).
- apply is_lim_mul_exp_m.
- apply (is_lim_opp (fun x => x) p_infty p_infty), is_lim_id.
- exists 0; easy.
Qed.
Lemma lim_half_xexp_m : is_lim (fun x => / 2 * x * exp (- (/ 2 * x))) p_infty 0.
Proof.
apply (is_lim_comp (fun y => y * exp (- y)) (fun x => / 2 * x) p_infty 0 p_infty).
- apply lim_xexp_m.
- apply lim_scale; lra.
- exists 0; easy.
Qed.
Lemma lim_x2exp_m : is_lim (fun x => x ^ 2 * exp (- x)) p_infty 0.
Proof.
apply (is_lim_ext (fun x => 4 * ((/ 2 * x * exp (- (/ 2 * x))) * (/ 2 * x * exp (- (/ 2 * x)))))).
{ intros x. replace (exp (- x)) with (exp (- (/ 2 * x)) * exp (- (/ 2 * x))).
  - field.
  - rewrite <- exp_plus. f_equal. field. }
replace (Finite 0) with (Rbar_mult 4 (0 * 0)) by (simpl; f_equal; ring).
apply is_lim_scal_l, (is_lim_mult _ _ _ 0 0 lim_half_xexp_m lim_half_xexp_m). easy.
Qed.

(* the antiderivatives of t^k exp(-t)/2 for k = 0, 1, 2 *)
Lemma laplace_halfMoment k (Q : R -> R) :
  (forall x, is_derive (fun t => - Q t * exp (- t)) x (x ^ k * exp (- x) / 2)) ->
  is_lim (fun t => - Q t * exp (- t)) p_infty 0 -> halfMoment laplaceDensity k (Q 0).
Proof.
intros dQ lQ. replace (Q 0) with (0 - (- Q 0 * exp (- 0))) by (rewrite Ropp_0, exp_0; ring).
assert (H : halfMoment (fun x => exp (- x) / 2) k (0 - (- Q 0 * exp (- 0)))).
{ apply (halfMoment_antiderivative _ k (fun t => - Q t * exp (- t))); [| |exact lQ].
  - intros x _. replace (x ^ k * (exp (- x) / 2)) with (x ^ k * exp (- x) / 2) by field. apply dQ.
  - intros x _. apply (ex_derive_continuous (fun t => t ^ k * (exp (- t) / 2))). auto_derive;
    easy. }
destruct H as [F [IF lF]]. exists F. split; [|exact lF]. intros x x0.
apply (is_RInt_ext (fun t => t ^ k * (exp (- t) / 2))); [|apply IF, x0].
rewrite Rmin_left by exact x0. intros t [t0 _]. unfold laplaceDensity.
rewrite Rabs_right by lra. easy.
Qed.

(* Laplace of scale s: (E|X|)^2 / E X^2 = 1/2. *)
Theorem laplace_moment_ratio_floor_eq s : 0 < s ->
  hasMomentRatio (scaled laplaceDensity s) (1 / 2).
Proof.
intros s0. replace (1 / 2) with (2 * (/ 2) ^ 2 / 1) by field.
apply even_hasMomentRatio; try easy; try lra.
- intros x. unfold laplaceDensity. assert (H := exp_pos (- Rabs x)). lra.
- intros x. unfold laplaceDensity. now rewrite Rabs_Ropp.
- apply (laplace_halfMoment 0 (fun _ => 1 / 2)).
  + intros x. auto_derive; [easy|]. simpl. field.
  + apply (is_lim_ext (fun x => - / 2 * exp (- x))). { intros; field. }
    replace (Finite 0) with (Rbar_mult (- / 2) 0) by (simpl; f_equal; ring).
    apply is_lim_scal_l, lim_exp_m.
- replace (/ 2) with ((0 + 1) / 2) by field.
  apply (laplace_halfMoment 1 (fun t => (t + 1) / 2)).
  + intros x. auto_derive; [easy|]. simpl. field.
  + apply (is_lim_ext (fun x => - / 2 * (x * exp (- x) + exp (- x)))). { intros; field. }
    replace (Finite 0) with (Rbar_mult (- / 2) (0 + 0)) by (simpl; f_equal; ring).
    apply is_lim_scal_l, (is_lim_plus' _ _ _ _ _ lim_xexp_m lim_exp_m).
- replace 1 with ((0 ^ 2 + 2 * 0 + 2) / 2) by field.
  apply (laplace_halfMoment 2 (fun t => (t ^ 2 + 2 * t + 2) / 2)).
  + intros x. auto_derive; [easy|]. simpl. field.
  + apply (is_lim_ext (fun x => - / 2 * (x ^ 2 * exp (- x) + 2 * (x * exp (- x)) + 2 * exp (- x)))).
    { intros; field. }
    replace (Finite 0) with (Rbar_mult (- / 2) (0 + 2 * 0 + 2 * 0)) by (simpl; f_equal; ring).
    apply is_lim_scal_l, (is_lim_plus' _ _ _ (0 + 2 * 0) (2 * 0)).
    * apply (is_lim_plus' _ _ _ 0 (2 * 0)); [apply lim_x2exp_m|].
      apply (is_lim_scal_l _ 2 p_infty 0), lim_xexp_m.
    * apply (is_lim_scal_l _ 2 p_infty 0), lim_exp_m.
Qed.
