"""The errata page: every place where a source is wrong, vacuous or ambiguous, and what holds.

A pure function of the catalogue, the registry of checks and the lock of the proofs; nothing on the
page is typed elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gonio.theorems.catalogue import Entry, load_catalogue
from gonio.theorems.checks import CHECKS
from gonio.theorems.rocq import ProofStatus
from gonio.theorems.tables import locked_proofs

__all__ = ["errata_entries", "errata_page"]

_HEADINGS = {
    "lazy-rudder": "The lazy-rudder proof page and its Lean file",
    "moe-gauge": "The moe-gauge theorem page",
    "lora-essay": "The essay on low-rank adaptation",
    "gonio": "Read beside statements of gonio's own",
}
_ADDRESSES = {
    "lazy-rudder": "https://github.com/d3banjan/lazy-rudder-paper",
    "moe-gauge": "https://moe-gauge-paper.pages.dev/theorems",
    "lora-essay": "https://xmarva.github.io/blog/2024/lora-algorithm-for-llms",
}
_INTRODUCTION = """\
# Errata

Where a source of gonio's theorems is wrong, vacuous or ambiguous as printed, and what holds
instead. This page is generated from the catalogue by `gonio theorem errata`; the statements are
those of `gonio theorem show NAME`, and `gonio theorem check NAME` runs the check named here, which
must also reject a slightly wrong statement.
"""


def errata_entries(entries: Sequence[Entry] | None = None) -> tuple[Entry, ...]:
    """The entries with an erratum, in the order of the catalogue."""
    return tuple(entry for entry in entries or load_catalogue() if entry.erratum is not None)


def errata_page() -> str:
    """The page as Markdown, by source.

    Raises:
        TheoremError: The catalogue or the lock of the proofs does not follow its schema.
    """
    proofs = locked_proofs()
    parts = [_INTRODUCTION]
    for source, heading in _HEADINGS.items():
        chosen = [entry for entry in errata_entries() if entry.source == source]
        if not chosen:
            continue
        address = _ADDRESSES.get(source)
        parts.append(f"## {heading}\n" + (f"\n<{address}>\n" if address else ""))
        parts += [_section(entry, proofs) for entry in chosen]
    return "\n".join(parts)


def _section(entry: Entry, proofs: Mapping[str, ProofStatus]) -> str:
    lines = [f"### `{entry.name}`", "", f"{_source_status(entry)}{entry.erratum}", ""]
    if entry.lean is not None and entry.lean.states is not None:
        lines += [
            f"Declared there ([{entry.lean.kind}]({entry.lean.url})): {entry.lean.states}.",
            "",
        ]
    lines += [f"**{_label(entry)}** {entry.sentence}", "", f"$$ {entry.latex} $$", ""]
    lines += [_evidence(entry, proofs), ""]
    return "\n".join(lines)


def _source_status(entry: Entry) -> str:
    if entry.source == "gonio":
        return ""
    return f"Status there: {entry.source_status}. "


def _label(entry: Entry) -> str:
    return {
        "theorem": "What holds.",
        "refuted": "Refuted.",
        "empirical": "A measurement.",
        "deprecated": "Withdrawn.",
    }[entry.kind]


def _evidence(entry: Entry, proofs: Mapping[str, ProofStatus]) -> str:
    found = []
    known = [proofs[name] for name in entry.declarations if name in proofs]
    if known:
        gap = f" (not covered: {entry.rocq_gap.rstrip('.')})" if entry.rocq_gap else ""
        names = ", ".join(f"`{proof.name}` in `rocq/{proof.file}`" for proof in known)
        found.append(f"Rocq, {names}{gap}")
    if entry.check is not None:
        check = CHECKS[entry.check]
        found.append(f"check `{check.name}` ({check.arithmetic}): {check.tried}")
    if entry.measured_by:
        values = ", ".join(f"`{m.value}` of `{m.record}` records" for m in entry.measured_by)
        found.append(f"measured by {values}")
    if entry.replaced_by:
        found.append("see " + ", ".join(f"`{name}`" for name in entry.replaced_by))
    return "Evidence: " + "; ".join(found) + "."
