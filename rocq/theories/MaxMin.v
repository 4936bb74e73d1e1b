(* What is best for the worst served: one choice for all against a choice for each.
   Over any complete ordered field; suprema bring in the three axioms of boolp. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.classical Require Import boolp classical_sets.
From mathcomp Require Import reals.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.
Local Open Scope classical_set_scope.

Section MaxMin.
Variable R : realType.

(* Let f q e be bounded: how well the choice q serves e. What one q, shared by all, can do for the
   worst served e is at most what is left to the worst served with the best choice for each: sup_q
   inf_e f q e <= inf_e sup_q f q e; and the same for the sum over finitely many e in place of the
   infimum. (For any sets of choices and of served; f may be a cosine, bounded by 1.) *)
Theorem max_min_le_min_max (Q E : Type) (q0 : Q) (e0 : E) (f : Q -> E -> R) c :
  (forall q e, `|f q e| <= c) ->
  sup [set inf [set f q e | e in setT] | q in setT] <=
    inf [set sup [set f q e | q in setT] | e in setT] /\
  forall n (e : 'I_n -> E), sup [set \sum_i f q (e i) | q in setT] <=
    \sum_i sup [set f q (e i) | q in setT].
Proof.
move=> b; have b1 q e : f q e <= c by apply: le_trans (ler_norm _) (b q e).
have b2 q e : - c <= f q e by have := b q e; rewrite ler_norml => /andP[].
have best q e : f q e <= sup [set f q e | q in setT].
  by apply: sup_ub; [exists c => y [q' _ <-] | exists q].
have worst q e : inf [set f q e | e in setT] <= f q e.
  by apply: inf_lb; [exists (- c) => y [e' _ <-] | exists e].
split=> [|n e].
  apply: sup_le_ub; first by exists (inf [set f q0 e | e in setT]), q0.
  move=> _ [q _ <-]; apply: lb_le_inf; first by exists (sup [set f q e0 | q in setT]), e0.
  by move=> _ [e _ <-]; apply: le_trans (worst q e) (best q e).
apply: sup_le_ub; first by exists (\sum_i f q0 (e i)), q0.
by move=> _ [q _ <-]; apply: ler_sum => i _; apply: best.
Qed.
End MaxMin.
