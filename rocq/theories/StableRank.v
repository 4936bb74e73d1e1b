(* Stable rank: |M|_F^2 / |M|_2^2, unchanged by scaling, between 1 and the rank.
   Over any complete ordered field; axioms: those of the supremum (see SpectralNorm). *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import reals.
From Gonio Require Import Frobenius OrthonormalBasis SpectralNorm.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(* If f and g scale by a^2 when their argument scales by a, then f/g ignores any scale but 0. *)
Theorem ratio_smul_invariant_of_quadratic (F : fieldType) (V : lmodType F)
    (f g : V -> F) c (x : V) :
  (forall a v, f (a *: v) = a ^+ 2 * f v) -> (forall a v, g (a *: v) = a ^+ 2 * g v) ->
  c != 0 -> f (c *: x) / g (c *: x) = f x / g x.
Proof. by move=> hf hg c0; rewrite hf hg invfM mulrACA divff ?mul1r // expf_eq0. Qed.

Section StableRank.
Variable R : realType.
Implicit Types c : R.

Definition stableRank m n (M : 'M[R]_(m, n)) : R := frobeniusSq M / spectralSq M.

(* Scaling a matrix by c <> 0 does not change its stable rank. *)
Theorem stableRank_smul_invariant m n c (M : 'M[R]_(m, n)) :
  c != 0 -> stableRank (c *: M) = stableRank M.
Proof.
rewrite /stableRank => c0.
by apply: (@ratio_smul_invariant_of_quadratic _ _ (@frobeniusSq R m n) (@spectralSq R m n));
  move=> // a v; rewrite ?frobeniusSq_smul ?spectralSq_smul.
Qed.

Lemma frob_le_rank_spectral m n (M : 'M[R]_(m, n)) :
  frobeniusSq M <= (\rank M)%:R * spectralSq M.
Proof.
have [Q [QQ hM]] := row_space_onb M.
rewrite -{1}hM frob_mulr_orth // frob_cols.
rewrite mulr_natl -[X in _ *+ X]card_ord -sumr_const; apply: ler_sum => k _.
rewrite colE -mulmxA -colE spectral_ub // -tr_row frob_tr frobE.
have := congr1 (fun A : 'M_(_, _) => A k k) QQ; rewrite !mxE eqxx mulr1n => <-.
by rewrite /mdot big_ord1; apply: eq_bigr => j _; rewrite !mxE.
Qed.

(* The stable rank of a matrix other than 0 lies between 1 and its rank. *)
Theorem stableRank_le_rank m n (M : 'M[R]_(m, n)) :
  M != 0 -> 1 <= stableRank M <= (\rank M)%:R.
Proof.
rewrite -spectral_gt0 => M0; rewrite ler_pdivl_mulr // ler_pdivr_mulr // mul1r.
by rewrite spectralSq_le_frob frob_le_rank_spectral.
Qed.
End StableRank.
