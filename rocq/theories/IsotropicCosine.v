(* c_d = sqrt d Gamma(d/2) / (sqrt pi Gamma((d+1)/2)), the mean 1-bit cosine of a uniformly random
   direction in R^d: recursion, product formula, strict monotonicity, limit sqrt(2/pi), and its form
   as a mean over the polar angle. That it is the mean over all directions is proved in
   IsotropicMean.v.
   Over the real numbers of Coq's standard library, with their classical axioms. *)
From Coq Require Import Reals Psatz Lia.
From Coquelicot Require Import Coquelicot.
From Gonio Require Import WallisIntegrals.
Open Scope R_scope.

(* c_d, for d >= 1 *)
Definition isotropicCosine (d : nat) : R :=
  sqrt (INR d) * halfGamma d / (sqrt PI * halfGamma (S d)).

Lemma isotropicCosineE m : isotropicCosine (S m) = sqrt (INR (S m)) * sinIntegral m / PI.
Proof.
unfold isotropicCosine. assert (g := halfGamma_pos (S m)). assert (g' := halfGamma_pos m).
assert (P := PI_RGT_0). assert (sp := sqrt_sqrt PI (Rlt_le _ _ P)).
assert (sp0 : 0 < sqrt PI) by (apply sqrt_lt_R0, P).
assert (H := sinIntegral_halfGamma m).
replace (halfGamma (S m)) with (sinIntegral m * halfGamma (S (S m)) / sqrt PI)
  by (rewrite H; field; lra).
replace PI with (sqrt PI * sqrt PI) at 3 by exact sp. field. lra.
Qed.

(* for d = m + 2: c_d is sqrt d times the mean of |cos| over the polar angle of a uniform direction,
   whose density on [0, pi] is proportional to sin^(d-2) *)
Lemma isotropicCosine_polar m : isotropicCosine (S (S m)) =
  sqrt (INR (S (S m))) * (RInt (fun t => Rabs (cos t) * sin t ^ m) 0 PI / sinIntegral m).
Proof.
assert (m0 := pos_INR m). assert (P := PI_RGT_0).
assert (half : forall a b F', (forall t, a < t < b -> Rabs (cos t) = F' * cos t) -> a <= b ->
  is_RInt (fun t => Rabs (cos t) * sin t ^ m) a b
    (F' * (sin b ^ S m / INR (S m)) - F' * (sin a ^ S m / INR (S m)))).
{ intros a b c hc ab. apply (is_RInt_ext (fun t => c * cos t * sin t ^ m)).
  { rewrite Rmin_left, Rmax_right by exact ab. intros t ht. now rewrite hc. }
  apply (@is_RInt_derive R_CompleteNormedModule (fun t => c * (sin t ^ S m / INR (S m)))).
  - intros t _. auto_derive; [easy|]. simpl Init.Nat.pred.
    change (match m with 0%nat => 1 | S _ => INR m + 1 end) with (INR (S m)). rewrite S_INR.
    match goal with |- @eq _ ?l ?r => change (@eq R l r) end. field. lra.
  - intros t _. apply (ex_derive_continuous (fun t => c * cos t * sin t ^ m)). auto_derive; easy. }
assert (E : RInt (fun t => Rabs (cos t) * sin t ^ m) 0 PI = 2 / (INR m + 1)).
{ apply is_RInt_unique.
  assert (H1 := half 0 (PI / 2) 1). assert (H2 := half (PI / 2) PI (-1)).
  rewrite sin_PI2, sin_0, pow_i, pow1 in H1 by lia.
  rewrite sin_PI2, sin_PI, pow_i, pow1 in H2 by lia.
  replace (2 / (INR m + 1)) with (plus (1 * (1 / INR (S m)) - 1 * (0 / INR (S m)))
    (-1 * (0 / INR (S m)) - -1 * (1 / INR (S m)))).
  2: { unfold plus; simpl plus. rewrite S_INR.
       match goal with |- @eq _ ?l ?r => change (@eq R l r) end. simpl. field. lra. }
  apply (@is_RInt_Chasles R_NormedModule) with (PI / 2).
  - apply H1; [|lra]. intros t ht. rewrite Rabs_right; [ring|].
    apply Rle_ge, Rlt_le, cos_gt_0; lra.
  - apply H2; [|lra]. intros t ht. rewrite Rabs_left; [ring|]. apply cos_lt_0; lra. }
rewrite E, isotropicCosineE. assert (J := sinIntegral_mul m). assert (J0 := sinIntegral_pos m).
replace (sinIntegral (S m)) with (2 * PI / ((INR m + 1) * sinIntegral m)).
- field. repeat split; lra.
- rewrite <- J. field. split; lra.
Qed.

Lemma isotropicCosine_pos m : 0 < isotropicCosine (S m).
Proof.
rewrite isotropicCosineE. apply Rdiv_lt_0_compat; [|apply PI_RGT_0].
apply Rmult_lt_0_compat; [apply sqrt_lt_R0, lt_0_INR; lia|apply sinIntegral_pos].
Qed.

Lemma isotropicCosine_sq m : isotropicCosine (S m) ^ 2 = INR (S m) * sinIntegral m ^ 2 / PI ^ 2.
Proof.
rewrite isotropicCosineE. assert (P := PI_RGT_0).
replace (INR (S m)) with (sqrt (INR (S m)) ^ 2) at 2 by (apply pow2_sqrt, pos_INR). field. lra.
Qed.

(* c_d c_(d+1) = (2/pi) sqrt(1 + 1/d) *)
Lemma isotropicCosine_mul m : isotropicCosine (S m) * isotropicCosine (S (S m)) =
  2 / PI * sqrt (1 + / INR (S m)).
Proof.
rewrite !isotropicCosineE. assert (P := PI_RGT_0). assert (J := sinIntegral_mul m).
assert (d0 : 0 < INR (S m)) by (apply lt_0_INR; lia).
replace (1 + / INR (S m)) with (INR (S (S m)) / INR (S m)) by (rewrite (S_INR (S m)); field; lra).
rewrite sqrt_div_alt by exact d0.
assert (q := sqrt_sqrt (INR (S m)) (Rlt_le _ _ d0)). assert (q0 := sqrt_lt_R0 _ d0).
replace (2 / PI) with (sqrt (INR (S m)) * sqrt (INR (S m)) * (sinIntegral m * sinIntegral (S m))
  / PI ^ 2); [field; split; lra|].
rewrite q, S_INR, J. field. lra.
Qed.

(* c_(d+2) / c_d = sqrt(d (d + 2)) / (d + 1), squared *)
Lemma isotropicCosine_two_steps m :
  INR (S (S m)) ^ 2 * isotropicCosine (S (S (S m))) ^ 2 =
  INR (S m) * INR (S (S (S m))) * isotropicCosine (S m) ^ 2.
Proof.
rewrite !isotropicCosine_sq, !S_INR. assert (P := PI_RGT_0). assert (H := sinIntegral_rec m).
transitivity ((INR m + 1 + 1 + 1) * ((INR m + 2) * sinIntegral (S (S m))) ^ 2 / PI ^ 2);
  [field; lra|].
rewrite H. field. lra.
Qed.

(* the ratio c_(d+1)^2 / c_d^2 grows by more than nothing every two steps *)
Lemma isotropicCosine_ratio_step m rho :
  rho * isotropicCosine (S m) ^ 2 <= isotropicCosine (S (S m)) ^ 2 -> 0 < rho ->
  rho * isotropicCosine (S (S (S m))) ^ 2 < isotropicCosine (S (S (S (S m)))) ^ 2.
Proof.
intros h r0. assert (e1 := isotropicCosine_two_steps m). assert (e2 := isotropicCosine_two_steps
  (S m)).
assert (p0 := pow_lt _ 2 (isotropicCosine_pos m)).
assert (p2 := pow_lt _ 2 (isotropicCosine_pos (S (S m)))).
repeat rewrite S_INR in e1. repeat rewrite S_INR in e2. assert (m0 := pos_INR m).
generalize dependent (isotropicCosine (S m) ^ 2). intros A h e1 p0.
generalize dependent (isotropicCosine (S (S m)) ^ 2). intros B e2 h.
generalize dependent (isotropicCosine (S (S (S m))) ^ 2). intros C p2 e1.
generalize dependent (isotropicCosine (S (S (S (S m)))) ^ 2). intros D e2.
generalize dependent (INR m). intros x x0 e1 e2.
(* e1: (x + 2)^2 C = (x + 1) (x + 3) A; e2: (x + 3)^2 D = (x + 2) (x + 4) B *)
apply (Rmult_lt_reg_l ((x + 1 + 1 + 1) ^ 2)); [nra|]. rewrite e2.
apply Rlt_le_trans with ((x + 1 + 1) * (x + 1 + 1 + 1 + 1) * (rho * A)); [|apply
  Rmult_le_compat_l; nra].
apply (Rmult_lt_reg_l ((x + 1 + 1) ^ 2)); [nra|].
replace ((x + 1 + 1) ^ 2 * ((x + 1 + 1 + 1) ^ 2 * (rho * C)))
  with ((x + 1 + 1 + 1) ^ 2 * rho * ((x + 1 + 1) ^ 2 * C)) by ring.
rewrite e1. assert (rA : 0 < rho * A) by (apply Rmult_lt_0_compat; easy).
replace ((x + 1 + 1 + 1) ^ 2 * rho * ((x + 1) * (x + 1 + 1 + 1) * A))
  with ((x + 1) * (x + 1 + 1 + 1) ^ 3 * (rho * A)) by ring.
replace ((x + 1 + 1) ^ 2 * ((x + 1 + 1) * (x + 1 + 1 + 1 + 1) * (rho * A)))
  with ((x + 1 + 1) ^ 3 * (x + 1 + 1 + 1 + 1) * (rho * A)) by ring.
apply Rmult_lt_compat_r; [exact rA|].
assert (E : (x + 1 + 1) ^ 3 * (x + 1 + 1 + 1 + 1) - (x + 1) * (x + 1 + 1 + 1) ^ 3 = 2 * x + 5) by
  ring.
lra.
Qed.

(* J(m + 1) <= J(m), for c_d *)
Lemma isotropicCosine_ratio_le m :
  INR (S m) * isotropicCosine (S (S m)) ^ 2 <= INR (S (S m)) * isotropicCosine (S m) ^ 2.
Proof.
rewrite !isotropicCosine_sq. assert (P0 := PI_RGT_0). assert (P := pow_lt _ 2 P0).
assert (le := sinIntegral_le m). assert (p := sinIntegral_pos (S m)).
assert (a := pos_INR (S m)). assert (b := pos_INR (S (S m))).
assert (sq : sinIntegral (S m) ^ 2 <= sinIntegral m ^ 2) by (apply pow_incr; lra).
apply (Rmult_le_reg_r (PI ^ 2)); [exact P|].
replace (INR (S m) * (INR (S (S m)) * sinIntegral (S m) ^ 2 / PI ^ 2) * PI ^ 2)
  with (INR (S m) * INR (S (S m)) * sinIntegral (S m) ^ 2) by (field; lra).
replace (INR (S (S m)) * (INR (S m) * sinIntegral m ^ 2 / PI ^ 2) * PI ^ 2)
  with (INR (S m) * INR (S (S m)) * sinIntegral m ^ 2) by (field; lra).
apply Rmult_le_compat_l; [nra|exact sq].
Qed.

Lemma isotropicCosine_decreasing m : isotropicCosine (S (S m)) < isotropicCosine (S m).
Proof.
apply Rnot_le_lt. intros h.
assert (p := isotropicCosine_pos m). assert (p1 := isotropicCosine_pos (S m)).
assert (h2 : 1 * isotropicCosine (S m) ^ 2 <= isotropicCosine (S (S m)) ^ 2).
{ rewrite Rmult_1_l. apply pow_incr. lra. }
assert (q := isotropicCosine_ratio_step _ _ h2 Rlt_0_1).
pose (u := fun k => isotropicCosine (S k) ^ 2).
assert (u0 : forall k, 0 < u k) by (intros k; apply pow_lt, isotropicCosine_pos).
set (M := S (S m)) in *. change (1 * u M < u (S M)) in q.
pose (rho := u (S M) / u M). assert (uM := u0 M).
assert (r1 : 1 < rho).
{ apply (Rmult_lt_reg_r (u M)); [exact uM|]. unfold rho, Rdiv. rewrite Rmult_assoc, Rinv_l; lra. }
assert (all : forall k, rho * u (M + 2 * k)%nat <= u (S (M + 2 * k))%nat).
{ induction k as [|k IH].
  - replace (M + 2 * 0)%nat with M by lia. unfold rho. right. field. lra.
  - replace (M + 2 * S k)%nat with (S (S (M + 2 * k))) by lia.
    apply Rlt_le, (isotropicCosine_ratio_step (M + 2 * k) rho IH). lra. }
assert (i0 : 0 <= / (rho - 1)) by (apply Rlt_le, Rinv_0_lt_compat; lra).
destruct (nfloor_ex (/ (rho - 1)) i0) as [k' [_ hk]].
rewrite <- S_INR in hk. set (k := S k') in *.
assert (H := all k). assert (L := isotropicCosine_ratio_le (M + 2 * k)).
change (INR (S (M + 2 * k)) * u (S (M + 2 * k)) <= INR (S (S (M + 2 * k))) * u (M + 2 * k)%nat) in
  L.
assert (v0 := u0 (M + 2 * k)%nat).
assert (kN : INR k <= INR (M + 2 * k)) by (apply le_INR; lia).
rewrite (S_INR (S (M + 2 * k))) in L. rewrite !S_INR in L. set (N := INR (M + 2 * k)) in *.
assert (N0 : 0 <= N) by apply pos_INR.
assert (big : 1 < N * (rho - 1)).
{ apply (Rmult_lt_reg_r (/ (rho - 1))); [apply Rinv_0_lt_compat; lra|].
  rewrite Rmult_assoc, Rinv_r by lra. lra. }
assert (step : (N + 1) * (rho * u (M + 2 * k)%nat) <= (N + 1) * u (S (M + 2 * k)))
  by (apply Rmult_le_compat_l; lra).
assert (fin : ((N + 1) * rho - (N + 2)) * u (M + 2 * k)%nat <= 0) by lra.
assert (pos : 0 < (N + 1) * rho - (N + 2)) by lra.
assert (pp := Rmult_lt_0_compat _ _ pos v0). lra.
Qed.

Lemma isotropicCosine_bounds m : 2 / PI < isotropicCosine (S m) ^ 2 /\
  isotropicCosine (S (S m)) ^ 2 < 2 / PI * (1 + / INR (S m)).
Proof.
assert (e := isotropicCosine_mul m). assert (lt := isotropicCosine_decreasing m).
assert (p := isotropicCosine_pos m). assert (p1 := isotropicCosine_pos (S m)).
assert (d0 : 0 < / INR (S m)) by (apply Rinv_0_lt_compat, lt_0_INR; lia).
assert (P : 0 < 2 / PI) by (apply Rdiv_lt_0_compat; [lra|apply PI_RGT_0]).
set (s := sqrt (1 + / INR (S m))) in *.
assert (ss : s * s = 1 + / INR (S m)) by (apply sqrt_sqrt; lra).
assert (s0 : 0 <= s) by apply sqrt_pos.
assert (s1 : 1 < s) by nra. assert (s2 : s < 1 + / INR (S m)) by nra.
split.
- apply Rlt_trans with (isotropicCosine (S m) * isotropicCosine (S (S m))); [rewrite e|]; nra.
- apply Rlt_trans with (isotropicCosine (S m) * isotropicCosine (S (S m))); [|rewrite e]; nra.
Qed.

(* The floor depends on d: c_d decreases strictly with d >= 1, stays above sqrt(2/pi) and tends to
   it; two successive values multiply to (2/pi) sqrt(1 + 1/d). (The source prints x = x.) *)
Theorem srht_floor_d_independent :
  (forall d, (1 <= d)%nat -> isotropicCosine (S d) < isotropicCosine d) /\
  (forall d, (1 <= d)%nat -> sqrt (2 / PI) < isotropicCosine d) /\
  is_lim_seq isotropicCosine (sqrt (2 / PI)) /\
  (forall d, (1 <= d)%nat ->
     isotropicCosine d * isotropicCosine (S d) = 2 / PI * sqrt (1 + / INR d)).
Proof.
assert (P : 0 < 2 / PI) by (apply Rdiv_lt_0_compat; [lra|apply PI_RGT_0]).
split; [|split; [|split]].
- intros [|m] d1; [lia|]. apply isotropicCosine_decreasing.
- intros [|m] d1; [lia|]. rewrite <- (sqrt_pow2 (isotropicCosine (S m))).
  + apply sqrt_lt_1_alt. split; [lra|apply isotropicCosine_bounds].
  + apply Rlt_le, isotropicCosine_pos.
- apply is_lim_seq_incr_1, is_lim_seq_incr_1.
  apply (is_lim_seq_ext (fun m => sqrt (isotropicCosine (S (S m)) ^ 2))).
  { intros m. apply sqrt_pow2, Rlt_le, isotropicCosine_pos. }
  apply (is_lim_seq_continuous sqrt); [apply continuity_pt_sqrt; lra|].
  apply (is_lim_seq_le_le (fun _ => 2 / PI) _ (fun m => 2 / PI * (1 + / INR (S m)))).
  + intros m. split; apply Rlt_le; [apply (proj1 (isotropicCosine_bounds (S m)))|].
    apply (proj2 (isotropicCosine_bounds m)).
  + apply is_lim_seq_const.
  + replace (Finite (2 / PI)) with (Rbar_mult (2 / PI) (1 + 0)) by (simpl; f_equal; ring).
    apply is_lim_seq_scal_l, is_lim_seq_plus'; [apply is_lim_seq_const|].
    apply (is_lim_seq_incr_1 (fun n => / INR n)).
    replace (Finite 0) with (Rbar_inv p_infty) by easy.
    apply is_lim_seq_inv; [apply is_lim_seq_INR|easy].
- intros [|m] d1; [lia|]. apply isotropicCosine_mul.
Qed.
