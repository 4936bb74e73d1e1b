(* What an update must be to change a loss: a lower bound on its stable rank and on its length.
   Derivatives are those of mathcomp-analysis and bring in its axioms. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From mathcomp.classical Require Import boolp classical_sets functions.
From mathcomp Require Import reals topology normedtype derive.
From Gonio Require Import Frobenius Gauge SpectralNorm StableRank.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory numFieldNormedType.Exports.
Local Open Scope ring_scope.

Section Intent.
Variables (R : realType) (m n : nat).
Local Notation matrix := 'M[R]_(m, n).
Implicit Types (D X : matrix) (f : matrix -> R) (G : matrix -> matrix).

(* along every line the derivative of f is the inner product of G with the direction *)
Definition is_gradient f G := forall X D (t : R),
  is_derive t (1 : R) (fun s : R => f (X + s *: D)) (mdot (G (X + t *: D)) D).
(* f is L-smooth: its gradient is L-Lipschitz *)
Definition smooth (L : R) f G :=
  is_gradient f G /\ forall X Y, norm2 (G X - G Y) <= L * norm2 (X - Y).

(* the descent lemma *)
Lemma smooth_lower (L : R) f G X D : smooth L f G ->
  mdot (G X) D - L / 2%:R * frobeniusSq D <= f (X + D) - f X.
Proof.
move=> [dG lG]; pose k := L / 2%:R * frobeniusSq D; pose c := mdot (G X) D.
pose phi (t : R) := f (X + t *: D).
pose psi : R -> R := phi + (k \*: (@id R ^+ 2) - c \*: @id R).
have dpsi t : is_derive t (1 : R) psi (mdot (G (X + t *: D)) D + (2%:R * k * t - c)).
  have := dG X D t; rewrite -/phi => dphi.
  apply: is_derive_eq; congr (_ + _).
  by rewrite /GRing.scale /= expr1 !mulr1; move: (k) (c) => k' c'; ring.
have psi01 : psi 1 - psi 0 = f (X + D) - f X + (k - c).
  rewrite (_ : psi 1 = f (X + 1 *: D) + (k * 1 ^+ 2 - c * 1)) //.
  rewrite (_ : psi 0 = f (X + 0 *: D) + (k * 0 ^+ 2 - c * 0)) // scale1r scale0r addr0.
  by move: (k) (c) => k' c'; ring.
pose dpsiE t := mdot (G (X + t *: D)) D + (2%:R * k * t - c).
have [|t] := @MVT_segment R psi dpsiE 0 1 ler01 (fun t _ => dpsi t).
  apply: continuous_subspaceT => t; apply/differentiable_continuous/derivable1_diffP.
  by case: (dpsi t).
rewrite in_itv /= subr0 mulr1 psi01 => /andP[t0 _] e.
have up : - (2%:R * k * t) <= mdot (G (X + t *: D)) D - c.
  rewrite -mdotBl ler_oppl -mdotNl (le_trans (mdot_le_norm2 _ _)) //.
  have -> : norm2 (- (G (X + t *: D) - G X)) = norm2 (G (X + t *: D) - G X).
    by rewrite /norm2 -scaleN1r frobeniusSq_smul sqrrN expr1n mul1r.
  have h := lG (X + t *: D) X; rewrite addrAC subrr add0r in h.
  have nt : norm2 (t *: D) = t * norm2 D.
    by rewrite /norm2 frobeniusSq_smul sqrtrM ?sqr_ge0 // sqrtr_sqr ger0_norm.
  rewrite nt in h; apply: le_trans (ler_wpmul2r (norm2_ge0 D) h) _.
  by rewrite /k -norm2_sq le_eqVlt; apply/orP; left; apply/eqP; field.
by rewrite -/c -/k -subr_ge0 opprB e /dpsiE addrCA addrC -[2%:R * k * t]opprK subr_ge0.
Qed.

(* An update D whose linear effect <G, D> on the loss is at least delta > 0, G the gradient, has
   stable rank at least (delta / (|G|_F |D|_2))^2. And if the loss is L-smooth, going from X to X
   + D can lower it by delta only if |G|_F |D|_F + (L/2)|D|_F^2 >= delta, G the gradient at X.
   (The source only hopes for a bound; this is a true one.) *)
Theorem lower_bound_of_intent (delta : R) : 0 < delta ->
  (forall G D : matrix, delta <= mdot G D ->
     (delta / (norm2 G * Num.sqrt (spectralSq D))) ^+ 2 <= stableRank D) /\
  (forall (L : R) f gradient X D, smooth L f gradient -> delta <= f X - f (X + D) ->
     delta <= norm2 (gradient X) * norm2 D + L / 2%:R * norm2 D ^+ 2).
Proof.
move=> d0; split=> [G D h|L f g X D hf h].
  have [D0 G0] : D != 0 /\ G != 0.
    by split; apply: contraTneq d0 => E; rewrite -leNgt (le_trans h) // E ?mdot0l ?mdot0r.
  rewrite expr_div_n exprMn norm2_sq sqr_sqrtr ?spectralSq_nonneg // /stableRank.
  rewrite ler_pdivl_mulr ?spectral_gt0 // invfM mulrA divfK ?gt_eqF ?spectral_gt0 //.
  rewrite ler_pdivr_mulr ?frob_gt0 // mulrC (le_trans _ (cauchy_schwarz G D)) //.
  by rewrite ler_pexpn2r ?nnegrE ?(ltW d0) // (le_trans (ltW d0)).
have := smooth_lower X D hf; rewrite -norm2_sq => lo.
have Cs : - (norm2 (g X) * norm2 D) <= mdot (g X) D.
  rewrite ler_oppl -mdotNl (le_trans (mdot_le_norm2 _ _)) // /norm2 -scaleN1r.
  by rewrite frobeniusSq_smul sqrrN expr1n mul1r.
rewrite (le_trans h) // -[f X - _]opprB ler_oppl opprD (le_trans _ lo) // ler_add2r.
exact: Cs.
Qed.
End Intent.
