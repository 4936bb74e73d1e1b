"""The catalogue as tables, with the status that the locked proofs alone support."""

from __future__ import annotations

import pandas as pd

from gonio.theorems.catalogue import get_entry, load_families, select_entries
from gonio.theorems.rocq import ProofStatus, locked_statuses
from gonio.theorems.status import compute_status, compute_statuses

__all__ = ["locked_proofs", "theorem_card", "theorem_table"]


def locked_proofs() -> dict[str, ProofStatus]:
    """What the prover said of each declaration when the lock was written, by name.

    Raises:
        TheoremError: The package has no lock, or one that does not follow the schema.
    """
    return {proof.name: proof for proof in locked_statuses(None)}


def theorem_table(family: str | None = None) -> pd.DataFrame:
    """One row per statement: where it comes from, what it says, what its proof supports.

    Args:
        family: Letter of a family; all of them by default.

    Raises:
        TheoremError: The letter is unknown.
    """
    entries = select_entries(family=family)
    statuses = compute_statuses(entries, {}, locked_proofs())
    titles = {found.letter: found.name for found in load_families()}
    return pd.DataFrame(
        {
            "name": [entry.name for entry in entries],
            "family": [entry.family for entry in entries],
            "family_name": [titles[entry.family] for entry in entries],
            "status": [statuses[entry.name] for entry in entries],
            "source": [entry.source for entry in entries],
            "source_status": [entry.source_status for entry in entries],
            "check": [entry.check for entry in entries],
            "rocq": [entry.rocq for entry in entries],
            "sentence": [entry.sentence for entry in entries],
        }
    )


def theorem_card(name: str) -> pd.DataFrame:
    """Everything known of one statement without running its check, as fields and values.

    Raises:
        TheoremError: The name is unknown.
    """
    entry = get_entry(name)
    proof = locked_proofs().get(entry.rocq) if entry.rocq else None
    fields = {
        "name": entry.name,
        "statement": entry.sentence,
        "formula": entry.latex,
        "status": compute_status(entry, None, proof) + " (from the proof; the check has not run)",
        "source": f"{entry.source}, which calls it {entry.source_status!r}",
        "erratum": entry.erratum or "none",
        "check": entry.check or "none",
        "proof": "none" if proof is None else f"{proof.file}, line {proof.line}: {proof.name}",
        "axioms": "" if proof is None else ", ".join(proof.axioms) or "none",
        "not proved": entry.rocq_gap or "",
        "used by": "\n".join(entry.uses) or "nothing yet",
    }
    shown = {field: value for field, value in fields.items() if value}
    return pd.DataFrame({"field": list(shown), "value": list(shown.values())})
