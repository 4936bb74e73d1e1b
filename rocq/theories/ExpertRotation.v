(* One rotation for many experts need not leave a gap to rotations of their own: a Hadamard rotation
   takes d orthogonal one-direction populations to the sign lattice at once.
   Over any real closed field: no axioms. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From Gonio Require Import Frobenius Gauge SignQuantization.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Hadamard.
Variable R : rcfType.

(* entries +1 and -1, orthogonal columns *)
Definition isHadamard d (H : 'M[R]_d) : Prop :=
  (forall i j, H i j ^+ 2 = 1) /\ H^T *m H = d%:R%:M.

(* Sylvester: there is one in every dimension 2^k *)
Lemma sylvester_hadamard k : exists H : 'M[R]_(2 ^ k), isHadamard H.
Proof.
elim: k => [|k [H [sq orth]]].
  exists 1%:M; split=> [i j|]; first by rewrite !ord1 mxE expr1n.
  by rewrite trmx1 mul1mx.
rewrite expnS mul2n -addnn; exists (block_mx H H H (- H)); split=> [i j|].
  rewrite -[i]splitK -[j]splitK; case: (split i) => a; case: (split j) => b /=;
    by rewrite ?block_mxEul ?block_mxEur ?block_mxEdl ?block_mxEdr ?mxE ?sqrrN sq.
have tN : (- H)^T = - H^T by apply/matrixP => i j; rewrite !mxE.
rewrite tr_block_mx mulmx_block tN !mulmxN !mulNmx !opprK orth !subrr.
by rewrite natrD scalar_mx_block raddfD.
Qed.

(* for populations along the standard basis *)
Lemma hadamard_basis n (H : 'M[R]_n.+1) : isHadamard H ->
  exists Q : 'M[R]_n.+1, orthogonal Q /\
    (forall i c, let k := Q *m (c *: (delta_mx i 0 : 'cV[R]_n.+1)) in
       signQuant k = k /\ (c != 0 -> cosine k (signVector k) = 1)) /\
    forall gap, 0 < gap -> exists i, forall c, c != 0 ->
       let k := Q *m (c *: (delta_mx i 0 : 'cV[R]_n.+1)) in
       ~ (cosine k (signVector k) <= 1 - gap).
Proof.
move=> [sq orth]; pose a : R := (Num.sqrt n.+1%:R)^-1; exists (a *: H).
have a0 : 0 < a by rewrite invr_gt0 sqrtr_gt0 ltr0n.
have aa : a * a * n.+1%:R = 1.
  by rewrite /a -invfM -expr2 sqr_sqrtr ?ler0n // mulVf // pnatr_eq0.
have oQ : orthogonal (a *: H).
  have tZ : (a *: H)^T = a *: H^T by apply/matrixP => i j; rewrite !mxE.
  by rewrite /orthogonal tZ -scalemxAl -scalemxAr orth scalerA scale_scalar_mx aa.
have ent i c j : (a *: H *m (c *: (delta_mx i 0 : 'cV[R]_n.+1))) j 0 = a * c * H j i.
  by rewrite -scalemxAr -colE !mxE mulrA (mulrC c a) mulrAC.
have abs i c j : `|(a *: H *m (c *: (delta_mx i 0 : 'cV[R]_n.+1))) j 0| = a * `|c|.
  rewrite ent !normrM (gtr0_norm a0) -[RHS]mulr1; congr (_ * _).
  by apply/eqP; rewrite -sqrp_eq1 // -normrX sq normr1.
have cos1 i c : c != 0 -> cosine (a *: H *m (c *: (delta_mx i 0 : 'cV[R]_n.+1)))
    (signVector (a *: H *m (c *: (delta_mx i 0 : 'cV[R]_n.+1)))) = 1.
  move=> c0; apply/cos_eq_one_iff_sign_lattice => [|j l]; last by rewrite !abs.
  apply/eqP => h; have := abs i c ord0; rewrite h mxE normr0 => /esym/eqP.
  by rewrite mulf_eq0 normr_eq0 (negPf c0) gt_eqF.
split=> //; split=> [i c|gap g0].
  split; last exact: cos1.
  move: (abs i c); move: (_ *m _) => k absk; apply/matrixP => j l; rewrite ord1.
  rewrite /signQuant mxE [X in _ * X]mxE /l1Norm (eq_bigr _ (fun j _ => absk j)).
  rewrite sumr_const card_ord -[_ *+ _]mulr_natr mulfK ?pnatr_eq0 // -(absk j) /sgn1.
  case: ifP => [h|/negbT]; first by rewrite mulr1 ger0_norm.
  by rewrite -ltNge => h; rewrite mulrN1 ltr0_norm // opprK.
exists ord0 => c c0 /=; rewrite cos1 // ler_subr_addr ger_addl.
by apply/negP; rewrite -ltNge.
Qed.
(* One dimension d, d populations of keys: population i holds the multiples of o_i, for orthonormal
   o_1, .., o_d, the columns of O. A normalized Hadamard matrix, after O^T, turns every one of them
   into a vector whose entries all have the same absolute value: one bit loses nothing, for all
   populations at once. So the claim that a single rotation stays a fixed gap below the best
   rotation of each population is false, for every gap > 0 and every Hadamard order d (all
   d = 2^k). *)
Theorem expert_heterogeneity_batch_full_gap n (H O : 'M[R]_n.+1) : isHadamard H -> orthogonal O ->
  exists Q : 'M[R]_n.+1, orthogonal Q /\
    (forall i c, let k := Q *m (c *: col i O) in
       signQuant k = k /\ (c != 0 -> cosine k (signVector k) = 1)) /\
    forall gap, 0 < gap -> exists i, forall c, c != 0 ->
       let k := Q *m (c *: col i O) in ~ (cosine k (signVector k) <= 1 - gap).
Proof.
move=> hH oO; have [Q [oQ [one gap]]] := hadamard_basis hH; exists (Q *m O^T).
have turned i c : Q *m O^T *m (c *: col i O) = Q *m (c *: (delta_mx i 0 : 'cV[R]_n.+1)).
  by rewrite -mulmxA -!scalemxAr colE (mulmxA O^T) oO mul1mx.
split; first by rewrite /orthogonal trmx_mul trmxK -mulmxA (mulmxA Q^T) oQ mul1mx; apply: mulmx1C.
split=> [i c|g g0]; first by rewrite turned; apply: one.
by have [i hi] := gap g g0; exists i => c c0; rewrite turned; apply: hi.
Qed.
End Hadamard.

Section PerMatrix.
Variable R : rcfType.

(* Give every matrix W_e its own rotation Q_e and any approximation S_e of W_e Q_e, with residual
   E_e = W_e Q_e - S_e, and keep of each residual its projection onto the span of the orthonormal
   rows P_e. The total error, after rotating back, is the sum over e of (1 - beta_e)(1 - gamma_e)
   |W_e|^2, beta_e the share of energy that S_e keeps and gamma_e the share of the residual that
   P_e keeps: matrix by matrix, so each Q_e can be chosen on its own. *)
Theorem per_matrix_R_decomposition K m n (r : 'I_K -> nat) (W S : 'I_K -> 'M[R]_(m, n))
    (Q : 'I_K -> 'M[R]_n) (P : forall e, 'M[R]_(r e, n)) :
  (forall e, orthogonal (Q e)) -> (forall e, P e *m (P e)^T = 1%:M) ->
  let E e := W e *m Q e - S e in
  let beta e := 1 - frobeniusSq (E e) / frobeniusSq (W e) in
  let gamma e := frobeniusSq (E e *m (P e)^T) / frobeniusSq (E e) in
  (forall e, W e != 0) -> (forall e, E e != 0) ->
  \sum_e frobeniusSq (W e - (S e + E e *m (P e)^T *m P e) *m (Q e)^T) =
  \sum_e (1 - beta e) * (1 - gamma e) * frobeniusSq (W e).
Proof.
move=> oQ oP E beta gamma W0 E0; apply: eq_bigr => e _.
have qq : Q e *m (Q e)^T = 1%:M by apply: mulmx1C; apply: oQ.
have -> : W e - (S e + E e *m (P e)^T *m P e) *m (Q e)^T =
    (E e - E e *m (P e)^T *m P e) *m (Q e)^T.
  have {1}-> : W e = (W e *m Q e) *m (Q e)^T by rewrite -mulmxA qq mulmx1.
  by rewrite -mulmxBl opprD addrA.
rewrite frob_mulr_orth; last by rewrite trmxK; apply: oQ.
rewrite frobB mdot_mulr frob_mulr_orth // -frobE /gamma /beta.
have w0 : frobeniusSq (W e) != 0 by rewrite frob_eq0.
have e0 : frobeniusSq (E e) != 0 by rewrite frob_eq0.
move: (frobeniusSq (W e)) w0 (frobeniusSq (E e)) e0 (frobeniusSq (E e *m (P e)^T)).
by move=> w w0 x x0 y; field; rewrite w0 x0.
Qed.
End PerMatrix.
