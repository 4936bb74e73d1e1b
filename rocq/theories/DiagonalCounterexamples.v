(* Two printed claims that small diagonal matrices refute.
   Axioms: those of the supremum (see SpectralNorm). *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From mathcomp Require Import reals.
From Gonio Require Import Frobenius SpectralNorm StableRank StableRankProduct.
From Gonio Require Import SingularBasis SingularValues.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Counterexamples.
Variable R : realType.
Implicit Types a b t : R.

(* The printed bound for the best approximation of rank k, |M|_F^2 (1 - k / srank M) whenever
   srank M <= k, fails: M = diag(t, 1, 1) with t >= 2 has stable rank at most 2, the bound for k =
   2 is the negative number 2 - t^2, and the best approximation of rank 2 leaves the energy 1. *)
Theorem low_dim_approximation_counterexample t : 2%:R <= t ->
  let M : 'M[R]_3 := diag_mx (\row_j if j == 0 then t else 1) in
  [/\ stableRank M <= 2%:R,
      frobeniusSq M * (1 - 2%:R / stableRank M) = 2%:R - t ^+ 2, 2%:R - t ^+ 2 < 0,
      exists T : 'M[R]_3, (\rank T <= 2)%N /\ frobeniusSq (M - T) = 1 &
      forall N : 'M[R]_3, (\rank N <= 2)%N -> 1 <= frobeniusSq (M - N)].
Proof.
move=> t2; pose d : 'rV[R]_3 := \row_j if j == 0 then t ^+ 2 else 1.
have t0 : 0 < t by rewrite (lt_le_trans _ t2) ?ltr0n.
have t4 : 4%:R <= t ^+ 2.
  have -> : 4%:R = 2%:R ^+ 2 :> R by rewrite -natrX.
  by rewrite ler_pexpn2r ?nnegrE ?ler0n // ltW.
have t1 : 1 <= t ^+ 2 by rewrite (le_trans _ t4) // ler1n.
move=> M; have sb : singular_basis M 1%:M d.
  split; rewrite ?trmx1 ?mulmx1 // /M ?tr_diag_mx ?mulmx_diag.
    by congr diag_mx; apply/rowP => j; rewrite !mxE; case: ifP => _; rewrite ?mulr1 ?expr2.
  by move=> i j ij; rewrite !mxE; case: eqP => [j0|_]; case: eqP => // i0; exfalso;
    apply: i0; apply: val_inj; apply/eqP; move: ij; rewrite j0 /= leqn0.
have sum3 (f : 'I_3 -> R) : \sum_i f i = f 0 + f 1 + f 2%:R.
  by rewrite !big_ord_recl big_ord0 addr0 addrA; congr (f _ + f _ + f _); apply: val_inj.
have F : frobeniusSq M = t ^+ 2 + 2%:R.
  by rewrite (singular_energy sb) sum3 !mxE /= -addrA.
have S : stableRank M = (t ^+ 2 + 2%:R) / t ^+ 2.
  by rewrite (stableRank_singular sb) -(singular_energy sb) F !mxE.
have tt0 : 0 < t ^+ 2 by rewrite exprn_gt0.
have rest : \sum_(i < 3 | ~~ (i < 2)%N) d 0 i = 1.
  by rewrite big_mkcond sum3 /= !add0r !mxE.
have lt2 : 2%:R < t ^+ 2 by rewrite (lt_le_trans _ t4) // ltr_nat.
split.
- rewrite S ler_pdivr_mulr // mulrC mulr_natr mulr2n ler_add2l.
  exact: ltW.
- have Fn0 : t ^+ 2 + 2%:R != 0 by rewrite gt_eqF // addr_gt0 ?ltr0n.
  by rewrite F S; move: (t ^+ 2) tt0 Fn0 => x x0 y0; field; rewrite y0 gt_eqF.
- by rewrite subr_lt0.
- exists (truncation M 1%:M 2); split; first exact: truncation_rank.
  by rewrite (truncation_error sb).
by move=> N hN; rewrite -rest (eckart_young_lower sb).
Qed.

(* The printed reason, that rescaling the rows of a weight cannot move its right singular vectors,
   is false: for b > a > 1 every first right singular vector x of W = diag(a, 1) (a unit vector at
   which the spectral norm is attained) is orthogonal to every one of D W, D = diag(1, b). *)
Theorem left_gain_counterexample a b (x y : 'cV[R]_2) : 1 < a -> a < b ->
  let W := diag2 a 1 in let D := diag2 1 b in
  frobeniusSq x = 1 -> frobeniusSq (W *m x) = spectralSq W ->
  frobeniusSq y = 1 -> frobeniusSq (D *m W *m y) = spectralSq (D *m W) ->
  mdot x y = 0.
Proof.
move=> a1 ab W D hx; have a0 : 0 < a by apply: lt_trans a1.
have sq (u v : R) : 0 < u -> u < v -> u ^+ 2 < v ^+ 2.
  by move=> u0 uv; rewrite ltr_pexpn2r ?nnegrE ?ltW // (lt_trans u0).
have DW : D *m W = diag2 a b.
  apply/matrixP => i j; rewrite mul_diag_mx !mxE; have [->|_] := eqVneq i j.
    by rewrite !mulr1n; case: ifP => _; rewrite ?mul1r ?mulr1.
  by rewrite !mulr0n mulr0.
rewrite DW /W !diag2_mul !spectral_diag2 expr1n mul1r.
have a21 : 1 < a ^+ 2 by rewrite -(expr1n _ 2) sq.
rewrite (max_l (ltW a21)) (max_r (ltW (sq _ _ a0 ab))) => ex hy ey.
have kill u v w z : z < w -> u ^+ 2 + v ^+ 2 = 1 -> w * u ^+ 2 + z * v ^+ 2 = w -> v = 0 :> R.
  move=> zw h1 h2.
  have : (w - z) * v ^+ 2 = w * (u ^+ 2 + v ^+ 2) - (w * u ^+ 2 + z * v ^+ 2) by ring.
  rewrite h1 h2 mulr1 subrr => /eqP; rewrite mulf_eq0 subr_eq0 gt_eqF //= sqrf_eq0.
  by move/eqP.
rewrite !frob2 in hx hy.
have x1 : x 1 0 = 0 by apply: kill a21 hx _; rewrite -[RHS]ex mul1r.
have y0 : y 0 0 = 0.
  by apply: (kill (y 1 0)) (sq _ _ a0 ab) _ _; [rewrite addrC | rewrite -[RHS]ey addrC].
by rewrite /mdot sum2 !big_ord1 x1 y0 mulr0 mul0r addr0.
Qed.
End Counterexamples.
