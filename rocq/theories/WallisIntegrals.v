(* The integrals of cos^2k sin^m over [0, pi] (Wallis), their recursions, and their values through
   Gamma at half-integers. They are the moments of one coordinate of a uniformly random direction.
   Over the real numbers of Coq's standard library, with their classical axioms. *)
From Coq Require Import Reals Psatz Lia.
From Coquelicot Require Import Coquelicot.
Open Scope R_scope.

(* Gamma(n/2) for n >= 1: Gamma(1/2) = sqrt pi, Gamma(1) = 1, Gamma(x + 1) = x Gamma(x) *)
Fixpoint halfGamma (n : nat) : R :=
  match n with
  | 0%nat => 0
  | 1%nat => sqrt PI
  | 2%nat => 1
  | S (S m) => INR m / 2 * halfGamma m
  end.

(* ---------- the integrals of cos^2k sin^m over [0, pi] ---------- *)
Definition polarMoment (m k : nat) : R := RInt (fun t => cos t ^ (2 * k) * sin t ^ m) 0 PI.
Definition sinIntegral (m : nat) : R := RInt (fun t => sin t ^ m) 0 PI.

Lemma RInt_continuous (f : R -> R) a b : (forall x, continuous f x) -> ex_RInt f a b.
Proof. intros c. apply (@ex_RInt_continuous R_CompleteNormedModule). intros; apply c. Qed.
Lemma trig_continuous j m x : continuous (fun t => cos t ^ j * sin t ^ m) x.
Proof. apply (ex_derive_continuous (fun t => cos t ^ j * sin t ^ m)). auto_derive; easy. Qed.
Lemma trig_int j m a b : ex_RInt (fun t => cos t ^ j * sin t ^ m) a b.
Proof. apply RInt_continuous, trig_continuous. Qed.

Lemma RInt_derivative (F f : R -> R) a b : (forall x, is_derive F x (f x)) ->
  (forall x, continuous f x) -> RInt f a b = F b - F a.
Proof.
intros dF cf. apply is_RInt_unique.
apply (@is_RInt_derive R_CompleteNormedModule F); intros; auto.
Qed.

Lemma RInt_comb (f g : R -> R) (u v a b : R) : ex_RInt f a b -> ex_RInt g a b ->
  RInt (fun t => u * f t - v * g t) a b = u * RInt f a b - v * RInt g a b.
Proof.
intros If Ig. apply is_RInt_unique.
apply (@is_RInt_minus R_NormedModule (fun t => u * f t) (fun t => v * g t)).
- apply (@is_RInt_scal R_NormedModule f a b u), (@RInt_correct R_CompleteNormedModule), If.
- apply (@is_RInt_scal R_NormedModule g a b v), (@RInt_correct R_CompleteNormedModule), Ig.
Qed.

Ltac ringR := match goal with |- @eq _ ?a ?b => change (@eq R a b) end; ring.

(* (m + 2 k + 2) S(m, k + 1) = (2 k + 1) S(m, k), by parts *)
Lemma polarMoment_rec m k :
  (INR m + 2 * INR k + 2) * polarMoment m (S k) = (2 * INR k + 1) * polarMoment m k.
Proof.
apply Rminus_diag_uniq. unfold polarMoment.
rewrite <- RInt_comb by apply trig_int.
rewrite (RInt_derivative (fun t => cos t ^ (2 * k + 1) * sin t ^ (m + 1))).
- rewrite sin_PI, sin_0, !pow_i by lia. ringR.
- intros t. auto_derive; [easy|].
  replace (Init.Nat.pred (k + (k + 0) + 1)) with (2 * k)%nat by lia.
  replace (Init.Nat.pred (m + 1)) with m by lia.
  replace (k + (k + 0) + 1)%nat with (2 * k + 1)%nat by lia.
  rewrite !plus_INR, mult_INR. simpl (INR 1). simpl (INR 2).
  replace (2 * S k)%nat with (2 * k + 2)%nat by lia. rewrite !pow_add.
  assert (S2 : sin t * (sin t * 1) = 1 - cos t * (cos t * 1)).
  { assert (H := sin2_cos2 t). unfold Rsqr in H. lra. }
  generalize (cos t ^ (2 * k)) (sin t ^ m). intros a b. simpl pow in *.
  transitivity (- ((2 * INR k + 1) * a * b * (sin t * (sin t * 1)))
    + (INR m + 1) * a * b * (cos t * (cos t * 1))); [ringR|]. rewrite S2. ringR.
- intros t. apply (ex_derive_continuous (fun t => (INR m + 2 * INR k + 2) *
    (cos t ^ (2 * S k) * sin t ^ m) - (2 * INR k + 1) * (cos t ^ (2 * k) * sin t ^ m))).
  auto_derive; easy.
Qed.

(* ---------- Wallis: the integrals J(m) of sin^m over [0, pi] ---------- *)
Lemma sinIntegral_polar m : sinIntegral m = polarMoment m 0.
Proof. apply RInt_ext. intros t _. simpl. ringR. Qed.
Lemma sinIntegral_0 : sinIntegral 0 = PI.
Proof.
unfold sinIntegral. rewrite (RInt_derivative (fun t => t)); [ringR| |].
- intros t. auto_derive; [easy|]. simpl. ringR.
- intros t. apply (ex_derive_continuous (fun t => sin t ^ 0)). auto_derive; easy.
Qed.
Lemma sinIntegral_1 : sinIntegral 1 = 2.
Proof.
unfold sinIntegral. rewrite (RInt_derivative (fun t => - cos t)).
- rewrite cos_PI, cos_0. ringR.
- intros t. auto_derive; [easy|]. simpl. ringR.
- intros t. apply (ex_derive_continuous (fun t => sin t ^ 1)). auto_derive; easy.
Qed.
Lemma sinIntegral_rec m : (INR m + 2) * sinIntegral (S (S m)) = (INR m + 1) * sinIntegral m.
Proof.
assert (H := polarMoment_rec m 0).
replace (sinIntegral (S (S m))) with (polarMoment m 0 - polarMoment m 1).
- rewrite sinIntegral_polar. simpl (INR 0) in H. lra.
- unfold polarMoment. rewrite <- (Rmult_1_l (RInt _ _ _)), <- (Rmult_1_l (RInt (fun t => _ ^ (2 *
  1) * _) _ _)).
  rewrite <- RInt_comb by apply trig_int. apply RInt_ext. intros t _.
  assert (S2 : sin t * (sin t * sin t ^ m) = (1 - cos t * (cos t * 1)) * sin t ^ m).
  { assert (H2 := sin2_cos2 t). unfold Rsqr in H2. rewrite <- Rmult_assoc. f_equal. lra. }
  simpl. rewrite S2. ringR.
Qed.
Lemma sinIntegral_pos m : 0 < sinIntegral m.
Proof.
apply RInt_gt_0; [apply PI_RGT_0| |].
- intros t [t0 t1]. apply pow_lt, sin_gt_0; easy.
- intros t _. apply (ex_derive_continuous (fun t => sin t ^ m)). auto_derive; easy.
Qed.
Lemma sinIntegral_le m : sinIntegral (S m) <= sinIntegral m.
Proof.
assert (c : forall j, ex_RInt (fun t => sin t ^ j) 0 PI).
{ intros j. apply RInt_continuous. intros t.
  apply (ex_derive_continuous (fun t => sin t ^ j)). auto_derive; easy. }
apply RInt_le; [apply Rlt_le, PI_RGT_0|apply c|apply c|].
intros t [t0 t1]. assert (s0 := sin_gt_0 t t0 t1). assert (s1 := proj2 (SIN_bound t)).
assert (p := pow_lt _ m s0). simpl. nra.
Qed.
(* J(m) J(m + 1) = 2 pi/(m + 1) *)
Lemma sinIntegral_mul m : (INR m + 1) * (sinIntegral m * sinIntegral (S m)) = 2 * PI.
Proof.
induction m as [|m IH]; [rewrite sinIntegral_0, sinIntegral_1; simpl; ring|].
rewrite <- IH, S_INR. assert (H := sinIntegral_rec m).
transitivity (sinIntegral (S m) * ((INR m + 2) * sinIntegral (S (S m)))); [ring|].
rewrite H. ring.
Qed.
Lemma sinIntegral_halfGamma m :
  sinIntegral m * halfGamma (S (S m)) = sqrt PI * halfGamma (S m).
Proof.
assert (sp := sqrt_sqrt PI (Rlt_le _ _ PI_RGT_0)).
assert (Two : forall m, (sinIntegral m * halfGamma (S (S m)) = sqrt PI * halfGamma (S m)) /\
  (sinIntegral (S m) * halfGamma (S (S (S m))) = sqrt PI * halfGamma (S (S m)))).
{ clear m. induction m as [|m [IH1 IH2]].
  - rewrite sinIntegral_0, sinIntegral_1. simpl. lra.
  - split; [exact IH2|]. assert (H := sinIntegral_rec m). assert (m0 := pos_INR m).
    change (halfGamma (S (S (S (S m))))) with (INR (S (S m)) / 2 * halfGamma (S (S m))).
    change (halfGamma (S (S (S m)))) with (INR (S m) / 2 * halfGamma (S m)).
    rewrite !S_INR. replace (INR m + 1 + 1) with (INR m + 2) by ring.
    transitivity (/ 2 * halfGamma (S (S m)) * ((INR m + 2) * sinIntegral (S (S m)))); [field|].
    rewrite H. transitivity (/ 2 * (INR m + 1) * (sinIntegral m * halfGamma (S (S m)))); [field|].
    rewrite IH1. field. }
exact (proj1 (Two m)).
Qed.
Lemma halfGamma_pos n : 0 < halfGamma (S n).
Proof.
assert (Two : forall n, 0 < halfGamma (S n) /\ 0 < halfGamma (S (S n))).
{ clear n. induction n as [|n [IH1 IH2]].
  - split; [apply sqrt_lt_R0, PI_RGT_0|simpl; lra].
  - split; [exact IH2|].
    change (halfGamma (S (S (S n)))) with (INR (S n) / 2 * halfGamma (S n)).
    apply Rmult_lt_0_compat; [|exact IH1]. rewrite S_INR. assert (n0 := pos_INR n). lra. }
exact (proj1 (Two n)).
Qed.
