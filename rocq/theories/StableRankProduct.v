(* Rank goes down under products (LoraAlgebra, rank_product_le); stable rank does not.
   The counterexample is A = diag(1, e), B = diag(e, 1), so that A B = e I. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From mathcomp Require Import reals.
From Gonio Require Import Frobenius SpectralNorm StableRank.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Counterexample.
Variable R : realType.

(* the 2 x 2 diagonal matrix with entries a, b *)
Definition diag2 (a b : R) : 'M[R]_2 := diag_mx (\row_j if j == 0 then a else b).

Lemma sum2 (f : 'I_2 -> R) : \sum_i f i = f 0 + f 1.
Proof. by rewrite !big_ord_recl big_ord0 addr0; congr (_ + f _); apply: val_inj. Qed.

Lemma frob_diag2 a b : frobeniusSq (diag2 a b) = a ^+ 2 + b ^+ 2.
Proof. by rewrite /frobeniusSq !sum2 !mxE /= !mulr0n !mulr1n !expr0n /= addr0 add0r. Qed.

Lemma diag2_mul a b (x : 'cV[R]_2) :
  frobeniusSq (diag2 a b *m x) = a ^+ 2 * x 0 0 ^+ 2 + b ^+ 2 * x 1 0 ^+ 2.
Proof. by rewrite mul_diag_mx /frobeniusSq sum2 !big_ord1 !mxE /= !exprMn. Qed.

Lemma frob2 (x : 'cV[R]_2) : frobeniusSq x = x 0 0 ^+ 2 + x 1 0 ^+ 2.
Proof. by rewrite /frobeniusSq sum2 !big_ord1. Qed.

(* the squared spectral norm of diag(a, b) is the larger square *)
Lemma spectral_diag2 a b : spectralSq (diag2 a b) = Num.max (a ^+ 2) (b ^+ 2).
Proof.
apply/eqP; rewrite eq_le; apply/andP; split.
  apply: spectral_le => [|x hx]; first by rewrite le_maxr sqr_ge0.
  rewrite diag2_mul -[leRHS]mulr1 -hx frob2 mulrDr.
  by apply: ler_add; rewrite ler_wpmul2r ?sqr_ge0 // le_maxr lexx ?orbT.
rewrite le_maxl; apply/andP; split.
  rewrite (le_trans _ (spectral_ub _ (frob_delta R (0 : 'I_2)))) //.
  by rewrite diag2_mul !mxE /= expr1n expr0n /= mulr1 mulr0 addr0.
rewrite (le_trans _ (spectral_ub _ (frob_delta R (1 : 'I_2)))) //.
by rewrite diag2_mul !mxE /= expr1n expr0n /= mulr1 mulr0 add0r.
Qed.

(* For every 0 < e < 1 the matrices diag(1, e) and diag(e, 1) have stable rank 1 + e^2 < 2, and
   their product has stable rank 2: no bound by the smaller stable rank can hold. *)
Theorem stableRank_mul_le_min_counterexample (e : R) : 0 < e -> e < 1 ->
  [/\ stableRank (diag2 1 e) = 1 + e ^+ 2, stableRank (diag2 e 1) = 1 + e ^+ 2,
      stableRank (diag2 1 e *m diag2 e 1) = 2%:R &
      Num.min (stableRank (diag2 1 e)) (stableRank (diag2 e 1))
        < stableRank (diag2 1 e *m diag2 e 1)].
Proof.
move=> e0 e1; have e21 : e ^+ 2 < 1 by rewrite expr_lt1 // ltW.
have hA : stableRank (diag2 1 e) = 1 + e ^+ 2.
  by rewrite /stableRank frob_diag2 spectral_diag2 expr1n max_l ?divr1 // ltW.
have hB : stableRank (diag2 e 1) = 1 + e ^+ 2.
  by rewrite /stableRank frob_diag2 spectral_diag2 expr1n max_r ?divr1 1?addrC // ltW.
have hAB : stableRank (diag2 1 e *m diag2 e 1) = 2%:R.
  have -> : diag2 1 e *m diag2 e 1 = diag2 e e.
    apply/matrixP => i j; rewrite mul_diag_mx !mxE; have [->|_] := eqVneq i j.
      by rewrite !mulr1n; case: ifP => _; rewrite ?mul1r ?mulr1.
    by rewrite !mulr0n mulr0.
  rewrite /stableRank frob_diag2 spectral_diag2 max_l // -mulr2n -mulr_natl mulfK //.
  by rewrite expf_eq0 /= gt_eqF.
split=> //; rewrite hA hB hAB minxx.
by rewrite -[2%:R]/(1 + 1) ltr_add2l.
Qed.
End Counterexample.
