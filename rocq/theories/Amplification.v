(* How much a matrix lengthens a vector of no preferred direction.
   Over any real closed field: no axioms. *)
From mathcomp Require Import all_ssreflect all_fingroup all_algebra.
From Gonio Require Import Frobenius Gauge MomentRatio Isotropy SignedPermutations.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Amplification.
Variables (R : rcfType) (m n : nat).
Implicit Types (W : 'M[R]_(m, n)) (x : 'cV[R]_n).

(* The root mean square of |W x| over random unit vectors x of R^n is |W|_F / sqrt n, with n the
   input dimension (the number of columns; the source prints the output dimension): for any fixed
   unit vector moved by a random signed permutation (a finite average), under any expectation E
   and any random unit vector X whose law signed permutations leave alone, which the uniform law
   on the sphere is, and, of any length, if only E X_i X_j = 1/n for i = j and 0 otherwise. *)
Theorem avg_amplification_eq_frob_div_sqrt W :
  [/\ forall x, frobeniusSq x = 1 ->
        Num.sqrt (signedPermAverage (fun P => frobeniusSq (W *m (P *m x)))) =
          norm2 W / Num.sqrt n%:R,
      forall (T : Type) (integrable : (T -> R) -> Prop) (E : (T -> R) -> R) (X : T -> 'cV[R]_n),
        isExpectation integrable E -> isInvariantFrame integrable E X ->
        integrable (fun t => frobeniusSq (W *m X t)) ->
        Num.sqrt (E (fun t => frobeniusSq (W *m X t))) = norm2 W / Num.sqrt n%:R &
      forall (T : Type) (integrable : (T -> R) -> Prop) (E : (T -> R) -> R) (X : T -> 'cV[R]_n),
        isExpectation integrable E -> isotropic integrable E X ->
        integrable (fun t => frobeniusSq (W *m X t)) ->
        Num.sqrt (E (fun t => frobeniusSq (W *m X t))) = norm2 W / Num.sqrt n%:R].
Proof.
have root : Num.sqrt (frobeniusSq W / n%:R) = norm2 W / Num.sqrt n%:R.
  by rewrite sqrtrM ?frobeniusSq_nonneg // sqrtrV ?ler0n.
have iso (T : Type) (integrable : (T -> R) -> Prop) (E : (T -> R) -> R) (X : T -> 'cV[R]_n) :
    isExpectation integrable E -> isotropic integrable E X ->
    integrable (fun t => frobeniusSq (W *m X t)) ->
    Num.sqrt (E (fun t => frobeniusSq (W *m X t))) = norm2 W / Num.sqrt n%:R.
  move=> hE hX hI; have h := isotropic_energy W 1%:M hE hX.
  rewrite (hasMean_eq hE hI (hasMean_ext _ h)) => [|t]; last by rewrite mulmx1.
  by rewrite frob_scalar expr1n !mulr1 root.
split=> // [x hx|T integrable E X hE hX hI]; last exact: iso (invariant_isotropic hE hX) hI.
have := average_energy W x; rewrite hx mulr1 -root => <-; rewrite !signedPermAverageE.
by congr Num.sqrt; apply: eq_bigr => e _; rewrite mulmxA.
Qed.
End Amplification.
