"""What changed between two reports of the same Lean project."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from gonio.errors import TheoremError
from gonio.theorems.lean import LeanEntry, LeanReport

__all__ = ["find_drift"]

_LINE = re.compile(r", line \d+: ")


def find_drift(old: LeanReport, new: LeanReport) -> list[str]:
    """Every difference that matters, one message each; moved lines do not.

    Args:
        old: The reviewed report.
        new: What is there now.

    Returns:
        Declarations added, vanished, or changed in status, statement, variables in force or
        axioms; findings added or vanished. Empty if nothing changed.

    Raises:
        TheoremError: One report comes from a build and the other from text alone.
    """
    if old.method != new.method:
        raise TheoremError(
            f"the reports do not compare: one comes from {old.method}, the other from {new.method}"
            "\nMake both with --build, or both without."
        )
    repeated = _repeated(old) | _repeated(new)
    before, after = _by_key(old, repeated), _by_key(new, repeated)
    return [
        *(f"vanished: {key} ({_place(before[key])})" for key in before if key not in after),
        *(f"added: {key} ({_place(after[key])})" for key in after if key not in before),
        *(
            change
            for key in before
            if key in after
            for change in _changes(key, before[key], after[key])
        ),
        *_finding_changes(old, new),
    ]


def _place(entry: LeanEntry) -> str:
    return f"{entry.status}, {entry.file}:{entry.line}"


def _repeated(report: LeanReport) -> set[str]:
    """Names that are declared more than once, for instance in files that stand alone."""
    counts = Counter(entry.full_name for entry in report.declarations)
    return {name for name, count in counts.items() if count > 1}


def _by_key(report: LeanReport, repeated: Iterable[str]) -> dict[str, LeanEntry]:
    """Entries by a name that stays the same when other declarations come and go."""
    entries: dict[str, LeanEntry] = {}
    uses: Counter[str] = Counter()
    for entry in report.declarations:
        if not entry.is_named:
            key = f"{entry.kind} `{entry.statement}` in {entry.file}"
        elif entry.full_name in repeated:
            key = f"{entry.full_name} in {entry.file}"
        else:
            key = entry.full_name
        uses[key] += 1
        entries[key if uses[key] == 1 else f"{key} (number {uses[key]})"] = entry
    return entries


def _changes(key: str, old: LeanEntry, new: LeanEntry) -> Iterator[str]:
    if old.status != new.status:
        yield f"status of {key}: {old.status} -> {new.status}"
    if old.statement != new.statement:
        yield f"statement of {key} changed\n  was {old.statement}\n  is  {new.statement}"
    if old.context != new.context:
        was, now = ("; ".join(entry.context) or "none" for entry in (old, new))
        yield f"variables in force at {key} changed\n  were {was}\n  are  {now}"
    if old.axioms != new.axioms:
        was, now = (_listed(entry.axioms) for entry in (old, new))
        yield f"axioms of {key}: {was} -> {now}"


def _listed(axioms: tuple[str, ...] | None) -> str:
    return "not asked" if axioms is None else ", ".join(axioms) or "none"


def _finding_changes(old: LeanReport, new: LeanReport) -> Iterator[str]:
    before = Counter(_LINE.sub(": ", finding, count=1) for finding in old.findings)
    after = Counter(_LINE.sub(": ", finding, count=1) for finding in new.findings)
    yield from (f"no longer found: {finding}" for finding in before - after)
    yield from (f"newly found: {finding}" for finding in after - before)
