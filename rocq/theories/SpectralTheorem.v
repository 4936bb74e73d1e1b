(* The spectral theorem for symmetric matrices over any real closed field. The only use of complex
   numbers in this library: the field with i adjoined is algebraically closed. No axioms. *)
From mathcomp Require Import all_ssreflect all_fingroup all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From mathcomp.real_closed Require Import complex.
From Gonio Require Import Frobenius OrthonormalBasis Gauge Householder.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Spectral.
Variable R : rcfType.

Lemma ReDc (x y : R[i]) : complex.Re (x + y) = complex.Re x + complex.Re y.
Proof. by case: x y => [a b] [a' b']. Qed.
Lemma ImDc (x y : R[i]) : complex.Im (x + y) = complex.Im x + complex.Im y.
Proof. by case: x y => [a b] [a' b']. Qed.
Lemma Re_sum (I : Type) (s : seq I) (F : I -> R[i]) :
  complex.Re (\sum_(i <- s) F i) = \sum_(i <- s) complex.Re (F i).
Proof. exact: (big_morph (@complex.Re R) ReDc erefl). Qed.
Lemma Im_sum (I : Type) (s : seq I) (F : I -> R[i]) :
  complex.Im (\sum_(i <- s) F i) = \sum_(i <- s) complex.Im (F i).
Proof. exact: (big_morph (@complex.Im R) ImDc erefl). Qed.

(* A symmetric real matrix has a real eigenvector: take a complex one v = x + i y for the eigenvalue
   a + i b; symmetry forces b = 0, and x or y is an eigenvector for a. *)
Lemma sym_eigenvector n (A : 'M[R]_n.+1) : A^T = A ->
  exists (a : R) (v : 'rV[R]_n.+1), v != 0 /\ v *m A = a *: v.
Proof.
move=> sA; pose AC : 'M[R[i]]_n.+1 := map_mx (real_complex R) A.
have /closed_rootP[a] : size (char_poly AC) != 1%N by rewrite size_char_poly.
rewrite -eigenvalue_root_char => /eigenvalueP[v vA v0].
case: a vA => a b vA; pose x := map_mx (@complex.Re R) v; pose y := map_mx (@complex.Im R) v.
have hx : x *m A = a *: x - b *: y.
  apply/rowP => j; have := congr1 (fun u : 'rV_ _ => complex.Re (u 0 j)) vA.
  rewrite !mxE Re_sum /=; case: (v 0 j) => /= c e <-; apply: eq_bigr => k _.
  by rewrite !mxE; case: (v 0 k) => /= p q; ring.
have hy : y *m A = a *: y + b *: x.
  apply/rowP => j; have := congr1 (fun u : 'rV_ _ => complex.Im (u 0 j)) vA.
  rewrite !mxE Im_sum /=; case: (v 0 j) => /= c e <-; apply: eq_bigr => k _.
  by rewrite !mxE; case: (v 0 k) => /= p q; ring.
have xy0 : (x != 0) || (y != 0).
  apply: contraNT v0; rewrite negb_or !negbK => /andP[/eqP x0 /eqP y0].
  apply/eqP/rowP => j; have := congr1 (fun u : 'rV_ _ => u 0 j) x0.
  have := congr1 (fun u : 'rV_ _ => u 0 j) y0.
  by rewrite !mxE; case: (v 0 j) => /= c e -> ->.
have hb : b * (frobeniusSq x + frobeniusSq y) = 0.
  have h : mdot (x *m A) y = mdot x (y *m A) by rewrite mdot_mulr sA.
  move: h; rewrite hx hy mdotBl mdotDr !mdotZl !mdotZr -!frobE => h.
  pose X := mdot x y; pose F := frobeniusSq x; pose G := frobeniusSq y.
  transitivity ((a * X + b * F) - (a * X - b * G)); first by rewrite /X /F /G; ring.
  by apply/eqP; rewrite subr_eq0 eq_sym; apply/eqP.
have b0 : b = 0.
  move/eqP: hb; rewrite mulf_eq0 => /orP[/eqP //|].
  rewrite paddr_eq0 ?frobeniusSq_nonneg // !frob_eq0 => /andP[x0 y0].
  by move: xy0; rewrite x0 y0.
case/orP: xy0 => h; [exists a, x | exists a, y]; split=> //.
  by rewrite hx b0 scale0r subr0.
by rewrite hy b0 scale0r addr0.
Qed.

(* A symmetric real matrix is diagonal in some orthonormal basis (the rows of P). *)
Lemma spectral_theorem n (A : 'M[R]_n) : A^T = A ->
  exists (P : 'M[R]_n) (d : 'rV[R]_n), P *m P^T = 1%:M /\ P *m A *m P^T = diag_mx d.
Proof.
elim: n A => [|n IH] A sA.
  by exists 1%:M, 0; split; apply/matrixP => -[].
have [a [v0 [v00 v0A]]] := sym_eigenvector sA.
pose v := (Num.sqrt (frobeniusSq v0))^-1 *: v0.
have v1 : frobeniusSq v = 1 by apply: frob_normalize.
have vA : v *m A = a *: v by rewrite -scalemxAl v0A !scalerA mulrC.
pose e : 'cV[R]_(1 + n) := col_mx 1%:M 0.
have e1 : frobeniusSq v^T = frobeniusSq e.
  rewrite frob_tr v1 frobE mdotE tr_col_mx mul_col_row mxtrace_block trmx1 trmx0 !mulmx0.
  by rewrite mul1mx mxtrace1 mxtrace0 addr0.
have [H [hH He]] := orthogonal_map_exists e1.
have hH' : H *m H^T = 1%:M by apply: mulmx1C.
pose B : 'M[R]_(1 + n) := H *m A *m H^T.
have sB : B^T = B by rewrite /B !trmx_mul trmxK sA mulmxA.
have He' : H^T *m e = v^T by rewrite -He mulmxA hH mul1mx.
have Be : B *m e = a *: e.
  by rewrite /B -!mulmxA He' -{1}sA -trmx_mul vA linearZ /= -scalemxAr He.
have eB : B = block_mx a%:M 0 0 (drsubmx B).
  have hl : lsubmx B = a *: e.
    rewrite -Be -[B in RHS]hsubmxK mul_row_col mulmx1 mulmx0 addr0 //.
  have eB0 : B = block_mx a%:M (usubmx (rsubmx B)) 0 (dsubmx (rsubmx B)).
    rewrite block_mxEh vsubmxK -[LHS]hsubmxK hl scale_col_mx scaler0 scalemx1 //.
  have ul : ulsubmx B = a%:M by rewrite [in LHS]eB0 block_mxKul.
  have dl : dlsubmx B = 0 by rewrite [in LHS]eB0 block_mxKdl.
  have ur : ursubmx B = 0 by rewrite -[B]sB -trmx_dlsub dl trmx0.
  by rewrite -[LHS]submxK ul dl ur.
have sD : (drsubmx B)^T = drsubmx B by rewrite trmx_drsub sB.
have [P [d [PP PD]]] := IH _ sD.
pose P1 : 'M[R]_(1 + n) := block_mx 1%:M 0 0 P.
have PP1 : P1 *m P1^T = 1%:M.
  rewrite tr_block_mx mulmx_block !trmx0 trmx1 !mulmx0 !mul0mx !mulmx1 ?addr0 ?add0r PP.
  by rewrite -scalar_mx_block.
exists (P1 *m H), (row_mx a%:M d); split.
  by rewrite trmx_mul -mulmxA (mulmxA H) hH' mul1mx.
have -> : P1 *m H *m A *m (P1 *m H)^T = P1 *m B *m P1^T.
  by rewrite trmx_mul /B !mulmxA.
rewrite eB tr_block_mx !mulmx_block !trmx0 trmx1.
do !rewrite ?mulmx0 ?mul0mx ?mulmx1 ?mul1mx ?addr0 ?add0r.
have da : diag_mx (a%:M : 'rV[R]_1) = a%:M by apply/matrixP => i j; rewrite !ord1 !mxE.
by rewrite PD [RHS](diag_mx_row a%:M d) da.
Qed.
End Spectral.
