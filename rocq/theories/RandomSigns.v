(* Averages over random signs: finite sums over all 2^n sign patterns.
   Over any real closed field: no axioms. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section RandomSigns.
Variable R : rcfType.

(* random signs: t ranges over all 2^n lists of n signs *)
Definition sg (b : bool) : R := (-1) ^+ b.
Definition rade n (t : n.-tuple bool) (a : 'I_n -> R) : R := \sum_i sg (tnth t i) * a i.
Definition mean n (F : n.-tuple bool -> R) : R := (\sum_t F t) / (2 ^ n)%:R.

Lemma sum_tuple_cons n (F : n.+1.-tuple bool -> R) :
  \sum_t F t = \sum_(t : n.-tuple bool) (F [tuple of true :: t] + F [tuple of false :: t]).
Proof.
transitivity (\sum_(p : bool * n.-tuple bool) F [tuple of p.1 :: p.2]).
  rewrite (reindex (fun p : bool * n.-tuple bool => [tuple of p.1 :: p.2])) //=.
  exists (fun t => (thead t, [tuple of behead t])) => [[b t] _|t _] /=.
    by congr pair; apply: val_inj.
  by rewrite [RHS]tuple_eta; apply: val_inj.
rewrite -(pair_big xpredT xpredT (fun (b : bool) (t : n.-tuple bool) => F [tuple of b :: t])) /=
  exchange_big /=.
by apply: eq_bigr => t _; rewrite big_bool.
Qed.

Lemma rade_cons n b (t : n.-tuple bool) (a : 'I_n.+1 -> R) :
  rade [tuple of b :: t] a = sg b * a ord0 + rade t (fun i => a (lift ord0 i)).
Proof.
rewrite /rade big_ord_recl tnth0; congr (_ + _); apply: eq_bigr => i _.
by rewrite tnthS.
Qed.

Lemma mean_rec n (F : n.+1.-tuple bool -> R) :
  mean F = mean (fun t : n.-tuple bool => (F [tuple of true :: t] + F [tuple of false :: t]) /
    2%:R).
Proof.
rewrite /mean sum_tuple_cons -mulr_suml expnS natrM invfM mulrA.
by [].
Qed.

Lemma mean0 (F : 0.-tuple bool -> R) : mean F = F [tuple].
Proof.
rewrite /mean expn0 divr1 (big_pred1 [tuple]) // => t.
by apply/esym/eqP; rewrite tuple0.
Qed.

(* the mean square of a sum of +-a_i *)
Lemma mean_square n (a : 'I_n -> R) : mean (fun t => rade t a ^+ 2) = \sum_i a i ^+ 2.
Proof.
suff h x : mean (fun t => (x + rade t a) ^+ 2) = x ^+ 2 + \sum_i a i ^+ 2.
  have := h 0; rewrite expr0n add0r => <-; rewrite /mean; congr (_ / _).
  by apply: eq_bigr => t _; rewrite add0r.
elim: n a x => [|n IH] a x; first by rewrite !mean0 /rade !big_ord0 !addr0.
have lin : mean (fun t => (x + rade t a) ^+ 2) =
   (mean (fun t => (x - a ord0 + rade t (fun i => a (lift ord0 i))) ^+ 2) +
    mean (fun t => (x + a ord0 + rade t (fun i => a (lift ord0 i))) ^+ 2)) / 2%:R.
  rewrite mean_rec /mean -mulr_suml [LHS]mulrAC -mulrDl -big_split /=; congr (_ / _ / _).
  apply: eq_bigr => t _; rewrite !rade_cons /sg /= expr1 expr0 mulN1r mul1r.
  by rewrite !addrA.
by rewrite lin !IH big_ord_recl; move: (\sum_(i < n) _) => A; field.
Qed.

Lemma mean_ge n (F G : n.-tuple bool -> R) : (forall t, F t <= G t) -> mean F <= mean G.
Proof. by move=> h; rewrite /mean ler_wpmul2r ?invr_ge0 ?ler0n //; apply: ler_sum. Qed.
Lemma meanD n (F G : n.-tuple bool -> R) : mean (fun t => F t + G t) = mean F + mean G.
Proof. by rewrite /mean big_split mulrDl. Qed.
Lemma meanZ n c (F : n.-tuple bool -> R) : mean (fun t => c * F t) = c * mean F.
Proof. by rewrite /mean -mulr_sumr mulrA. Qed.
Lemma mean_cst n c : mean (fun _ : n.-tuple bool => c) = c.
Proof.
by rewrite /mean sumr_const card_tuple card_bool -[c *+ _]mulr_natr mulfK // pnatr_eq0 expn_eq0.
Qed.
Lemma mean_sum n (I : finType) (F : I -> n.-tuple bool -> R) :
  mean (fun t => \sum_i F i t) = \sum_i mean (F i).
Proof. by rewrite /mean exchange_big /= mulr_suml. Qed.

Lemma mean_exists_ge n (F : n.-tuple bool -> R) c : c <= mean F -> exists t, c <= F t.
Proof.
move=> h; pose t0 : n.-tuple bool := [tuple of nseq n true].
case: (@arg_maxP _ _ _ t0 xpredT F isT) => t _ ht; exists t.
apply: le_trans h _; rewrite -[leRHS](mean_cst n).
by apply: mean_ge => t'; apply: ht.
Qed.
End RandomSigns.
