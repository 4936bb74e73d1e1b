"""The catalogue: every statement gonio relies on, with its source and what was wrong there.

The entries are data (``catalogue/A.json`` to ``catalogue/J.json``); no status is stored, because a
status follows from what ran (:mod:`gonio.theorems.status`).
"""

from __future__ import annotations

import difflib
from importlib.resources import files
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gonio.errors import TheoremError

__all__ = ["Entry", "Family", "get_entry", "load_catalogue", "load_families", "select_entries"]

Text = Annotated[str, Field(min_length=1)]
Use = Annotated[str, Field(pattern=r"^(gonio(\.\w+)+|(figure|column):\S+)$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


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
            (``sentence`` then states the refutation), ``empirical`` for a measurement.
        check: Name of the executable check, null if there is none.
        uses: What relies on it: dotted names of gonio, ``figure:NAME`` or ``column:TABLE.COLUMN``.
        rocq: Name of the Rocq declaration, null if there is none.
        rocq_gap: What the Rocq declaration leaves out of the sentence, null if nothing.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z]\w*$")]
    family: Annotated[str, Field(pattern=r"^[A-J]$")]
    source: Literal["lazy-rudder", "moe-gauge", "lora-essay", "gonio"]
    source_status: Text
    sentence: Text
    latex: Text
    erratum: Text | None
    kind: Literal["theorem", "refuted", "empirical"]
    check: Text | None
    uses: tuple[Use, ...]
    rocq: Text | None
    rocq_gap: Text | None = None


class Family(_Strict):
    """A letter, a name, and the entries filed under it."""

    letter: Annotated[str, Field(pattern=r"^[A-J]$")]
    name: Text
    entries: tuple[Entry, ...]


def load_families() -> tuple[Family, ...]:
    """Every family of the catalogue, by letter.

    Raises:
        TheoremError: A data file does not follow the schema, an entry is filed under another
            letter than its own, or a name occurs twice.
    """
    folder = files("gonio.theorems") / "catalogue"
    paths = sorted((p for p in folder.iterdir() if p.name.endswith(".json")), key=lambda p: p.name)
    families = tuple(_read_family(path.name, path.read_text(encoding="utf-8")) for path in paths)
    names = [entry.name for family in families for entry in family.entries]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise TheoremError(f"the catalogue names {', '.join(repeated)} more than once")
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
    names: tuple[str, ...] | None = None, family: str | None = None
) -> tuple[Entry, ...]:
    """Entries by name (in the order asked for), by family letter, or both; all by default.

    Raises:
        TheoremError: A name or a letter is unknown, or nothing satisfies both.
    """
    entries = tuple(get_entry(name) for name in names) if names else load_catalogue()
    if family is None:
        return entries
    letters = {found.letter: found.name for found in load_families()}
    if family.upper() not in letters:
        known = "\n".join(f"  {letter}  {title}" for letter, title in letters.items())
        raise TheoremError(f"no family of theorems is called {family!r}; there are\n{known}")
    chosen = tuple(entry for entry in entries if entry.family == family.upper())
    if not chosen:
        raise TheoremError(
            f"none of {', '.join(entry.name for entry in entries)} is in family {family.upper()}"
        )
    return chosen


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
