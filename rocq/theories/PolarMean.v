(* The polar angle t of a uniformly random direction in R^(m + 2), by its density proportional to
   sin^m on [0, pi]: means of continuous functions of t, the moments of cos t, the mean of |cos t|.
   Over the real numbers of Coq's standard library, with their classical axioms. *)
From Coq Require Import Reals Psatz Lia.
From Coquelicot Require Import Coquelicot.
From Gonio Require Import WallisIntegrals IsotropicCosine.
Open Scope R_scope.

Definition isContinuous (f : R -> R) : Prop := forall x, continuous f x.
Definition polarMean (m : nat) (f : R -> R) : R :=
  RInt (fun t => f t * sin t ^ m) 0 PI / sinIntegral m.

Lemma polar_int m f : isContinuous f -> ex_RInt (fun t => f t * sin t ^ m) 0 PI.
Proof.
intros c. apply RInt_continuous. intros x.
apply (continuous_mult f (fun t => sin t ^ m)); [apply c|].
apply (ex_derive_continuous (fun t => sin t ^ m)). auto_derive; easy.
Qed.

Lemma isContinuous_cst (c : R) : isContinuous (fun _ => c).
Proof. intros x. apply continuous_const. Qed.
Lemma isContinuous_lin a f g : isContinuous f -> isContinuous g ->
  isContinuous (fun t => a * f t + g t).
Proof.
intros cf cg x. apply (continuous_plus (fun t => a * f t) g); [|apply cg].
apply (continuous_mult (fun _ => a) f); [apply continuous_const|apply cf].
Qed.
Lemma isContinuous_cos_pow k : isContinuous (fun t => cos t ^ k).
Proof.
intros x. apply (ex_derive_continuous (fun t => cos t ^ k)). auto_derive; easy.
Qed.
Lemma isContinuous_abs_cos : isContinuous (fun t => Rabs (cos t)).
Proof.
intros x. apply (continuous_comp cos Rabs); [|apply continuous_Rabs].
apply (ex_derive_continuous cos). auto_derive; easy.
Qed.

Lemma polarMean_lin m a f g : isContinuous f -> isContinuous g ->
  polarMean m (fun t => a * f t + g t) = a * polarMean m f + polarMean m g.
Proof.
intros cf cg. unfold polarMean. assert (J := sinIntegral_pos m).
replace (RInt (fun t => (a * f t + g t) * sin t ^ m) 0 PI) with
  (a * RInt (fun t => f t * sin t ^ m) 0 PI - -1 * RInt (fun t => g t * sin t ^ m) 0 PI).
- field. lra.
- rewrite <- RInt_comb by (apply polar_int; easy). apply RInt_ext. intros t _. ringR.
Qed.
Lemma polarMean_cst m c : polarMean m (fun _ => c) = c.
Proof.
unfold polarMean. assert (J := sinIntegral_pos m).
replace (RInt (fun t => c * sin t ^ m) 0 PI) with (c * sinIntegral m); [field; lra|].
unfold sinIntegral. symmetry. apply (RInt_scal (fun t => sin t ^ m) 0 PI c).
apply RInt_continuous. intros t. apply (ex_derive_continuous (fun t => sin t ^ m)).
auto_derive; easy.
Qed.
Lemma polarMean_ge0 m f : isContinuous f -> (forall t, 0 <= f t) -> 0 <= polarMean m f.
Proof.
intros cf f0. unfold polarMean. assert (J := sinIntegral_pos m).
apply Rmult_le_pos; [|apply Rlt_le, Rinv_0_lt_compat, J].
apply RInt_ge_0; [apply Rlt_le, PI_RGT_0|apply polar_int, cf|].
intros t [t0 t1]. apply Rmult_le_pos; [apply f0|]. apply pow_le, Rlt_le, sin_gt_0; easy.
Qed.

(* the moments of cos t, and its mean absolute value c_d / sqrt d for d = m + 2 *)
Lemma polarMean_0 m : polarMean m (fun t => cos t ^ (2 * 0)) = 1.
Proof. exact (polarMean_cst m 1). Qed.
Lemma polarMean_rec m k : (INR m + 2 * INR k + 2) * polarMean m (fun t => cos t ^ (2 * S k)) =
  (2 * INR k + 1) * polarMean m (fun t => cos t ^ (2 * k)).
Proof.
assert (H := polarMoment_rec m k). unfold polarMean. fold (polarMoment m (S k)).
fold (polarMoment m k). assert (J := sinIntegral_pos m).
unfold Rdiv. rewrite <- !Rmult_assoc. now rewrite H.
Qed.
Lemma polarMean_abs m :
  sqrt (INR (S (S m))) * polarMean m (fun t => Rabs (cos t)) = isotropicCosine (S (S m)).
Proof. symmetry. exact (isotropicCosine_polar m). Qed.

(* c_1 = 1, and c_d < 1 for d >= 2 *)
Lemma isotropicCosine_1 : isotropicCosine 1 = 1.
Proof.
rewrite isotropicCosineE, sinIntegral_0. simpl. rewrite sqrt_1. field.
assert (P := PI_RGT_0). lra.
Qed.
Lemma isotropicCosine_lt1 m : isotropicCosine (S (S m)) < 1.
Proof.
destruct srht_floor_d_independent as [dec _]. rewrite <- isotropicCosine_1.
induction m as [|m IH]; [apply dec; lia|].
apply Rlt_trans with (isotropicCosine (S (S m))); [apply dec; lia|exact IH].
Qed.
