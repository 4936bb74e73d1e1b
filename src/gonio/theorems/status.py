"""What may be said of a statement: computed from what ran, never typed.

The words, strongest claim first:

- ``proved``: a machine-checked proof of the whole sentence;
- ``proved-weaker``: a machine-checked proof that leaves out what the entry names as its gap;
- ``refuted``: the printed claim is false, by a machine-checked proof or by a counterexample that
  was just computed in exact arithmetic;
- ``checked``: the executable check ran without a counterexample and rejected its mutant;
- ``empirical``: a measurement whose check ran; never more, whatever else exists;
- ``deprecated``: a name its source has withdrawn; nothing is claimed under it;
- ``open``: nothing ran;
- ``failed``: the check found a counterexample, or could not tell the statement from its mutant, or
  the proof rests on something it must not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Protocol, TypeVar, get_args

from gonio.errors import TheoremError
from gonio.theorems.catalogue import Entry

__all__ = [
    "CheckOutcome",
    "Proof",
    "Status",
    "compute_status",
    "compute_statuses",
    "weakest_proof",
]

Status = Literal[
    "proved", "proved-weaker", "refuted", "checked", "empirical", "deprecated", "open", "failed"
]
ProofWord = Literal["proved", "open", "stale", "unsound"]


class Proof(Protocol):
    """What a proof assistant reported of one declaration."""

    @property
    def status(self) -> str:
        """``proved``, ``open`` (given up somewhere), ``stale`` (of other sources), ``unsound``."""

    @property
    def axioms(self) -> Sequence[str]:
        """Axioms the proof rests on, as the prover prints them."""


P = TypeVar("P", bound=Proof)


class CheckOutcome(Protocol):
    """What an executable check reported (:class:`gonio.theorems.runner.CheckResult`)."""

    @property
    def passed(self) -> bool:
        """No counterexample was found."""

    @property
    def mutant_rejected(self) -> bool:
        """The same search found a counterexample to the mutant."""

    @property
    def arithmetic(self) -> str:
        """``exact``, ``float64`` or ``simulation``."""


def compute_status(entry: Entry, check_result: CheckOutcome | None, proof: Proof | None) -> Status:
    """The word for one entry.

    A failed check outweighs a proof: then one of the two is not about what the sentence says.

    Args:
        entry: The statement.
        check_result: What its check reported, None if it has not run.
        proof: What the prover reported of the weakest of its declarations, None if nothing.

    Raises:
        TheoremError: The proof's status is a word this version does not know.
    """
    word = None if proof is None else _known_word(entry, proof)
    has_failed = check_result is not None and not (
        check_result.passed and check_result.mutant_rejected
    )
    if has_failed or word == "unsound":
        return "failed"
    if entry.kind == "deprecated":
        return "deprecated"
    if entry.kind == "empirical":
        return "open" if check_result is None else "empirical"
    if entry.kind == "refuted":
        is_exact = check_result is not None and check_result.arithmetic == "exact"
        if word == "proved" or is_exact:
            return "refuted"
    elif word == "proved":
        return "proved" if entry.rocq_gap is None else "proved-weaker"
    return "open" if check_result is None else "checked"


def compute_statuses(
    entries: Iterable[Entry],
    check_results: Mapping[str, CheckOutcome],
    proofs: Mapping[str, Proof],
) -> dict[str, Status]:
    """The word for each entry, by entry name.

    Args:
        entries: The statements.
        check_results: By check name.
        proofs: By Rocq declaration name.
    """
    return {
        entry.name: compute_status(
            entry,
            check_results.get(entry.check) if entry.check else None,
            weakest_proof(entry, proofs),
        )
        for entry in entries
    }


def weakest_proof(entry: Entry, proofs: Mapping[str, P]) -> P | None:
    """What the prover reported of the declaration of an entry that it supports least.

    An unsound one first; then one that it does not know, which is None; then one that is open or
    stale. Of declarations that are all proved, the main one.

    Args:
        entry: The statement.
        proofs: By Rocq declaration name.
    """
    found = [proofs.get(name) for name in entry.declarations]
    unsound = [proof for proof in found if proof is not None and proof.status == "unsound"]
    if unsound:
        return unsound[0]
    if None in found or not found:
        return None
    known = [proof for proof in found if proof is not None]
    return next((proof for proof in known if proof.status != "proved"), known[0])


def _known_word(entry: Entry, proof: Proof) -> str:
    if proof.status not in get_args(ProofWord):
        raise TheoremError(
            f"the proof of {entry.name} has status {proof.status!r}; "
            f"expected one of {', '.join(get_args(ProofWord))}"
        )
    return proof.status
