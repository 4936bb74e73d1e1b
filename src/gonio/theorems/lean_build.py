"""Asks Lean itself: builds a project with ``lake`` and runs ``#print axioms`` on its theorems.

This executes what the project tells ``lake`` to execute. It was written against recorded output of
Lean; the tests replace the runner of commands.
"""

import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from gonio.errors import MissingDependencyError, TheoremError
from gonio.theorems.lean import LIMITS, LeanEntry, LeanReport, LeanStatus, count_statuses

__all__ = ["STANDARD_AXIOMS", "Finished", "Runner", "ask_lean", "parse_axioms", "run_command"]

STANDARD_AXIOMS = ("propext", "Classical.choice", "Quot.sound")  # Lean's own three
_COMPILER_AXIOMS = ("Lean.ofReduceBool", "Lean.ofReduceNat", "Lean.trustCompiler")
_TIMEOUT_SECONDS = 4 * 3600  # a first build compiles all that the project imports
_ANSWER = re.compile(
    r"'(?P<name>[^\n]+?)' (?:does not depend on any axioms"
    r"|depends on axioms:\s*\[(?P<axioms>[^\]]*)\])"
)
_UNSEEN = (
    LIMITS[3],
    "private and unnamed declarations, definitions, and files that lake did not build: by text",
    "a project that redefines `#print axioms` is believed",
)


class Finished(NamedTuple):
    """A command that ended."""

    code: int
    output: str  # standard output, then standard error


Runner = Callable[[Sequence[str], Path], Finished]


def run_command(command: Sequence[str], folder: Path) -> Finished:
    """Run a command in a folder and wait for it.

    Raises:
        MissingDependencyError: There is no such command on this machine.
        TheoremError: It ran for more than four hours.
    """
    if shutil.which(command[0]) is None:
        raise MissingDependencyError(
            f"{command[0]} not found: --build needs a Lean 4 toolchain (elan installs one)\n"
            "Leave --build out to read the text alone."
        )
    try:
        done = subprocess.run(
            list(command),
            cwd=folder,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TheoremError(f"{command[0]} in {folder} ran past {_TIMEOUT_SECONDS} s") from error
    return Finished(done.returncode, done.stdout + done.stderr)


def ask_lean(report: LeanReport, folder: Path, run: Runner = run_command) -> LeanReport:
    """Build a project and replace what text suggests by what Lean says.

    Args:
        report: Of the text of the same folder.
        folder: The project, with its lakefile.
        run: Runs a command in a folder.

    Returns:
        The report with ``method`` set to ``build``. Declarations that could not be asked keep a
        status that ends in ``-by-text`` and a note that says why.

    Raises:
        MissingDependencyError: There is no ``lake`` on this machine.
        TheoremError: The folder is no ``lake`` project, or does not build.
    """
    if not any((folder / name).is_file() for name in ("lakefile.lean", "lakefile.toml")):
        raise TheoremError(f"--build needs a lake project: no lakefile in {folder}")
    built = run(("lake", "build"), folder)
    if built.code:
        raise TheoremError(f"lake build failed in {folder}:\n{built.output.strip()[-2000:]}")
    answers: dict[tuple[str, int, str], LeanEntry] = {}
    for file in report.source_files:
        asked = [entry for entry in report.theorems if entry.file == file and _can_ask(entry)]
        module = _module(folder, Path(file))
        if module is None:
            changed = [_with_note(entry, "lake did not build its file") for entry in asked]
        else:
            changed = _ask(module, asked, folder, run)
        answers |= {_place(entry): entry for entry in changed}
    theorems = tuple(answers.get(_place(entry), entry) for entry in report.theorems)
    return report.model_copy(
        update={
            "method": "build",
            "unseen": _UNSEEN,
            "theorems": theorems,
            "counts": count_statuses(theorems, report.definitions),
        }
    )


def _place(entry: LeanEntry) -> tuple[str, int, str]:
    return entry.file, entry.line, entry.full_name


def _can_ask(entry: LeanEntry) -> bool:
    return entry.kind in ("theorem", "lemma") and entry.is_named and not entry.is_private


def _module(folder: Path, file: Path) -> str | None:
    """The module that lake compiled from a file; sources may lie in a folder of their own."""
    parts = file.with_suffix("").parts
    for skipped in range(len(parts)):
        inner = Path(*parts[skipped:]).with_suffix(".olean")
        for library in ("lib/lean", "lib"):  # newer and older toolchains
            if (folder / ".lake" / "build" / library / inner).is_file():
                return ".".join(parts[skipped:])
    return None


def _ask(module: str, asked: Sequence[LeanEntry], folder: Path, run: Runner) -> list[LeanEntry]:
    if not asked:
        return []
    mark = f"@@{secrets.token_hex(8)}"  # no source can print a mark it does not know
    lines = [f"import {module}"]
    for number, entry in enumerate(asked):
        lines += [f'#print "{mark} {number}"', f"#print axioms {entry.full_name}"]
    with tempfile.TemporaryDirectory() as scratch:
        probe = Path(scratch) / "probe.lean"
        probe.write_text("\n".join([*lines, ""]), encoding="utf-8")
        output = run(("lake", "env", "lean", str(probe)), folder).output
    parts = output.split(f"{mark} ")
    if len(parts) == 1:
        raise TheoremError(f"Lean answered nothing about {module}:\n{output.strip()[-2000:]}")
    said = dict(part.partition("\n")[::2] for part in parts[1:])
    return [_judge(entry, said.get(str(number), "")) for number, entry in enumerate(asked)]


def parse_axioms(output: str) -> dict[str, tuple[str, ...]]:
    """Axioms by declaration, from what ``#print axioms`` printed; long lists span lines."""
    return {
        match["name"]: tuple((match["axioms"] or "").replace(",", " ").split())
        for match in _ANSWER.finditer(output)
    }


def _judge(entry: LeanEntry, said: str) -> LeanEntry:
    axioms = parse_axioms(said).get(entry.full_name)
    if axioms is None:
        reason = " ".join(said.split())[:200] or "no answer"
        return _with_note(entry, f"Lean did not say what it rests on: {reason}")
    return entry.model_copy(update={"axioms": axioms, "status": _status(entry, axioms)})


def _status(entry: LeanEntry, axioms: tuple[str, ...]) -> LeanStatus:
    if entry.status in ("stub", "vacuous"):
        return entry.status
    if "sorryAx" in axioms:
        return "sorry"
    own = [name for name in axioms if name not in STANDARD_AXIOMS]
    if not own:
        is_weaker = any(note.startswith("WEAKENING") for note in entry.notes)
        return "proven-weaker" if is_weaker else "proven"
    if all(name in _COMPILER_AXIOMS or "._native." in name for name in own):
        return "compiler-trusted"
    return "rests-on-axiom"


def _with_note(entry: LeanEntry, note: str) -> LeanEntry:
    return entry.model_copy(update={"notes": (*entry.notes, note)})
