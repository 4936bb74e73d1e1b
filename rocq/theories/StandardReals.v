(* The real numbers of Coq's standard library as a complete ordered field in the sense of mathcomp,
   so that statements over any such field can be used together with integrals and with pi.
   (Rstruct of MathComp-Analysis does the same, with one more axiom: Hilbert's epsilon.)
   Axioms: those of the standard reals, and the three of boolp. *)
From Coq Require Import Reals Psatz.
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.classical Require Import boolp classical_sets.
From mathcomp Require Import reals.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.

(* ---------- an ordered field ---------- *)
Canonical R_eqType := EqType R gen_eqMixin.
Canonical R_choiceType := ChoiceType R gen_choiceMixin.

Lemma RplusA : associative Rplus. Proof. by move=> x y z; rewrite Rplus_assoc. Qed.
Lemma RmultA : associative Rmult. Proof. by move=> x y z; rewrite Rmult_assoc. Qed.
Lemma R1_neq0 : R1 != R0. Proof. by apply/eqP; exact: R1_neq_R0. Qed.
Canonical R_zmodType := ZmodType R (ZmodMixin RplusA Rplus_comm Rplus_0_l Rplus_opp_l).
Canonical R_ringType :=
  RingType R (ComRingMixin RmultA Rmult_comm Rmult_1_l Rmult_plus_distr_r R1_neq0).
Canonical R_comRingType := ComRingType R Rmult_comm.

Lemma RmulVx (x : R) : x != R0 -> Rmult (Rinv x) x = R1.
Proof. by move=> /eqP; exact: Rinv_l. Qed.
Definition R_unitMixin := FieldUnitMixin RmulVx Rinv_0.
Canonical R_unitRingType := UnitRingType R R_unitMixin.
Canonical R_comUnitRingType := [comUnitRingType of R].
Fact R_fieldMixin : GRing.Field.mixin_of R_unitRingType. Proof. by []. Qed.
Canonical R_idomainType := IdomainType R (FieldIdomainMixin R_fieldMixin).
Canonical R_fieldType := FieldType R R_fieldMixin.

Definition Rleb (x y : R) := `[< Rle x y >].
Definition Rltb (x y : R) := `[< Rlt x y >].
Fact Rle0_add x y : Rleb R0 x -> Rleb R0 y -> Rleb R0 (Rplus x y).
Proof. by move=> /asboolP h /asboolP h'; apply/asboolP; exact: Rplus_le_le_0_compat. Qed.
Fact Rle0_mul x y : Rleb R0 x -> Rleb R0 y -> Rleb R0 (Rmult x y).
Proof. by move=> /asboolP h /asboolP h'; apply/asboolP; exact: Rmult_le_pos. Qed.
Fact Rle0_anti x : Rleb R0 x -> Rleb x R0 -> x = R0.
Proof. by move=> /asboolP h /asboolP h'; exact: Rle_antisym. Qed.
Fact Rsub_ge0 x y : Rleb R0 (Rminus y x) = Rleb x y.
Proof. by apply/asboolP/asboolP; lra. Qed.
Fact Rle0_total x : Rleb R0 x || Rleb x R0.
Proof.
by apply/orP; have [h|h] := Rle_or_lt 0 x; [left|right]; apply/asboolP=> //; exact: Rlt_le.
Qed.
Fact RnormN x : Rabs (Ropp x) = Rabs x. Proof. exact: Rabs_Ropp. Qed.
Fact Rge0_norm x : Rleb R0 x -> Rabs x = x.
Proof. by move=> /asboolP h; apply: Rabs_right; exact: Rle_ge. Qed.
Fact Rlt_def x y : Rltb x y = (y != x) && Rleb x y.
Proof.
apply/asboolP/andP => [h|[/eqP n /asboolP h]]; last by lra.
by split; [apply/eqP|apply/asboolP]; lra.
Qed.
Fact Rle_total x y : Rleb x y || Rleb y x.
Proof.
by apply/orP; have [h|h] := Rle_or_lt x y; [left|right]; apply/asboolP=> //; exact: Rlt_le.
Qed.

Definition RleMixin : realLeMixin R_idomainType :=
  RealLeMixin Rle0_add Rle0_mul Rle0_anti Rsub_ge0 Rle0_total RnormN Rge0_norm Rlt_def.
Canonical R_porderType := POrderType ring_display R RleMixin.
Canonical R_latticeType := LatticeType R RleMixin.
Canonical R_distrLatticeType := DistrLatticeType R RleMixin.
Canonical R_orderType := OrderType R Rle_total.
Canonical R_numDomainType := NumDomainType R RleMixin.
Canonical R_normedZmodType := NormedZmodType R R RleMixin.
Canonical R_numFieldType := [numFieldType of R].
Canonical R_realDomainType := [realDomainType of R].
Canonical R_realFieldType := [realFieldType of R].

Local Open Scope ring_scope.
Implicit Types x y : R.

(* ---------- the two languages ---------- *)
Lemma RleE x y : (x <= y)%R = Rle x y :> Prop.
Proof. by apply/propext; split=> [/asboolP|h] //; apply/asboolP. Qed.
Lemma RltE x y : (x < y)%R = Rlt x y :> Prop.
Proof. by apply/propext; split=> [/asboolP|h] //; apply/asboolP. Qed.
Lemma INR_natr n : INR n = n%:R.
Proof. by elim: n => // n IH; rewrite S_INR IH -addn1 natrD. Qed.
Lemma Rpow_exp x n : pow x n = x ^+ n.
Proof. by elim: n => // n IH; rewrite exprS /= IH. Qed.

(* ---------- real closed, complete ---------- *)
Fact Rarchimedean : Num.archimedean_axiom R_numDomainType.
Proof.
move=> x; exists (Z.to_nat (up (Rabs x))); rewrite -INR_natr RltE.
have [h _] := archimed (Rabs x); have x0 := Rabs_pos x.
by rewrite INR_IZR_INZ Z2Nat.id //; apply: le_IZR; lra.
Qed.
Canonical R_archiFieldType := ArchiFieldType R Rarchimedean.

Lemma horner_continuity (p : {poly R}) : continuity (fun x => p.[x]).
Proof.
elim/poly_ind: p => [|p c IH].
  have -> : (fun x => (0 : {poly R}).[x]) = fct_cte 0 by apply/funext => x; rewrite horner0.
  by apply: continuity_const => x y.
have -> : (fun x => (p * 'X + c%:P).[x]) = plus_fct (mult_fct (fun x => p.[x]) id) (fct_cte c).
  by apply/funext => x; rewrite hornerMXaddC.
apply: continuity_plus; last by apply: continuity_const => x y.
by apply: continuity_mult => //; apply: derivable_continuous; apply: derivable_id.
Qed.

Fact Rreal_closed : Num.real_closed_axiom R_numDomainType.
Proof.
move=> p a b; rewrite le_eqVlt => /orP[/eqP <-|ab] /andP[pa pb].
  by exists a; rewrite ?lexx // rootE eq_le pa pb.
have [z [[az zb] /eqP pz]] : {z | (Rle a z /\ Rle z b) /\ p.[z] = 0}.
  apply: IVT_cor; [exact: horner_continuity | by rewrite -RleE ltW |].
  rewrite -RleE -[X in X <= _]/(p.[a] * p.[b]).
  by rewrite mulr_le0_ge0.
by exists z; [apply/andP; split; rewrite RleE | rewrite rootE].
Qed.
Canonical R_rcfType := RcfType R Rreal_closed.

Lemma is_upper_boundE (E : set R) x : is_upper_bound E x <-> ubound E x.
Proof. by split=> h y Ey; move: (h y Ey); rewrite RleE. Qed.

Lemma R_supremum (E : set R) : has_sup E -> isLub E (supremum 0 E).
Proof.
move=> [E0 [u uE]]; have bE : bound E by exists u; apply/is_upper_boundE.
have [s [s1 s2]] := completeness E bE E0.
have sE : isLub E s.
  split; first exact/is_upper_boundE.
  by move=> y yE; rewrite RleE; apply: s2; apply/is_upper_boundE.
have n0 : (supremums E !=set0)%classic by exists s.
split=> x Ex; first exact: ge_supremum_Nmem.
rewrite /supremum; case: eqP => [E00|_]; first by case: E0 => y; rewrite E00.
case: xgetP => [z _ [_ h]|h]; first exact: h.
by case: n0 => z /(h z).
Qed.

Lemma R_sup_ub (E : set R) : has_sup E -> ubound E (supremum 0 E).
Proof. by move=> h; have [] := R_supremum h. Qed.
Lemma R_sup_adherent (E : set R) (eps : R) : 0 < eps -> has_sup E ->
  exists2 e, E e & supremum 0 E - eps < e.
Proof.
move=> e0 hE; apply: contrapT => no; have [_ h] := R_supremum hE.
have := h (supremum 0 E - eps); rewrite leNgt ltr_subl_addr ltr_addl e0 /=.
suff ub : ubound E (supremum 0 E - eps) by move/(_ ub).
by move=> y Ey; rewrite leNgt; apply/negP => hy; apply: no; exists y.
Qed.
Definition R_realMixin : Real.mixin_of _ := RealMixin R_sup_ub R_sup_adherent.
Canonical R_realType := RealType R R_realMixin.
