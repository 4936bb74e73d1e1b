"""Theorem cards: the catalogue, what the prover reported, and what the checks found.

Where no record of a check is at hand, the status is what the locked proofs alone support.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from gonio.errors import RecordError
from gonio.site.collection import Collection
from gonio.site.formula import to_mathml
from gonio.site.numbers import is_missing, rows_of, show, slug
from gonio.theorems import Entry, Family, compute_status
from gonio.theorems.rocq import ProofStatus
from gonio.theorems.status import weakest_proof
from gonio.theorems.tables import locked_proofs

__all__ = [
    "SOURCES",
    "SOURCE_WORDS",
    "STATUS_MEANINGS",
    "Card",
    "FamilyCount",
    "Use",
    "count_families",
    "make_cards",
    "proofs_of",
]

STATUS_MEANINGS = {
    "proved": "a machine-checked proof of the whole sentence",
    "proved-weaker": "a machine-checked proof with a named gap",
    "refuted": "the printed claim is false, by proof or exact counterexample",
    "checked": "the executable check found no counterexample and rejected its mutant",
    "empirical": "a measurement, never a proof",
    "deprecated": "a name its source has withdrawn; nothing is claimed",
    "open": "no proof, and no record of a check",
    "failed": "the check found a counterexample, or accepted its mutant",
}
SOURCE_WORDS = {
    "proven": "the source says that a proof assistant has accepted a proof",
    "proved": "the same, in another source's spelling",
    "partial": "the source says that it proves a part",
    "axiom-based": "the source proves it from statements that it assumes",
    "axiom": "the source assumes it",
    "deferred": "the source states it and leaves the proof for later",
    "stub": "the source declares it with a placeholder for the proof",
    "aspirational": "the source names it as a goal",
    "open": "the source says that it has no proof",
    "text": "the source says it in prose only",
    "listed": "the source lists the name without a word for it",
    "removed": "the source has withdrawn it",
}
SOURCES = {
    "lazy-rudder": "lazy-rudder proof page",
    "moe-gauge": "moe-gauge proof page",
    "lora-essay": "essay on LoRA",
    "gonio": "stated here",
}
# Optional columns of a checks table, in the order of the card; the heading of each.
_FACTS = {
    "worst_margin": "worst margin",
    "tried": "a case is",
    "mutant": "mutant",
    "counterexample": "counterexample",
}


@dataclass(frozen=True)
class Use:
    """Something that relies on a statement, with a link where the site shows it."""

    text: str
    href: str | None


@dataclass(frozen=True)
class Card:
    """All the page says of one statement.

    Attributes:
        entry: The catalogue entry.
        anchor: Anchor on the page.
        source: The source, spelled out.
        theirs: The source's own word for it; empty where gonio is the source.
        formula: The statement as MathML.
        status: Computed word.
        proof: What the prover reported of the declaration it supports least, None if nothing.
        proofs: What the prover reported of every declaration, the main one first.
        axioms: Axioms under any of the declarations, sorted.
        verdict: Outcome of the check in one line, empty if it has not run.
        passed: Whether the check found no counterexample and rejected its mutant, None if it has
            not run.
        facts: Heading and text of what the check reported.
        record: Identifier of the record the status comes from.
        uses: What relies on the statement.
        dependents: Names of the statements that follow from it, or are read beside it.
    """

    entry: Entry
    anchor: str
    source: str
    theirs: str
    formula: Markup
    status: str
    proof: ProofStatus | None
    proofs: tuple[ProofStatus, ...]
    axioms: tuple[str, ...]
    verdict: str
    passed: bool | None
    facts: tuple[tuple[str, str], ...]
    record: str | None
    uses: tuple[Use, ...]
    dependents: tuple[str, ...]


@dataclass(frozen=True)
class FamilyCount:
    """How many statements of a family have each status; total last."""

    letter: str
    name: str
    counts: Mapping[str, int]
    total: int


def make_cards(
    families: Sequence[Family],
    collection: Collection,
    figure_links: Mapping[str, str],
    resting: Mapping[str, Sequence[Use]],
) -> tuple[Card, ...]:
    """One card per catalogue entry, in catalogue order.

    Args:
        families: The catalogue.
        collection: Records; the newest check of each statement counts.
        figure_links: Address of every figure of the site by name, for ``figure:`` uses.
        resting: Figures that say they rest on a statement, by the statement's name.

    Raises:
        RecordError: A record of checks lacks a column, or has a status this version lacks.
        TheoremError: The package has no lock of its proofs.
    """
    proofs = proofs_of(collection)
    found = _newest_checks(collection)
    entries = [entry for family in families for entry in family.entries]
    cards = []
    for entry in entries:
        identifier, row = found.get(entry.name, (None, {}))
        proof = weakest_proof(entry, proofs)
        known = tuple(proofs[name] for name in entry.declarations if name in proofs)
        cards.append(
            Card(
                entry=entry,
                anchor=f"theorem-{entry.name}",
                source=SOURCES[entry.source],
                theirs="" if entry.source == "gonio" else entry.source_status,
                formula=to_mathml(entry.latex, block=True),
                status=_status(row, identifier) or compute_status(entry, None, proof),
                proof=proof,
                proofs=known,
                axioms=tuple(sorted({axiom for one in known for axiom in one.axioms})),
                verdict=_verdict(row),
                passed=_passed(row),
                facts=_facts(row),
                record=identifier,
                uses=_uses(entry, figure_links, resting.get(entry.name, ())),
                dependents=tuple(e.name for e in entries if entry.name in e.prerequisites),
            )
        )
    return tuple(cards)


def proofs_of(collection: Collection) -> dict[str, ProofStatus]:
    """What the prover said of each declaration: in the given file of statuses, else in the lock.

    Raises:
        TheoremError: There is no such file, and the package has no lock of its proofs.
    """
    if collection.statuses is None:
        return locked_proofs()
    return {proof.name: proof for row in collection.statuses.theorems for proof in row.declarations}


def count_families(families: Sequence[Family], cards: Sequence[Card]) -> tuple[FamilyCount, ...]:
    """Statements by family and status."""
    counts = []
    for family in families:
        mine = [card.status for card in cards if card.entry.family == family.letter]
        by_status = {status: mine.count(status) for status in STATUS_MEANINGS}
        counts.append(FamilyCount(family.letter, family.name, by_status, len(mine)))
    return tuple(counts)


def _newest_checks(collection: Collection) -> dict[str, tuple[str, dict[str, Any]]]:
    """Identifier and row of the newest check of each statement."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    records = sorted(collection.of_kind("theorem-check"), key=lambda entry: entry.record.created)
    for entry in records:
        for row in rows_of(entry.table("checks", ("name", "status"))):
            found[str(row["name"])] = (entry.identifier, row)
    return found


def _status(row: Mapping[str, Any], identifier: str | None) -> str:
    """The status a record states; empty without a record."""
    status = str(row.get("status", ""))
    if row and status not in STATUS_MEANINGS:
        raise RecordError(
            f"record {identifier}: {row['name']} has the unknown status {status!r}; "
            f"expected one of {', '.join(STATUS_MEANINGS)}"
        )
    return status


def _verdict(row: Mapping[str, Any]) -> str:
    """The check's outcome in one line; nothing when it did not run."""
    if is_missing(row.get("passed")):
        return ""
    text = "no counterexample" if row["passed"] else "counterexample found"
    if not is_missing(row.get("examples")):
        text += f" in {show(row['examples'])} cases"
    if not is_missing(row.get("arithmetic")):
        text += f" ({row['arithmetic']})"
    if not is_missing(row.get("mutant_rejected")):
        text += f"; mutant {'rejected' if row['mutant_rejected'] else 'not told apart'}"
    return text


def _passed(row: Mapping[str, Any]) -> bool | None:
    if is_missing(row.get("passed")):
        return None
    rejected = row.get("mutant_rejected")
    return bool(row["passed"]) and (is_missing(rejected) or bool(rejected))


def _facts(row: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    facts = []
    for column, heading in _FACTS.items():
        value: Any = row.get(column)
        if value is not None and hasattr(value, "tolist"):
            value = value.tolist()
        if isinstance(value, list | tuple):
            value = ", ".join(str(part) for part in value) or "none"
        if not is_missing(value) and value != "":
            facts.append((heading, show(value, 3)))
    return tuple(facts)


def _uses(entry: Entry, figure_links: Mapping[str, str], resting: Sequence[Use]) -> tuple[Use, ...]:
    uses = list(resting)
    drawn = {use.href for use in resting}
    for name in entry.uses:
        kind, _, rest = name.partition(":")
        if kind == "figure":
            href = figure_links.get(slug(rest))
            if href is None or href not in drawn:  # else the figure says so itself
                uses.append(Use(f"figure {rest}", href))
        elif kind == "column":
            uses.append(Use(f"column {rest}", None))
        else:
            uses.append(Use(name, None))
    return tuple({use.text: use for use in uses}.values())
