"""The counts of statements by family and status, as a block of Markdown that a page keeps.

The counts are those that the locked proofs alone support: no word in them needs a check to have
run, so a page can be compared with the lock by a test.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gonio.errors import OutputError
from gonio.files import write_text
from gonio.theorems.catalogue import load_catalogue, load_families
from gonio.theorems.rocq import RocqLock, read_lock
from gonio.theorems.status_file import TheoremRow, status_rows

__all__ = ["BEGIN", "END", "counts_block", "update_counts"]

BEGIN = "<!-- counts of theorems: written by `gonio theorem counts --into FILE` -->"
END = "<!-- end of the counts -->"
_PROVED = ("proved", "proved-weaker", "refuted")


def counts_block() -> str:
    """The block, marks included: a table by family, and what the proofs rest on.

    Raises:
        TheoremError: The catalogue or the lock of the proofs does not follow its schema.
    """
    lock = read_lock()
    rows = status_rows(load_catalogue(), {}, {proof.name: proof for proof in lock.theorems})
    lines = [
        "| family | statements | proved | proved-weaker | refuted | check only | measured |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        _line(f"{family.letter} {family.name}", [r for r in rows if r.family == family.letter])
        for family in load_families()
    ]
    lines.append(_line("all", rows))
    return "\n".join([BEGIN, *lines, "", _footnote(lock, rows), END])


def update_counts(path: Path) -> bool:
    """Write the block between the marks of a file; whether anything changed.

    Raises:
        OutputError: The file cannot be read or written, or does not have each mark once, in order.
        TheoremError: See :func:`counts_block`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror or error}") from error
    start, end = text.find(BEGIN), text.find(END)
    if text.count(BEGIN) != 1 or text.count(END) != 1 or end < start:
        raise OutputError(
            f"cannot write the counts of theorems into {path}: expected these two lines, once:\n"
            f"  {BEGIN}\n  {END}"
        )
    updated = text[:start] + counts_block() + text[end + len(END) :]
    if updated == text:
        return False
    write_text(path, updated)
    return True


def _line(title: str, rows: Sequence[TheoremRow]) -> str:
    cells = [len(rows), *(sum(row.status == word for row in rows) for word in _PROVED)]
    cells.append(sum(row.status == "open" and row.kind != "empirical" for row in rows))
    cells.append(sum(row.kind == "empirical" for row in rows))
    return f"| {title} | " + " | ".join(str(cell) if cell else "" for cell in cells) + " |"


def _footnote(lock: RocqLock, rows: Sequence[TheoremRow]) -> str:
    free = sum(not theorem.axioms for theorem in lock.theorems)
    withdrawn = sum(row.status == "deprecated" for row in rows)
    used = sorted({axiom for theorem in lock.theorems for axiom in theorem.axioms})
    return (
        f"Rocq {lock.prover}: {len(lock.theorems)} theorems, {free} of them on no axiom and the "
        f"others on some of the {len(used)} classical axioms that their libraries bring. Withdrawn "
        f"by its source, and in no column: {withdrawn}."
    )
