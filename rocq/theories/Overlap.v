(* The chance level of subspace overlap: the exact mean over the group of signed permutations.
   The average is a finite sum over all 2^n n! signed permutation matrices, not an integral over
   the Haar measure; that Haar gives the same value is not proved here.
   Over any real closed field: no axioms. *)
From mathcomp Require Import all_ssreflect all_fingroup all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From Gonio Require Import Frobenius.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Overlap.
Variables (R : rcfType) (n : nat).
Local Notation signs := {ffun 'I_n -> bool}.

(* |U^T W|_F^2 / min(k, l) for frames U, W given by their columns *)
Definition subspaceOverlap k l (U : 'M[R]_(n, k)) (W : 'M[R]_(n, l)) : R :=
  frobeniusSq (U^T *m W) / (minn k l)%:R.

(* ---------- the group of signed permutations ---------- *)
Definition signOf (e : signs) (i : 'I_n) : R := (-1) ^+ e i.
Definition signedPerm (e : signs) (s : 'S_n) : 'M[R]_n :=
  diag_mx (\row_i signOf e i) *m perm_mx s.
(* the mean of F over all 2^n n! signed permutation matrices *)
Definition signedPermAverage (F : 'M[R]_n -> R) : R :=
  (\sum_(e : signs) \sum_(s : 'S_n) F (signedPerm e s)) / ((2 ^ n) * n`!)%:R.

Definition flip (j : 'I_n) (e : signs) : signs := [ffun i => if i == j then ~~ e i else e i].
Lemma flipK j : involutive (flip j).
Proof. by move=> e; apply/ffunP => i; rewrite /flip !ffunE; case: (i == j); rewrite ?negbK. Qed.

(* signs are uncorrelated *)
Lemma sum_signs i j : \sum_(e : signs) signOf e i * signOf e j = (i == j)%:R * (2 ^ n)%:R.
Proof.
have [->|ij] := eqVneq i j.
  rewrite mul1r (eq_bigr (fun=> 1)) => [|e _]; last by rewrite /signOf -expr2 sqrr_sign.
  by rewrite sumr_const card_ffun card_bool card_ord.
rewrite mul0r; apply/eqP; rewrite -[_ == 0](mulrn_eq0 _ 2%N) //.
set S := \sum_ _ _; have -> : S *+ 2 = S + S by rewrite mulr2n.
rewrite {2}/S (reindex_inj (inv_inj (flipK i))) /= -big_split big1 //= => e _.
by rewrite /signOf !ffunE eqxx eq_sym (negPf ij) signrN mulNr subrr.
Qed.

(* a random permutation sends j to each place equally often *)
Lemma sum_perm (f : 'I_n -> R) j :
  n%:R * (\sum_(s : 'S_n) f (s j)) = (n`!)%:R * \sum_i f i.
Proof.
have indep j' : \sum_(s : 'S_n) f (s j') = \sum_(s : 'S_n) f (s j).
  rewrite (reindex_inj (mulgI (tperm j j'))) /=.
  by apply: eq_bigr => s _; rewrite permM tpermR.
have -> : n%:R * (\sum_(s : 'S_n) f (s j)) = \sum_j' \sum_(s : 'S_n) f (s j').
  by rewrite (eq_bigr _ (fun j' _ => indep j')) sumr_const card_ord mulr_natl.
rewrite exchange_big /= (eq_bigr (fun=> \sum_i f i)) => [|s _].
  by rewrite sumr_const card_Sn mulr_natl.
by rewrite [RHS](reindex_inj (@perm_inj _ s)).
Qed.

(* ---------- averages of energies ---------- *)
Lemma average_entry k l (Q : 'M[R]_(k, n)) (W : 'M[R]_(n, l)) a b :
  \sum_(e : signs) \sum_(s : 'S_n) (Q *m signedPerm e s *m W) a b ^+ 2 =
  (2 ^ n)%:R * (\sum_j Q a j ^+ 2 * (\sum_(s : 'S_n) W (s j) b ^+ 2)).
Proof.
have entry e s : (Q *m signedPerm e s *m W) a b = \sum_j signOf e j * (Q a j * W (s j) b).
  rewrite /signedPerm mulmxA -mulmxA -row_permE mxE; apply: eq_bigr => j _.
  by rewrite mul_mx_diag !mxE (mulrC (Q a j)) mulrA.
rewrite exchange_big /=.
have -> : \sum_j (Q a j ^+ 2 * (\sum_(s : 'S_n) W (s j) b ^+ 2)) =
   \sum_(s : 'S_n) \sum_j (Q a j * W (s j) b) ^+ 2.
  rewrite exchange_big /=; apply: eq_bigr => j _; rewrite mulr_sumr.
  by apply: eq_bigr => s _; rewrite exprMn.
rewrite mulr_sumr; apply: eq_bigr => s _; pose x j := Q a j * W (s j) b.
transitivity (\sum_(e : signs) \sum_i \sum_j (x i * x j) * (signOf e i * signOf e j)).
  apply: eq_bigr => e _; rewrite entry expr2 mulr_suml; apply: eq_bigr => i _.
  by rewrite mulr_sumr; apply: eq_bigr => j _; rewrite -/(x i) -/(x j) mulrACA mulrC.
rewrite exchange_big /= mulr_sumr; apply: eq_bigr => i _.
rewrite exchange_big /= (bigD1 i) //= [X in _ + X]big1 ?addr0 => [|j ji].
  by rewrite -mulr_sumr sum_signs eqxx mul1r -/(x i) expr2 mulrC.
by rewrite -mulr_sumr sum_signs eq_sym (negPf ji) mul0r mulr0.
Qed.

(* holds for all matrices, orthonormal or not *)
Lemma average_energy k l (Q : 'M[R]_(k, n)) (W : 'M[R]_(n, l)) : (0 < n)%N ->
  signedPermAverage (fun P => frobeniusSq (Q *m P *m W)) = frobeniusSq Q * frobeniusSq W / n%:R.
Proof.
move=> n0; have n0' : n%:R != 0 :> R by rewrite pnatr_eq0 -lt0n.
pose G a b e s := (Q *m signedPerm e s *m W) a b ^+ 2.
have -> : signedPermAverage (fun P => frobeniusSq (Q *m P *m W)) =
    (\sum_a \sum_b \sum_(e : signs) \sum_(s : 'S_n) G a b e s) / ((2 ^ n) * n`!)%:R.
  congr (_ / _); rewrite (eq_bigr (fun e => \sum_a \sum_(s : 'S_n) \sum_b G a b e s)).
    rewrite exchange_big /=; apply: eq_bigr => a _.
    rewrite (eq_bigr (fun e => \sum_b \sum_(s : 'S_n) G a b e s)) => [|e _].
      by rewrite exchange_big.
    exact: exchange_big.
  by move=> e _; apply: exchange_big.
have mean b j : \sum_(s : 'S_n) W (s j) b ^+ 2 = (n`!)%:R / n%:R * \sum_i W i b ^+ 2.
  apply: (mulfI n0'); rewrite (sum_perm (fun i => W i b ^+ 2)).
  by rewrite [RHS]mulrA [X in _ = X * _]mulrC divfK.
have -> : \sum_a \sum_b \sum_(e : signs) \sum_(s : 'S_n) G a b e s =
    (2 ^ n)%:R * ((n`!)%:R / n%:R) * (frobeniusSq Q * frobeniusSq W).
  rewrite [frobeniusSq W]exchange_big mulr_suml mulr_sumr; apply: eq_bigr => a _ /=.
  rewrite !mulr_sumr; apply: eq_bigr => b _; rewrite average_entry.
  rewrite (eq_bigr _ (fun j _ => congr1 _ (mean b j))) -mulr_suml.
  by rewrite [X in _ * X = _]mulrCA !mulrA.
have c0 : (n`!)%:R != 0 :> R by rewrite pnatr_eq0 -lt0n fact_gt0.
have d0 : (2 ^ n)%:R != 0 :> R by rewrite pnatr_eq0 expn_eq0.
rewrite natrM; move: (frobeniusSq Q) (frobeniusSq W) => X Y.
move: ((2 ^ n)%:R : R) d0 ((n`!)%:R : R) c0 (n%:R : R) n0' => D hD F hF N hN.
by field; rewrite hD hF hN.
Qed.

(* A frame of k orthonormal columns and a frame of l orthonormal columns in R^n, one of them moved
   by a random signed permutation, overlap by max(k, l)/n on average: exactly, for every n. *)
Theorem random_subspace_expected_overlap k l (U : 'M[R]_(n, k)) (W : 'M[R]_(n, l)) :
  (0 < k)%N -> (0 < l)%N -> U^T *m U = 1%:M -> W^T *m W = 1%:M ->
  signedPermAverage (fun P => subspaceOverlap U (P *m W)) = (maxn k l)%:R / n%:R.
Proof.
move=> k0 l0 hU hW; have k0' : k%:R != 0 :> R by rewrite pnatr_eq0 -lt0n.
have n0 : (0 < n)%N.
  rewrite lt0n; apply: contraNneq k0' => nE; rewrite -(frob_frame hU).
  by rewrite /frobeniusSq big1 // => -[i hi] _; exfalso; move: hi; rewrite nE.
have := average_energy U^T W n0; rewrite frob_tr (frob_frame hU) (frob_frame hW) -natrM => h.
transitivity (signedPermAverage (fun P => frobeniusSq (U^T *m P *m W)) / (minn k l)%:R).
  rewrite /signedPermAverage mulrAC; congr (_ / _); rewrite mulr_suml; apply: eq_bigr => e _.
  by rewrite mulr_suml; apply: eq_bigr => s _; rewrite /subspaceOverlap mulmxA.
have m0 : (minn k l)%:R != 0 :> R by rewrite pnatr_eq0 -lt0n leq_min k0.
have n0' : n%:R != 0 :> R by rewrite pnatr_eq0 -lt0n.
rewrite h; have -> : (k * l = maxn k l * minn k l)%N.
  by case: (leqP k l) => // _; rewrite mulnC.
by rewrite natrM mulrAC mulfK.
Qed.
End Overlap.
