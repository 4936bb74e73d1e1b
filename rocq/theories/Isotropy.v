(* Random matrices whose second moments are those of a uniformly random rotation, and the mean of
   quadratic functions of them. An orthogonal random matrix whose law does not change under signed
   permutations is one; so the Haar measure is covered, through properties it has, without
   integrals. Over any ordered field: no axioms. *)
From mathcomp Require Import all_ssreflect all_fingroup all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From Gonio Require Import Frobenius Gauge MomentRatio.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(* ---------- expectations ---------- *)
Section Mean.
Variables (R : realFieldType) (T : Type) (integrable : (T -> R) -> Prop) (E : (T -> R) -> R).
Local Notation expectation := (isExpectation integrable E).
Implicit Types f g : T -> R.

(* up to pointwise equality, f is integrable with mean v *)
Definition hasMean f v := exists g, [/\ integrable g, forall t, g t = f t & E g = v].

Lemma expectation_ext f g : expectation -> integrable f -> integrable g ->
  (forall t, f t = g t) -> E f = E g.
Proof.
move=> hE; have le f' g' : integrable f' -> integrable g' -> (forall t, f' t = g' t) ->
    E f' <= E g'.
  move=> hf hg fg; rewrite -subr_ge0 addrC -mulN1r -(expectation_lin hE _ hf hg).
  apply: (expectation_ge0 hE) => [|t]; first exact: (integrable_lin hE).
  by rewrite fg mulN1r addNr.
by move=> hf hg fg; apply/eqP; rewrite eq_le !le.
Qed.

Lemma hasMean_eq f v : expectation -> integrable f -> hasMean f v -> E f = v.
Proof. by move=> hE hf [g [hg gf <-]]; apply: expectation_ext. Qed.

Lemma hasMean_ext f g v : (forall t, f t = g t) -> hasMean f v -> hasMean g v.
Proof. by move=> fg [h [hh hf Eh]]; exists h; split=> // t; rewrite hf. Qed.

Lemma hasMean_cst c : expectation -> hasMean (fun=> c) c.
Proof.
move=> hE; exists (fun=> c); split=> //; first exact: (integrable_cst hE).
exact: (expectation_cst hE).
Qed.

Lemma hasMean_lin a f g v w : expectation -> hasMean f v -> hasMean g w ->
  hasMean (fun t => a * f t + g t) (a * v + w).
Proof.
move=> hE [f' [hf' ff Ef]] [g' [hg' gg Eg]]; exists (fun t => a * f' t + g' t).
split=> [|t|]; first exact: (integrable_lin hE); first by rewrite ff gg.
by rewrite (expectation_lin hE) // Ef Eg.
Qed.

Lemma hasMean_sum (I : Type) (s : seq I) (c : I -> R) (F : I -> T -> R) (v : I -> R) :
  expectation -> (forall i, hasMean (F i) (v i)) ->
  hasMean (fun t => \sum_(i <- s) c i * F i t) (\sum_(i <- s) c i * v i).
Proof.
move=> hE hF; elim: s => [|i s IH].
  by rewrite big_nil; apply: hasMean_ext (hasMean_cst 0 hE) => t; rewrite big_nil.
rewrite big_cons; apply: hasMean_ext (hasMean_lin (c i) hE (hF i) IH) => t.
by rewrite big_cons.
Qed.

(* ---------- isotropic random matrices ---------- *)
(* E X_ij X_kl = 1/n if (i, j) = (k, l), and 0 otherwise; with one column: a random vector of mean
   squared length 1 without a preferred direction *)
Definition isotropic n p (X : T -> 'M[R]_(n, p)) := forall i j k l,
  integrable (fun t => X t i j * X t k l) /\
  E (fun t => X t i j * X t k l) = ((i == k) && (j == l))%:R / n%:R.

Lemma isotropic_energy n p q r (X : T -> 'M[R]_(n, p)) (Q : 'M[R]_(q, n)) (W : 'M[R]_(p, r)) :
  expectation -> isotropic X ->
  hasMean (fun t => frobeniusSq (Q *m X t *m W)) (frobeniusSq Q * frobeniusSq W / n%:R).
Proof.
move=> hE hX; pose A := Q^T *m Q; pose B := W *m W^T.
pose c (x : ('I_n * 'I_p) * ('I_n * 'I_p)) := A x.1.1 x.2.1 * B x.1.2 x.2.2.
pose F (x : ('I_n * 'I_p) * ('I_n * 'I_p)) t := X t x.1.1 x.1.2 * X t x.2.1 x.2.2.
pose v (x : ('I_n * 'I_p) * ('I_n * 'I_p)) : R := ((x.1.1 == x.2.1) && (x.1.2 == x.2.2))%:R / n%:R.
have hF x : hasMean (F x) (v x) by have [h1 h2] := hX x.1.1 x.1.2 x.2.1 x.2.2; exists (F x).
have := hasMean_sum (index_enum _) c hE hF.
have -> : \sum_(x : ('I_n * 'I_p) * ('I_n * 'I_p)) c x * v x = frobeniusSq Q * frobeniusSq W / n%:R.
  have -> : frobeniusSq Q = \tr A by rewrite frobE mdotE mxtrace_mulC.
  have -> : frobeniusSq W = \tr B by rewrite frobE mdotE.
  rewrite -(pair_bigA _ (fun x y => c (x, y) * v (x, y))) /=.
  rewrite (eq_bigr (fun x => A x.1 x.1 * B x.2 x.2 / n%:R)) => [|x _].
    rewrite -(pair_bigA _ (fun i j => A i i * B j j / n%:R)) /= /mxtrace !mulr_suml.
    by apply: eq_bigr => i _; rewrite mulr_sumr mulr_suml.
  rewrite (bigD1 x) //= big1 ?addr0 => [|y yx]; first by rewrite /c /v /= !eqxx mul1r.
  by rewrite /v /= -xpair_eqE -!surjective_pairing eq_sym (negPf yx) mul0r mulr0.
apply: hasMean_ext => t; rewrite -(pair_bigA _ (fun x y => c (x, y) * F (x, y) t)) /=.
have -> : frobeniusSq (Q *m X t *m W) = mdot (X t) (A *m X t *m B).
  by rewrite frobE mdot_mulr mdot_mull mdotC /A /B !mulmxA.
rewrite -(pair_bigA _ (fun i j => \sum_y c (i, j, y) * F (i, j, y) t)) /=.
apply: eq_bigr => i _; apply: eq_bigr => j _; rewrite mxE mulr_sumr.
rewrite -(pair_bigA _ (fun k l => c (i, j, (k, l)) * F (i, j, (k, l)) t)) /= exchange_big /=.
apply: eq_bigr => l _; rewrite mxE mulr_suml mulr_sumr; apply: eq_bigr => k _.
have -> : B l j = B j l by rewrite -[B in LHS]trmxK mxE /B trmx_mul trmxK.
by rewrite /c /F /=; move: (A i k) (B j l) (X t i j) (X t k l) => a b x y; ring.
Qed.
End Mean.
