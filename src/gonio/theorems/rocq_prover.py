"""Runs the Rocq prover on a project: reads ``_CoqProject``, compiles, and asks about theorems."""

import hashlib
import os
import re
import secrets
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gonio.errors import MissingDependencyError, TheoremError
from gonio.theorems.rocq_source import SourceScan, SourceTheorem

__all__ = [
    "Answer",
    "RocqProject",
    "ask_prover",
    "compile_project",
    "has_prover",
    "is_compiled",
    "prover_version",
    "read_project",
    "run_tool",
]

_TIMEOUT_SECONDS = 2 * 3600  # coqchk takes minutes on a machine that does nothing else
# Variables that would change what the prover or make do.
_STEERING = ("COQ", "ROCQ", "MAKE", "MFLAGS", "GNUMAKEFLAGS")


@dataclass(frozen=True)
class Answer:
    """What the prover printed about one theorem."""

    statement: str  # of Check, its name first
    assumptions: str  # of Print Assumptions


@dataclass(frozen=True)
class RocqProject:
    """A Rocq project, as its _CoqProject describes it."""

    folder: Path
    directory: str  # of the sources, relative to the folder
    prefix: str  # logical name of that directory
    files: tuple[str, ...]

    def module(self, file: str) -> str:
        """The full name of the module compiled from a file."""
        inner = Path(file).relative_to(self.directory).with_suffix("")
        return ".".join((self.prefix, *inner.parts))


def has_prover() -> bool:
    """Whether the prover and make can be run on this machine."""
    return all(shutil.which(tool) for tool in ("coqc", "coq_makefile", "make"))


def prover_version() -> str:
    """The version of the prover, such as ``8.16.1``.

    Raises:
        MissingDependencyError: There is no prover on this machine.
    """
    return run_tool(["coqc", "--print-version"], Path.cwd()).split()[0]


def read_project(folder: Path) -> RocqProject:
    """Read ``_CoqProject``, accepting only what cannot weaken the prover.

    Args:
        folder: The project.

    Raises:
        TheoremError: There is no ``_CoqProject``, it holds more than one ``-R``, ``-arg -w`` pairs
            and ``.v`` files, or a ``.v`` file in the folder is not listed in it.
    """
    path = folder / "_CoqProject"
    if not path.is_file():
        raise TheoremError(f"not a Rocq project: {folder} has no _CoqProject")
    words = shlex.split(path.read_text("utf-8"), comments=True)
    roots: list[tuple[str, str]] = []
    files: list[str] = []
    arguments: list[str] = []
    while words:
        word = words.pop(0)
        if word in ("-R", "-Q") and len(words) >= 2:
            roots.append((words.pop(0), words.pop(0)))
        elif word == "-arg" and words:
            arguments += shlex.split(words.pop(0))
        elif word.endswith(".v"):
            files.append(word)
        else:
            raise TheoremError(f"{path}: {word!r} is not accepted; only -R, -arg -w and .v files")
    # An option such as -type-in-type would turn off a check: only warnings may be set.
    if arguments[0::2] != ["-w"] * (len(arguments) // 2) or len(arguments) % 2:
        raise TheoremError(
            f"{path}: prover options {arguments} found; only -w WARNINGS is accepted"
        )
    if len(roots) != 1:
        raise TheoremError(f"{path}: expected one -R DIRECTORY NAME, found {len(roots)}")
    there = {found.relative_to(folder).as_posix() for found in folder.rglob("*.v")}
    if there != set(files):
        raise TheoremError(f"{path}: listed and existing .v differ in {sorted(there ^ set(files))}")
    return RocqProject(folder, roots[0][0], roots[0][1], tuple(files))


def run_tool(command: list[str], folder: Path, *, with_errors: bool = False) -> str:
    """Standard output of a tool, run without the environment variables that steer it.

    Args:
        command: The tool and its arguments.
        folder: Where it runs.
        with_errors: Return standard error too, after the output; ``coqchk`` answers there.

    Raises:
        MissingDependencyError: There is no such tool on this machine.
        TheoremError: It failed, or ran for more than two hours.
    """
    if shutil.which(command[0]) is None:
        raise MissingDependencyError(
            f"{command[0]} not found: proofs are checked with Rocq (Coq) 8.16; on Debian: "
            "apt-get install --no-install-recommends make coq libcoq-mathcomp-analysis "
            "libcoq-mathcomp-real-closed libcoq-mathcomp-algebra-tactics libcoq-coquelicot"
        )
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("COQ", "ROCQ", "MAKE", "MFLAGS"))
    }
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**kept, "LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TheoremError(f"{command[0]} in {folder} ran past {_TIMEOUT_SECONDS} s") from error
    if done.returncode:
        tail = (done.stderr or done.stdout).strip()[-2000:]
        raise TheoremError(f"{' '.join(command)} failed in {folder}:\n{tail}")
    return done.stdout + done.stderr if with_errors else done.stdout


def compile_project(project: RocqProject) -> None:
    """Compile what is out of date; compiled files are written beside the sources.

    Raises:
        MissingDependencyError: There is no prover on this machine.
        TheoremError: A file does not compile, or what is compiled is not the text that is there.
    """
    run_tool(["coq_makefile", "-f", "_CoqProject", "-o", "CoqMakefile"], project.folder)
    run_tool(["make", "-f", "CoqMakefile"], project.folder)
    for file in project.files:
        if not _is_compiled(project.folder / file):  # make trusts modification times
            raise TheoremError(
                f"{project.folder / file} was compiled from another text; remove its .vo and rerun"
            )


def is_compiled(project: RocqProject) -> bool:
    """Whether there are compiled files of every source as it stands."""
    return all(_is_compiled(project.folder / file) for file in project.files)


def _is_compiled(source: Path) -> bool:
    """Whether the digest that the prover noted of what it compiled is that of the text."""
    noted = source.with_suffix(".glob")
    if not (noted.is_file() and source.with_suffix(".vo").is_file()):
        return False
    md5 = hashlib.md5(source.read_bytes(), usedforsecurity=False).hexdigest()
    return noted.read_text("utf-8").split("\n", 1)[0] == f"DIGEST {md5}"


def _imports(project: RocqProject, scan: SourceScan) -> list[str]:
    """The file's imports, less the notations of the project's own modules.

    A notation of the project could print one statement as another; a library's is trusted.
    """
    lines: list[str] = []
    own = re.compile(
        rf"(?:From {re.escape(project.prefix)} Require (?:Import|Export)) (?P<names>.+)"
    )
    own_names = {Path(file).stem for file in project.files} | {project.prefix} | scan.modules
    for sentence in scan.imports:
        if match := own.fullmatch(sentence):
            names = [f"{project.prefix}.{name}" for name in match["names"].split()]
            lines.append(f"Import -(notations, coercions) {' '.join(names)}.")
        elif not any(word.split(".")[0] in own_names for word in sentence.split()):
            lines.append(f"{sentence}.")
    return lines


def ask_prover(
    project: RocqProject,
    scans: Mapping[str, SourceScan],
    theorems: list[tuple[str, SourceTheorem]],
    groups: Sequence[Sequence[int]] | None = None,
) -> list[Answer]:
    """Ask, in one run of the prover, what theorems say and what they rest on.

    Args:
        project: A compiled project.
        scans: By file of the project.
        theorems: File and theorem, each.
        groups: Places in ``theorems``, each in one group; the theorems of a group are asked
            together what they rest on, which is as costly as asking the costliest of them. By
            default each is asked alone.

    Returns:
        One answer per theorem, in order; its assumptions are those of its whole group.

    Raises:
        MissingDependencyError: There is no prover on this machine.
        TheoremError: The prover refused, for instance because a theorem is not in its module.
    """
    together = [[number] for number in range(len(theorems))] if groups is None else groups
    nonce = secrets.token_hex(8)  # no source can print a mark it does not know
    with tempfile.TemporaryDirectory() as scratch:
        probe = Path(scratch) / "probe.v"
        probe.write_text(
            _questions(project, scans, theorems, together, f"@@{nonce}"), encoding="utf-8"
        )
        sources = str((project.folder / project.directory).resolve())
        output = run_tool(
            ["coqc", "-w", "none", "-R", sources, project.prefix, "probe.v"], probe.parent
        )
    parts = dict(part.split("\n", 1) for part in output.split(f"@@{nonce} ")[1:])
    said = {n: parts[f"assumptions {place}"] for place, ns in enumerate(together) for n in ns}
    return [Answer(parts[f"statement {n}"], said[n]) for n in range(len(theorems))]


def _questions(
    project: RocqProject,
    scans: Mapping[str, SourceScan],
    theorems: list[tuple[str, SourceTheorem]],
    groups: Sequence[Sequence[int]],
    mark: str,
) -> str:
    """The text that makes the prover print each answer after a line ``MARK KIND NUMBER``."""

    def say(label: str) -> str:
        return f'Goal True. idtac "{mark} {label}". Abort.'

    names = [f"{project.module(file)}.{theorem.qualified}" for file, theorem in theorems]
    lines = [f"Require {project.module(file)}." for file in project.files]
    lines += ["Set Printing Width 100.", "Set Printing Depth 10000."]
    for order, (file, scan) in enumerate(scans.items()):
        if not scan.theorems:
            continue
        lines += [f"Module Probe{order}.", *_imports(project, scan)]
        lines.append(f"Import -(notations, coercions) {project.module(file)}.")
        lines.append("Unset Printing Implicit Defensive.")
        for number, (where, _) in enumerate(theorems):
            if where == file:
                lines += [say(f"statement {number}"), f"Check @{names[number]}."]
        lines += [say("between"), f"End Probe{order}."]
    # Outside the modules nothing is imported, so axioms are printed with the file they come from.
    for place, numbers in enumerate(groups):
        lets = " ".join(f"let _ := @{names[number]} in" for number in numbers)
        lines.append(f"Definition together{place} := {lets} tt.")
        lines += [say(f"assumptions {place}"), f"Print Assumptions together{place}."]
    return "\n".join([*lines, say("end"), ""])
