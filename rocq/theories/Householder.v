(* Householder reflections: vectors of equal length are related by an orthogonal matrix.
   Over any real closed field: no axioms. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From Gonio Require Import Frobenius OrthonormalBasis Gauge.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Householder.
Variables (R : rcfType) (n : nat).
Implicit Types u v w x : 'cV[R]_n.

(* the reflection 1 - 2 w w^T / |w|^2 in the hyperplane orthogonal to w *)
Definition householder w : 'M[R]_n := 1%:M - (2%:R / frobeniusSq w) *: (w *m w^T).

Lemma col_dot u v : u^T *m v = (mdot u v)%:M.
Proof. by rewrite -[v in _ *m v]trmxK mdot_row mdot_tr. Qed.

Lemma householder_sym w : (householder w)^T = householder w.
Proof. by rewrite /householder linearB linearZ /= trmx_mul trmxK trmx1. Qed.

Lemma householder_mul w x :
  householder w *m x = x - (2%:R * mdot w x / frobeniusSq w) *: w.
Proof.
rewrite mulmxBl mul1mx -scalemxAl -mulmxA col_dot mul_mx_scalar scalerA.
by congr (_ - _ *: _); ring.
Qed.

Lemma householder_orthogonal w : w != 0 -> orthogonal (householder w).
Proof.
rewrite -frob_eq0 => w0; rewrite /orthogonal householder_sym.
rewrite {2}/householder mulmxBr mulmx1 -scalemxAr mulmxA householder_mul -frobE.
rewrite -mulrA divff // mulr1 mulmxBl -scalemxAl /householder.
rewrite [w *m w^T - _](_ : _ = - (w *m w^T)); last first.
  by rewrite -[X in X - _]scale1r -scalerBl (_ : 1 - _ = - 1) ?scaleN1r //; ring.
by rewrite scalerN opprK subrK.
Qed.

Lemma orthogonal_map_exists u v : frobeniusSq u = frobeniusSq v ->
  exists Q : 'M[R]_n, orthogonal Q /\ Q *m u = v.
Proof.
move=> huv; have [->|uv] := eqVneq u v.
  by exists 1%:M; rewrite /orthogonal trmx1 !mul1mx.
have w0 : u - v != 0 by rewrite subr_eq0.
exists (householder (u - v)); split; first exact: householder_orthogonal.
rewrite householder_mul.
have -> : 2%:R * mdot (u - v) u / frobeniusSq (u - v) = 1.
  have h : frobeniusSq (u - v) = 2%:R * mdot (u - v) u.
    by rewrite frobB -huv mdotBl -frobE (mdotC v u); ring.
  by rewrite -h divff // frob_eq0.
by rewrite scale1r opprB addrC subrK.
Qed.
End Householder.
