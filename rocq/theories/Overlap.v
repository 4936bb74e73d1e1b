(* The overlap of two subspaces given by orthonormal frames, and its chance level.
   Over any real closed field: no axioms. *)
From mathcomp Require Import all_ssreflect all_fingroup all_algebra.
From Gonio Require Import Frobenius Gauge MomentRatio Isotropy SignedPermutations.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Overlap.
Variables (R : rcfType) (n : nat).

(* |U^T W|_F^2 / min(k, l) for frames U, W given by their columns *)
Definition subspaceOverlap k l (U : 'M[R]_(n, k)) (W : 'M[R]_(n, l)) : R :=
  frobeniusSq (U^T *m W) / (minn k l)%:R.

Lemma chance_level p k l (U : 'M[R]_(n, k)) (W : 'M[R]_(p, l)) :
  (0 < k)%N -> (0 < l)%N -> U^T *m U = 1%:M -> W^T *m W = 1%:M ->
  (minn k l)%:R^-1 * (frobeniusSq U^T * frobeniusSq W / n%:R) = (maxn k l)%:R / n%:R.
Proof.
move=> k0 l0 hU hW; rewrite frob_tr (frob_frame hU) (frob_frame hW) -natrM.
have m0 : (minn k l)%:R != 0 :> R by rewrite pnatr_eq0 -lt0n leq_min k0.
have -> : (k * l = minn k l * maxn k l)%N by case: (leqP k l) => // _; rewrite mulnC.
by rewrite natrM mulrA mulKf.
Qed.

(* An overlap lies between 0 and 1. *)
Lemma subspaceOverlap_bounds k l (U : 'M[R]_(n, k)) (W : 'M[R]_(n, l)) :
  (0 < k)%N -> (0 < l)%N -> U^T *m U = 1%:M -> W^T *m W = 1%:M -> 0 <= subspaceOverlap U W <= 1.
Proof.
move=> k0 l0 hU hW; rewrite divr_ge0 ?frobeniusSq_nonneg ?ler0n //=.
rewrite ler_pdivr_mulr ?ltr0n ?leq_min ?k0 // mul1r; case: (leqP k l) => _.
  by rewrite -(frob_frame hU) -[leRHS]frob_tr -{1}[W]trmxK frob_proj_le ?trmxK.
rewrite -(frob_frame hW) -frob_tr trmx_mul trmxK -[leRHS]frob_tr -{1}[U]trmxK frob_proj_le //.
by rewrite trmxK.
Qed.

(* A fixed frame U of k orthonormal columns and a random frame of l orthonormal columns in R^n
   overlap by max(k, l)/n on average, exactly and for every n: if the random one is a fixed frame
   W moved by a random signed permutation (a finite average), and under any expectation E and any
   random frame X whose law signed permutations leave alone, which the uniform (Haar) law is
   (HaarFrames.v). *)
Theorem random_subspace_expected_overlap k l (U : 'M[R]_(n, k)) :
  (0 < k)%N -> (0 < l)%N -> U^T *m U = 1%:M ->
  (forall W : 'M[R]_(n, l), W^T *m W = 1%:M ->
     signedPermAverage (fun P => subspaceOverlap U (P *m W)) = (maxn k l)%:R / n%:R) /\
  (forall (T : Type) (integrable : (T -> R) -> Prop) (E : (T -> R) -> R) (X : T -> 'M[R]_(n, l)),
     isExpectation integrable E -> isInvariantFrame integrable E X ->
     integrable (fun t => subspaceOverlap U (X t)) ->
     E (fun t => subspaceOverlap U (X t)) = (maxn k l)%:R / n%:R).
Proof.
move=> k0 l0 hU; split=> [W hW|T integrable E X hE hX hI].
  rewrite -(chance_level k0 l0 hU hW) -average_energy !signedPermAverageE mulr_sumr.
  apply: eq_bigr => x _.
  by rewrite [RHS]mulrCA /subspaceOverlap mulmxA [_ / (minn k l)%:R]mulrC.
have h1 : (1%:M : 'M[R]_l)^T *m 1%:M = 1%:M by rewrite trmx1 mul1mx.
rewrite -(chance_level k0 l0 hU h1); apply: (hasMean_eq hE hI).
have h := isotropic_energy U^T 1%:M hE (invariant_isotropic hE hX).
have := hasMean_lin (minn k l)%:R^-1 hE h (hasMean_cst 0 hE).
by rewrite addr0; apply: hasMean_ext => t; rewrite addr0 mulrC /subspaceOverlap mulmx1.
Qed.
End Overlap.
