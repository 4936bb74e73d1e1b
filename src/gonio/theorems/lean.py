"""The status of each theorem of a Lean 4 project, read from its text, never typed by hand.

:func:`read_lean_project` reads sources without a toolchain and executes nothing. The words:

- ``proven-by-text``: no hole in its own text; ``proven-weaker-by-text``: the same, and its authors
  left a WEAKENING note beside it;
- ``sorry``: a hole (``sorry``, ``sorryAx``, ``admit``, ``stop``, ``proof_wanted``);
- ``stub``: the statement concludes ``True``, whatever its proof; ``vacuous``: it relates a term to
  itself, such as ``x = x``;
- ``compiler-trusted``: ``native_decide`` takes the word of compiled code, not of the kernel;
- ``axiom``: assumed; ``definition``: a definition, instance or structure without a hole.

What text cannot see is listed in :data:`LIMITS`. A build (:mod:`gonio.theorems.lean_build`) can: it
replaces ``-by-text`` by ``proven`` and ``proven-weaker``, and adds ``rests-on-axiom`` for axioms
beyond Lean's own three.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from gonio.errors import TheoremError
from gonio.theorems.lean_source import LeanDeclaration, scan_lean

__all__ = [
    "LIMITS",
    "SCHEMA_VERSION",
    "LeanEntry",
    "LeanReport",
    "LeanStatus",
    "count_statuses",
    "read_lean_project",
    "read_lean_report",
]

SCHEMA_VERSION = 1
LIMITS = (
    "a hole, an axiom or compiled code behind a lemma that a proof uses, here or in an import",
    "a macro or a notation that expands to a hole, and names that macros and attributes generate",
    "whether a file compiles, and whether it is part of what the project builds",
    "whether a definition means what its name says, and whether a premise is ever true",
)
LeanStatus = Literal[
    "proven",
    "proven-weaker",
    "proven-by-text",
    "proven-weaker-by-text",
    "rests-on-axiom",
    "compiler-trusted",
    "vacuous",
    "stub",
    "sorry",
    "axiom",
    "definition",
]
_THEOREMS = frozenset(("theorem", "lemma", "example", "axiom", "proof_wanted"))
_SKIPPED_FOLDERS = ("lake-packages",)  # of older toolchains; hidden folders are skipped too
_LAKEFILES = ("lakefile.lean", "lakefile.toml")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LeanEntry(_Strict):
    """One declaration and what may be said of it."""

    name: str  # as declared
    full_name: str  # with its namespaces
    kind: str  # theorem, lemma, def, ...
    family: str | None  # letter of the family in gonio's catalogue that has a statement so named
    status: LeanStatus
    file: str  # relative to the project
    line: int  # of the keyword, from 1
    end_line: int
    source_url: str | None  # where a base was given
    statement: str
    context: tuple[str, ...]  # `variable` commands in force
    axioms: tuple[str, ...] | None  # what a build says it rests on; None if it was not asked
    holes: tuple[str, ...]
    notes: tuple[str, ...]
    is_private: bool
    is_named: bool


class LeanReport(_Strict):
    """What was found in a project; the file format of ``gonio theorem lean --json``."""

    schema_version: Literal[1]
    method: Literal["text", "build"]
    unseen: tuple[str, ...]  # what the method cannot see
    source_files: tuple[str, ...]
    source_url_base: str | None
    counts: dict[str, int]  # of the statuses of theorems, and of all definitions
    findings: tuple[str, ...]  # "file, line N: ..."
    theorems: tuple[LeanEntry, ...]  # theorems, lemmas, examples and axioms
    definitions: tuple[LeanEntry, ...]

    @property
    def declarations(self) -> tuple[LeanEntry, ...]:
        """Theorems, then definitions."""
        return self.theorems + self.definitions


def read_lean_project(
    path: Path, *, url_base: str | None = None, families: Mapping[str, str] | None = None
) -> LeanReport:
    """Read every ``.lean`` file of a project, or one file; nothing is executed.

    Args:
        path: A folder, or a file. Hidden folders (``.lake``) and build folders are skipped.
        url_base: Address of the folder on the web, for links to lines.
        families: Family by name of a statement.

    Raises:
        TheoremError: There is nothing to read, a file is not UTF-8 or cannot be read, or a comment
            or a string in it is not closed.
    """
    root, files = _find_files(path)
    base = url_base.rstrip("/") if url_base else None
    entries: list[LeanEntry] = []
    findings: list[str] = []
    for file in files:
        name = file.relative_to(root).as_posix()
        scan = scan_lean(_read_text(file), str(file))
        findings += [f"{name}, {finding}" for finding in scan.findings]
        for declared in scan.declarations:
            url = f"{base}/{name}#L{declared.line}" if base else None
            family = (families or {}).get(declared.name.rpartition(".")[2])
            entries.append(_entry(declared, name, url, family))
    theorems = tuple(entry for entry in entries if entry.kind in _THEOREMS)
    definitions = tuple(entry for entry in entries if entry.kind not in _THEOREMS)
    return LeanReport(
        schema_version=SCHEMA_VERSION,
        method="text",
        unseen=LIMITS,
        source_files=tuple(file.relative_to(root).as_posix() for file in files),
        source_url_base=base,
        counts=count_statuses(theorems, definitions),
        findings=tuple(findings),
        theorems=theorems,
        definitions=definitions,
    )


def count_statuses(
    theorems: tuple[LeanEntry, ...], definitions: tuple[LeanEntry, ...]
) -> dict[str, int]:
    """Theorems by status, definitions, and definitions that hold a hole."""
    counts = Counter(entry.status for entry in theorems)
    return {
        "theorems": len(theorems),
        **dict(sorted(counts.items())),
        "definitions": len(definitions),
        "definitions_with_sorry": sum(entry.status == "sorry" for entry in definitions),
    }


def read_lean_report(path: Path) -> LeanReport:
    """Read a report that ``gonio theorem lean --json --output FILE`` wrote.

    Raises:
        TheoremError: It cannot be read, or does not follow the schema.
    """
    try:
        return LeanReport.model_validate_json(path.read_bytes())
    except OSError as error:
        raise TheoremError(f"cannot read {path}: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise TheoremError(
            f"not a report of Lean theorems: {path}: {where}: {first['msg']}\n"
            "Write one with: gonio theorem lean PATH --json --output FILE"
        ) from error


def _find_files(path: Path) -> tuple[Path, list[Path]]:
    if path.is_file():
        if path.suffix != ".lean":
            raise TheoremError(f"not a Lean source file: {path}; expected a name in .lean")
        return path.parent, [path]
    if not path.is_dir():
        raise TheoremError(f"no such file or folder: {path}")
    files = sorted(_walk(path))
    if not files:
        raise TheoremError(f"no .lean file in {path} (hidden and build folders are skipped)")
    return path, files


def _walk(root: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise TheoremError(f"cannot read {error.filename}: {error.strerror}") from error

    for folder, subfolders, names in os.walk(root, onerror=refuse):
        is_lake_root = any(name in _LAKEFILES for name in names)
        subfolders[:] = [
            name
            for name in subfolders
            if not name.startswith(".")
            and name not in _SKIPPED_FOLDERS
            and not (name == "build" and is_lake_root)
        ]
        yield from (Path(folder, name) for name in names if name.endswith(".lean"))


def _read_text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8").replace("\r\n", "\n")
    except OSError as error:
        raise TheoremError(f"cannot read {file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise TheoremError(
            f"not readable as Lean: {file}: byte {error.start} is not UTF-8, as Lean sources are"
        ) from error


def _entry(declared: LeanDeclaration, file: str, url: str | None, family: str | None) -> LeanEntry:
    is_theorem = declared.kind in _THEOREMS
    return LeanEntry(
        name=declared.name,
        full_name=declared.full_name,
        kind=declared.kind,
        family=family,
        status=_status(declared, is_theorem),
        file=file,
        line=declared.line,
        end_line=declared.end_line,
        source_url=url,
        statement=declared.statement,
        context=declared.context,
        axioms=None,
        holes=declared.holes,
        notes=tuple(_notes(declared, is_theorem)),
        is_private=declared.is_private,
        is_named=declared.is_named,
    )


def _status(declared: LeanDeclaration, is_theorem: bool) -> LeanStatus:
    if declared.kind == "axiom":
        return "axiom"
    if is_theorem and declared.vacuity == "true":
        return "stub"
    if declared.holes:
        return "sorry"
    if not is_theorem:
        return "definition"
    if declared.vacuity == "reflexive":
        return "vacuous"
    if declared.trusts_compiler:
        return "compiler-trusted"
    return "proven-weaker-by-text" if declared.weakening else "proven-by-text"


def _notes(declared: LeanDeclaration, is_theorem: bool) -> Iterator[str]:
    if declared.weakening:
        yield declared.weakening
    if not is_theorem:
        return
    if declared.vacuity == "true":
        yield "the statement concludes True"
    if declared.vacuity == "reflexive":
        yield "the statement relates a term to itself"
    if declared.trusts_compiler:
        yield "native_decide: compiled code is trusted"
    if declared.is_by_rfl:
        yield "proved by rfl: both sides are the same by definition"
