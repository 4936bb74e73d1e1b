(* Which matrices commute with rotary position embedding. The h planes of a head of 2h dimensions
   are spanned by the coordinates i and h + i (the split-half layout; the interleaved one is a
   permutation of it). Algebra over any ordered field, no axioms; the version with cosines and
   sines uses the real numbers of mathcomp-analysis and their axioms. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From mathcomp Require Import reals trigo.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Algebra.
Variables (R : realFieldType) (h : nat).
Implicit Types (a b c s : 'rV[R]_h) (Q : 'M[R]_(h + h)).

(* ((c_i, -s_i), (s_i, c_i)) on plane i, for every i: a rotation if c_i^2 + s_i^2 = 1, in general a
   rotation scaled by sqrt (c_i^2 + s_i^2) *)
Definition rope c s : 'M[R]_(h + h) :=
  block_mx (diag_mx c) (- diag_mx s) (diag_mx s) (diag_mx c).

Lemma rope_comm a b c s : rope a b *m rope c s = rope c s *m rope a b.
Proof.
rewrite /rope !mulmx_block !(mulNmx, mulmxN).
rewrite (diag_mxC c a) (diag_mxC c b) (diag_mxC s a) (diag_mxC s b).
by congr block_mx; rewrite addrC.
Qed.

(* orthogonal among these are those that rotate each plane without scaling it *)
Lemma rope_orthogonal a b :
  (rope a b)^T *m rope a b = 1%:M <-> forall i, a 0 i ^+ 2 + b 0 i ^+ 2 = 1.
Proof.
have -> : (rope a b)^T *m rope a b =
    block_mx (diag_mx (\row_i (a 0 i ^+ 2 + b 0 i ^+ 2))) 0 0
      (diag_mx (\row_i (a 0 i ^+ 2 + b 0 i ^+ 2))).
  rewrite /rope tr_block_mx linearN /= !tr_diag_mx !mulmx_block !(mulNmx, mulmxN) !opprK.
  congr block_mx; rewrite ?(diag_mxC b a) ?addNr ?subrr // !mulmx_diag -linearD /=;
    congr diag_mx; apply/rowP => i; rewrite !mxE -!expr2 //.
  exact: addrC.
rewrite scalar_mx_block; split=> [/eq_block_mx[h1 _ _ _] i|h1].
  by have := congr1 (fun X : 'M_h => X i i) h1; rewrite !mxE eqxx !mulr1n.
suff -> : diag_mx (\row_i (a 0 i ^+ 2 + b 0 i ^+ 2)) = 1%:M by [].
by rewrite -diag_const_mx; congr diag_mx; apply/rowP => i; rewrite !mxE h1.
Qed.

(* u z + v w = 0 and u w = v z with (u, v) other than (0, 0) force z = w = 0 *)
Lemma no_intertwiner (u v z w : R) : (u != 0) || (v != 0) ->
  u * z + v * w = 0 -> u * w - v * z = 0 -> z = 0 /\ w = 0.
Proof.
move=> uv h1 h2; have n0 : u ^+ 2 + v ^+ 2 != 0.
  by rewrite paddr_eq0 ?sqr_ge0 // !sqrf_eq0 negb_and.
have hz : (u ^+ 2 + v ^+ 2) * z = u * (u * z + v * w) - v * (u * w - v * z) by ring.
have hw : (u ^+ 2 + v ^+ 2) * w = v * (u * z + v * w) + u * (u * w - v * z) by ring.
by split; apply: (mulfI n0); rewrite mulr0 ?hz ?hw h1 h2 !mulr0 ?subr0 ?addr0.
Qed.

(* If Q commutes with one rotation, its entries between plane i and plane j satisfy the equations
   of an intertwiner, once for the part of Q that keeps orientation and once for the part that
   flips it. *)
Lemma commute_entries (A B C D : 'M[R]_h) c s i j :
  block_mx A B C D *m rope c s = rope c s *m block_mx A B C D ->
  [/\ (c 0 j - c 0 i) * (A i j + D i j) + (s 0 j - s 0 i) * (B i j - C i j) = 0,
      (c 0 j - c 0 i) * (B i j - C i j) - (s 0 j - s 0 i) * (A i j + D i j) = 0,
      (c 0 j - c 0 i) * (A i j - D i j) + (s 0 j + s 0 i) * (B i j + C i j) = 0 &
      (c 0 j - c 0 i) * (B i j + C i j) - (s 0 j + s 0 i) * (A i j - D i j) = 0].
Proof.
rewrite /rope !mulmx_block => /eq_block_mx[h1 h2 h3 h4].
have := congr1 (fun X : 'M_h => X i j) h4; have := congr1 (fun X : 'M_h => X i j) h3.
have := congr1 (fun X : 'M_h => X i j) h2; have := congr1 (fun X : 'M_h => X i j) h1.
rewrite !(mulNmx, mulmxN) !(mul_diag_mx, mul_mx_diag) !mxE {h1 h2 h3 h4}.
move: (A i j) (B i j) (C i j) (D i j) (c 0 i) (c 0 j) (s 0 i) (s 0 j) => a b c' d ci cj si sj.
move=> /eqP; rewrite -subr_eq0 => /eqP e1 /eqP; rewrite -subr_eq0 => /eqP e2.
move=> /eqP; rewrite -subr_eq0 => /eqP e3 /eqP; rewrite -subr_eq0 => /eqP e4.
split.
- by rewrite -[RHS](addr0 0) -{1}e1 -e4; ring.
- by rewrite -[RHS](subr0 0) -{1}e2 -e3; ring.
- by rewrite -[RHS](subr0 0) -{1}e1 -e4; ring.
- by rewrite -[RHS](addr0 0) -{1}e2 -e3; ring.
Qed.

(* A matrix commutes with the rotations of every position t (any set of positions) if and only if
   it is itself a scaled rotation on each plane and nothing between planes, provided that no two
   planes turn alike at all positions, and none (i = j included: no plane stands still or makes
   half turns only) turn oppositely at all positions. If it is also orthogonal, it turns each plane
   by an angle: the scales are 1. *)
Theorem rope_commutant (T : Type) (c s : T -> 'rV[R]_h) Q :
  (forall i j, i != j -> exists t, (c t 0 j != c t 0 i) || (s t 0 j != s t 0 i)) ->
  (forall i j, exists t, (c t 0 j != c t 0 i) || (s t 0 j != - s t 0 i)) ->
  ((forall t, Q *m rope (c t) (s t) = rope (c t) (s t) *m Q) <-> exists a b, Q = rope a b) /\
  (forall a b, Q = rope a b -> Q^T *m Q = 1%:M <-> forall i, a 0 i ^+ 2 + b 0 i ^+ 2 = 1).
Proof.
move=> alike opposite; split; last by move=> a b ->; apply: rope_orthogonal.
split=> [hQ|[a [b ->]] t]; last exact: rope_comm.
have [A [B [C [D eQ]]]] : exists A B C D, Q = block_mx A B C D.
  by exists (ulsubmx Q), (ursubmx Q), (dlsubmx Q), (drsubmx Q); rewrite submxK.
have off i j : A i j - D i j = 0 /\ B i j + C i j = 0.
  have [t ht] := opposite i j; have := hQ t.
  rewrite eQ => /(@commute_entries A B C D _ _ i j) [_ _ h1 h2].
  by apply: no_intertwiner h1 h2; rewrite subr_eq0 addr_eq0.
have diag i j : i != j -> A i j = 0 /\ B i j = 0.
  move=> ij; have [t ht] := alike i j ij; have [h3 h4] := off i j.
  have := hQ t; rewrite eQ => /(@commute_entries A B C D _ _ i j) [h1 h2 _ _].
  have [|h5 h6] := no_intertwiner _ h1 h2; first by rewrite !subr_eq0.
  have twice (x y z : R) : x + y = z -> x - y = 0 -> z = 0 -> x = 0.
    move=> <- /eqP; rewrite subr_eq0 => /eqP <- /eqP.
    by rewrite -mulr2n mulrn_eq0 => /eqP.
  split; first exact: (twice _ _ _ erefl h3 h5).
  by apply: (twice _ (- C i j) _ erefl _ h6); rewrite opprK.
have offA i j : A i j = A i i *+ (i == j).
  by have [->|/diag[]//] := eqVneq i j.
have offB i j : B i j = B i i *+ (i == j).
  by have [->|/diag[]//] := eqVneq i j.
have eD : D = A by apply/matrixP => i j; have [/eqP] := off i j; rewrite subr_eq0 => /eqP.
have eC : C = - B.
  by apply/matrixP => i j; have [_ /eqP] := off i j; rewrite mxE addrC addr_eq0 => /eqP.
have eA : A = diag_mx (\row_i A i i) by apply/matrixP => i j; rewrite offA !mxE.
have eB : B = diag_mx (\row_i B i i) by apply/matrixP => i j; rewrite offB !mxE.
exists (\row_i A i i), (- \row_i B i i).
by rewrite eQ eC eD /rope linearN /= opprK -eA -eB.
Qed.
End Algebra.

Section Frequencies.
Variables (R : realType) (h : nat).

(* The rotations of RoPE itself: at position t = 0, 1, 2, ... plane i turns by t theta_i. If the h
   frequencies theta_i are distinct and lie strictly between 0 and pi (RoPE's lie in (0, 1]), the
   matrices that commute with all of them are those that rotate and scale each plane by itself. *)
Theorem rope_commutant_frequencies (theta : 'I_h -> R) (Q : 'M[R]_(h + h)) :
  injective theta -> (forall i, 0 < theta i < pi) ->
  (forall t : nat, Q *m rope (\row_i cos (t%:R * theta i)) (\row_i sin (t%:R * theta i)) =
                   rope (\row_i cos (t%:R * theta i)) (\row_i sin (t%:R * theta i)) *m Q) <->
  exists a b, Q = rope a b.
Proof.
move=> inj hth; apply: (proj1 (rope_commutant _ _ _)) => [i j ij|i j]; exists 1%N;
  rewrite !mxE !mul1r.
  apply/orP; left; apply: contraNneq ij => /cos_inj e; apply/eqP/inj/esym/e;
  by rewrite in_itv /= !ltW //; have /andP[] := hth i; have /andP[] := hth j.
by apply/orP; right; rewrite gt_eqF // (@lt_trans _ _ 0) ?oppr_lt0 ?sin_gt0_pi //.
Qed.
End Frequencies.
