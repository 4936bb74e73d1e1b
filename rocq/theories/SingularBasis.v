(* Right singular vectors and squared singular values of any real matrix, and low-rank truncation.
   Over any real closed field: no axioms. *)
From mathcomp Require Import all_ssreflect all_fingroup all_algebra.
From Gonio Require Import Frobenius OrthonormalBasis SpectralTheorem TopK.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section SingularBasis.
Variable R : rcfType.

(* The rows of V are orthonormal and span at least the row space of M, the columns of M V^T are
   orthogonal with squared lengths d, and these do not increase: V holds right singular vectors,
   d the squares of the singular values, the largest first. *)
Definition singular_basis m n p (M : 'M[R]_(m, n)) (V : 'M[R]_(p, n)) (d : 'rV[R]_p) :=
  [/\ V *m V^T = 1%:M, M *m V^T *m V = M, (M *m V^T)^T *m (M *m V^T) = diag_mx d &
      forall i j : 'I_p, (i <= j)%N -> d 0 j <= d 0 i].

(* a diagonal can be sorted by a permutation *)
Lemma sort_perm n (d : 'rV[R]_n) : exists s : 'S_n,
  forall i j : 'I_n, (i <= j)%N -> d 0 (s j) <= d 0 (s i).
Proof.
pose t := [tuple d 0 i | i < n].
pose ge := fun x y : R => y <= x.
have st : size (sort ge t) == n by rewrite size_sort size_tuple.
have : perm_eq (Tuple st) t by rewrite /= perm_sort.
case/tuple_permP => s hs; exists s => i j ij.
have tr : transitive ge by move=> x y z h1 h2; apply: le_trans h2 h1.
have to : total ge by move=> x y; apply: le_total.
have so : sorted ge (sort ge t) by apply: sort_sorted.
have nthE (k : 'I_n) : nth 0 (sort ge t) k = d 0 (s k).
  by rewrite [sort ge t]hs -tnth_nth !tnth_mktuple.
have := sorted_leq_nth tr (fun x => lexx x) 0 so i j.
by rewrite !inE !size_sort !size_tuple !ltn_ord !nthE => h; apply: h.
Qed.

(* every matrix has a singular basis of the whole space *)
Lemma singular_basis_exists m n (M : 'M[R]_(m, n)) :
  exists (V : 'M[R]_n) (d : 'rV[R]_n), singular_basis M V d.
Proof.
have sA : (M^T *m M)^T = M^T *m M by rewrite trmx_mul trmxK.
have [P [d [PP PD]]] := spectral_theorem sA.
have [s hs] := sort_perm d.
pose S : 'M[R]_n := perm_mx s.
have SS : S *m S^T = 1%:M by rewrite tr_perm_mx -perm_mxM mulgV perm_mx1.
have PP' := mulmx1C PP.
exists (S *m P), (\row_i d 0 (s i)); split.
- by rewrite trmx_mul -mulmxA (mulmxA P) PP mul1mx.
- by rewrite trmx_mul -!mulmxA (mulmxA S^T) (mulmx1C SS) mul1mx PP' mulmx1.
- have -> : (M *m (S *m P)^T)^T *m (M *m (S *m P)^T) = S *m (P *m (M^T *m M) *m P^T) *m S^T.
    by rewrite !trmx_mul !trmxK !mulmxA.
  rewrite PD tr_perm_mx -row_permE -col_permE.
  by apply/matrixP => i j; rewrite !mxE (inj_eq perm_inj).
by move=> i j ij; rewrite !mxE hs.
Qed.

Section Basis.
Variables (m n p : nat) (M : 'M[R]_(m, n)) (V : 'M[R]_(p, n)) (d : 'rV[R]_p).
Hypothesis sb : singular_basis M V d.

(* energies in the singular basis are weighted by d *)
Lemma singular_weighted q (W : 'M[R]_(p, q)) :
  frobeniusSq (M *m V^T *m W) = \sum_i d 0 i * frobeniusSq (row i W).
Proof.
have [_ _ MM _] := sb; rewrite frobE mdot_mull mulmxA MM mul_diag_mx /mdot.
apply: eq_bigr => i _; rewrite /frobeniusSq big_ord1 mulr_sumr.
by apply: eq_bigr => j _; rewrite !mxE expr2 mulrA.
Qed.

Lemma singular_mulE q (X : 'M[R]_(n, q)) :
  frobeniusSq (M *m X) = \sum_i d 0 i * frobeniusSq (row i (V *m X)).
Proof. by have [_ MV _ _] := sb; rewrite -singular_weighted mulmxA MV. Qed.

Lemma singular_col i : frobeniusSq (col i (M *m V^T)) = d 0 i.
Proof.
have [_ _ MM _] := sb; have := congr1 (fun A : 'M_(_, _) => A i i) MM.
rewrite !mxE eqxx mulr1n => <-; apply: eq_bigr => j _.
by rewrite big_ord1 !mxE expr2.
Qed.

Lemma singular_ge0 i : 0 <= d 0 i.
Proof. by rewrite -singular_col frobeniusSq_nonneg. Qed.

(* the energy is the sum of the squared singular values *)
Lemma singular_energy : frobeniusSq M = \sum_i d 0 i.
Proof.
have [VV MV _ _] := sb; rewrite -{1}MV singular_weighted.
by apply: eq_bigr => i _; rewrite frob_row_orth ?mulr1.
Qed.

(* Ky Fan: r orthonormal directions capture at most the r largest squared singular values *)
Lemma ky_fan r q (Q : 'M[R]_(q, n)) : Q *m Q^T = 1%:M -> (q <= r)%N ->
  frobeniusSq (M *m Q^T) <= \sum_(i < p | (i < r)%N) d 0 i.
Proof.
move=> QQ qr; have [VV _ _ dS] := sb; rewrite singular_mulE; apply: topk_weights => // [i|i|].
- exact: singular_ge0.
- by rewrite frobeniusSq_nonneg /= -(frob_row_orth i VV) row_mul frob_proj_le.
rewrite -frob_rows -frob_tr trmx_mul trmxK (le_trans (frob_proj_le Q VV)) //.
by rewrite frobE mdotE QQ mxtrace1 ler_nat.
Qed.

(* the first r rows of V capture exactly these *)
Definition topRows r (h : (r <= p)%N) : 'M[R]_(r, n) := \matrix_(i, j) V (widen_ord h i) j.

Lemma topRows_orth r (h : (r <= p)%N) : topRows h *m (topRows h)^T = 1%:M.
Proof.
have [VV _ _ _] := sb; apply/matrixP => i j.
have := congr1 (fun A : 'M_(_, _) => A (widen_ord h i) (widen_ord h j)) VV.
by rewrite !mxE => <-; apply: eq_bigr => k _; rewrite !mxE.
Qed.

Lemma topRows_energy r (h : (r <= p)%N) :
  frobeniusSq (M *m (topRows h)^T) = \sum_(i < p | (i < r)%N) d 0 i.
Proof.
rewrite (big_ord_narrow h) frob_cols; apply: eq_bigr => i _.
by rewrite -singular_col; congr frobeniusSq; apply/matrixP => k l; rewrite !mxE;
  apply: eq_bigr => j _; rewrite !mxE.
Qed.

(* ---------- truncation ---------- *)
(* M with the part outside the first r singular directions removed *)
Definition truncation r := M *m V^T *m diag_mx (\row_i ((i < r)%N)%:R) *m V.

Lemma truncation_residual r :
  M - truncation r = M *m V^T *m (diag_mx (\row_i (~~ (i < r)%N)%:R) *m V).
Proof.
have [_ MV _ _] := sb; rewrite /truncation -{1}MV -!(mulmxA (M *m V^T)) -mulmxBr; congr (_ *m _).
apply/matrixP => i j; rewrite !mul_diag_mx !mxE.
by case: (i < r)%N; rewrite ?mul1r ?mul0r ?subrr ?subr0.
Qed.

Lemma truncation_error r : frobeniusSq (M - truncation r) = \sum_(i < p | ~~ (i < r)%N) d 0 i.
Proof.
have [VV _ _ _] := sb; rewrite truncation_residual singular_weighted [RHS]big_mkcond.
apply: eq_bigr => i _; set b := ~~ _.
have -> : row i (diag_mx (\row_i (~~ (i < r)%N)%:R) *m V) = b%:R *: row i V.
  by apply/rowP => j; rewrite mul_diag_mx !mxE.
by rewrite frobeniusSq_smul frob_row_orth // mulr1; case: b; rewrite ?expr1n ?mulr1 ?expr0n ?mulr0.
Qed.

Lemma truncation_rank r : (\rank (truncation r) <= r)%N.
Proof.
rewrite /truncation (leq_trans (mxrankM_maxl _ _)) // (leq_trans (mxrankM_maxr _ _)) //.
pose P : 'M[R]_(p, r) := \matrix_(i, j) ((i : nat) == j)%:R.
suff -> : diag_mx (\row_i ((i < r)%N)%:R) = P *m P^T.
  by rewrite (leq_trans (mxrankM_maxl _ _)) // rank_leq_col.
apply/matrixP => i j; rewrite !mxE; case: ltnP => hi.
  rewrite (bigD1 (Ordinal hi)) //= !mxE /= eqxx mul1r big1 ?addr0; last first.
    move=> k; rewrite -val_eqE /= => hk; rewrite !mxE.
    by rewrite eq_sym (negPf hk) mul0r.
  by rewrite eq_sym.
rewrite mul0rn big1 // => k _; rewrite !mxE gtn_eqF ?mul0r //.
by apply: leq_trans hi.
Qed.

(* no matrix of rank at most r is nearer *)
Lemma eckart_young_lower r (N : 'M[R]_(m, n)) : (\rank N <= r)%N ->
  \sum_(i < p | ~~ (i < r)%N) d 0 i <= frobeniusSq (M - N).
Proof.
move=> hr; have [Q [QQ hN]] := row_space_onb N.
rewrite (frob_proj (M - N) QQ) ler_paddl ?frobeniusSq_nonneg //.
have -> : M - N - (M - N) *m Q^T *m Q = M - M *m Q^T *m Q.
  by rewrite !mulmxBl hN opprB addrA subrK.
rewrite -(ler_add2l (frobeniusSq (M *m Q^T))) -(frob_proj M QQ) singular_energy.
by rewrite [leRHS](bigID (fun i : 'I_p => (i < r)%N)) /= ler_add2r ky_fan.
Qed.
End Basis.

(* the squared singular values depend on M alone, not on the basis *)
Lemma singular_values_unique m n p (M : 'M[R]_(m, n)) (V V' : 'M[R]_(p, n)) d d' :
  singular_basis M V d -> singular_basis M V' d' -> d = d'.
Proof.
move=> sb sb'; have le W W' e e' r : (r <= p)%N -> singular_basis M W e ->
    singular_basis M W' e' -> \sum_(i < p | (i < r)%N) e 0 i <= \sum_(i < p | (i < r)%N) e' 0 i.
  by move=> h hW hW'; rewrite -(topRows_energy hW h) (ky_fan hW') // (topRows_orth hW).
have eq r (h : (r <= p)%N) : \sum_(i < p | (i < r)%N) d 0 i = \sum_(i < p | (i < r)%N) d' 0 i.
  by apply/eqP; rewrite eq_le (le _ _ _ _ _ h sb sb') (le _ _ _ _ _ h sb' sb).
apply/rowP => i; have := eq i.+1 (ltn_ord i); rewrite (bigD1 i) //= [RHS](bigD1 i) //=.
have below (e : 'rV[R]_p) :
    \sum_(j < p | (j < i.+1)%N && (j != i)) e 0 j = \sum_(j < p | (j < i)%N) e 0 j.
  by apply: eq_bigl => j; rewrite ltnS andbC -ltn_neqAle.
by rewrite !below (eq i (ltnW (ltn_ord i))) => /addIr.
Qed.
End SingularBasis.
