(* The squared spectral norm is the largest squared singular value, and a unit vector attains it;
   a low stable rank makes low-rank approximation good. Axioms: those of the supremum (see
   SpectralNorm). *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import reals.
From Gonio Require Import Frobenius SpectralNorm StableRank SingularBasis.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section SingularValues.
Variable R : realType.

Lemma singular_spectral m n p (M : 'M[R]_(m, n)) (V : 'M[R]_(p.+1, n)) d :
  singular_basis M V d ->
  spectralSq M = d 0 0 /\
  exists x : 'cV[R]_n, frobeniusSq x = 1 /\ frobeniusSq (M *m x) = d 0 0.
Proof.
move=> sb; have [VV _ _ dS] := sb; pose e := delta_mx 0 0 : 'cV[R]_p.+1.
have h1 : frobeniusSq (V^T *m e) = 1 by rewrite frob_mull_orth ?frob_delta // trmxK.
have h2 : frobeniusSq (M *m (V^T *m e)) = d 0 0.
  rewrite (singular_mulE sb) mulmxA VV mul1mx (bigD1 0) //= big1 ?addr0 => [|i i0];
  by rewrite /frobeniusSq !big_ord1 !mxE ?eqxx ?(negPf i0) ?expr1n ?expr0n ?mulr1 ?mulr0.
split; last by exists (V^T *m e).
apply/eqP; rewrite eq_le -{2}h2 spectral_ub // andbT.
apply: spectral_le => [|x hx]; first exact: singular_ge0 sb _.
rewrite (singular_mulE sb) (@le_trans _ _ (\sum_i d 0 0 * frobeniusSq (row i (V *m x)))) //.
  by apply: ler_sum => i _; rewrite ler_wpmul2r ?frobeniusSq_nonneg // dS.
rewrite -mulr_sumr -frob_rows -[leRHS]mulr1 ler_wpmul2l ?(singular_ge0 sb) // -hx.
by rewrite -frob_tr -[leRHS]frob_tr trmx_mul frob_proj_le.
Qed.

(* The supremum that defines |M|_2^2 is attained: some unit vector x has |M x|^2 = |M|_2^2, and the
   value is the largest squared singular value d_0 of M. *)
Theorem spectralSq_attained m n (M : 'M[R]_(m, n.+1)) :
  (exists x : 'cV[R]_n.+1, frobeniusSq x = 1 /\ frobeniusSq (M *m x) = spectralSq M) /\
  (forall (V : 'M[R]_n.+1) d, singular_basis M V d -> spectralSq M = d 0 0).
Proof.
split=> [|V d sb]; last by have [] := singular_spectral sb.
by have [V [d sb]] := singular_basis_exists M; have [-> h] := singular_spectral sb.
Qed.

(* The stable rank is the sum of the squared singular values over the largest of them. *)
Theorem stableRank_singular m n (M : 'M[R]_(m, n.+1)) (V : 'M[R]_n.+1) d :
  singular_basis M V d -> stableRank M = (\sum_i d 0 i) / d 0 0.
Proof.
by move=> sb; have [h _] := singular_spectral sb; rewrite /stableRank h (singular_energy sb).
Qed.

Lemma frob_stableRank m n (M : 'M[R]_(m, n)) : frobeniusSq M = stableRank M * spectralSq M.
Proof.
have [->|M0] := eqVneq M 0; first by rewrite /stableRank frobE mdot0l !mul0r.
by rewrite /stableRank divfK // gt_eqF // spectral_gt0.
Qed.

(* the (i+1)-th squared singular value is at most the (i+1)-th part of the energy *)
Lemma singular_decay m n p (M : 'M[R]_(m, n)) (V : 'M[R]_(p, n)) d (i : 'I_p) :
  singular_basis M V d -> d 0 i <= frobeniusSq M / i.+1%:R.
Proof.
move=> sb; have [_ _ _ dS] := sb; rewrite ler_pdivl_mulr ?ltr0n // (singular_energy sb).
rewrite (bigID (fun j : 'I_p => (j < i.+1)%N)) /= ler_paddr //.
  by apply: sumr_ge0 => j _; apply: singular_ge0 sb _.
apply: (@le_trans _ _ (\sum_(j < p | (j < i.+1)%N) d 0 i)); last first.
  by apply: ler_sum => j ji; rewrite dS.
by rewrite -(big_ord_widen _ (fun=> d 0 i) (ltn_ord i)) sumr_const card_ord mulr_natr.
Qed.

(* For every k some matrix T of rank at most k leaves the energy |M|_F^2 - (d_0 + ... + d_(k-1)),
   the least any such matrix leaves. The (k+1)-th squared singular value d_k, and the squared
   spectral norm of M - T, are at most |M|_F^2 / (k+1) = srank(M) |M|_2^2 / (k+1). *)
Theorem stableRank_implies_low_dim_approximation m n (M : 'M[R]_(m, n)) :
  exists (V : 'M[R]_n) (d : 'rV[R]_n), singular_basis M V d /\
    forall k, frobeniusSq M / k.+1%:R = stableRank M * spectralSq M / k.+1%:R /\
      (forall i : 'I_n, i = k :> nat -> d 0 i <= frobeniusSq M / k.+1%:R) /\
      exists T : 'M[R]_(m, n),
        [/\ (\rank T <= k)%N,
            frobeniusSq (M - T) = frobeniusSq M - \sum_(i < n | (i < k)%N) d 0 i,
            forall N, (\rank N <= k)%N -> frobeniusSq (M - T) <= frobeniusSq (M - N) &
            spectralSq (M - T) <= frobeniusSq M / k.+1%:R].
Proof.
have [V [d sb]] := singular_basis_exists M; exists V, d; split=> // k.
split; first by rewrite -frob_stableRank.
split=> [i <-|]; first exact: singular_decay sb.
exists (truncation M V k); split.
- exact: truncation_rank.
- rewrite (truncation_error sb) (singular_energy sb).
  by rewrite [X in _ = X - _](bigID (fun i : 'I_n => (i < k)%N)) /= addrAC subrr add0r.
- by move=> N hN; rewrite (truncation_error sb) (eckart_young_lower sb).
have b0 : 0 <= frobeniusSq M / k.+1%:R by rewrite divr_ge0 ?frobeniusSq_nonneg ?ler0n.
apply: spectral_le => // x hx.
rewrite (truncation_residual sb) -(mulmxA (M *m V^T)) (singular_weighted sb).
have [VV _ _ _] := sb; pose b := frobeniusSq M / k.+1%:R.
apply: (@le_trans _ _ (\sum_i b * frobeniusSq (row i (V *m x)))).
  apply: ler_sum => i _.
  have -> : row i (diag_mx (\row_i (~~ (i < k)%N)%:R) *m V *m x) =
      (~~ (i < k)%N)%:R *: row i (V *m x).
    by apply/rowP => j; rewrite -mulmxA mul_diag_mx !mxE.
  rewrite frobeniusSq_smul; case: ltnP => ik.
    by rewrite expr0n mul0r mulr0 mulr_ge0 ?frobeniusSq_nonneg.
  rewrite expr1n mul1r ler_wpmul2r ?frobeniusSq_nonneg // (le_trans (singular_decay i sb)) //.
  by rewrite ler_wpmul2l ?frobeniusSq_nonneg // lef_pinv ?posrE ?ltr0n // ler_nat.
rewrite -mulr_sumr -frob_rows -[leRHS]mulr1 ler_wpmul2l // -hx.
by rewrite -frob_tr -[leRHS]frob_tr trmx_mul frob_proj_le.
Qed.
End SingularValues.
