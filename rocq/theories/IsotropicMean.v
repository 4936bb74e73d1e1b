(* What a rotation can do for the mean 1-bit cosine. If the direction of k is uniformly random, E
   cos(Q k) is c_d for every rotation Q; so the mean over all rotations Q of the mean cosine of any
   set of vectors is c_d, and some rotation comes as near to c_d as one likes, or above it. Over
   the real numbers of Coq's standard library (c_d is an integral there); axioms: theirs, and the
   three of boolp. *)
From Coq Require Import Reals.
From mathcomp Require Import all_ssreflect all_fingroup all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From mathcomp.classical Require Import boolp classical_sets.
From mathcomp Require Import reals.
From Gonio Require Import Frobenius Gauge SignQuantization MomentRatio Isotropy SignedPermutations
  AlmostInvariant HaarMean AbsoluteValue SphereMoments StandardReals WallisIntegrals IsotropicCosine
  PolarMean.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(* ---------- the mean absolute coordinate of a uniformly random direction ---------- *)
Lemma polar_expectation m : isExpectation (R := R_realFieldType) isContinuous (polarMean m).
Proof.
split.
- exact: isContinuous_cst.
- exact: isContinuous_lin.
- exact: polarMean_cst.
- exact: polarMean_lin.
by move=> f cf f0; rewrite RleE; apply: polarMean_ge0 => // t; rewrite -RleE.
Qed.

Lemma Rsqrt_natr d : R_sqrt.sqrt (INR d) = Num.sqrt (d%:R : R).
Proof.
have h : (0 : R) <= INR d by rewrite INR_natr ler0n.
rewrite -[LHS]ger0_norm; last by rewrite RleE; apply: sqrt_pos.
rewrite -sqrtr_sqr; congr Num.sqrt; rewrite -INR_natr expr2.
by apply: sqrt_sqrt; rewrite -RleE.
Qed.

Section Direction.
Variables (d : nat) (T : Type) (integrable : (T -> R) -> Prop) (E : (T -> R) -> R).
Variable u : T -> 'cV[R]_d.
Hypothesis hu : isUniformDirection integrable E u.

Lemma direction_le1 t i : `|u t i 0| <= 1.
Proof.
rewrite -[leRHS]ger0_norm ?ler01 // -!sqrtr_sqr ler_wsqrtr // expr1n -(direction_unit hu t).
rewrite /frobeniusSq (bigD1 i) //= big_ord1 ler_addl.
by apply: sumr_ge0 => j _; apply: sumr_ge0 => l _; apply: sqr_ge0.
Qed.

Lemma power_integrable i k : integrable (fun t => u t i 0 ^+ k).
Proof.
have := direction_integrable hu i i k 0.
by rewrite (_ : (fun t => _) = (fun t => u t i 0 ^+ k)) //; apply/funext => t; rewrite expr0 mulr1.
Qed.
End Direction.

Lemma direction_abs d T (integrable : (T -> R) -> Prop) (E : (T -> R) -> R) (u : T -> 'cV[R]_d) i :
  isExpectation integrable E -> isUniformDirection integrable E u ->
  (forall i, integrable (fun t => `|u t i 0|)) ->
  Num.sqrt d%:R * E (fun t => `|u t i 0|) = isotropicCosine d.
Proof.
case: d u i => [|[|m]] u i hE hu ia; first by case: i.
  rewrite isotropicCosine_1 sqrtr1 mul1r -[RHS](expectation_cst hE 1).
  apply: (expectation_ext hE) => //; first exact: (integrable_cst hE).
  move=> t; have := direction_unit hu t; rewrite /frobeniusSq !big_ord1 !ord1 => h.
  by rewrite -sqrtr_sqr h sqrtr1.
have mom k : E (fun t => u t i 0 ^+ (2 * k)) = polarMean m (fun t => cos t ^+ (2 * k)).
  have eM : E (fun t => u t i 0 ^+ (2 * k)) = directionMoment E u i (2 * k).
    by congr E; apply/funext => t; rewrite expr0 mulr1.
  have pw j : (fun t => cos t ^+ j) = (fun t => pow (cos t) j).
    by apply/funext => t; rewrite Rpow_exp.
  rewrite eM pw; elim: k {eM} => [|k IH].
    by rewrite polarMean_0 muln0 (directionMoment0 hE hu).
  have := directionMoment_rec hE hu i k; rewrite IH => rec.
  have := polarMean_rec m k; rewrite !INR_natr => prec.
  have e1 : (m.+2 + 2 * k)%:R = m%:R + 2%:R * k%:R + 2%:R :> R.
    by rewrite -natrM -!natrD -[in LHS]addn2 addnAC.
  have e2 : (2 * k + 1)%:R = 2%:R * k%:R + 1 :> R by rewrite -natrM -[1]/(1%:R) -natrD.
  have n0 : m%:R + 2%:R * k%:R + 2%:R != 0 :> R by rewrite -e1 pnatr_eq0.
  apply: (mulfI n0); rewrite -{1}e1 rec e2; exact: esym prec.
rewrite -polarMean_abs Rsqrt_natr; congr (_ * _).
apply: (@mean_abs_determined _ _ _ integrable isContinuous E (polarMean m) (fun t => u t i 0) cos)
  => //.
- exact: polar_expectation.
- by move=> t; apply: (direction_le1 hu).
- by move=> t; rewrite RleE; apply: Rabs_le; have := COS_bound t.
- by move=> k; apply: (power_integrable hu).
- move=> k; rewrite (_ : (fun t => _) = (fun t => pow (cos t) (2 * k))).
    exact: isContinuous_cos_pow.
  by apply/funext => t; rewrite Rpow_exp.
exact: isContinuous_abs_cos.
Qed.

(* ---------- the 1-bit cosine ---------- *)
Section OneBit.
Variable n : nat.
Local Notation d := (n.+1).
Implicit Types (Q : 'M[R]_d) (v w : 'cV[R]_d).

Definition oneBitCosine v : R := cosine v (signVector v).

(* the direction of v *)
Definition direction v : 'cV[R]_d := (norm2 v)^-1 *: v.

Lemma oneBitCosine_direction v : v != 0 ->
  oneBitCosine v = \sum_i (Num.sqrt d%:R)^-1 * `|direction v i 0|.
Proof.
move=> v0; have nv : 0 < norm2 v by rewrite sqrtr_gt0 frob_gt0.
rewrite /oneBitCosine cos_sign_quant_formula -mulr_sumr invfM mulrCA; congr (_ * _).
rewrite /l1Norm mulr_suml; apply: eq_bigr => i _.
by rewrite mxE normrM mulrC ger0_norm // invr_ge0 ltW.
Qed.

(* The direction of k is uniformly random: k is never 0, a function of k and the same function of Q
   k have the same mean for every orthogonal Q, and polynomials in two coordinates of the direction
   and the absolute values of its coordinates have means (bounded functions, integrable for any
   measure) *)
Record isotropicDirection T (integrable : (T -> R) -> Prop) (E : (T -> R) -> R) (k : T -> 'cV[R]_d)
  : Prop := {
  isotropic_neq0 : forall t, k t != 0;
  isotropic_symmetric : forall Q, orthogonal Q -> forall f : 'cV[R]_d -> R,
    integrable (fun t => f (k t)) ->
    integrable (fun t => f (Q *m k t)) /\ E (fun t => f (Q *m k t)) = E (fun t => f (k t));
  isotropic_polynomial : forall i j a b,
    integrable (fun t => direction (k t) i 0 ^+ a * direction (k t) j 0 ^+ b);
  isotropic_abs : forall i, integrable (fun t => `|direction (k t) i 0|) }.

Lemma direction_mul Q v : orthogonal Q -> direction (Q *m v) = Q *m direction v.
Proof. by move=> oQ; rewrite /direction /norm2 (frob_mull_orth _ oQ) scalemxAr. Qed.

Lemma isotropic_uniform T (integrable : (T -> R) -> Prop) E (k : T -> 'cV[R]_d) :
  isotropicDirection integrable E k -> isUniformDirection integrable E (fun t => direction (k t)).
Proof.
move=> hk; split=> [t|i j a b|Q oQ f hf].
- exact: OrthonormalBasis.frob_normalize (isotropic_neq0 hk t).
- exact: (isotropic_polynomial hk).
have [i1 e1] := isotropic_symmetric hk oQ (f := fun v => f (direction v)) hf.
have ext : (fun t => f (direction (Q *m k t))) = (fun t => f (Q *m direction (k t))).
  by apply/funext => t; rewrite direction_mul.
by rewrite -ext.
Qed.

Lemma isotropic_hasMean T (integrable : (T -> R) -> Prop) E (k : T -> 'cV[R]_d) :
  isExpectation integrable E -> isotropicDirection integrable E k ->
  hasMean integrable E (fun t => oneBitCosine (k t)) (isotropicCosine d).
Proof.
move=> hE hk; pose a (i : 'I_d) := E (fun t => `|direction (k t) i 0|).
have hF i : hasMean integrable E (fun t => `|direction (k t) i 0|) (a i).
  by exists (fun t => `|direction (k t) i 0|); split=> //; apply: (isotropic_abs hk).
have := hasMean_sum (index_enum _) (fun=> (Num.sqrt d%:R)^-1) hE hF.
have sd : 0 < Num.sqrt d%:R :> R by rewrite sqrtr_gt0 ltr0n.
have -> : \sum_i (Num.sqrt d%:R)^-1 * a i = isotropicCosine d.
  rewrite (eq_bigr (fun=> isotropicCosine d / d%:R)) => [|i _].
    by rewrite sumr_const card_ord -mulr_natr divfK // pnatr_eq0.
  rewrite -(direction_abs i hE (isotropic_uniform hk) (isotropic_abs hk)) -/(a i).
  rewrite -[X in _ / X](@sqr_sqrtr _ (d%:R : R)) ?ler0n //.
  by move: (Num.sqrt _) sd (a i) => s s0 x; field; rewrite gt_eqF.
by apply: hasMean_ext => t; rewrite oneBitCosine_direction // (isotropic_neq0 hk).
Qed.

(* the rotations of one vector, under the Haar mean: a uniformly random direction exists *)
Lemma haar_abs (f : rotation R_realType d -> R) : isCoefficient f -> (forall g, `|f g| <= 1) ->
  haarIntegrable (fun g => `|f g|).
Proof.
move=> cf b; apply: haar_uniform_limit => c c0.
have [N hN] : exists N, 2%:R / N.+1%:R <= c.
  exists (Num.bound (2%:R / c)); rewrite ler_pdivr_mulr ?ltr0n // mulrC -ler_pdivr_mulr //.
  apply: le_trans (ltW (archi_boundP _)) _; first by rewrite divr_ge0 ?ler0n ?ltW.
  by rewrite ler_nat.
exists (fun g => (absPoly R_realFieldType N.+1).[f g ^+ 2]); split=> [|g].
  apply: haar_hasMean; apply: (poly_hasMean _ (haar_expectation _ _)) => k.
  exact: coefficient_integrable (coefficient_exp _ cf).
by apply: le_trans (absPoly_error _ _) hN.
Qed.

Lemma haar_direction v : v != 0 ->
  isotropicDirection (@haarIntegrable R_realType d) (@haarMean R_realType d)
    (fun g => sval g *m v).
Proof.
move=> v0; have dirE (g : rotation R_realType d) : direction (sval g *m v) = sval g *m direction v.
  by apply: direction_mul; apply: svalP.
have cf i : isCoefficient (fun g : rotation R_realType d => direction (sval g *m v) i 0).
  rewrite (_ : (fun g => _) = (fun g : rotation R_realType d => (sval g *m direction v) i 0)).
    exact: coefficient_entry.
  by apply/funext => g; rewrite dirE.
have n1 (g : rotation R_realType d) : frobeniusSq (direction (sval g *m v)) = 1.
  rewrite dirE frob_mull_orth; last exact: (svalP g).
  exact: OrthonormalBasis.frob_normalize.
split=> [g|Q oQ f hf|i j a b|i].
- by rewrite -frob_gt0 (frob_mull_orth _ (svalP g)) frob_gt0.
- have [h1 h2] := haar_invariant (exist _ Q oQ) hf.
  rewrite (_ : (fun t => f (Q *m _)) = (fun g => f (sval (rotationMul (exist _ Q oQ) g) *m v))) //.
  by apply/funext => g; rewrite /= mulmxA.
- by apply: coefficient_integrable; apply: coefficient_mul; apply: coefficient_exp; apply: cf.
apply: haar_abs => // g; rewrite -[leRHS]ger0_norm ?ler01 // -!sqrtr_sqr ler_wsqrtr // expr1n.
rewrite -(n1 g) /frobeniusSq (bigD1 i) //= big_ord1 ler_addl.
by apply: sumr_ge0 => j _; apply: sumr_ge0 => l _; apply: sqr_ge0.
Qed.

(* If the direction of k is uniformly random, E cos(Q k) is c_d for every orthogonal Q: under any
   expectation E, and for any k whose law no rotation changes. Such laws exist: the rotations of a
   vector v <> 0 under the Haar mean. *)
Theorem srht_achieves_isotropic_floor :
  (forall T (integrable : (T -> R) -> Prop) (E : (T -> R) -> R) (k : T -> 'cV[R]_d),
     isExpectation integrable E -> isotropicDirection integrable E k ->
     forall Q, orthogonal Q -> E (fun t => oneBitCosine (Q *m k t)) = isotropicCosine d) /\
  (forall v, v != 0 -> isotropicDirection (@haarIntegrable R_realType d) (@haarMean R_realType d)
     (fun g => sval g *m v)).
Proof.
split=> [T integrable E k hE hk Q oQ|v]; last exact: haar_direction.
have [f [i1 ff Ef]] := isotropic_hasMean hE hk.
have e1 : f = (fun t => oneBitCosine (k t)) by apply/funext.
rewrite e1 in i1 Ef; have [_ ->] := isotropic_symmetric hk oQ (f := oneBitCosine) i1.
exact: Ef.
Qed.

(* "Isotropic in coordinates", E k_i = 0, E k_i k_j = 0 for i <> j and E k_i^2 = 1, is not enough:
   the uniform law on the 2^d sign vectors has it, and its 1-bit cosine is 1 without any rotation,
   while c_d < 1 for d >= 2. *)
Theorem srht_floor_counterexample :
  let E (f : {ffun 'I_d -> bool} -> R) := \sum_e (2 ^ d)%:R^-1 * f e in
  let k (e : {ffun 'I_d -> bool}) : 'cV[R]_d := \col_i signOf R_rcfType e i in
  [/\ isExpectation (fun=> True) E,
      forall i, E (fun e => k e i 0) = 0,
      forall i j, E (fun e => k e i 0 * k e j 0) = (i == j)%:R,
      forall e, oneBitCosine (1%:M *m k e) = 1 &
      (1 < d)%N -> isotropicCosine d < 1].
Proof.
move=> E k; have N0 : (2 ^ d)%:R != 0 :> R by rewrite pnatr_eq0 expn_eq0.
split=> [|i|i j|e|].
- apply: finite_isExpectation => [e|]; first by rewrite invr_ge0 ler0n.
  by rewrite sumr_const card_ffun card_bool card_ord -[_ *+ _]mulr_natr mulVf.
- rewrite /E -mulr_sumr; set S := \sum_ _ _; suff : S = - S.
    by move/eqP; rewrite -addr_eq0 -mulr2n mulrn_eq0 /= => /eqP ->; rewrite mulr0.
  rewrite {1}/S (reindex_inj (inv_inj (flipK i))) -sumrN; apply: eq_bigr => e _.
  by rewrite !mxE /signOf ffunE eqxx signrN.
- rewrite /E -mulr_sumr (eq_bigr (fun e => signOf R_rcfType e i * signOf R_rcfType e j)).
    by rewrite sum_signs mulrC mulfK.
  by move=> e _; rewrite !mxE.
- have abs i : `|k e i 0| = 1 by rewrite mxE /signOf normrX normrN1 expr1n.
  rewrite mul1mx; apply/cos_eq_one_iff_sign_lattice => [|i j]; last by rewrite !abs.
  by apply/eqP => k0; have := abs ord0; rewrite k0 mxE normr0 => /esym/eqP; rewrite oner_eq0.
by case: (n) => // m _; rewrite RltE; apply: isotropicCosine_lt1.
Qed.

(* the mean 1-bit cosine of the rows of W, turned by Q *)
Definition meanCosine m (W : 'M[R]_(m, d)) Q : R :=
  (\sum_i oneBitCosine (Q *m (row i W)^T)) / m%:R.

Lemma oneBitCosine_le1 v : oneBitCosine v <= 1.
Proof.
rewrite /oneBitCosine /cosine; have [h|h] := eqVneq (norm2 v * norm2 (signVector v)) 0.
  by rewrite h invr0 mulr0 ler01.
by rewrite ler_pdivr_mulr ?mul1r ?mdot_le_norm2 // lt_def h mulr_ge0 ?norm2_ge0.
Qed.

(* Let W have m >= 1 rows, none of them 0. The mean of meanCosine W over all rotations is c_d, so
   the supremum over rotations is at least c_d, and more than sqrt(2/pi), whatever W. *)
Theorem ffn_weight_beta_lift_under_learned_R m (W : 'M[R]_(m.+1, d)) : (forall i, row i W != 0) ->
  [/\ haarMean (fun g : rotation R_realType d => meanCosine W (sval g)) = isotropicCosine d,
      isotropicCosine d <= sup [set meanCosine W Q | Q in [set Q | orthogonal Q]]%classic &
      R_sqrt.sqrt (2 / PI) < isotropicCosine d].
Proof.
move=> W0; have hE := haar_expectation R_realType d.
have m0 : 0 < m.+1%:R :> R by rewrite ltr0n.
have hF i : hasMean (@haarIntegrable R_realType d) (@haarMean R_realType d)
    (fun g => oneBitCosine (sval g *m (row i W)^T)) (isotropicCosine d).
  by apply: (isotropic_hasMean hE); apply: haar_direction; rewrite trmx_eq0.
have := hasMean_sum (index_enum _) (fun=> m.+1%:R^-1) hE hF.
have -> : \sum_(i < m.+1) m.+1%:R^-1 * isotropicCosine d = isotropicCosine d.
  by rewrite sumr_const card_ord -[LHS]mulr_natl mulVKf ?gt_eqF.
move=> hM.
have {}hM : hasMean (@haarIntegrable R_realType d) (@haarMean R_realType d)
    (fun g => meanCosine W (sval g)) (isotropicCosine d).
  by apply: hasMean_ext hM => g; rewrite -mulr_sumr mulrC.
have mean : haarMean (fun g : rotation R_realType d => meanCosine W (sval g)) = isotropicCosine d.
  exact: hasMean_eq hE (haar_hasMean hM) hM.
split=> //; last by rewrite RltE; have [_ [h _]] := srht_floor_d_independent; apply: h;
  apply/ssrnat.leP.
set S := [set _ | _ in _]%classic.
have ub : ubound S 1.
  move=> y [Q _ <-]; rewrite /meanCosine ler_pdivr_mulr // mul1r.
  apply: le_trans (ler_sum _ (fun i _ => oneBitCosine_le1 _)) _.
  by rewrite sumr_const card_ord.
rewrite -mean -subr_ge0; have iW := haar_hasMean hM; have ib := integrable_cst hE (sup S).
have := expectation_ge0 hE (integrable_lin hE (-1) iW ib).
rewrite (expectation_lin hE) // (expectation_cst hE) mulN1r addrC; apply=> g.
rewrite mulN1r addrC subr_ge0; apply: sup_ub; first by exists 1.
by exists (sval g) => //; apply: (svalP g).
Qed.
End OneBit.
