(* A uniformly random direction u in R^d, d >= 2, known only through the invariance of its law under
   every orthogonal matrix: the moments M_k = E u_i^(2k) of a coordinate satisfy
   (d + 2k) M_(k+1) = (2k + 1) M_k, M_0 = 1. No integral is used: an expectation is whatever has the
   properties of MomentRatio's isExpectation. Over any real closed field: no axioms. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From Gonio Require Import Frobenius Gauge Householder MomentRatio Isotropy.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(* ---------- polynomials that agree everywhere ---------- *)
Section Polynomials.
Variable R : realFieldType.

Lemma poly_eq (p q : {poly R}) : (forall x, p.[x] = q.[x]) -> p = q.
Proof.
move=> h; apply/eqP; rewrite -subr_eq0; apply: contraT => r0.
pose rs := [seq (k%:R : R) | k <- iota 0 (size (p - q)%R)].
have : (size rs < size (p - q)%R)%N.
  apply: max_poly_roots => //; first by apply/allP => x _; rewrite rootE hornerD hornerN h subrr.
  by rewrite map_inj_uniq ?iota_uniq // => k l /eqP; rewrite eqr_nat => /eqP.
by rewrite size_map size_iota ltnn.
Qed.

(* the coefficient of X^2 in (1 + X^2)^(n + 1) *)
Lemma coef2_power n : ((1 + 'X^2) ^+ n.+1 : {poly R})`_2 = n.+1%:R.
Proof.
rewrite exprDn coef_sum !big_ord_recl big1 => [|k _].
  rewrite /= !expr1n !mul1r expr0 expr1 bin0 bin1 !coefMn !coefXn coef1 /= !mulr1n ?mulr0n add0r
    addr0.
  by [].
by rewrite expr1n mul1r coefMn -exprM coefXn -[X in X == _]muln1 eqn_pmul2l //= /bump /= mul0rn.
Qed.
End Polynomials.

Section Direction.
Variables (R : rcfType) (d : nat) (T : Type) (integrable : (T -> R) -> Prop).
Variables (E : (T -> R) -> R) (u : T -> 'cV[R]_d).
Implicit Types (i j : 'I_d) (w : 'cV[R]_d).

(* u is a random unit vector, its polynomials of two coordinates have means, and Q u has the law of
   u for every orthogonal Q *)
Record isUniformDirection : Prop := {
  direction_unit : forall t, frobeniusSq (u t) = 1;
  direction_integrable : forall i j a b, integrable (fun t => u t i 0 ^+ a * u t j 0 ^+ b);
  direction_invariant : forall Q, orthogonal Q -> forall f : 'cV[R]_d -> R,
    integrable (fun t => f (u t)) ->
    integrable (fun t => f (Q *m u t)) /\ E (fun t => f (Q *m u t)) = E (fun t => f (u t)) }.

Hypotheses (hE : isExpectation integrable E) (hu : isUniformDirection).
Local Notation means := (hasMean integrable E).

Lemma hasMean_unique (f : T -> R) (v v' : R) : means f v -> means f v' -> v = v'.
Proof.
by move=> [g [ig gf <-]] [h [ih hf <-]]; apply: (expectation_ext hE) => // t; rewrite gf hf.
Qed.

(* the coordinate along any unit vector w has the law of u_i *)
Lemma direction_along w i (f : R -> R) : frobeniusSq w = 1 -> integrable (fun t => f (u t i 0)) ->
  means (fun t => f (mdot w (u t))) (E (fun t => f (u t i 0))).
Proof.
move=> w1 hf; have [Q [oQ Qw]] : exists Q : 'M[R]_d, orthogonal Q /\ Q *m w = delta_mx i 0.
  by apply: orthogonal_map_exists; rewrite frob_delta.
have [h1 h2] := @direction_invariant hu Q oQ (fun v => f (v i 0)) hf.
exists (fun t => f ((Q *m u t) i 0)); split=> // t.
by rewrite -mdot_delta mdot_mull -Qw mulmxA oQ mul1mx.
Qed.

(* ---------- the moments ---------- *)
Definition directionMoment i k : R := E (fun t => u t i 0 ^+ k * u t i 0 ^+ 0).

Lemma power_means i k : means (fun t => u t i 0 ^+ k) (directionMoment i k).
Proof.
exists (fun t => u t i 0 ^+ k * u t i 0 ^+ 0); split=> // [|t]; last by rewrite expr0 mulr1.
exact: (direction_integrable hu).
Qed.

Lemma frob_pair i j x : i != j -> frobeniusSq (delta_mx i 0 + x *: delta_mx j 0 : 'cV[R]_d) =
  1 + x ^+ 2.
Proof.
move=> ij; rewrite frobD frobeniusSq_smul !frob_delta mulr1 mdotZr mdot_delta mxE.
by rewrite (negPf ij) !mulr0 addr0.
Qed.

(* E (u_i + x u_j)^(2n) = (1 + x^2)^n M_n *)
Lemma plane_means i j x n : i != j ->
  means (fun t => (u t i 0 + x * u t j 0) ^+ (2 * n)) ((1 + x ^+ 2) ^+ n * directionMoment i (2 *
    n)).
Proof.
move=> ij; have q0 : 0 < 1 + x ^+ 2 by rewrite ltr_spaddl ?ltr01 ?sqr_ge0.
pose s := Num.sqrt (1 + x ^+ 2); have s2 : s ^+ 2 = 1 + x ^+ 2 by rewrite sqr_sqrtr ?ltW.
have s0 : s != 0 by rewrite gt_eqF // sqrtr_gt0.
pose w := s^-1 *: (delta_mx i 0 + x *: delta_mx j 0 : 'cV[R]_d).
have w1 : frobeniusSq w = 1 by rewrite frobeniusSq_smul frob_pair // -s2 exprVn mulVf // expf_neq0.
have h := @direction_along w i (fun y => y ^+ (2 * n) * y ^+ 0) w1.
have := hasMean_lin ((1 + x ^+ 2) ^+ n) hE (h (direction_integrable hu i i _ _)) (hasMean_cst 0 hE).
rewrite addr0; apply: hasMean_ext => t; rewrite addr0 expr0 mulr1 mdotZl mdotDl mdotZl.
by rewrite !mdot_delta exprMn -s2 -exprM mulrA -exprMn divff // expr1n mul1r.
Qed.

Lemma mixed_means i j k : i != j ->
  means (fun t => u t i 0 ^+ (2 * k) * u t j 0 ^+ 2) (directionMoment i (2 * k.+1) / (2 * k +
    1)%:R).
Proof.
move=> ij; pose N := (2 * k.+1)%N; pose M := directionMoment i N.
pose m l := E (fun t => u t i 0 ^+ (N - l) * u t j 0 ^+ l).
have hm l : means (fun t => u t i 0 ^+ (N - l) * u t j 0 ^+ l) (m l).
  by exists (fun t => u t i 0 ^+ (N - l) * u t j 0 ^+ l); split=> //; apply: (direction_integrable
    hu).
have P x : means (fun t => (u t i 0 + x * u t j 0) ^+ N) (\sum_(l < N.+1) (x ^+ l *+ 'C(N, l)) * m
  l).
  have := hasMean_sum (index_enum _) (fun l : 'I_N.+1 => x ^+ l *+ 'C(N, l)) hE (fun l => hm l).
  apply: hasMean_ext => t; rewrite exprDn; apply: eq_bigr => l _.
  by rewrite exprMn mulrnAl; congr (_ *+ _); rewrite mulrCA.
have eq : \poly_(l < N.+1) (m l *+ 'C(N, l)) = M *: (1 + 'X^2) ^+ k.+1.
  apply: poly_eq => x; rewrite horner_poly hornerZ horner_exp hornerD hornerXn hornerC.
  rewrite mulrC -(hasMean_unique (P x) (plane_means x k.+1 ij)).
  by apply: eq_bigr => l _; rewrite mulrnAl mulrnAl mulrC.
have := congr1 (fun p : {poly R} => p`_2) eq.
rewrite coef_poly coefZ coef2_power ltnS.
have -> : (2 <= N)%N by rewrite /N mulnS.
have -> : 'C(N, 2) = (k.+1 * (2 * k + 1))%N.
  have e : (N.-1 = 2 * k + 1)%N by rewrite /N mulnS addn1.
  by rewrite bin2 e /N -mulnA mul2n doubleK.
rewrite -[m 2%N *+ _]mulr_natr natrM => h.
have -> : M / (2 * k + 1)%:R = m 2%N.
  apply: (mulIf (_ : (2 * k + 1)%:R != 0 :> R)); first by rewrite pnatr_eq0 addn1.
  rewrite divfK ?pnatr_eq0 ?addn1 //.
  apply: (mulIf (_ : k.+1%:R != 0 :> R)); first by rewrite pnatr_eq0.
  by rewrite -h addn1; ring.
by have := hm 2%N; rewrite /N mulnS addKn.
Qed.

(* (d + 2k) M_(k+1) = (2k + 1) M_k *)
Lemma directionMoment_rec i k :
  (d + 2 * k)%:R * directionMoment i (2 * k.+1) = (2 * k + 1)%:R * directionMoment i (2 * k).
Proof.
have hF j : means (fun t => u t i 0 ^+ (2 * k) * u t j 0 ^+ 2)
    (directionMoment i (2 * k.+1) / (2 * k + 1)%:R * (if j == i then (2 * k + 1)%:R else 1)).
  have k0 : (2 * k + 1)%:R != 0 :> R by rewrite pnatr_eq0 addn1.
  case: eqP => [->|/eqP ji]; last by rewrite mulr1; apply: mixed_means; rewrite eq_sym.
  rewrite divfK //; apply: hasMean_ext (power_means i (2 * k.+1)) => t.
  by rewrite -exprD mulnS addnC.
have := hasMean_sum (index_enum _) (fun=> 1) hE hF.
have ext t : \sum_j 1 * (u t i 0 ^+ (2 * k) * u t j 0 ^+ 2) = u t i 0 ^+ (2 * k).
  transitivity (u t i 0 ^+ (2 * k) * frobeniusSq (u t)); last first.
    by rewrite (direction_unit hu) mulr1.
  by rewrite mulr_sumr; apply: eq_bigr => j _; rewrite mul1r big_ord1.
move/(hasMean_ext ext)/hasMean_unique/(_ (power_means i (2 * k))) <-.
have d0 : (0 < d)%N by exact: leq_ltn_trans (leq0n i) (ltn_ord i).
rewrite (eq_bigr (fun j => directionMoment i (2 * k.+1) / (2 * k + 1)%:R *
  (if j == i then (2 * k + 1)%:R else 1))) => [|j _]; last by rewrite mul1r.
rewrite -mulr_sumr (bigD1 i) //= eqxx (eq_bigr (fun=> 1)) => [|j /negPf -> //].
rewrite sumr_const cardC1 card_ord.
have -> : (2 * k + 1)%:R + 1 *+ d.-1 = (d + 2 * k)%:R :> R.
  by rewrite -natrD addn1 addSnnS (prednK d0) addnC.
have : (2 * k + 1)%:R != 0 :> R by rewrite pnatr_eq0 addn1.
by move: (_%:R) (_%:R) (directionMoment _ _) => a b c b0; field.
Qed.

Lemma directionMoment0 i : directionMoment i 0 = 1.
Proof.
apply: hasMean_unique (power_means i 0) _.
by apply: hasMean_ext (hasMean_cst 1 hE) => t; rewrite expr0.
Qed.
End Direction.
