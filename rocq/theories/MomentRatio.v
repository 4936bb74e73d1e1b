(* The ratio of moments (E|X|)^2 / E X^2 is at most 1, for any expectation.
   Over any ordered field: no axioms. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section MomentRatio.
Variable R : realFieldType.

(* E is an expectation on the functions for which `integrable` holds: these contain the constants
   and their linear combinations; E is linear, not negative on functions that are not, and E 1 = 1.
   The integral against any probability measure is one. *)
Record isExpectation (T : Type) (integrable : (T -> R) -> Prop) (E : (T -> R) -> R) : Prop := {
  integrable_cst : forall c, integrable (fun=> c);
  integrable_lin : forall a f g, integrable f -> integrable g ->
    integrable (fun t => a * f t + g t);
  expectation_cst : forall c, E (fun=> c) = c;
  expectation_lin : forall a f g, integrable f -> integrable g ->
    E (fun t => a * f t + g t) = a * E f + E g;
  expectation_ge0 : forall f, integrable f -> (forall t, 0 <= f t) -> 0 <= E f }.

(* a finite probability vector gives one, so the definition is not empty *)
Lemma finite_isExpectation (T : finType) (p : T -> R) :
  (forall t, 0 <= p t) -> \sum_t p t = 1 ->
  isExpectation (fun=> True) (fun f => \sum_t p t * f t).
Proof.
move=> p0 p1; split=> // [c|a f g _ _|f _ f0].
- by rewrite -mulr_suml p1 mul1r.
- by rewrite mulr_sumr -big_split; apply: eq_bigr => t _ /=; ring.
- by apply: sumr_ge0 => t _; rewrite mulr_ge0.
Qed.

(* (E|X|)^2 <= E X^2 whenever both moments exist. (For independent coordinates the ratio is the
   limit of the squared 1-bit cosine: IidCosine.v.) *)
Theorem moment_ratio_le_one (T : Type) (integrable : (T -> R) -> Prop) (E : (T -> R) -> R)
    (X : T -> R) : isExpectation integrable E ->
  integrable (fun t => `|X t|) -> integrable (fun t => X t ^+ 2) ->
  E (fun t => `|X t|) ^+ 2 <= E (fun t => X t ^+ 2).
Proof.
move=> hE h1 h2; pose a := E (fun t => `|X t|).
have i0 := integrable_cst hE (a ^+ 2).
have i1 := integrable_lin hE (- (2%:R * a)) h1 i0.
have := expectation_ge0 hE (integrable_lin hE 1 h2 i1).
rewrite (expectation_lin hE) // (expectation_lin hE) // (expectation_cst hE) -/a.
have -> : 1 * E (fun t => X t ^+ 2) + (- (2%:R * a) * a + a ^+ 2) = E (fun t => X t ^+ 2) - a ^+ 2.
  by ring.
rewrite subr_ge0; apply=> t.
have -> : 1 * X t ^+ 2 + (- (2%:R * a) * `|X t| + a ^+ 2) = (`|X t| - a) ^+ 2.
  by rewrite -(real_normK (num_real (X t))); move: `|X t| => z; ring.
exact: sqr_ge0.
Qed.
End MomentRatio.
