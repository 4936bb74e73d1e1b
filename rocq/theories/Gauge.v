(* Orthogonal matrices, lengths and cosines; attention scores do not see a common rotation.
   Over any real closed field: no axioms. *)
From mathcomp Require Import all_ssreflect all_algebra.
From Gonio Require Import Frobenius.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Gauge.
Variable R : rcfType.

Definition orthogonal n (Q : 'M[R]_n) := Q^T *m Q = 1%:M.
(* Euclidean length, and cosine of the angle between two vectors (0 if one of them is 0). *)
Definition norm2 m n (v : 'M[R]_(m, n)) : R := Num.sqrt (frobeniusSq v).
Definition cosine n (u v : 'cV[R]_n) : R := mdot u v / (norm2 u * norm2 v).

(* Rotating every key and every query by the same orthogonal Q leaves every score k.q as it was. *)
Theorem attention_score_gauge_invariance n (Q : 'M[R]_n) (k q : 'cV[R]_n) :
  orthogonal Q -> mdot (Q *m k) (Q *m q) = mdot k q.
Proof. by move=> hQ; rewrite mdot_mull mulmxA hQ mul1mx. Qed.
End Gauge.
