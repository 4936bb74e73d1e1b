(* The Frobenius inner product and energy of a real matrix; Cauchy-Schwarz.
   Vectors are one-column matrices, so one definition serves both.
   Over any ordered field: no axioms. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Frobenius.
Variable R : realFieldType.
Implicit Types c : R.

(* <A, B> = sum of the products of equal entries. *)
Definition mdot m n (A B : 'M[R]_(m, n)) : R := \sum_i \sum_j A i j * B i j.
(* |A|_F^2, the energy: the sum of the squared entries. *)
Definition frobeniusSq m n (A : 'M[R]_(m, n)) : R := \sum_i \sum_j A i j ^+ 2.

(* ---------- the inner product is bilinear and symmetric ---------- *)
Lemma mdotE m n (A B : 'M[R]_(m, n)) : mdot A B = \tr (A *m B^T).
Proof.
rewrite /mdot /mxtrace; apply: eq_bigr => i _; rewrite mxE.
by apply: eq_bigr => j _; rewrite mxE.
Qed.

Lemma frobE m n (A : 'M[R]_(m, n)) : frobeniusSq A = mdot A A.
Proof. by apply: eq_bigr => i _; apply: eq_bigr => j _; rewrite expr2. Qed.

Lemma mdotC m n (A B : 'M[R]_(m, n)) : mdot A B = mdot B A.
Proof. by apply: eq_bigr => i _; apply: eq_bigr => j _; rewrite mulrC. Qed.

Lemma mdotDl m n (A B C : 'M[R]_(m, n)) : mdot (A + B) C = mdot A C + mdot B C.
Proof. by rewrite !mdotE mulmxDl linearD. Qed.
Lemma mdotDr m n (A B C : 'M[R]_(m, n)) : mdot C (A + B) = mdot C A + mdot C B.
Proof. by rewrite !(mdotC C) mdotDl. Qed.
Lemma mdotZl m n c (A B : 'M[R]_(m, n)) : mdot (c *: A) B = c * mdot A B.
Proof. by rewrite !mdotE -scalemxAl linearZ. Qed.
Lemma mdotZr m n c (A B : 'M[R]_(m, n)) : mdot A (c *: B) = c * mdot A B.
Proof. by rewrite mdotC mdotZl mdotC. Qed.
Lemma mdotNl m n (A B : 'M[R]_(m, n)) : mdot (- A) B = - mdot A B.
Proof. by rewrite -scaleN1r mdotZl mulN1r. Qed.
Lemma mdotNr m n (A B : 'M[R]_(m, n)) : mdot A (- B) = - mdot A B.
Proof. by rewrite mdotC mdotNl mdotC. Qed.
Lemma mdotBl m n (A B C : 'M[R]_(m, n)) : mdot (A - B) C = mdot A C - mdot B C.
Proof. by rewrite mdotDl mdotNl. Qed.
Lemma mdotBr m n (A B C : 'M[R]_(m, n)) : mdot C (A - B) = mdot C A - mdot C B.
Proof. by rewrite mdotDr mdotNr. Qed.
Lemma mdot0l m n (B : 'M[R]_(m, n)) : mdot 0 B = 0.
Proof. by rewrite mdotE mul0mx linear0. Qed.
Lemma mdot0r m n (B : 'M[R]_(m, n)) : mdot B 0 = 0.
Proof. by rewrite mdotC mdot0l. Qed.

Lemma mdot_tr m n (A B : 'M[R]_(m, n)) : mdot A^T B^T = mdot A B.
Proof. by rewrite !mdotE trmxK mxtrace_mulC -mxtrace_tr trmx_mul trmxK. Qed.

(* a factor may be moved to the other side, transposed *)
Lemma mdot_mulr m n p (A : 'M[R]_(m, n)) (B : 'M[R]_(m, p)) (Q : 'M[R]_(p, n)) :
  mdot A (B *m Q) = mdot (A *m Q^T) B.
Proof. by rewrite !mdotE trmx_mul mulmxA. Qed.

Lemma mdot_mull m n p (A : 'M[R]_(m, n)) (B : 'M[R]_(p, n)) (Q : 'M[R]_(m, p)) :
  mdot A (Q *m B) = mdot (Q^T *m A) B.
Proof.
by rewrite -mdot_tr trmx_mul mdot_mulr -[RHS]mdot_tr trmx_mul !trmxK.
Qed.

(* the inner product with a standard basis matrix is an entry *)
Lemma mdot_delta m n i j (A : 'M[R]_(m, n)) : mdot (delta_mx i j) A = A i j.
Proof.
rewrite /mdot (bigD1 i) //= (bigD1 j) //= mxE !eqxx mul1r big1 => [|l lj].
  rewrite addr0 big1 ?addr0 // => k ki; rewrite big1 // => l _.
  by rewrite mxE (negPf ki) mul0r.
by rewrite mxE (negPf lj) andbF mul0r.
Qed.

(* ---------- the energy ---------- *)
(* The energy of a matrix is never negative. *)
Theorem frobeniusSq_nonneg m n (A : 'M[R]_(m, n)) : 0 <= frobeniusSq A.
Proof. by apply: sumr_ge0 => i _; apply: sumr_ge0 => j _; apply: sqr_ge0. Qed.
Local Notation frob_ge0 := frobeniusSq_nonneg.

(* Only the zero matrix has no energy. *)
Theorem frobeniusSq_eq_zero_iff m n (A : 'M[R]_(m, n)) : frobeniusSq A = 0 <-> A = 0.
Proof.
split=> [h|->]; last by rewrite frobE mdot0l.
apply/matrixP => i j; rewrite mxE; apply/eqP; rewrite -sqrf_eq0; apply/eqP.
have h1 := psumr_eq0P (fun i _ => sumr_ge0 _ (fun j _ => sqr_ge0 (A i j))) h.
by apply: (psumr_eq0P (fun j _ => sqr_ge0 (A i j)) (h1 i isT)).
Qed.

Lemma frob_eq0 m n (A : 'M[R]_(m, n)) : (frobeniusSq A == 0) = (A == 0).
Proof. by apply/eqP/eqP => /frobeniusSq_eq_zero_iff. Qed.

Lemma frob_gt0 m n (A : 'M[R]_(m, n)) : (0 < frobeniusSq A) = (A != 0).
Proof. by rewrite lt_def frob_ge0 andbT frob_eq0. Qed.

(* Scaling a matrix by c scales its energy by c^2. *)
Theorem frobeniusSq_smul m n c (A : 'M[R]_(m, n)) :
  frobeniusSq (c *: A) = c ^+ 2 * frobeniusSq A.
Proof. by rewrite !frobE mdotZl mdotZr; ring. Qed.

Lemma frob_tr m n (A : 'M[R]_(m, n)) : frobeniusSq A^T = frobeniusSq A.
Proof. by rewrite !frobE mdot_tr. Qed.

Lemma frobD m n (A B : 'M[R]_(m, n)) :
  frobeniusSq (A + B) = frobeniusSq A + 2%:R * mdot A B + frobeniusSq B.
Proof. by rewrite !frobE mdotDl !mdotDr (mdotC B A); ring. Qed.

Lemma frobB m n (A B : 'M[R]_(m, n)) :
  frobeniusSq (A - B) = frobeniusSq A - 2%:R * mdot A B + frobeniusSq B.
Proof. by rewrite !frobE mdotBl !mdotBr (mdotC B A); ring. Qed.

Lemma cauchy_schwarz m n (A B : 'M[R]_(m, n)) :
  mdot A B ^+ 2 <= frobeniusSq A * frobeniusSq B.
Proof.
case: (eqVneq B 0) => [->|B0]; first by rewrite mdot0r expr0n /= mulr_ge0 ?frob_ge0.
have hB : 0 < frobeniusSq B by rewrite frob_gt0.
have := frob_ge0 (frobeniusSq B *: A - mdot A B *: B).
rewrite frobB !frobeniusSq_smul mdotZl mdotZr => h.
have {}h : 0 <= frobeniusSq B * (frobeniusSq A * frobeniusSq B - mdot A B ^+ 2).
  by apply: le_trans h _; rewrite le_eqVlt; apply/orP; left; apply/eqP; ring.
by move: h; rewrite pmulr_rge0 // subr_ge0.
Qed.

(* ---------- products ---------- *)
(* orthonormal rows on the right, or orthonormal columns on the left, keep the energy *)
Lemma frob_mulr_orth m n p (A : 'M[R]_(m, p)) (Q : 'M[R]_(p, n)) :
  Q *m Q^T = 1%:M -> frobeniusSq (A *m Q) = frobeniusSq A.
Proof. by move=> hQ; rewrite !frobE mdot_mulr -mulmxA hQ mulmx1. Qed.

Lemma frob_mull_orth m n p (A : 'M[R]_(p, n)) (Q : 'M[R]_(m, p)) :
  Q^T *m Q = 1%:M -> frobeniusSq (Q *m A) = frobeniusSq A.
Proof. by move=> hQ; rewrite !frobE mdot_mull mulmxA hQ mul1mx. Qed.

(* Pythagoras for the projection A Q^T Q on the span of the orthonormal rows of Q *)
Lemma frob_proj m n p (A : 'M[R]_(m, n)) (Q : 'M[R]_(p, n)) : Q *m Q^T = 1%:M ->
  frobeniusSq A = frobeniusSq (A *m Q^T) + frobeniusSq (A - A *m Q^T *m Q).
Proof. by move=> hQ; rewrite frobB mdot_mulr (frob_mulr_orth _ hQ) !frobE; ring. Qed.

Lemma frob_proj_le m n p (A : 'M[R]_(m, n)) (Q : 'M[R]_(p, n)) : Q *m Q^T = 1%:M ->
  frobeniusSq (A *m Q^T) <= frobeniusSq A.
Proof. by move=> hQ; rewrite (frob_proj A hQ) ler_addl frob_ge0. Qed.

Lemma frob_rows m n (A : 'M[R]_(m, n)) : frobeniusSq A = \sum_i frobeniusSq (row i A).
Proof.
apply: eq_bigr => i _; rewrite /frobeniusSq big_ord1.
by apply: eq_bigr => j _; rewrite mxE.
Qed.

Lemma frob_cols m n (A : 'M[R]_(m, n)) : frobeniusSq A = \sum_j frobeniusSq (col j A).
Proof.
by rewrite -frob_tr frob_rows; apply: eq_bigr => j _; rewrite -tr_col frob_tr.
Qed.

(* submultiplicativity: |A B|_F^2 <= |A|_F^2 |B|_F^2 *)
Lemma frob_mul_le m n p (A : 'M[R]_(m, n)) (B : 'M[R]_(n, p)) :
  frobeniusSq (A *m B) <= frobeniusSq A * frobeniusSq B.
Proof.
rewrite {1}/frobeniusSq (frob_rows A) mulr_suml; apply: ler_sum => i _.
rewrite (frob_cols B) mulr_sumr; apply: ler_sum => j _.
have -> : (A *m B) i j = mdot (row i A) (col j B)^T.
  by rewrite mxE /mdot big_ord1; apply: eq_bigr => k _; rewrite !mxE.
by rewrite -(frob_tr (col j B)) cauchy_schwarz.
Qed.

(* a frame of k orthonormal columns has energy k *)
Lemma frob_frame k n (U : 'M[R]_(n, k)) : U^T *m U = 1%:M -> frobeniusSq U = k%:R.
Proof. by move=> h; rewrite -frob_tr frobE mdotE trmxK h mxtrace1. Qed.

(* orthonormal rows have unit length *)
Lemma frob_row_orth k n (Q : 'M[R]_(k, n)) i : Q *m Q^T = 1%:M -> frobeniusSq (row i Q) = 1.
Proof.
move=> h; have := congr1 (fun A : 'M_(_, _) => A i i) h; rewrite !mxE eqxx mulr1n => <-.
by rewrite /frobeniusSq big_ord1; apply: eq_bigr => j _; rewrite !mxE expr2.
Qed.

Lemma frob_scalar n (a : R) : frobeniusSq (a%:M : 'M[R]_n) = n%:R * a ^+ 2.
Proof. by rewrite frobE mdotE tr_scalar_mx -scalar_mxM mxtrace_scalar mulr_natl expr2. Qed.

(* a standard basis vector has unit length *)
Lemma frob_delta n (i : 'I_n) : frobeniusSq (delta_mx i 0 : 'cV[R]_n) = 1.
Proof.
rewrite /frobeniusSq (bigD1 i) //= big_ord1 mxE !eqxx expr1n big1 ?addr0 // => j ji.
by rewrite big_ord1 mxE (negPf ji) expr0n.
Qed.
End Frobenius.
