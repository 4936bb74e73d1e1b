(* A residual corrected by its projection on r directions: what it keeps, which directions are best
   (Ky Fan), and the best approximation of rank r (Eckart-Young). No singular value decomposition is
   assumed: every matrix is shown to have one. Over any real closed field: no axioms. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From Gonio Require Import Frobenius SingularBasis.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section RankCorrection.
Variable R : rcfType.

(* the part of the energy of K (a population of keys, one per row) that K' keeps *)
Definition energyKept m n (K K' : 'M[R]_(m, n)) : R := 1 - frobeniusSq (K - K') / frobeniusSq K.
(* the part of the energy of E that lies along the r orthonormal rows of Q *)
Definition gammaR m n r (E : 'M[R]_(m, n)) (Q : 'M[R]_(r, n)) : R :=
  frobeniusSq (E *m Q^T) / frobeniusSq E.

(* If an approximation K' of K, such as its sign quantization, keeps a part beta of the energy,
   and the projection of the residual K - K' on r orthonormal directions, which holds a part gamma
   of the residual's energy, is added back, then the energy lost is (1 - beta)(1 - gamma) of the
   whole: beta_eff = 1 - (1 - beta)(1 - gamma). The source defines beta_eff so; here it follows.
   *)
Theorem beta_eff_formula m n r (K K' : 'M[R]_(m, n)) (Q : 'M[R]_(r, n)) : Q *m Q^T = 1%:M ->
  energyKept K (K' + (K - K') *m Q^T *m Q) =
  1 - (1 - energyKept K K') * (1 - gammaR (K - K') Q).
Proof.
move=> QQ; rewrite /energyKept /gammaR opprD addrA; set E := K - K'.
have := frob_proj E QQ; have [E0 _|] := eqVneq E 0.
  by rewrite E0 !mul0mx subrr frobE mdot0l; ring.
rewrite -frob_eq0 => E0 h; have -> : frobeniusSq (E - E *m Q^T *m Q) =
  frobeniusSq E - frobeniusSq (E *m Q^T) by rewrite h addrAC subrr add0r.
by move: (frobeniusSq E) E0 (frobeniusSq (E *m Q^T)) ((frobeniusSq K)^-1) => x x0 y z; field.
Qed.

(* Ky Fan: the r right singular vectors of E with the largest singular values capture a larger part
   of the energy of E than any other r orthonormal directions, namely the r largest squared singular
   values d_i over all of them. They exist for every matrix E and every r <= n. *)
Theorem svd_topk_maximizes_gammaR m n r (E : 'M[R]_(m, n)) (h : (r <= n)%N) :
  exists (V : 'M[R]_n) (d : 'rV[R]_n), singular_basis E V d /\
    [/\ topRows V h *m (topRows V h)^T = 1%:M,
        frobeniusSq (E *m (topRows V h)^T) = \sum_(i < n | (i < r)%N) d 0 i,
        gammaR E (topRows V h) = (\sum_(i < n | (i < r)%N) d 0 i) / \sum_i d 0 i &
        forall Q : 'M[R]_(r, n), Q *m Q^T = 1%:M ->
          frobeniusSq (E *m Q^T) <= frobeniusSq (E *m (topRows V h)^T) /\
          gammaR E Q <= gammaR E (topRows V h)].
Proof.
have [V [d sb]] := singular_basis_exists E; exists V, d; split=> //; split.
- exact: topRows_orth sb r h.
- exact: topRows_energy sb r h.
- by rewrite /gammaR (topRows_energy sb) (singular_energy sb).
move=> Q QQ; rewrite /gammaR (topRows_energy sb); have le := ky_fan sb QQ (leqnn r).
by rewrite le ler_wpmul2r ?invr_ge0 ?frobeniusSq_nonneg.
Qed.

(* Eckart-Young in the Frobenius norm: for every matrix M there are squared singular values d such
   that, for every r, some T of rank at most r has |M - T|_F^2 = the sum of the d_i from the
   (r+1)-th on, and no matrix of rank at most r is nearer. (The source prints the sum of the
   singular values themselves, which is wrong.) *)
Theorem residual_topk_eckart_young m n (M : 'M[R]_(m, n)) :
  exists (V : 'M[R]_n) (d : 'rV[R]_n), singular_basis M V d /\
    forall r, exists T : 'M[R]_(m, n),
      [/\ (\rank T <= r)%N, frobeniusSq (M - T) = \sum_(i < n | (r <= i)%N) d 0 i &
          forall N, (\rank N <= r)%N -> frobeniusSq (M - T) <= frobeniusSq (M - N)].
Proof.
have [V [d sb]] := singular_basis_exists M; exists V, d; split=> // r.
exists (truncation M V r); rewrite (truncation_error sb); split=> [||N hN].
- exact: truncation_rank.
- by apply: eq_bigl => i; rewrite -leqNgt.
exact: (eckart_young_lower sb hN).
Qed.
End RankCorrection.
