(* Subtracting the mean from a vector: it shortens the vector, and it is not what lets a rotation
   reach cosine 1. Over any real closed field: no axioms. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From Gonio Require Import Frobenius Gauge Householder SignQuantization.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Centering.
Variables (R : rcfType) (n : nat).
Local Notation d := (n.+1).
Implicit Types v : 'cV[R]_d.

Lemma mdot_const (a : R) v : mdot (const_mx a) v = a * \sum_i v i 0.
Proof. by rewrite mulr_sumr; apply: eq_bigr => i _; rewrite big_ord1 mxE. Qed.

Lemma frob_const (a : R) : frobeniusSq (const_mx a : 'cV[R]_d) = d%:R * a ^+ 2.
Proof.
rewrite frobE mdot_const (eq_bigr (fun=> a)) => [|i _]; last by rewrite mxE.
by rewrite sumr_const card_ord -mulr_natl; ring.
Qed.

(* A centered vector v (its entries add up to 0) is shorter than v with a constant mu / sqrt d
   added to every entry, for mu <> 0: the energies add, |mu/sqrt d + v|^2 = mu^2 + |v|^2. *)
Theorem l2Norm_uncentered_gt (mu : R) v : \sum_i v i 0 = 0 -> mu != 0 ->
  norm2 v < norm2 (const_mx (mu / Num.sqrt d%:R) + v) /\
  norm2 (const_mx (mu / Num.sqrt d%:R) + v) ^+ 2 = mu ^+ 2 + norm2 v ^+ 2.
Proof.
move=> hv mu0; have E : frobeniusSq (const_mx (mu / Num.sqrt d%:R) + v) = mu ^+ 2 + frobeniusSq v.
  rewrite frobD mdot_const hv !mulr0 addr0 frob_const.
  by rewrite expr_div_n sqr_sqrtr ?ler0n // mulrC divfK // pnatr_eq0.
have mu2 : 0 < mu ^+ 2 by rewrite exprn_even_gt0.
split; last by rewrite !norm2_sq E.
by rewrite /norm2 ltr_sqrt E ?ltr_addr // ltr_paddr // frobeniusSq_nonneg.
Qed.

(* For every vector v other than 0, centered or not, some orthogonal matrix turns it to a vector
   of 1-bit cosine 1. So the printed claim, that centering lifts the ceiling of what a rotation
   can reach, is empty for a single vector: the ceiling is 1 before and after. (About populations
   of vectors nothing is claimed here.) *)
Theorem dc_centering_lifts_rotational_ceiling v : v != 0 ->
  exists Q : 'M[R]_d, orthogonal Q /\ cosine (Q *m v) (signVector (Q *m v)) = 1.
Proof.
move=> v0; have a0 : 0 < frobeniusSq v / d%:R by rewrite divr_gt0 ?frob_gt0 ?ltr0n.
pose a := Num.sqrt (frobeniusSq v / d%:R); have a1 : 0 < a by rewrite sqrtr_gt0.
have E : frobeniusSq v = frobeniusSq (const_mx a : 'cV[R]_d).
  by rewrite frob_const sqr_sqrtr ?ltW // mulrC divfK // pnatr_eq0.
have [Q [oQ hQ]] := orthogonal_map_exists E; exists Q; split=> //; rewrite hQ.
have -> : signVector (const_mx a : 'cV[R]_d) = const_mx 1.
  by apply/matrixP => i j; rewrite !mxE /sgn1 ltW.
have s0 : Num.sqrt d%:R != 0 :> R by rewrite gt_eqF // sqrtr_gt0 ltr0n.
rewrite /cosine mdot_const /norm2 !frob_const expr1n mulr1 sqrtrM ?ler0n // sqrtr_sqr gtr0_norm //.
rewrite (eq_bigr (fun=> 1)) => [|i _]; last by rewrite mxE.
rewrite sumr_const card_ord -{1}(sqr_sqrtr (ler0n R d)).
by move: (Num.sqrt d%:R) s0 => s s0; field; rewrite s0 gt_eqF.
Qed.
End Centering.
