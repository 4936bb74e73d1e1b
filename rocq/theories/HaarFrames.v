(* Chance levels under the Haar mean: overlap of subspaces, residual of column gains, mean
   amplification. The statements for any law that signed permutations leave alone, of Overlap.v,
   ColumnGain.v and Amplification.v, hold for the uniform one, which HaarMean.v constructs.
   Over any complete ordered field; axioms: the three of boolp. *)
From mathcomp Require Import all_ssreflect all_fingroup all_algebra.
From mathcomp Require Import reals.
From Gonio Require Import Frobenius Gauge MomentRatio Isotropy SignedPermutations Overlap ColumnGain
  AlmostInvariant HaarMean.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section HaarFrames.
Variables (R : realType) (n : nat).
Local Notation integrable := (@haarIntegrable R n).
Local Notation E := (@haarMean R n).
Let hE : isExpectation integrable E := haar_expectation R n.

(* a fixed frame, rotated *)
Lemma haar_frame p (W : 'M[R]_(n, p)) : W^T *m W = 1%:M ->
  isInvariantFrame integrable E (fun g => sval g *m W).
Proof.
move=> hW; split=> [g|i j k l|e s f hf].
- by rewrite trmx_mul -mulmxA (mulmxA (sval g)^T) (svalP g) mul1mx.
- by apply: coefficient_integrable; apply: coefficient_mul; apply: coefficient_entry.
have [h1 h2] := haar_invariant (exist _ _ (signedPerm_orthogonal R e s)) hf.
rewrite (_ : (fun t => f (signedPerm R e s *m _)) =
  (fun g => f (sval (rotationMul (exist _ _ (signedPerm_orthogonal R e s)) g) *m W))) //.
by apply: boolp.funext => g; rewrite /= mulmxA.
Qed.

Lemma haar_isotropic : isotropic integrable E (fun g : rotation R n => sval g).
Proof.
have h1 : (1%:M : 'M[R]_n)^T *m 1%:M = 1%:M by rewrite trmx1 mul1mx.
have := invariant_isotropic hE (haar_frame h1).
by rewrite (_ : (fun g => _) = (fun g => sval g)) //; apply: boolp.funext => g; rewrite mulmx1.
Qed.

Lemma haar_value f v : hasMean integrable E f v -> integrable f /\ E f = v.
Proof. by move=> h; have i := haar_hasMean h; split=> //; apply: hasMean_eq hE i h. Qed.

(* A fixed frame of k orthonormal columns and a uniformly random frame of l overlap by max(k, l)/n
   on average. *)
Theorem random_subspace_expected_overlap_haar k l (U : 'M[R]_(n, k)) (W : 'M[R]_(n, l)) :
  (0 < k)%N -> (0 < l)%N -> U^T *m U = 1%:M -> W^T *m W = 1%:M ->
  isInvariantFrame integrable E (fun g => sval g *m W) /\
  E (fun g => subspaceOverlap U (sval g *m W)) = (maxn k l)%:R / n%:R.
Proof.
move=> k0 l0 hU hW; split; first exact: haar_frame.
have h := hasMean_lin (minn k l)%:R^-1 hE (isotropic_energy U^T W hE haar_isotropic)
  (hasMean_cst 0 hE).
rewrite addr0 (chance_level k0 l0 hU hW) in h.
have [_ <-] := haar_value h; congr E; apply: boolp.funext => g.
by rewrite addr0 mulrC /subspaceOverlap mulmxA.
Qed.

(* If D <> 0 is an update of m = n rows and no column of W is zero, the residual of the best column
   gains for the rotated update is 1 - 1/m on average. *)
Theorem column_gain_residual_haar p (D W : 'M[R]_(n, p)) : D != 0 -> (forall j, col j W != 0) ->
  E (fun g => gainResidual (sval g *m D) W) = 1 - n%:R^-1.
Proof.
move=> D0 W0.
by have [] := haar_value (gain_mean hE haar_isotropic (fun g => svalP g) D0 W0).
Qed.

(* The root mean square of |W x| over uniformly random unit vectors x of R^n is |W|_F / sqrt n. *)
Theorem avg_amplification_haar m (W : 'M[R]_(m, n)) (x : 'cV[R]_n) : frobeniusSq x = 1 ->
  Num.sqrt (E (fun g => frobeniusSq (W *m (sval g *m x)))) = norm2 W / Num.sqrt n%:R.
Proof.
move=> hx; have [_] := haar_value (isotropic_energy W x hE haar_isotropic).
rewrite hx mulr1 (_ : (fun g => frobeniusSq (W *m sval g *m x)) =
  (fun g => frobeniusSq (W *m (sval g *m x)))) => [->|]; last first.
  by apply: boolp.funext => g; rewrite mulmxA.
by rewrite sqrtrM ?frobeniusSq_nonneg // sqrtrV ?ler0n.
Qed.
End HaarFrames.
