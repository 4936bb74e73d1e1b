(* Projections on the span of orthonormal rows, and how energy spreads over a frame.
   Over any real closed field: no axioms. *)
From mathcomp Require Import all_ssreflect all_algebra.
From Gonio Require Import Frobenius Gauge.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Subspace.
Variable R : rcfType.

(* the rows of A projected on the span of the orthonormal rows of Q *)
Definition project m n r (Q : 'M[R]_(r, n)) (A : 'M[R]_(m, n)) := A *m Q^T *m Q.

(* Neither the projection of a matrix on a subspace nor the complement of it is longer than
   the matrix. *)
Theorem subspace_project_complement_le_norm m n r (Q : 'M[R]_(r, n)) (A : 'M[R]_(m, n)) :
  Q *m Q^T = 1%:M -> norm2 (project Q A) <= norm2 A /\ norm2 (A - project Q A) <= norm2 A.
Proof.
move=> hQ; split; apply: norm2_le; first by rewrite frob_mulr_orth // frob_proj_le.
by rewrite (frob_proj A hQ) ler_addr frobeniusSq_nonneg.
Qed.

(* Errors add: a weight W + D approximated by W' + D' is off by at most the sum of the two errors;
   and if W + D is projected on a subspace, the part lost is at most the part lost of W, plus |D|.
   *)
Theorem global_plus_delta_error_bound m n r (Q : 'M[R]_(r, n)) (W D W' D' : 'M[R]_(m, n)) :
  Q *m Q^T = 1%:M ->
  norm2 ((W + D) - (W' + D')) <= norm2 (W - W') + norm2 (D - D') /\
  norm2 ((W + D) - project Q (W + D)) <= norm2 (W - project Q W) + norm2 D.
Proof.
move=> hQ; have add (A B C E : 'M[R]_(m, n)) : (A + B) - (C + E) = (A - C) + (B - E).
  by rewrite opprD addrACA.
split; first by rewrite add norm2D.
rewrite /project !mulmxDl add; apply: le_trans (norm2D _ _) _; rewrite ler_add2l.
by have [] := subspace_project_complement_le_norm D hQ.
Qed.

(* Dilution, by the pigeonhole principle: among r orthonormal directions (row i of Q) at least one
   carries at most the r-th part of the energy of M. If the directions span the row space of M, the
   energies they carry add up to all of it. The first part needs no such assumption. *)
Theorem subspace_dilution m n r (M : 'M[R]_(m, n)) (Q : 'M[R]_(r, n)) :
  (0 < r)%N -> Q *m Q^T = 1%:M ->
  (exists i, frobeniusSq (M *m (row i Q)^T) <= frobeniusSq M / r%:R) /\
  ((M <= Q)%MS -> \sum_i frobeniusSq (M *m (row i Q)^T) = frobeniusSq M).
Proof.
move=> r0 hQ; have sumE : \sum_i frobeniusSq (M *m (row i Q)^T) = frobeniusSq (M *m Q^T).
  by rewrite [RHS]frob_cols; apply: eq_bigr => i _; rewrite tr_row !colE mulmxA.
split; last first.
  move=> /submxP[D hD]; rewrite sumE -(frob_mulr_orth _ hQ); congr frobeniusSq.
  by rewrite hD -(mulmxA D) hQ mulmx1.
case: (pickP (fun i => frobeniusSq (M *m (row i Q)^T) <= frobeniusSq M / r%:R)) => [i hi|h].
  by exists i.
have : \sum_(i < r) frobeniusSq M / r%:R < \sum_i frobeniusSq (M *m (row i Q)^T).
  have lt i : frobeniusSq M / r%:R < frobeniusSq (M *m (row i Q)^T) by rewrite ltNge h.
  rewrite (bigD1 (Ordinal r0)) // [ltRHS](bigD1 (Ordinal r0)) //= ltr_le_add //.
  by apply: ler_sum => i _; apply: ltW.
rewrite sumE sumr_const card_ord -mulr_natr divfK ?pnatr_eq0 -?lt0n //.
by rewrite ltNge frob_proj_le.
Qed.
End Subspace.
