(* The squared spectral norm, as the supremum of |M x|^2 over unit vectors x.
   Over any complete ordered field; suprema bring in the three axioms of mathcomp's boolp. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.classical Require Import boolp classical_sets.
From mathcomp Require Import reals.
From Gonio Require Import Frobenius OrthonormalBasis.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.
Local Open Scope classical_set_scope.

Section SpectralNorm.
Variable R : realType.
Implicit Types c : R.

Definition rayleigh_set m n (M : 'M[R]_(m, n)) : set R :=
  [set y | exists x : 'cV[R]_n, frobeniusSq x = 1 /\ y = frobeniusSq (M *m x)].
(* |M|_2^2; a matrix without columns gets 0. *)
Definition spectralSq m n (M : 'M[R]_(m, n)) : R := sup (rayleigh_set M).

Lemma rayleigh_ub m n (M : 'M[R]_(m, n)) : ubound (rayleigh_set M) (frobeniusSq M).
Proof. by move=> y [x [hx ->]]; rewrite (le_trans (frob_mul_le M x)) // hx mulr1. Qed.

Lemma rayleigh_neq0 m n (M : 'M[R]_(m, n.+1)) : rayleigh_set M !=set0.
Proof.
pose e := delta_mx 0 0 : 'cV[R]_n.+1.
by exists (frobeniusSq (M *m e)), e; rewrite frob_delta.
Qed.

Lemma rayleigh_0 m (M : 'M[R]_(m, 0)) : rayleigh_set M = set0.
Proof.
rewrite -subset0 => y [x [hx _]].
by move: hx; rewrite (flatmx0 x) frobE mdot0l => /esym /eqP; rewrite oner_eq0.
Qed.

Lemma spectral_ub m n (M : 'M[R]_(m, n)) (x : 'cV[R]_n) :
  frobeniusSq x = 1 -> frobeniusSq (M *m x) <= spectralSq M.
Proof.
by move=> hx; apply: sup_ub; [exists (frobeniusSq M); apply: rayleigh_ub | exists x].
Qed.

(* |M x|^2 <= |M|_2^2 |x|^2 for every x *)
Lemma spectralSq_bound m n (M : 'M[R]_(m, n)) (x : 'cV[R]_n) :
  frobeniusSq (M *m x) <= spectralSq M * frobeniusSq x.
Proof.
have [->|x0] := eqVneq x 0; first by rewrite mulmx0 !frobE !mdot0l mulr0.
have := spectral_ub M (frob_normalize x0).
rewrite -scalemxAr frobeniusSq_smul exprVn sqr_sqrtr ?frobeniusSq_nonneg //.
by rewrite mulrC ler_pdivr_mulr // frob_gt0.
Qed.

(* an upper bound on every unit vector bounds the supremum *)
Lemma spectral_le m n (M : 'M[R]_(m, n)) b : 0 <= b ->
  (forall x : 'cV[R]_n, frobeniusSq x = 1 -> frobeniusSq (M *m x) <= b) -> spectralSq M <= b.
Proof.
case: n M => [|n] M b0 h; first by rewrite /spectralSq rayleigh_0 sup0.
by apply: sup_le_ub; [apply: rayleigh_neq0 | move=> y [x [hx ->]]; apply: h].
Qed.

Lemma spectralSq_nonneg m n (M : 'M[R]_(m, n)) : 0 <= spectralSq M.
Proof.
case: n M => [|n] M; first by rewrite /spectralSq rayleigh_0 sup0.
by rewrite (le_trans _ (spectral_ub M (frob_delta _ 0))) // frobeniusSq_nonneg.
Qed.

Lemma spectralSq_le_frob m n (M : 'M[R]_(m, n)) : spectralSq M <= frobeniusSq M.
Proof.
apply: spectral_le => [|x hx]; first exact: frobeniusSq_nonneg.
by rewrite (le_trans (frob_mul_le M x)) // hx mulr1.
Qed.

Lemma spectralSq_eq_zero_iff m n (M : 'M[R]_(m, n)) : spectralSq M = 0 <-> M = 0.
Proof.
split=> [h|->]; last first.
  apply/eqP; rewrite eq_le spectralSq_nonneg andbT.
  by rewrite (le_trans (spectralSq_le_frob _)) // frobE mdot0l.
apply/frobeniusSq_eq_zero_iff; rewrite frob_cols big1 // => j _.
rewrite -[col j M]mulmx1 colE mulmx1; apply/eqP; rewrite eq_le frobeniusSq_nonneg andbT.
by rewrite -h spectral_ub // frob_delta.
Qed.

Lemma spectral_gt0 m n (M : 'M[R]_(m, n)) : (0 < spectralSq M) = (M != 0).
Proof.
rewrite lt_def spectralSq_nonneg andbT; congr (~~ _).
by apply/eqP/eqP => /spectralSq_eq_zero_iff.
Qed.

(* Scaling a matrix by c scales its squared spectral norm by c^2. *)
Theorem spectralSq_smul m n c (M : 'M[R]_(m, n)) :
  spectralSq (c *: M) = c ^+ 2 * spectralSq M.
Proof.
have le c' (N : 'M[R]_(m, n)) : spectralSq (c' *: N) <= c' ^+ 2 * spectralSq N.
  apply: spectral_le => [|x hx]; first by rewrite mulr_ge0 ?sqr_ge0 ?spectralSq_nonneg.
  by rewrite -scalemxAl frobeniusSq_smul ler_wpmul2l ?sqr_ge0 // spectral_ub.
have [->|c0] := eqVneq c 0.
  by rewrite scale0r expr0n mul0r; apply/spectralSq_eq_zero_iff.
apply/eqP; rewrite eq_le le /= -ler_pdivl_mull ?exprn_even_gt0 //.
by rewrite -exprVn -{1}[M](scalerK c0) le.
Qed.
End SpectralNorm.
