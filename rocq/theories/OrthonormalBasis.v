(* Gram-Schmidt, and an orthonormal basis of the row space of any matrix.
   Over any real closed field (square roots are needed): no axioms. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From Gonio Require Import Frobenius.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section OrthonormalBasis.
Variable R : rcfType.

Lemma frob_normalize m n (A : 'M[R]_(m, n)) : A != 0 ->
  frobeniusSq ((Num.sqrt (frobeniusSq A))^-1 *: A) = 1.
Proof.
rewrite -frob_gt0 => h; rewrite frobeniusSq_smul exprVn sqr_sqrtr ?ltW //.
by rewrite mulVf // gt_eqF.
Qed.

Lemma mdot_row n (u v : 'rV[R]_n) : u *m v^T = (mdot u v)%:M.
Proof. by rewrite mdotE [LHS]mx11_scalar {2}[_ *m _]mx11_scalar mxtrace_scalar. Qed.

(* linearly independent rows span the same space as some orthonormal rows *)
Lemma gram_schmidt r n (A : 'M[R]_(r, n)) : row_free A ->
  exists Q : 'M[R]_(r, n), Q *m Q^T = 1%:M /\ (Q :=: A)%MS.
Proof.
elim: r A => [|r IH] A fA.
  by exists A; split=> //; apply/matrixP => -[].
rewrite -[r.+1]/(1 + r)%N in A fA *.
pose a := usubmx A; pose B := dsubmx A.
have eA : A = col_mx a B by rewrite vsubmxK.
have rB : row_free B.
  have := fA; rewrite /row_free eA -addsmxE.
  move/eqP => h; rewrite eqn_leq rank_leq_row /= -(leq_add2l 1) -{1}h.
  by apply: leq_trans (mxrank_adds_leqif _ _).1 _; rewrite leq_add2r rank_leq_row.
have [Q [QQ eQ]] := IH B rB.
pose b := a - a *m Q^T *m Q.
have b0 : b != 0.
  apply/eqP => hb; have ha : (a <= Q)%MS.
    by apply/submxP; exists (a *m Q^T); apply/eqP; rewrite -subr_eq0; apply/eqP.
  have : \rank A = r.
    rewrite eA -addsmxE; have -> : \rank (a + B)%MS = \rank B.
      by apply: eqmx_rank; rewrite addsmxSr addsmx_sub -[(a <= B)%MS]eQ ha submx_refl.
    by apply/eqP.
  by move/eqP: fA => ->; apply/eqP; rewrite gtn_eqF.
have bQ : b *m Q^T = 0 by rewrite mulmxBl -!mulmxA QQ mulmx1 subrr.
pose s := (Num.sqrt (frobeniusSq b))^-1; pose q := s *: b.
have s0 : s != 0 by rewrite invr_eq0 sqrtr_eq0 -ltNge frob_gt0.
have qQ : q *m Q^T = 0 by rewrite -scalemxAl bQ scaler0.
exists (col_mx q Q); split.
  rewrite tr_col_mx mul_col_row QQ qQ.
  have -> : Q *m q^T = 0 by apply: trmx_inj; rewrite trmx_mul trmxK qQ trmx0.
  by rewrite mdot_row -frobE frob_normalize // -scalar_mx_block.
apply/eqmxP; rewrite eA -!addsmxE; apply/andP; split.
  rewrite addsmx_sub; apply/andP; split; last by rewrite eQ addsmxSr.
  apply: scalemx_sub; rewrite addmx_sub ?addsmxSl // eqmx_opp.
  by rewrite (submx_trans (submxMl _ _)) // eQ addsmxSr.
rewrite addsmx_sub; apply/andP; split; last by rewrite -eQ addsmxSr.
have -> : a = s^-1 *: q + a *m Q^T *m Q by rewrite scalerA mulVf // scale1r subrK.
apply: addmx_sub; first by rewrite scalemx_sub // addsmxSl.
by apply: submx_trans (submxMl _ _) (addsmxSr _ _).
Qed.

(* the rows of a matrix of rank r lie in the span of r orthonormal rows *)
Lemma row_space_onb m n (M : 'M[R]_(m, n)) :
  exists Q : 'M[R]_(\rank M, n), Q *m Q^T = 1%:M /\ M *m Q^T *m Q = M.
Proof.
have [Q [QQ eQ]] := gram_schmidt (row_base_free M).
exists Q; split=> //.
have /submxP[D hD] : (M <= Q)%MS by rewrite eQ eq_row_base.
have hMQ : M *m Q^T = D by rewrite [X in X *m _]hD -mulmxA QQ mulmx1.
by rewrite hMQ.
Qed.
End OrthonormalBasis.
