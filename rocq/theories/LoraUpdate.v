(* Outer products, the rank of their sums, the row space of a gradient, and the energy of a LoRA
   update under the two usual scalings. Ranks: any field. Energies: any real closed field. No
   axioms. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From Gonio Require Import Frobenius.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section OuterProduct.
Variable F : fieldType.

(* the matrix with entries u_i v_j *)
Definition outerProduct m n (u : 'cV[F]_m) (v : 'cV[F]_n) : 'M[F]_(m, n) :=
  \matrix_(i, j) (u i 0 * v j 0).

(* The outer product of u and v is the column u times the row v^T. *)
Theorem outerProduct_eq_col_mul_row m n (u : 'cV[F]_m) (v : 'cV[F]_n) :
  outerProduct u v = u *m v^T.
Proof. by apply/matrixP => i j; rewrite !mxE big_ord1 mxE. Qed.

(* An outer product has rank at most 1, and rank 0 only if one of the vectors is zero. *)
Theorem rank_outer_product_le_one m n (u : 'cV[F]_m) (v : 'cV[F]_n) :
  (\rank (outerProduct u v) <= 1)%N /\
  (\rank (outerProduct u v) = 0%N <-> u = 0 \/ v = 0).
Proof.
rewrite outerProduct_eq_col_mul_row; split.
  by rewrite (leq_trans (mxrankM_maxl _ _)) // rank_leq_col.
split=> [/eqP|[-> | ->]]; rewrite ?mul0mx ?trmx0 ?mulmx0 ?mxrank0 //.
rewrite mxrank_eq0 => /eqP uv0; have [->|u0] := eqVneq u 0; [by left | right].
have [i ui] : exists i, u i 0 != 0.
  apply/existsP; apply: contraNT u0 => /existsPn h; apply/eqP/matrixP => i j.
  by rewrite ord1 mxE; apply/eqP/negbNE/h.
apply/matrixP => j k; rewrite ord1 mxE; apply: (mulfI ui); rewrite mulr0.
by have := congr1 (fun A : 'M_(_, _) => A i j) uv0; rewrite !mxE big_ord1 mxE.
Qed.

(* The rank of a sum is at most the sum of the ranks. *)
Theorem rank_add_le m n (A B : 'M[F]_(m, n)) : (\rank (A + B)%R <= \rank A + \rank B)%N.
Proof. exact: mxrank_add. Qed.

(* A sum of outer products has at most as large a rank as it has terms. *)
Theorem rank_sum_outer_products_le m n (I : finType) (u : I -> 'cV[F]_m) (v : I -> 'cV[F]_n) :
  (\rank (\sum_(i : I) outerProduct (u i) (v i))%R <= #|I|)%N.
Proof.
rewrite -sum1_card; elim/big_ind2: _ => [|A a B b hA hB|i _]; first by rewrite mxrank0.
  by rewrite (leq_trans (rank_add_le _ _)) // leq_add.
by have [] := rank_outer_product_le_one (u i) (v i).
Qed.

(* The gradient of a linear layer is a sum over tokens of (error delta_t) (input x_t)^T. Its rows
   are linear combinations of the inputs: the row space lies in the span of the x_t. *)
Theorem gradient_row_space_le_input_span m n T (delta : 'I_T -> 'cV[F]_m) (x : 'I_T -> 'cV[F]_n) :
  ((\sum_t outerProduct (delta t) (x t))%R <= \matrix_t (x t)^T)%MS.
Proof.
apply: summx_sub => t _; rewrite outerProduct_eq_col_mul_row (submx_trans (submxMl _ _)) //.
by rewrite -[(x t)^T](rowK (fun t => (x t)^T)) row_sub.
Qed.
End OuterProduct.

Section LoraUpdate.
Variable R : rcfType.
Implicit Types alpha c : R.

(* The weight change of a LoRA adapter of rank r: scaled by alpha / r, or, in rank-stabilized LoRA
   (arXiv 2312.03732), by alpha / sqrt r. *)
Definition loraUpdate r m n alpha (B : 'M[R]_(m, r)) (A : 'M[R]_(r, n)) :=
  (alpha / r%:R) *: (B *m A).
Definition rsLoraUpdate r m n alpha (B : 'M[R]_(m, r)) (A : 'M[R]_(r, n)) :=
  (alpha / Num.sqrt r%:R) *: (B *m A).

(* If the energy of B A grows at most like c r, the energy of a LoRA update decays like 1/r. *)
Theorem loraUpdate_frob_decays r m n alpha c (B : 'M[R]_(m, r)) (A : 'M[R]_(r, n)) :
  (0 < r)%N -> frobeniusSq (B *m A) <= c * r%:R ->
  frobeniusSq (loraUpdate alpha B A) <= alpha ^+ 2 * c / r%:R.
Proof.
move=> r0 h; have r0' : r%:R != 0 :> R by rewrite pnatr_eq0 -lt0n.
rewrite frobeniusSq_smul.
have -> : alpha ^+ 2 * c / r%:R = (alpha / r%:R) ^+ 2 * (c * r%:R) by field.
by rewrite ler_wpmul2l // sqr_ge0.
Qed.

(* Under the same growth the energy of a rank-stabilized update stays bounded. *)
Theorem rsLoraUpdate_frob_bounded r m n alpha c (B : 'M[R]_(m, r)) (A : 'M[R]_(r, n)) :
  (0 < r)%N -> frobeniusSq (B *m A) <= c * r%:R ->
  frobeniusSq (rsLoraUpdate alpha B A) <= alpha ^+ 2 * c.
Proof.
move=> r0 h; have r0' : 0 < r%:R :> R by rewrite ltr0n.
rewrite frobeniusSq_smul expr_div_n sqr_sqrtr ?ler0n // -mulrA ler_wpmul2l ?sqr_ge0 //.
by rewrite mulrC ler_pdivr_mulr.
Qed.
End LoraUpdate.
