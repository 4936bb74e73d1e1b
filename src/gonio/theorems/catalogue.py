"""The catalogue: every statement gonio relies on, with its source and what was wrong there.

The entries are data (``catalogue/A.json`` to ``catalogue/J.json``); no status is stored, because a
status follows from what ran (:mod:`gonio.theorems.status`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from importlib.resources import files
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gonio.errors import TheoremError

__all__ = [
    "Entry",
    "Family",
    "Kind",
    "LeanDeclaration",
    "Measure",
    "Source",
    "get_entry",
    "load_catalogue",
    "load_families",
    "select_entries",
]

Text = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z]\w*$")]
Source = Literal["lazy-rudder", "moe-gauge", "lora-essay", "gonio"]
Kind = Literal["theorem", "refuted", "empirical", "deprecated"]
Use = Annotated[str, Field(pattern=r"^(gonio(\.\w+)+|(figure|column):\S+)$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LeanDeclaration(_Strict):
    """The Lean declaration of the same name that a source publishes: a fact about the source.

    Attributes:
        file: File of the source that declares it.
        line: Line of the declaration, null where the source does not print it.
        kind: Word of the source for it.
        url: Where the source shows it.
        states: What it states there, in words and symbols of this catalogue; null where that is
            the sentence itself, or not known.
    """

    file: Text
    line: Annotated[int, Field(ge=1)] | None
    kind: Text
    url: Annotated[str, Field(pattern=r"^https://")]
    states: Text | None


class Measure(_Strict):
    """A value of a record that measures what an entry is about."""

    record: Text
    value: Text


class Entry(_Strict):
    """One statement.

    Attributes:
        name: The declaration's name, as its source spells it.
        family: Letter of the family it belongs to.
        source: Where the statement, or the claim it repairs, was made.
        source_status: What the source says of it, in the source's word.
        sentence: The statement in plain English.
        latex: The statement as a formula.
        erratum: What was wrong with the printed form, null if nothing was.
        kind: ``theorem`` for a claim gonio makes, ``refuted`` for a printed claim that is false
            (``sentence`` then states the refutation), ``empirical`` for a measurement (its check
            is one of the instrument), ``deprecated`` for a name its source has withdrawn.
        check: Name of the executable check, null if there is none.
        uses: What relies on it: dotted names of gonio, ``figure:NAME`` or ``column:TABLE.COLUMN``.
        prerequisites: Names of the entries it follows from, or is read beside.
        measured_by: Values of records that measure it; every empirical entry has one.
        replaced_by: Entries that say what a deprecated name leads to; empty for all others.
        lean: The declaration that the source publishes, null if it publishes none.
        rocq: Name of the Rocq declaration, null if there is none.
        rocq_also: Further declarations that prove parts or other forms of the sentence.
        rocq_gap: What the Rocq declarations leave out of the sentence, null if nothing.
    """

    name: Name
    family: Annotated[str, Field(pattern=r"^[A-J]$")]
    source: Source
    source_status: Text
    sentence: Text
    latex: Text
    erratum: Text | None
    kind: Kind
    check: Text | None
    uses: tuple[Use, ...]
    prerequisites: tuple[Name, ...]
    measured_by: tuple[Measure, ...]
    replaced_by: tuple[Name, ...]
    lean: LeanDeclaration | None
    rocq: Text | None
    rocq_also: tuple[Text, ...]
    rocq_gap: Text | None

    @property
    def declarations(self) -> tuple[str, ...]:
        """Every Rocq declaration that stands for the entry, the main one first."""
        return () if self.rocq is None else (self.rocq, *self.rocq_also)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.kind in ("refuted", "deprecated") and self.erratum is None:
            raise ValueError(f"{self.name} is {self.kind} and has no erratum")
        if self.kind == "empirical" and not self.measured_by:
            raise ValueError(f"{self.name} is empirical and names no record that measures it")
        if self.kind in ("empirical", "deprecated") and self.rocq is not None:
            raise ValueError(f"{self.name} is {self.kind} and cannot have a proof")
        if (self.kind == "deprecated") != bool(self.replaced_by):
            raise ValueError(f"{self.name}: deprecated names, and no others, are replaced_by some")
        if self.rocq is None and (self.rocq_also or self.rocq_gap is not None):
            raise ValueError(f"{self.name} has parts or a gap of a proof it does not have")
        return self


class Family(_Strict):
    """A letter, a name, and the entries filed under it."""

    letter: Annotated[str, Field(pattern=r"^[A-J]$")]
    name: Text
    entries: tuple[Entry, ...]


def load_families() -> tuple[Family, ...]:
    """Every family of the catalogue, by letter.

    Raises:
        TheoremError: A data file does not follow the schema, an entry is filed under another
            letter than its own, a name occurs twice, or an entry refers to one that is not there
            or to itself, directly or in a circle.
    """
    folder = files("gonio.theorems") / "catalogue"
    paths = sorted((p for p in folder.iterdir() if p.name.endswith(".json")), key=lambda p: p.name)
    families = tuple(_read_family(path.name, path.read_text(encoding="utf-8")) for path in paths)
    names = [entry.name for family in families for entry in family.entries]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise TheoremError(f"the catalogue names {', '.join(repeated)} more than once")
    _check_references({entry.name: entry for family in families for entry in family.entries})
    return families


def load_catalogue() -> tuple[Entry, ...]:
    """Every entry, in the order of the families.

    Raises:
        TheoremError: See :func:`load_families`.
    """
    return tuple(entry for family in load_families() for entry in family.entries)


def get_entry(name: str) -> Entry:
    """The entry called ``name``.

    Raises:
        TheoremError: There is none; the message lists names that come close.
    """
    catalogue = {entry.name: entry for entry in load_catalogue()}
    if name not in catalogue:
        raise TheoremError(_unknown(f"no theorem is called {name!r}", name, list(catalogue)))
    return catalogue[name]


def select_entries(
    names: tuple[str, ...] | None = None,
    family: str | None = None,
    source: Source | None = None,
) -> tuple[Entry, ...]:
    """Entries by name (in the order asked for), family letter and source; all by default.

    Raises:
        TheoremError: A name or a letter is unknown, or nothing satisfies all that is asked.
    """
    entries = tuple(get_entry(name) for name in names) if names else load_catalogue()
    if family is not None:
        letters = {found.letter: found.name for found in load_families()}
        if family.upper() not in letters:
            known = "\n".join(f"  {letter}  {title}" for letter, title in letters.items())
            raise TheoremError(f"no family of theorems is called {family!r}; there are\n{known}")
    chosen = tuple(
        entry
        for entry in entries
        if (family is None or entry.family == family.upper())
        and (source is None or entry.source == source)
    )
    if not chosen:
        asked = ", ".join(names) if names else "the statements"
        where = [f"in family {family.upper()}"] if family else []
        where += [f"from {source}"] if source else []
        raise TheoremError(f"none of {asked} is {' and '.join(where)}")
    return chosen


def _check_references(entries: Mapping[str, Entry]) -> None:
    for entry in entries.values():
        for name in (*entry.prerequisites, *entry.replaced_by):
            if name not in entries:
                raise TheoremError(f"the catalogue entry {entry.name} refers to {name}, not in it")
    graph = {name: set(entry.prerequisites) for name, entry in entries.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = " <- ".join(error.args[1])
        raise TheoremError(f"the catalogue's prerequisites run in a circle: {circle}") from error


def _read_family(file_name: str, text: str) -> Family:
    try:
        family = Family.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise TheoremError(f"catalogue/{file_name}: {where}: {first['msg']}") from error
    if file_name != f"{family.letter}.json":
        raise TheoremError(f"catalogue/{file_name} holds family {family.letter}")
    strays = [entry.name for entry in family.entries if entry.family != family.letter]
    if strays:
        raise TheoremError(f"catalogue/{file_name}: {', '.join(strays)} says another family")
    return family


def _unknown(problem: str, name: str, known: list[str]) -> str:
    lowered = {candidate.lower(): candidate for candidate in known}
    close = [lowered[c] for c in difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.5)]
    hint = f"; did you mean {' or '.join(close)}?" if close else "."
    return f"{problem}{hint}\n`gonio theorem list` prints every name."
