"""``theorem-status.json``: every statement with the word computed for it, and what that rests on.

The file is a superset of the status files that the sources publish beside their proof pages (name,
kind, family, status, file, line, link, axioms, counts). Its schema is versioned; the JSON schema
in ``theorem-status.schema.json`` is generated from the classes below.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gonio.errors import TheoremError
from gonio.theorems.catalogue import Entry, Kind, LeanDeclaration, Source, load_families
from gonio.theorems.rocq import ProofStatus
from gonio.theorems.rocq_library import LibraryCheck
from gonio.theorems.status import CheckOutcome, Status, compute_statuses, weakest_proof

__all__ = [
    "SCHEMA_VERSION",
    "ProofOrigin",
    "TheoremRow",
    "TheoremStatusFile",
    "count_words",
    "read_status_file",
    "status_rows",
    "status_schema",
]

SCHEMA_VERSION = 1


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ProofOrigin(_Strict):
    """Where the answers about proofs come from.

    Attributes:
        method: ``compiled``: the sources were compiled here, or compiled files whose digest is that
            of the sources were read, and the prover was asked. ``lock``: no prover was asked; the
            answers are those of the lock, which somebody reviewed.
        prover: Version of the prover that gave the answers.
        digest: Sha256 of the sources the answers are about.
        sources: Whether sources were at hand, and whether they are those of the lock.
        allowed_axioms: Axioms of the libraries underneath, on which a proved theorem may rest.
        library: What ``coqchk`` said, null if it was not run.
    """

    method: Literal["compiled", "lock"]
    prover: str
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    sources: Literal["those of the lock", "changed", "absent"]
    allowed_axioms: tuple[str, ...]
    library: LibraryCheck | None


class TheoremRow(_Strict):
    """One statement of the catalogue.

    Attributes:
        name: Its name, as the source spells it.
        family: Letter of its family.
        kind: What sort of claim it is; see the catalogue.
        status: The word computed from what ran.
        sentence: The statement in plain English.
        source: Who made the claim.
        source_status: What the source calls it.
        source_declaration: The Lean declaration of the source, null if it publishes none.
        file: Rocq file of the main declaration, relative to the project; null without a proof.
        line: Line of the declaration, from 1.
        source_url: Address of that line, where a base was given.
        statement: The statement as the prover prints it.
        axioms: Axioms under all declarations; null without a proof.
        declarations: What the prover said of each.
        missing: Declarations that the catalogue names and the proofs do not have.
        gap: What the declarations leave out of the sentence, null if nothing.
        check: Name of the executable check, null if there is none.
        check_passed: It found no counterexample and rejected its mutant; null if it did not run.
    """

    name: str
    family: str
    kind: Kind
    status: Status
    sentence: str
    source: Source
    source_status: str
    source_declaration: LeanDeclaration | None
    file: str | None
    line: int | None
    source_url: str | None
    statement: str | None
    axioms: tuple[str, ...] | None
    declarations: tuple[ProofStatus, ...]
    missing: tuple[str, ...]
    gap: str | None
    check: str | None
    check_passed: bool | None


class TheoremStatusFile(_Strict):
    """The whole file.

    Attributes:
        schema_version: Version of this schema.
        gonio: Version of gonio that wrote it.
        proofs: Where the answers about proofs come from.
        drift: What differs from what was reviewed; empty in a green build.
        counts: ``statements``, then how many have each status that occurs.
        family_counts: The same by letter of the family.
        theorems: One row per statement, in the order of the catalogue.
        checks: Record and tables of the executable checks, null if they did not run.
    """

    schema_version: Literal[1]
    gonio: str
    proofs: ProofOrigin
    drift: tuple[str, ...]
    counts: dict[str, int]
    family_counts: dict[str, dict[str, int]]
    theorems: tuple[TheoremRow, ...]
    checks: dict[str, Any] | None

    @property
    def is_red(self) -> bool:
        """Whether something drifted or failed, or ``coqchk`` found an axiom of the project's."""
        own = self.proofs.library is not None and bool(self.proofs.library.own)
        return bool(self.drift) or own or any(row.status == "failed" for row in self.theorems)


def status_rows(
    entries: Sequence[Entry],
    results: Mapping[str, CheckOutcome],
    proofs: Mapping[str, ProofStatus],
    url_base: str | None = None,
) -> tuple[TheoremRow, ...]:
    """One row per statement.

    Args:
        entries: The statements.
        results: What the checks reported, by name of the check.
        proofs: What the prover reported, by name of the declaration.
        url_base: Address of the Rocq project on the web, for links to lines.
    """
    statuses = compute_statuses(entries, results, proofs)
    base = url_base.rstrip("/") if url_base else None
    return tuple(
        _row(entry, statuses[entry.name], results.get(entry.check or ""), proofs, base)
        for entry in entries
    )


def _row(
    entry: Entry,
    status: Status,
    result: CheckOutcome | None,
    proofs: Mapping[str, ProofStatus],
    base: str | None,
) -> TheoremRow:
    known = tuple(proofs[name] for name in entry.declarations if name in proofs)
    shown = weakest_proof(entry, proofs)
    return TheoremRow(
        name=entry.name,
        family=entry.family,
        kind=entry.kind,
        status=status,
        sentence=entry.sentence,
        source=entry.source,
        source_status=entry.source_status,
        source_declaration=entry.lean,
        file=shown.file if shown else None,
        line=shown.line if shown else None,
        source_url=f"{base}/{shown.file}#L{shown.line}" if shown and base else None,
        statement=shown.statement if shown else None,
        axioms=tuple(sorted({axiom for p in known for axiom in p.axioms})) if known else None,
        declarations=known,
        missing=tuple(name for name in entry.declarations if name not in proofs),
        gap=entry.rocq_gap,
        check=entry.check,
        check_passed=None if result is None else result.passed and result.mutant_rejected,
    )


def count_words(rows: Sequence[TheoremRow]) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    """Statements by status, in all and by family; only words that occur, strongest first."""
    letters = [family.letter for family in load_families()]
    return _counts(rows), {
        letter: _counts([row for row in rows if row.family == letter]) for letter in letters
    }


def _counts(rows: Sequence[TheoremRow]) -> dict[str, int]:
    found = Counter(row.status for row in rows)
    return {"statements": len(rows)} | {w: found[w] for w in get_args(Status) if found[w]}


def status_schema() -> str:
    """The JSON schema of the file, as text."""
    schema = TheoremStatusFile.model_json_schema(mode="serialization")
    return json.dumps(
        {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema, indent=1
    )


def read_status_file(path: Path) -> TheoremStatusFile:
    """Read what ``gonio theorem status`` wrote.

    Raises:
        TheoremError: It cannot be read, or does not follow the schema.
    """
    try:
        return TheoremStatusFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise TheoremError(f"cannot read {path}: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise TheoremError(
            f"not a file of theorem statuses: {path}: {where}: {first['msg']}\n"
            "Write one with: gonio theorem status"
        ) from error
