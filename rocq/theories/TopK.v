(* Keeping the largest entries of a list is the best way to keep k of them.
   Over any ordered field: no axioms. *)
From mathcomp Require Import all_ssreflect all_algebra.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section TopK.
Variable R : realFieldType.

(* ---------- sets ---------- *)
Section Sets.
Variables (I : finType) (eps : I -> R).
Implicit Types K S : {set I}.

(* no entry outside K is larger in size than one inside *)
Definition isTopK K := forall i j, i \in K -> j \notin K -> `|eps j| <= `|eps i|.
(* the same, with no ties across the border of K *)
Definition isStrictTopK K := forall i j, i \in K -> j \notin K -> `|eps j| < `|eps i|.
(* the energy of the entries that are not kept *)
Definition remaining S : R := \sum_(i in ~: S) eps i ^+ 2.

Lemma remaining_diff K S :
  remaining S - remaining K = \sum_(i in K :\: S) eps i ^+ 2 - \sum_(i in S :\: K) eps i ^+ 2.
Proof.
have split A B : remaining A = \sum_(i in ~: (A :|: B)) eps i ^+ 2 + \sum_(i in B :\: A) eps i ^+ 2.
  rewrite /remaining (big_setID B) /= addrC; congr (_ + _); apply: eq_bigl => i.
    by rewrite !inE negb_or andbC.
  by rewrite !inE andbC.
rewrite (split S K) (split K S) [K :|: S]setUC opprD addrACA subrr add0r //.
Qed.

Lemma sq_le i j : (eps j ^+ 2 <= eps i ^+ 2) = (`|eps j| <= `|eps i|).
Proof.
rewrite -(real_normK (num_real (eps i))) -(real_normK (num_real (eps j))).
by rewrite ler_sqr ?nnegrE.
Qed.

(* the entries dropped for others are at least as large, hence their energy *)
Lemma exchange K S : isTopK K -> (#|S| <= #|K|)%N -> K :\: S != set0 ->
  exists2 i, i \in K :\: S &
  [/\ \sum_(j in S :\: K) eps j ^+ 2 <= #|S :\: K|%:R * eps i ^+ 2,
      #|S :\: K|%:R * eps i ^+ 2 <= #|K :\: S|%:R * eps i ^+ 2 &
      #|K :\: S|%:R * eps i ^+ 2 <= \sum_(j in K :\: S) eps j ^+ 2].
Proof.
move=> hK cS /set0Pn[i1 i1P]; have [i iP imin] := arg_minP (fun i => eps i ^+ 2) i1P.
exists i => //; have /setDP[iK _] := iP.
have cardle : (#|S :\: K| <= #|K :\: S|)%N by rewrite !cardsD setIC leq_sub2r.
split; last 1 first.
- by rewrite mulr_natl -sumr_const; apply: ler_sum => j jP; apply: imin.
- rewrite mulr_natl -sumr_const; apply: ler_sum => j /setDP[_ jK].
  by rewrite sq_le hK.
by rewrite ler_wpmul2r ?sqr_ge0 ?ler_nat.
Qed.

(* If K holds the k entries of largest size, no set of at most k entries leaves less energy
   behind. K is the only best set of k entries exactly if there is no tie across its border: the
   k-th and the (k+1)-th size differ. (The printed claim has uniqueness without that condition.)
   *)
Theorem top_k_optimal K : isTopK K ->
  (forall S, (#|S| <= #|K|)%N -> remaining K <= remaining S) /\
  (isStrictTopK K <-> forall S, #|S| = #|K| -> remaining S = remaining K -> S = K).
Proof.
move=> hK; split=> [S cS|].
  rewrite -subr_ge0 remaining_diff subr_ge0; have [K0|K0] := eqVneq (K :\: S) set0.
    suff -> : S :\: K = set0 by rewrite K0.
    apply/eqP; rewrite -cards_eq0 -leqn0.
    by move: cS; rewrite -(cardsID S K) -(cardsID K S) setIC K0 cards0 leq_add2l.
  by have [i _ [h1 h2 h3]] := exchange hK cS K0; rewrite (le_trans h1) // (le_trans h2).
split=> [sK S cS hS|uniq i j iK jK].
  have [K0|K0] := eqVneq (K :\: S) set0.
    by apply/esym/eqP; rewrite eqEcard cS leqnn andbT -setD_eq0 K0.
  have /set0Pn[j jP] : S :\: K != set0.
    rewrite -card_gt0 cardsD setIC cS -cardsD card_gt0 //.
  have cS' : (#|S| <= #|K|)%N by rewrite cS.
  have [i iP [h1 h2 h3]] := exchange hK cS' K0; exfalso.
  have /andP[_ iK] : (i \notin S) && (i \in K) by rewrite -in_setD.
  have hji k : k \in S :\: K -> eps k ^+ 2 < eps i ^+ 2.
    by rewrite inE => /andP[kK _]; rewrite ltNge sq_le -ltNge sK.
  have : \sum_(k in S :\: K) eps k ^+ 2 < #|S :\: K|%:R * eps i ^+ 2.
    rewrite mulr_natl -sumr_const (bigD1 j) // [ltRHS](bigD1 j) //= ltr_le_add ?hji //.
    by apply: ler_sum => k /andP[kP _]; rewrite ltW ?hji.
  move=> lt; have := remaining_diff K S; rewrite hS subrr => /esym/eqP; rewrite subr_eq0 => /eqP E.
  by move: lt; rewrite -E ltNge (le_trans h2).
rewrite lt_neqAle hK // andbT; apply/negP => /eqP tie.
have ij : i != j by apply: contraNneq jK => <-.
pose S := j |: (K :\ i).
have jKi : j \notin K :\ i by rewrite !inE negb_and (negPf jK) orbT.
have cS : #|S| = #|K| by rewrite cardsU1 jKi (cardsD1 i K) iK.
have KS : K :\: S = [set i].
  apply/setP => k; rewrite !inE; have [->|ki] := eqVneq k i; first by rewrite iK orbF ij.
  by case kK : (k \in K); rewrite ?orbT ?andbF.
have SK : S :\: K = [set j].
  apply/setP => k; rewrite !inE; have [->|kj] := eqVneq k j; first by rewrite jK.
  by case: (k \in K); rewrite ?andbF.
have : S = K.
  apply: uniq => //; apply/eqP; rewrite -subr_eq0 remaining_diff KS SK !big_set1 subr_eq0.
  by rewrite eq_le !sq_le tie lexx.
by move=> E; move: jK; rewrite -E setU11.
Qed.

(* for every k there is such a set *)
Lemma top_k_exists k : (k <= #|I|)%N -> exists K, #|K| = k /\ isTopK K.
Proof.
elim: k => [|k IH] hk; first by exists set0; rewrite cards0; split=> // i j; rewrite inE.
have [K [cK hK]] := IH (ltnW hk).
have /set0Pn[i0 i0P] : ~: K != set0 by rewrite -card_gt0 cardsCs setCK cK subn_gt0.
have [i iP imax] := arg_maxP (fun i => `|eps i|) i0P.
exists (i |: K); have /setCP/negP iK := iP.
split; first by rewrite cardsU1 iK cK.
move=> a b; rewrite !inE negb_or => aP /andP[bi bK].
by case/orP: aP => [/eqP -> |aK]; [apply: imax; apply/setCP/negP | apply: hK].
Qed.
End Sets.

(* ---------- weights ---------- *)
(* weights between 0 and 1 of total mass at most r capture at most the r largest of d_0 >= d_1 >=
   ... *)
Lemma topk_weights p (d c : 'I_p -> R) r :
  (forall i j : 'I_p, (i <= j)%N -> d j <= d i) -> (forall i, 0 <= d i) ->
  (forall i, 0 <= c i <= 1) -> \sum_i c i <= r%:R ->
  \sum_i d i * c i <= \sum_(i < p | (i < r)%N) d i.
Proof.
move=> dS d0 c01 cr; case: (leqP p r) => [pr|rp].
  rewrite [leRHS](eq_bigl xpredT) => [|i]; last by rewrite (leq_trans (ltn_ord i)).
  by apply: ler_sum => i _; have /andP[_ h] := c01 i; rewrite ler_pimulr.
pose ir := Ordinal rp; pose b (i : 'I_p) : R := ((i < r)%N)%:R.
have -> : \sum_(i < p | (i < r)%N) d i = \sum_i d i * b i.
  rewrite [LHS]big_mkcond; apply: eq_bigr => i _.
  by rewrite /b; case: ifP => _; rewrite ?mulr1 ?mulr0.
have bs : \sum_i b i = r%:R.
  transitivity (\sum_(i < p | (i < r)%N) (1 : R)).
    by rewrite [RHS]big_mkcond; apply: eq_bigr => i _; rewrite /b; case: ifP.
  by rewrite -(big_ord_widen _ (fun=> 1 : R) (ltnW rp)) sumr_const card_ord.
rewrite -subr_ge0 -sumrB.
have le i : d ir * (b i - c i) <= d i * b i - d i * c i.
  rewrite -mulrBr; have /andP[c0 c1] := c01 i; rewrite /b.
  case: ltnP => h; first by rewrite ler_wpmul2r ?subr_ge0 // dS // ltnW.
  by rewrite sub0r !mulrN ler_oppl opprK ler_wpmul2r // dS.
apply: (@le_trans _ _ (\sum_i d ir * (b i - c i))); last by apply: ler_sum => i _.
by rewrite -mulr_sumr sumrB bs mulr_ge0 // subr_ge0.
Qed.
End TopK.
