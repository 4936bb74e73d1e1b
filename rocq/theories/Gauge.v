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

Lemma norm2_ge0 m n (v : 'M[R]_(m, n)) : 0 <= norm2 v.
Proof. exact: sqrtr_ge0. Qed.
Lemma norm2_sq m n (v : 'M[R]_(m, n)) : norm2 v ^+ 2 = frobeniusSq v.
Proof. by rewrite sqr_sqrtr ?frobeniusSq_nonneg. Qed.

Lemma norm2_le m n p q (v : 'M[R]_(m, n)) (w : 'M[R]_(p, q)) :
  frobeniusSq v <= frobeniusSq w -> norm2 v <= norm2 w.
Proof. exact: ler_wsqrtr. Qed.

(* Cauchy-Schwarz in terms of lengths *)
Lemma mdot_le_norm2 m n (v w : 'M[R]_(m, n)) : mdot v w <= norm2 v * norm2 w.
Proof.
apply: le_trans (ler_norm _) _.
by rewrite -sqrtr_sqr -sqrtrM ?frobeniusSq_nonneg // ler_wsqrtr // cauchy_schwarz.
Qed.

(* the triangle inequality *)
Lemma norm2D m n (v w : 'M[R]_(m, n)) : norm2 (v + w) <= norm2 v + norm2 w.
Proof.
rewrite -(@ler_pexpn2r _ 2) // ?nnegrE ?addr_ge0 ?norm2_ge0 // sqrrD !norm2_sq frobD.
by rewrite ler_add2r ler_add2l -[_ * _ *+ 2]mulr_natl ler_wpmul2l ?ler0n // mdot_le_norm2.
Qed.

(* Rotating every key and every query by the same orthogonal Q leaves every score k.q as it was. *)
Theorem attention_score_gauge_invariance n (Q : 'M[R]_n) (k q : 'cV[R]_n) :
  orthogonal Q -> mdot (Q *m k) (Q *m q) = mdot k q.
Proof. by move=> hQ; rewrite mdot_mull mulmxA hQ mul1mx. Qed.
End Gauge.
