(* What a rotation can do for the mean 1-bit cosine: nothing if the law is spherically symmetric;
   at least 1/sqrt 3 for every set of weights if it is a random-sign Hadamard matrix; and the mean
   over an invariant law on the orthogonal group is a floor for the best rotation.
   Over any real closed field: no axioms. *)
From mathcomp Require Import all_ssreflect all_fingroup all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From Gonio Require Import Frobenius Gauge SignQuantization MomentRatio SignedPermutations
  RotationAverage.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Isotropic.
Variables (R : rcfType) (n : nat).
Local Notation d := (n.+1).
Implicit Types (Q : 'M[R]_d) (v w : 'cV[R]_d).

(* the 1-bit cosine *)
Definition oneBitCosine v : R := cosine v (signVector v).

(* k is a random vector with the same law as Q k, for every orthogonal Q: a function of k and the
   same function of Q k have the same expectation *)
Definition sphericallySymmetric T (integrable : (T -> R) -> Prop) (E : (T -> R) -> R)
    (k : T -> 'cV[R]_d) : Prop :=
  forall Q, orthogonal Q -> forall f : 'cV[R]_d -> R, integrable (fun t => f (k t)) ->
    integrable (fun t => f (Q *m k t)) /\ E (fun t => f (Q *m k t)) = E (fun t => f (k t)).

(* If the law of k is spherically symmetric, E cos(Q k) is the same for every orthogonal Q.
   "Isotropic in coordinates", E k_i k_j = 0 for i <> j and E k_i^2 = 1, is not enough: the
     uniform law
   on the 2^d sign vectors has it, and its cosine is 1 without any rotation. (That the common value
   is c_d of IsotropicCosine.v, the mean over the polar angle, is not proved here: it needs the law
   of one coordinate of a uniform direction.) *)
Theorem srht_achieves_isotropic_floor :
  (forall T (integrable : (T -> R) -> Prop) (E : (T -> R) -> R) (k : T -> 'cV[R]_d),
     sphericallySymmetric integrable E k -> integrable (fun t => oneBitCosine (k t)) ->
     forall Q, orthogonal Q ->
       E (fun t => oneBitCosine (Q *m k t)) = E (fun t => oneBitCosine (k t))) /\
  (let E (f : {ffun 'I_d -> bool} -> R) := \sum_e (2 ^ d)%:R^-1 * f e in
   let k (e : {ffun 'I_d -> bool}) : 'cV[R]_d := \col_i signOf R e i in
   [/\ isExpectation (fun=> True) E,
       forall i j, E (fun e => k e i 0 * k e j 0) = (i == j)%:R &
       forall e, oneBitCosine (1%:M *m k e) = 1]).
Proof.
split=> [T integrable E k sym ik Q oQ | E k]; first by have [] := sym Q oQ oneBitCosine ik.
have N0 : (2 ^ d)%:R != 0 :> R by rewrite pnatr_eq0 expn_eq0.
split=> [|i j|e].
- apply: finite_isExpectation => [e|]; first by rewrite invr_ge0 ler0n.
  by rewrite sumr_const card_ffun card_bool card_ord -[_ *+ _]mulr_natr mulVf.
- rewrite /E -mulr_sumr (eq_bigr (fun e => signOf R e i * signOf R e j)).
    by rewrite sum_signs mulrC mulfK.
  by move=> e _; rewrite !mxE.
- have abs i : `|k e i 0| = 1 by rewrite mxE /signOf normrX normrN1 expr1n.
  rewrite mul1mx; apply/cos_eq_one_iff_sign_lattice => [|i j]; last by rewrite !abs.
  by apply/eqP => k0; have := abs ord0; rewrite k0 mxE normr0 => /esym/eqP; rewrite oner_eq0.
Qed.

(* the mean 1-bit cosine of the rows of W, turned by Q *)
Definition meanCosine m (W : 'M[R]_(m, d)) Q : R :=
  (\sum_i oneBitCosine (Q *m (row i W)^T)) / m%:R.

(* Let W have m >= 1 rows, none of them 0. If H is orthogonal with all entries +-1/sqrt d (a
   normalized Hadamard matrix), the mean of meanCosine W (H D) over all diagonal sign matrices D is
   at least 1/sqrt 3, so some rotation H D reaches that, whatever W. And a random orthogonal matrix,
   with any law, cannot do better on average than the best rotation: a bound for every rotation
   bounds the mean. (With the Haar law that mean is c_d; neither Haar nor that value is constructed
   here, and 1/sqrt 3 = 0.577 is weaker than c_d > 0.797.) *)
Theorem ffn_weight_beta_lift_under_learned_R m (W : 'M[R]_(m.+1, d)) :
  (forall i, row i W != 0) ->
  (forall H, flat H -> orthogonal H ->
     (Num.sqrt 3%:R)^-1 <= mean (fun t : d.-tuple bool => meanCosine W (H *m dsign R t)) /\
     exists Q, orthogonal Q /\ (Num.sqrt 3%:R)^-1 <= meanCosine W Q) /\
  (forall T (integrable : (T -> R) -> Prop) (E : (T -> R) -> R) (Q : T -> 'M[R]_d) b,
     isExpectation integrable E -> (forall t, orthogonal (Q t)) ->
     integrable (fun t => meanCosine W (Q t)) ->
     (forall Q', orthogonal Q' -> meanCosine W Q' <= b) -> E (fun t => meanCosine W (Q t)) <= b).
Proof.
move=> W0; split=> [H fH oH | T integrable E Q b hE oQ iQ hb]; last first.
  rewrite -subr_ge0; have ib := integrable_cst hE b.
  have := expectation_ge0 hE (integrable_lin hE (-1) iQ ib).
  rewrite (expectation_lin hE) // (expectation_cst hE) mulN1r addrC; apply=> t.
  by rewrite mulN1r addrC subr_ge0 hb.
have m0 : 0 < m.+1%:R :> R by rewrite ltr0n.
have oHD t : orthogonal (H *m dsign R t).
  by rewrite /orthogonal trmx_mul -mulmxA (mulmxA H^T) oH mul1mx dsign_orth.
have floor i : (Num.sqrt 3%:R)^-1 <=
    mean (fun t : d.-tuple bool => oneBitCosine (H *m dsign R t *m (row i W)^T)).
  set w := (row i W)^T; have w0 : w != 0 by rewrite trmx_eq0.
  have nw : 0 < norm2 w by rewrite sqrtr_gt0 frob_gt0.
  have sd : 0 < Num.sqrt d%:R :> R by rewrite sqrtr_gt0 ltr0n.
  have := randomized_hadamard_mean w fH; set c := (Num.sqrt d%:R * norm2 w)^-1 => h.
  have c0 : 0 < c by rewrite invr_gt0 mulr_gt0.
  apply: le_trans (_ : mean (fun t : d.-tuple bool => c * l1Norm (H *m dsign R t *m w)) <= _).
    rewrite meanZ; apply: le_trans (_ : c * (norm2 w * Num.sqrt (d%:R / 3%:R)) <= _).
      rewrite sqrtrM ?ler0n // sqrtrV ?ler0n // /c le_eqVlt; apply/orP; left; apply/eqP.
      move: (Num.sqrt d%:R) sd (norm2 w) nw (Num.sqrt 3%:R)^-1 => x x0 y y0 z.
      by rewrite [y * _]mulrA [y * x]mulrC mulKf // gt_eqF // mulr_gt0.
    by rewrite ler_wpmul2l // ltW.
  apply: mean_ge => t; rewrite /oneBitCosine cos_sign_quant_formula.
  by rewrite [norm2 (_ *m w)]/norm2 (frob_mull_orth _ (oHD t)) -/(norm2 w) mulrC.
have main : (Num.sqrt 3%:R)^-1 <=
    mean (fun t : d.-tuple bool => meanCosine W (H *m dsign R t)).
  rewrite /meanCosine /mean -mulr_suml -mulrA [_^-1 / _]mulrC mulrA ler_pdivl_mulr ?ltr0n
    ?expn_gt0 //.
  rewrite ler_pdivl_mulr ?ltr0n ?expn_gt0 // exchange_big /=.
  have -> : (Num.sqrt 3%:R)^-1 * m.+1%:R * (2 ^ d)%:R =
      \sum_(i < m.+1) (Num.sqrt 3%:R)^-1 * (2 ^ d)%:R :> R.
    by rewrite sumr_const card_ord -[RHS]mulr_natr mulrAC.
  apply: ler_sum => i _; have := floor i.
  by rewrite /mean ler_pdivl_mulr // ltr0n expn_gt0.
split=> //; have [t ht] := mean_exists_ge main.
by exists (H *m dsign R t).
Qed.
End Isotropic.
