(* How far an attention head's output moves when its keys and values are replaced by others
   (quantized ones): a certificate made of quantities of that head alone.
   Probabilities over any ordered field, no axioms; with softmax over any complete ordered field
   (three boolp axioms). *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From mathcomp.classical Require Import mathcomp_extra.
From mathcomp Require Import reals.
From Gonio Require Import Frobenius Gauge Softmax.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Mixtures.
Variable R : realFieldType.

(* the largest difference between two entries, max - min *)
Definition range n (x : 'I_n -> R) : R := \big[Num.max/0]_i \big[Num.max/0]_j (x i - x j).

Lemma range_ub n (x : 'I_n -> R) i j : x i - x j <= range x.
Proof.
have h i' : \big[Num.max/0]_j (x i' - x j) <= range x.
  exact: (le_bigmax _ (fun i' => \big[Num.max/0]_j (x i' - x j))).
by apply: le_trans (h i); apply: (le_bigmax _ (fun j => x i - x j)).
Qed.

(* a change of total 0 moves a mean of x by at most half its l1 size times the range of x *)
Lemma mixture_range n (p q x : 'I_n -> R) : \sum_i p i = \sum_i q i ->
  `|\sum_i p i * x i - \sum_i q i * x i| <= 2%:R^-1 * (\sum_i `|p i - q i|) * range x.
Proof.
case: n p q x => [|m] p q x pq; first by rewrite !big_ord0 subrr normr0 mulr0 mul0r.
pose e i := p i - q i; pose pos := \sum_(i | 0 <= e i) e i.
pose neg := \sum_(i | ~~ (0 <= e i)) - e i.
have e0 : \sum_i e i = 0 by rewrite sumrB pq subrr.
have posneg : pos = neg.
  by move: e0; rewrite (bigID (fun i => 0 <= e i)) /= /neg sumrN => /eqP; rewrite addr_eq0 => /eqP.
have l1 : \sum_i `|p i - q i| = 2%:R * pos.
  rewrite (bigID (fun i => 0 <= e i)) /= (eq_bigr e) => [|i h]; last by rewrite ger0_norm.
  rewrite -/pos [X in _ + X](_ : _ = neg); first by rewrite -posneg mulr_natl mulr2n.
  by apply: eq_bigr => i h; rewrite ltr0_norm // ltNge.
rewrite -sumrB (eq_bigr (fun i => e i * x i)) => [|i _]; last by rewrite mulrBl.
rewrite l1 mulKf ?pnatr_eq0 //.
have half (y : 'I_m.+1 -> R) b : (forall i j, y i - y j <= b) -> \sum_i e i * y i <= pos * b.
  move=> yb; have [k _ kmin] := @arg_minP _ _ _ ord0 xpredT y isT.
  have -> : \sum_i e i * y i = \sum_i e i * (y i - y k).
    rewrite [RHS](eq_bigr (fun i => e i * y i - e i * y k)) => [|i _]; last exact: mulrBr.
    by rewrite sumrB -mulr_suml e0 mul0r subr0.
  rewrite (bigID (fun i => 0 <= e i)) /= -[leRHS]addr0; apply: ler_add.
    rewrite /pos mulr_suml; apply: ler_sum => i ei.
    by rewrite ler_wpmul2l.
  apply: sumr_le0 => i; rewrite -ltNge => ei.
  by rewrite nmulr_rle0 // subr_ge0 kmin.
rewrite ler_norml; apply/andP; split.
  rewrite ler_oppl.
  rewrite -sumrN (eq_bigr (fun i => e i * - x i)) => [|i _]; last by rewrite mulrN.
  by apply: half => i j; rewrite opprK addrC range_ub.
by apply: half => i j; apply: range_ub.
Qed.

(* the factor 1/2 is the best for every change of total 0, with values between 0 and 1 *)
Lemma mixture_range_sharp n (p q : 'I_n -> R) : \sum_i p i = \sum_i q i -> exists x, [/\
  forall i, 0 <= x i <= 1, range x <= 1 &
  \sum_i p i * x i - \sum_i q i * x i = 2%:R^-1 * \sum_i `|p i - q i|].
Proof.
move=> pq; exists (fun i => ((0 <= p i - q i)%R)%:R).
have b01 (b : bool) : 0 <= (b%:R : R) <= 1 by case: b; rewrite ?lexx ?ler01.
split=> [i||]; first exact: b01.
  apply: bigmax_le => [|i _]; first exact: ler01.
  apply: bigmax_le => [|j _]; first exact: ler01.
  have /andP[_ h1] := b01 (0 <= p i - q i); have /andP[h2 _] := b01 (0 <= p j - q j).
  by rewrite ler_subl_addr (le_trans h1) // ler_addl.
apply: (mulfI (_ : 2%:R != 0)); rewrite ?pnatr_eq0 // mulVKf ?pnatr_eq0 //.
have e0 : \sum_i (p i - q i) = 0 by rewrite sumrB pq subrr.
pose e i := p i - q i; pose b i : R := ((0 <= e i)%R)%:R.
have absE i : `|p i - q i| = 2%:R * (e i * b i) - e i.
  rewrite /b -/(e i); case: lerP => h; last by rewrite ltr0_norm // !mulr0 sub0r.
  by rewrite ger0_norm // mulr1; ring.
rewrite (eq_bigr _ (fun i _ => absE i)) sumrB e0 subr0 -mulr_sumr -sumrB; congr (_ * _).
by apply: eq_bigr => i _; rewrite mulrBl.
Qed.
End Mixtures.

Section Attention.
Variables (R : realType) (n d c : nat).
Local Notation tokens := 'I_n.+1.
Implicit Types (q : 'cV[R]_d) (K : tokens -> 'cV[R]_d) (V : tokens -> 'cV[R]_c) (p : tokens -> R).

Definition attentionScore q K (t : tokens) : R := mdot q (K t) / Num.sqrt d%:R.
Definition attentionOutput p V : 'cV[R]_c := \sum_t p t *: V t.

Lemma attentionOutputE p V j : attentionOutput p V j 0 = \sum_t p t * V t j 0.
Proof. by rewrite /attentionOutput summxE; apply: eq_bigr => t _; rewrite mxE. Qed.

(* |<u, v>| <= |u| |v| *)
Lemma mdot_norm_le (u v : 'cV[R]_d) : `|mdot u v| <= norm2 u * norm2 v.
Proof.
by rewrite /norm2 -sqrtrM ?frobeniusSq_nonneg // -sqrtr_sqr ler_wsqrtr // cauchy_schwarz.
Qed.

(* Let a head attend from q to keys K and values V with probabilities p, and to K', V' with p'. In
   each channel j its output moves by at most (1/2) |p - p'|_1 (max_t V_tj - min_t V_tj) plus the
   largest |V_tj - V'_tj|; and |p - p'|_1 is at most the largest |q| |K_t - K'_t| / sqrt d. *)
Theorem attention_output_distortion q K K' V V' (j : 'I_c) :
  let p := softmax (attentionScore q K) in let p' := softmax (attentionScore q K') in
  `|attentionOutput p V j 0 - attentionOutput p' V' j 0|
     <= 2%:R^-1 * l1Distance p p' * range (fun t => V t j 0)
        + linfDistance (fun t => V t j 0) (fun t => V' t j 0) /\
  l1Distance p p' <= \big[Num.max/0]_t (norm2 q * norm2 (K t - K' t) / Num.sqrt d%:R).
Proof.
move=> p p'; split.
  have -> : attentionOutput p V j 0 - attentionOutput p' V' j 0 =
      (attentionOutput p V j 0 - attentionOutput p' V j 0) +
      (\sum_t p' t * (V t j 0 - V' t j 0)).
    have -> : \sum_t p' t * (V t j 0 - V' t j 0) = \sum_t (p' t * V t j 0 - p' t * V' t j 0).
      by apply: eq_bigr => t _; rewrite mulrBr.
    by rewrite !attentionOutputE sumrB [RHS]addrA subrK.
  apply: le_trans (ler_norm_add _ _) (ler_add _ _).
    by rewrite !attentionOutputE mixture_range // !softmax_sum1.
  apply: le_trans (ler_norm_sum _ _ _) _.
  rewrite -[leRHS]mul1r -(softmax_sum1 (attentionScore q K')) mulr_suml; apply: ler_sum => t _.
  have p0 := ltW (softmax_gt0 (attentionScore q K') t).
  rewrite normrM ger0_norm // ler_wpmul2l //.
  exact: (le_bigmax _ (fun t => `|V t j 0 - V' t j 0|)).
apply: le_trans (softmax_linf_l1_lipschitz _ _) _.
apply: bigmax_le => [|t _]; first by elim/big_rec: _ => // t x _ x0; rewrite le_maxr x0 orbT.
apply: le_trans (le_bigmax _ (fun t => norm2 q * norm2 (K t - K' t) / Num.sqrt d%:R) t).
rewrite -mulrBl -mdotBr normrM [X in _ * X]ger0_norm ?invr_ge0 ?sqrtr_ge0 //.
by rewrite ler_wpmul2r ?invr_ge0 ?sqrtr_ge0 // mdot_norm_le.
Qed.

(* The factor 1/2 cannot be lowered: for any two probability vectors some values between 0 and 1
   attain it with equality in every channel. *)
Theorem attention_output_distortion_sharp p p' : \sum_t p t = 1 -> \sum_t p' t = 1 ->
  exists V, forall j, range (fun t => V t j 0) <= 1 /\
    attentionOutput p V j 0 - attentionOutput p' V j 0 = 2%:R^-1 * l1Distance p p'.
Proof.
move=> h h'; have [|x [_ rx xE]] := @mixture_range_sharp _ _ p p'; first by rewrite h h'.
exists (fun t => const_mx (x t)) => j; rewrite !attentionOutputE -xE.
have mE t : (const_mx (x t) : 'cV[R]_c) j 0 = x t by rewrite mxE.
have sumE (a : tokens -> R) : \sum_t a t * (const_mx (x t) : 'cV[R]_c) j 0 = \sum_t a t * x t.
  by apply: eq_bigr => t _; rewrite mE.
split; last by rewrite !sumE.
rewrite (_ : range _ = range x) // /range; apply: eq_bigr => i _.
by apply: eq_bigr => k _; rewrite !mE.
Qed.
End Attention.
