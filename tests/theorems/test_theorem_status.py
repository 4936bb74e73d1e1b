"""Status words follow from what ran, in every combination."""

from dataclasses import dataclass, replace

import pytest

from gonio.errors import TheoremError
from gonio.theorems import compute_status, compute_statuses, get_entry
from gonio.theorems.status import weakest_proof


@dataclass(frozen=True)
class Outcome:
    passed: bool = True
    mutant_rejected: bool = True
    arithmetic: str = "float64"


@dataclass(frozen=True)
class Proof:
    status: str
    axioms: tuple[str, ...] = ()


THEOREM = get_entry("stableRank_le_rank")
WEAKER = get_entry("iid_coord_moment_ratio_floor")
REFUTED = get_entry("stableRank_mul_le_min")
DEPRECATED = get_entry("narrowDim_rank_k_ceiling_formula")
EMPIRICAL = THEOREM.model_copy(update={"kind": "empirical"})
GOOD, EXACT = Outcome(), Outcome(arithmetic="exact")
BROKEN, TOOTHLESS = Outcome(passed=False), Outcome(mutant_rejected=False)
PROVED, OPEN, STALE, UNSOUND = (Proof(word) for word in ("proved", "open", "stale", "unsound"))


@pytest.mark.parametrize(
    ("entry", "outcome", "proof", "status"),
    [
        (THEOREM, None, None, "open"),
        (THEOREM, GOOD, None, "checked"),
        (THEOREM, EXACT, OPEN, "checked"),
        (THEOREM, GOOD, STALE, "checked"),
        (THEOREM, None, OPEN, "open"),
        (THEOREM, None, PROVED, "proved"),
        (THEOREM, GOOD, PROVED, "proved"),
        (THEOREM, BROKEN, None, "failed"),
        (THEOREM, BROKEN, PROVED, "failed"),
        (THEOREM, TOOTHLESS, PROVED, "failed"),
        (THEOREM, GOOD, UNSOUND, "failed"),
        (WEAKER, GOOD, PROVED, "proved-weaker"),
        (WEAKER, None, PROVED, "proved-weaker"),
        (WEAKER, GOOD, None, "checked"),
        (REFUTED, None, None, "open"),
        (REFUTED, EXACT, None, "refuted"),
        (REFUTED, GOOD, None, "checked"),
        (REFUTED, None, PROVED, "refuted"),
        (REFUTED, replace(EXACT, passed=False), PROVED, "failed"),
        (EMPIRICAL, None, PROVED, "open"),
        (EMPIRICAL, GOOD, PROVED, "empirical"),
        (EMPIRICAL, BROKEN, None, "failed"),
        (DEPRECATED, None, None, "deprecated"),
        (DEPRECATED, BROKEN, None, "failed"),
    ],
)
def test_status_is_computed(entry, outcome, proof, status):
    assert compute_status(entry, outcome, proof) == status


def test_an_unknown_word_is_refused():
    with pytest.raises(TheoremError, match="has status 'proven'"):
        compute_status(THEOREM, GOOD, Proof("proven"))


def test_results_are_looked_up_by_check_and_proofs_by_declaration():
    entries = (THEOREM, REFUTED, get_entry("zero_init"))
    statuses = compute_statuses(
        entries,
        {"stable_rank_at_most_rank": GOOD, "zero_init": GOOD},
        {"stableRank_mul_le_min_counterexample": PROVED, "zero-init": PROVED},
    )
    assert statuses == {
        "stableRank_le_rank": "checked",
        "stableRank_mul_le_min": "refuted",
        "zero_init": "open",
    }


@pytest.mark.parametrize(
    ("main", "second", "word"),
    [
        (PROVED, PROVED, "proved"),
        (PROVED, OPEN, "open"),
        (STALE, PROVED, "stale"),
        (OPEN, UNSOUND, "unsound"),
        (PROVED, None, None),
        (None, PROVED, None),
        (None, UNSOUND, "unsound"),
    ],
)
def test_the_weakest_declaration_counts(main, second, word):
    entry = THEOREM.model_copy(update={"rocq": "main", "rocq_also": ("second",)})
    proofs = {n: p for n, p in (("main", main), ("second", second)) if p is not None}
    weakest = weakest_proof(entry, proofs)
    assert (None if weakest is None else weakest.status) == word
    assert compute_statuses([entry], {}, proofs)[entry.name] == {
        "proved": "proved",
        "unsound": "failed",
    }.get(word, "open")


def test_an_entry_without_declarations_has_no_proof():
    entry = THEOREM.model_copy(update={"rocq": None})
    assert weakest_proof(entry, {"stableRank_le_rank": PROVED}) is None
