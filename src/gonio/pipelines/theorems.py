"""Run the executable checks and compute the status of every statement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import pandas as pd
import torch

from gonio.records import Measurement, Value, make_measurement, make_value
from gonio.theorems.catalogue import Entry, select_entries
from gonio.theorems.rocq import ProofStatus
from gonio.theorems.runner import CheckResult, run_check
from gonio.theorems.status import Status, compute_statuses
from gonio.theorems.tables import locked_proofs

__all__ = [
    "CheckSettings",
    "ProgressCallback",
    "check_rows",
    "check_theorems",
    "record_checks",
    "run_checks",
]

ProgressCallback = Callable[[str, int, int], None]


@dataclass(frozen=True)
class CheckSettings:
    """What decides the cases of a run of checks: how many per check, and the seed."""

    examples: int = 100
    seed: int = 0
    family: str | None = None  # letter the statements were chosen by, for the record


def check_theorems(
    names: Sequence[str] | None = None,
    family: str | None = None,
    *,
    examples: int = 100,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> Measurement:
    """Run the checks of some statements, all by default.

    Args:
        names: Statements by name; all of them by default.
        family: Letter of a family; only its statements.
        examples: Cases per check, at least 1.
        seed: Seed of the cases.
        progress: Called with the statement at hand, statements done and statements in all.

    Returns:
        A ``theorem-check`` record; table ``checks`` has one row per statement: its status, what
        was tried, the worst margin (dimensionless, negative if broken), the smallest
        counterexample, and whether the mutant was rejected.

    Raises:
        TheoremError: A name or a family is unknown, or there is no lock of the proofs.
        SettingError: ``examples`` is below 1.
    """
    entries = select_entries(tuple(names) if names else None, family)
    proofs = locked_proofs()
    settings = CheckSettings(examples, seed, family)
    return record_checks(entries, settings, run_checks(entries, settings, progress), proofs)


def run_checks(
    entries: Sequence[Entry], settings: CheckSettings, progress: ProgressCallback | None = None
) -> dict[str, CheckResult]:
    """Run the checks of some statements; results by name of the check.

    Raises:
        SettingError: ``examples`` is below 1.
    """
    results: dict[str, CheckResult] = {}
    for done, entry in enumerate(entries):
        if progress is not None:
            progress(entry.name, done, len(entries))
        if entry.check is not None:
            results[entry.check] = run_check(entry, examples=settings.examples, seed=settings.seed)
    if progress is not None:
        progress("checks done", len(entries), len(entries))
    return results


def record_checks(
    entries: Sequence[Entry],
    settings: CheckSettings,
    results: Mapping[str, CheckResult],
    proofs: Mapping[str, ProofStatus],
) -> Measurement:
    """The ``theorem-check`` record of a run; see :func:`check_theorems`."""
    rows = check_rows(entries, results, proofs)
    return make_measurement(
        "theorem-check",
        "Executable checks of the theorems",
        settings={
            "names": [entry.name for entry in entries],
            "family": settings.family,
            "examples": settings.examples,
        },
        values=_values([str(row["status"]) for row in rows], results),
        tables={"checks": pd.DataFrame(rows)},
        seed=settings.seed,
        dtype=torch.float64,
    )


def check_rows(
    entries: Sequence[Entry],
    results: Mapping[str, CheckResult],
    proofs: Mapping[str, ProofStatus],
) -> list[dict[str, object]]:
    """One row per statement: its status, and what its check reported."""
    statuses = compute_statuses(entries, results, proofs)
    return [_row(entry, results.get(entry.check or ""), statuses[entry.name]) for entry in entries]


def _values(words: Sequence[str], results: Mapping[str, CheckResult]) -> list[Value]:
    counts = Counter(words)
    cases = sum(result.examples for result in results.values())
    return [
        make_value("statements", len(words)),
        make_value("cases_tried", cases, note="without those of shrinking and of the mutants"),
        *(
            make_value(word.replace("-", "_"), counts[word])
            for word in get_args(Status)
            if counts[word] or word == "failed"
        ),
    ]


def _row(entry: Entry, result: CheckResult | None, status: Status) -> dict[str, object]:
    row: dict[str, object] = {"name": entry.name, "family": entry.family, "status": status}
    fields = (
        "passed",
        "examples",
        "worst_margin",
        "arithmetic",
        "tried",
        "counterexample",
        "mutant_rejected",
        "mutant",
        "mutant_counterexample",
        "seconds",
    )
    return row | {field: getattr(result, field, None) for field in fields}
