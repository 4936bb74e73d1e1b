(* The Rademacher complexity of low-rank updates on a sample: how well the best update can follow
   random signs. Averages over all 2^N sign patterns.
   Over any real closed field: no axioms. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From Gonio Require Import Frobenius Gauge RotationAverage.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Rademacher.
Variables (R : rcfType) (N m n : nat).
Implicit Types (t : N.-tuple bool) (X : 'I_N -> 'M[R]_(m, n)).

(* the sample, summed with the signs t *)
Definition signedSum X t : 'M[R]_(m, n) := \sum_i sg R (tnth t i) *: X i.

Lemma mean_energy X : mean (fun t => frobeniusSq (signedSum X t)) = \sum_i frobeniusSq (X i).
Proof.
have e t : frobeniusSq (signedSum X t) = \sum_a \sum_b (0 + rade t (fun i => X i a b)) ^+ 2.
  apply: eq_bigr => a _; apply: eq_bigr => b _; rewrite add0r /signedSum summxE.
  by congr (_ ^+ 2); apply: eq_bigr => i _; rewrite mxE.
transitivity (mean (fun t => \sum_a \sum_b (0 + rade t (fun i => X i a b)) ^+ 2)).
  by rewrite /mean; congr (_ / _); apply: eq_bigr => t _; rewrite e.
rewrite mean_sum exchange_big /=; apply: eq_bigr => a _.
rewrite mean_sum exchange_big /=; apply: eq_bigr => b _.
by have [-> _] := mean_moments (fun i => X i a b) 0; rewrite expr0n add0r.
Qed.

Lemma mean_le_sqrt (f : N.-tuple bool -> R) :
  mean f <= Num.sqrt (mean (fun t => f t ^+ 2)).
Proof.
have h : mean f ^+ 2 <= mean (fun t => f t ^+ 2).
  have := mean_ge (fun t => sqr_ge0 (f t - mean f)); rewrite mean_cst.
  have -> : mean (fun t => (f t - mean f) ^+ 2) = mean (fun t => f t ^+ 2) - mean f ^+ 2.
    transitivity (mean (fun t => f t ^+ 2 + ((- (2%:R * mean f)) * f t + mean f ^+ 2))).
      by rewrite {1 3}/mean; congr (_ / _); apply: eq_bigr => t _; ring.
    by rewrite meanD meanD meanZ mean_cst; ring.
  by rewrite subr_ge0.
apply: le_trans (ler_norm _) _; rewrite -sqrtr_sqr; exact: ler_wsqrtr.
Qed.

(* Choose, knowing the signs t, factors B_t and A_t with |B_t|_F <= b and |A_t|_F <= a. The mean
   correlation of the update s B_t A_t with the signed sample is at most
   |s| a b sqrt(sum_i |X_i|_F^2)/N, hence |s| a b x/sqrt N when every |X_i|_F <= x. (For linear
   functions of the update, and a bound on the Frobenius norms of the factors; the choice B_t, A_t
   stands for the supremum.) *)
Theorem rademacher_bounds r X s a b x (B : N.-tuple bool -> 'M[R]_(m, r))
    (A : N.-tuple bool -> 'M[R]_(r, n)) : (0 < N)%N -> 0 <= a -> 0 <= b -> 0 <= x ->
  (forall t, norm2 (B t) <= b) -> (forall t, norm2 (A t) <= a) ->
  mean (fun t => mdot (s *: (B t *m A t)) (signedSum X t)) / N%:R
    <= `|s| * a * b * Num.sqrt (\sum_i frobeniusSq (X i)) / N%:R /\
  ((forall i, norm2 (X i) <= x) ->
   mean (fun t => mdot (s *: (B t *m A t)) (signedSum X t)) / N%:R
     <= `|s| * a * b * x / Num.sqrt N%:R).
Proof.
move=> N0 a0 b0 x0 hB hA; have Np : 0 < N%:R :> R by rewrite ltr0n.
have c0 : 0 <= `|s| * a * b by rewrite !mulr_ge0.
have pt t : mdot (s *: (B t *m A t)) (signedSum X t) <= `|s| * a * b * norm2 (signedSum X t).
  apply: le_trans (ler_norm _) _; rewrite mdotZl normrM -!mulrA ler_wpmul2l //.
  apply: le_trans (_ : norm2 (B t *m A t) * norm2 (signedSum X t) <= _).
    by rewrite /norm2 -sqrtrM ?frobeniusSq_nonneg // -sqrtr_sqr ler_wsqrtr // cauchy_schwarz.
  rewrite mulrA ler_wpmul2r ?sqrtr_ge0 //.
  apply: le_trans (_ : norm2 (B t) * norm2 (A t) <= _).
    by rewrite /norm2 -sqrtrM ?frobeniusSq_nonneg // ler_wsqrtr // frob_mul_le.
  by rewrite mulrC ler_pmul // sqrtr_ge0.
have first : mean (fun t => mdot (s *: (B t *m A t)) (signedSum X t)) <=
    `|s| * a * b * Num.sqrt (\sum_i frobeniusSq (X i)).
  apply: le_trans (mean_ge pt) _; rewrite meanZ ler_wpmul2l // -mean_energy.
  apply: le_trans (mean_le_sqrt _) _; rewrite ler_wsqrtr //; apply: mean_ge => t.
  by rewrite sqr_sqrtr // frobeniusSq_nonneg.
split=> [|hX]; first by rewrite ler_pmul2r ?invr_gt0.
rewrite ler_pdivr_mulr //; apply: le_trans first _; rewrite -!mulrA !ler_wpmul2l //.
have sN : Num.sqrt N%:R != 0 :> R by rewrite gt_eqF // sqrtr_gt0.
have -> : x * ((Num.sqrt N%:R)^-1 * N%:R) = Num.sqrt (N%:R * x ^+ 2).
  rewrite sqrtrM ?ler0n // sqrtr_sqr ger0_norm // mulrC; congr (_ * _).
  by rewrite -{2}[N%:R]sqr_sqrtr ?ler0n // expr2 mulrA mulVf // mul1r.
apply: ler_wsqrtr; have -> : N%:R * x ^+ 2 = \sum_(i < N) x ^+ 2.
  by rewrite sumr_const card_ord mulr_natl.
apply: ler_sum => i _; rewrite -[leLHS]sqr_sqrtr ?frobeniusSq_nonneg //.
by rewrite ler_expn2r ?nnegrE ?sqrtr_ge0 // hX.
Qed.
End Rademacher.
