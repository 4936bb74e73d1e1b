"""The catalogue as tables, with the status that the locked proofs alone support."""

from __future__ import annotations

from collections import Counter
from typing import cast, get_args

import pandas as pd

from gonio.errors import TheoremError
from gonio.theorems.catalogue import (
    Entry,
    LeanDeclaration,
    Source,
    get_entry,
    load_families,
    select_entries,
)
from gonio.theorems.rocq import ProofStatus, locked_statuses
from gonio.theorems.status import Status, compute_status, compute_statuses, weakest_proof

__all__ = ["locked_proofs", "summarize", "theorem_card", "theorem_table"]


def locked_proofs() -> dict[str, ProofStatus]:
    """What the prover said of each declaration when the lock was written, by name.

    Raises:
        TheoremError: The package has no lock, or one that does not follow the schema.
    """
    return {proof.name: proof for proof in locked_statuses(None)}


def theorem_table(
    family: str | None = None, status: str | None = None, source: str | None = None
) -> pd.DataFrame:
    """One row per statement: where it comes from, what it says, what its proof supports.

    Args:
        family: Letter of a family; all of them by default.
        status: Only statements of which the proofs alone support this word.
        source: Only statements of this source.

    Raises:
        TheoremError: The letter, the word or the source is unknown, or a family has nothing from
            the source.
    """
    _check_word("status", status, get_args(Status))
    _check_word("source", source, get_args(Source))
    entries = select_entries(family=family, source=cast("Source | None", source))
    statuses = compute_statuses(entries, {}, locked_proofs())
    titles = {found.letter: found.name for found in load_families()}
    table = pd.DataFrame(
        {
            "name": [entry.name for entry in entries],
            "family": [entry.family for entry in entries],
            "family_name": [titles[entry.family] for entry in entries],
            "kind": [entry.kind for entry in entries],
            "status": [statuses[entry.name] for entry in entries],
            "source": [entry.source for entry in entries],
            "source_status": [entry.source_status for entry in entries],
            "check": [entry.check for entry in entries],
            "rocq": [entry.rocq for entry in entries],
            "has_erratum": [entry.erratum is not None for entry in entries],
            "sentence": [entry.sentence for entry in entries],
        }
    )
    return table if status is None else table[table["status"] == status].reset_index(drop=True)


def summarize(table: pd.DataFrame) -> str:
    """Counts of a table of statements, by status and by family, one family per line."""
    statuses = table["status"].value_counts()
    by_status = ", ".join(f"{statuses[w]} {w}" for w in get_args(Status) if w in statuses)
    lines = [f"{len(table)} statements" + (f": {by_status}" if by_status else "")]
    families = Counter(zip(table["family"], table["family_name"], strict=True))
    lines += [f"  {letter}  {name}: {count}" for (letter, name), count in families.items()]
    return "\n".join(lines)


def theorem_card(name: str) -> pd.DataFrame:
    """Everything known of one statement without running its check, as fields and values.

    Raises:
        TheoremError: The name is unknown.
    """
    entry = get_entry(name)
    locked = locked_proofs()
    proofs = [locked[declared] for declared in entry.declarations if declared in locked]
    axioms = sorted({axiom for proof in proofs for axiom in proof.axioms})
    proof = weakest_proof(entry, locked)
    fields = {
        "name": entry.name,
        "family": entry.family,
        "kind": entry.kind,
        "statement": entry.sentence,
        "formula": entry.latex,
        "status": _status_of(entry, proof),
        "source": f"{entry.source}, which calls it {entry.source_status!r}",
        "declared there": _declaration(entry.lean),
        "erratum": entry.erratum or "none",
        "replaced by": "\n".join(entry.replaced_by),
        "check": entry.check or "none",
        "proof": "\n".join(f"{p.file}, line {p.line}: {p.name}" for p in proofs) or "none",
        "axioms": (", ".join(axioms) or "none") if proofs else "",
        "not proved": entry.rocq_gap or "",
        "measured by": "\n".join(f"{m.value} of {m.record}" for m in entry.measured_by),
        "follows from": "\n".join(entry.prerequisites),
        "used by": "\n".join(entry.uses) or "nothing yet",
    }
    shown = {field: value for field, value in fields.items() if value}
    return pd.DataFrame({"field": list(shown), "value": list(shown.values())})


def _status_of(entry: Entry, proof: ProofStatus | None) -> str:
    status = compute_status(entry, None, proof)
    note = "" if status == "deprecated" else " (from the proof; the check has not run)"
    return status + note


def _declaration(lean: LeanDeclaration | None) -> str:
    if lean is None:
        return ""
    place = lean.file if lean.line is None else f"{lean.file}, line {lean.line}"
    return f"{lean.kind} in {place}" + (f": {lean.states}" if lean.states else "")


def _check_word(option: str, word: str | None, known: tuple[str, ...]) -> None:
    if word is not None and word not in known:
        raise TheoremError(f"no {option} is called {word!r}; there are {', '.join(known)}")
