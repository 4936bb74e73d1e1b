"""Rechecks the compiled library with ``coqchk``, a second, smaller checker.

The compiler checks proofs as it builds them; ``coqchk`` reads the compiled files afresh, with all
that they import, and lists every axiom and every switched-off check among what it loaded. That
list is of whole libraries: an axiom in it need not be used by any theorem here, while an axiom of
the project's own must not be in it at all.
"""

import re
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from gonio.errors import TheoremError
from gonio.theorems.rocq_prover import compile_project, read_project, run_tool

__all__ = ["LibraryCheck", "check_library", "parse_context"]

_SECTION = re.compile(r"^\* (?P<title>[^\n:]+):(?P<body>.*?)(?=^\* |\Z)", re.MULTILINE | re.DOTALL)
_AXIOMS = "Axioms"


class LibraryCheck(BaseModel):
    """What ``coqchk`` said of a library and of all that it imports."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    modules: int  # of the project
    axioms: tuple[str, ...]  # in anything loaded, full names, sorted
    unsafe: tuple[str, ...]  # "what is assumed of it: name", sorted
    own: tuple[str, ...]  # those of the two that belong to the project; must be empty
    seconds: float


def check_library(rocq_folder: Path) -> LibraryCheck:
    """Compile a project, then let ``coqchk`` check it and all that it imports.

    Args:
        rocq_folder: The project.

    Raises:
        MissingDependencyError: There is no prover, or no ``coqchk``, on this machine.
        TheoremError: It does not compile, ``coqchk`` rejects it, or says nothing of axioms.
    """
    project = read_project(rocq_folder)
    compile_project(project)
    modules = [project.module(file) for file in project.files]
    start = time.perf_counter()
    said = run_tool(
        ["coqchk", "-silent", "-o", "-R", project.directory, project.prefix, *modules],
        rocq_folder,
        with_errors=True,
    )
    axioms, unsafe = parse_context(said)
    mine = f"{project.prefix}."
    own = [name for name in (*axioms, *unsafe) if name.rpartition(": ")[2].startswith(mine)]
    return LibraryCheck(
        modules=len(modules),
        axioms=axioms,
        unsafe=unsafe,
        own=tuple(own),
        seconds=time.perf_counter() - start,
    )


def parse_context(said: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Axioms, and names whose checks were switched off, from a summary that ``coqchk -o`` printed.

    Raises:
        TheoremError: It holds no list of axioms.
    """
    sections = {match["title"].strip(): match["body"] for match in _SECTION.finditer(said)}
    if _AXIOMS not in sections:
        raise TheoremError(f"coqchk printed no list of axioms:\n{said.strip()[-2000:]}")
    unsafe = [
        f"{title}: {name}"
        for title, body in sections.items()
        if title not in (_AXIOMS, "Theory")
        for name in _names(body)
    ]
    return tuple(sorted(_names(sections[_AXIOMS]))), tuple(sorted(unsafe))


def _names(body: str) -> list[str]:
    return [word for word in body.split() if word != "<none>"]
