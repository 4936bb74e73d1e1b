"""The status of each theorem, read from the Rocq prover, never typed by hand.

:func:`proof_status` compiles a Rocq project and asks the prover, for each ``Theorem``, what it says
(``Check``) and what it rests on (``Print Assumptions``). A theorem is ``proved`` when it rests on
nothing beyond :data:`ALLOWED_AXIOMS`, ``open`` when a proof it needs was given up (``Admitted``),
and ``unsound`` for any other axiom, a switched-off check of the kernel, or a file with either.

A lock (``rocq_status.json``, in the package) keeps the last reviewed result with a digest of the
sources, so that a machine without the prover can show it; statuses of other sources are ``stale``.

What this cannot see: a definition that does not mean what its name says, or a premise that is never
true. The lock makes any change of a statement visible; reading the definitions remains for people.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from gonio.errors import OutputError, TheoremError
from gonio.theorems.rocq_prover import (
    Answer,
    ask_prover,
    compile_project,
    has_prover,
    prover_version,
    read_project,
)
from gonio.theorems.rocq_source import SourceScan, SourceTheorem, scan_source

__all__ = [
    "ALLOWED_AXIOMS",
    "ProofStatus",
    "RocqLock",
    "check_lock",
    "compile_lock",
    "find_lock_drift",
    "has_prover",
    "locked_statuses",
    "proof_status",
    "prover_version",
    "read_lock",
    "sources_digest",
    "write_lock",
]

ALLOWED_AXIOMS = (
    # mathcomp-classical (boolp): the base of its reals, suprema and derivatives
    "boolp.propositional_extensionality",
    "boolp.functional_extensionality_dep",
    "boolp.constructive_indefinite_description",
    # the classical real numbers of the standard library
    "ClassicalDedekindReals.sig_forall_dec",
    "ClassicalDedekindReals.sig_not_dec",
    "FunctionalExtensionality.functional_extensionality_dep",
    "Classical_Prop.classic",
)
_LOCK_NAME = "rocq_status.json"
_AXIOM_LINE = re.compile(r"^(?P<name>[^\W\d][\w'.]*)(?=\s*(?::|$))", re.MULTILINE)
_UNSAFE_LINE = re.compile(r"^.*(?: is assumed | relies on |collapsed).*$", re.MULTILINE)


class ProofStatus(BaseModel):
    """One theorem, as the prover sees it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    statement: str  # as printed by Check, white space collapsed
    file: str  # relative to the project, with forward slashes
    line: int  # from 1
    axioms: tuple[str, ...]  # as printed by Print Assumptions, sorted
    status: Literal["proved", "open", "unsound", "stale"]
    reasons: tuple[str, ...] = ()  # why it is not "proved"; empty if it is


class RocqLock(BaseModel):
    """The reviewed result, and what it was computed from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    digest: str  # sha256 of the sources, see sources_digest
    prover: str
    allowed_axioms: tuple[str, ...]
    theorems: tuple[ProofStatus, ...]


def sources_digest(rocq_folder: Path) -> str:
    """The sha256, in hex, of the project's ``.v`` files and ``_CoqProject``, names included.

    Line ends are normalized, so that the digest does not depend on the checkout.

    Raises:
        TheoremError: The folder has no ``_CoqProject``.
    """
    project_file = rocq_folder / "_CoqProject"
    if not project_file.is_file():
        raise TheoremError(f"not a Rocq project: {rocq_folder} has no _CoqProject")
    digest = hashlib.sha256()
    names = sorted(path.relative_to(rocq_folder).as_posix() for path in rocq_folder.rglob("*.v"))
    for name in ["_CoqProject", *names]:
        content = (rocq_folder / name).read_bytes().replace(b"\r\n", b"\n")
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def proof_status(
    rocq_folder: Path, expected: Mapping[str, ProofStatus] | None = None
) -> list[ProofStatus]:
    """Compile a Rocq project and return the status of every ``Theorem`` in it.

    Args:
        rocq_folder: Folder with ``_CoqProject``; compiled files are written beside the sources.
        expected: What is expected of theorems, by name. Those that are expected to rest on the same
            axioms are asked together, some six times faster than one by one, and one by one only
            where they rest on anything else. A theorem that has come to rest on less than the
            others of its group is then not noticed.

    Returns:
        One entry per theorem, in the order of ``_CoqProject`` and of the text.

    Raises:
        MissingDependencyError: There is no prover on this machine.
        TheoremError: The project does not compile, two theorems share a name, a source is not
            listed, or ``_CoqProject`` passes options to the prover other than ``-w``.
    """
    project = read_project(rocq_folder)
    scans = {file: scan_source((rocq_folder / file).read_text("utf-8")) for file in project.files}
    theorems = [(file, theorem) for file, scan in scans.items() for theorem in scan.theorems]
    seen: dict[str, str] = {}
    for file, theorem in theorems:
        if theorem.name in seen:
            raise TheoremError(
                f"two theorems named {theorem.name}: in {seen[theorem.name]} and in {file}"
            )
        seen[theorem.name] = file
    compile_project(project)

    def ask(
        asked: list[tuple[str, SourceTheorem]], groups: list[list[int]] | None
    ) -> list[ProofStatus]:
        answers = ask_prover(project, scans, asked, groups)
        return [
            _classify(theorem, file, answer, scans)
            for (file, theorem), answer in zip(asked, answers, strict=True)
        ]

    if expected is None:
        return ask(theorems, None)
    found = ask(theorems, _groups([theorem.name for _, theorem in theorems], expected))
    doubtful = [n for n, status in enumerate(found) if not _is_expected(status, expected)]
    if doubtful:
        alone = ask([theorems[number] for number in doubtful], None)
        for number, status in zip(doubtful, alone, strict=True):
            found[number] = status
    return found


def _groups(names: Sequence[str], expected: Mapping[str, ProofStatus]) -> list[list[int]]:
    """Places of the names, those together that are expected to rest on the same axioms."""
    groups: dict[object, list[int]] = {}
    for number, name in enumerate(names):
        groups.setdefault(expected[name].axioms if name in expected else name, []).append(number)
    return list(groups.values())


def _is_expected(found: ProofStatus, expected: Mapping[str, ProofStatus]) -> bool:
    known = expected.get(found.name)
    return known is not None and found.status == "proved" and found.axioms == known.axioms


def _classify(
    theorem: SourceTheorem, file: str, answer: Answer, scans: Mapping[str, SourceScan]
) -> ProofStatus:
    admitted = frozenset[str]().union(*(scan.admitted for scan in scans.values()))
    assumed = frozenset[str]().union(*(scan.assumed for scan in scans.values()))
    axioms: set[str] = set()
    if "Closed under the global context" not in answer.assumptions:
        axioms = {match["name"] for match in _AXIOM_LINE.finditer(answer.assumptions)} - {
            "Axioms",
            "Theory",
        }
    unsafe = [f"{file}, {finding}" for finding in scans[file].findings]
    unsafe += [match.group().strip() for match in _UNSAFE_LINE.finditer(answer.assumptions)]
    given_up: list[str] = []
    for axiom in sorted(axioms):
        short = axiom.rsplit(".", 1)[-1]
        if short in admitted and short not in assumed:
            given_up.append(f"{axiom} is Admitted")
        elif axiom not in ALLOWED_AXIOMS or short in assumed:
            unsafe.append(f"rests on {axiom}")
    status: Literal["proved", "open", "unsound"] = "proved"
    if unsafe or given_up:
        status = "unsound" if unsafe else "open"
    return ProofStatus(
        name=theorem.name,
        statement=" ".join(re.sub(r"\A\s*\S+\s+:\s", "", answer.statement).split()),
        file=file,
        line=theorem.line,
        axioms=tuple(sorted(axioms)),
        status=status,
        reasons=tuple(unsafe + given_up),
    )


def write_lock(rocq_folder: Path, path: Path | None = None) -> RocqLock:
    """Compile a project and write the result down, for review and for machines without the prover.

    Args:
        rocq_folder: The project.
        path: The lock; by default the one inside the package.

    Raises:
        MissingDependencyError: There is no prover on this machine.
        TheoremError: As :func:`proof_status`; or a theorem is unsound.
        OutputError: The lock cannot be written.
    """
    lock = compile_lock(rocq_folder)
    _refuse_unsound(lock, rocq_folder)
    target = Path(__file__).with_name(_LOCK_NAME) if path is None else path
    partial = target.with_name(target.name + ".partial")
    try:
        partial.write_text(json.dumps(lock.model_dump(mode="json"), indent=1) + "\n", "utf-8")
        partial.replace(target)
    except OSError as error:
        raise OutputError(f"cannot write the lock of the proofs {target}: {error}") from error
    return lock


def read_lock(path: Path | None = None) -> RocqLock:
    """The lock at a path, or the one in the package.

    Raises:
        TheoremError: There is none, or it does not follow the schema.
    """
    source = resources.files("gonio.theorems").joinpath(_LOCK_NAME) if path is None else path
    try:
        return RocqLock.model_validate_json(source.read_text("utf-8"))
    except OSError as error:
        raise TheoremError(f"no lock of the proofs at {source}; write_lock makes one") from error
    except ValidationError as error:
        raise TheoremError(f"not a lock of the proofs: {source}: {error}") from error


def check_lock(rocq_folder: Path, path: Path | None = None) -> RocqLock:
    """Compile a project and compare the result with the lock.

    Args:
        rocq_folder: The project.
        path: The lock; by default the one inside the package.

    Returns:
        The lock, when it says what was compiled.

    Raises:
        MissingDependencyError: There is no prover on this machine.
        TheoremError: A theorem is missing, new, unsound, or changed in statement, axioms, status or
            place; or the sources changed otherwise (then the lock must be written again).
    """
    lock = read_lock(path)
    compiled = compile_lock(rocq_folder, lock)
    _refuse_unsound(compiled, rocq_folder)
    differences = find_lock_drift(lock, compiled)
    if differences:
        listed = "\n  ".join(differences)
        raise TheoremError(
            f"the proofs in {rocq_folder} differ from their lock:\n  {listed}\n"
            "Review the change, then write the lock again."
        )
    return lock


def find_lock_drift(lock: RocqLock, compiled: RocqLock) -> list[str]:
    """Every difference between the reviewed result and what was compiled, one message each.

    Returns:
        Theorems missing, new, or changed in statement, axioms, status or place; allowed axioms that
        changed; and, where there is none of these, a change of the sources that shows in no
        statement, such as another definition. Empty if the two agree.
    """
    locked = {theorem.name: theorem for theorem in lock.theorems}
    found = {theorem.name: theorem for theorem in compiled.theorems}
    differences = [
        f"{name}: in the lock, not in the sources" for name in locked.keys() - found.keys()
    ]
    differences += [
        f"{name}: in the sources, not in the lock" for name in found.keys() - locked.keys()
    ]
    for name in sorted(locked.keys() & found.keys()):
        before, after = locked[name].model_dump(), found[name].model_dump()
        differences += [
            f"{name}: {field} was {before[field]!r}, is {after[field]!r}"
            for field in before
            if before[field] != after[field]
        ]
    if lock.allowed_axioms != compiled.allowed_axioms:
        differences.append(f"allowed axioms were {lock.allowed_axioms}")
    if not differences and lock.digest != compiled.digest:
        differences.append("no statement, but the sources (definitions, proofs or comments)")
    return sorted(differences)


def locked_statuses(rocq_folder: Path | None, path: Path | None = None) -> list[ProofStatus]:
    """The statuses of the lock, for a machine without the prover.

    Args:
        rocq_folder: The sources they are claimed for; None where there are none (an installed
            package), and then the lock speaks only for the sources of its own digest.
        path: The lock; by default the one inside the package.

    Returns:
        The locked entries; every status is ``stale`` if the digest of the sources differs.

    Raises:
        TheoremError: There is no lock, or the folder is not a Rocq project.
    """
    lock = read_lock(path)
    if rocq_folder is None or sources_digest(rocq_folder) == lock.digest:
        return list(lock.theorems)
    reason = f"the sources in {rocq_folder} changed after this was computed"
    return [
        theorem.model_copy(update={"status": "stale", "reasons": (reason,)})
        for theorem in lock.theorems
    ]


def compile_lock(rocq_folder: Path, reviewed: RocqLock | None = None) -> RocqLock:
    """What a lock of these sources would hold, unsound proofs included; nothing is written down.

    Args:
        rocq_folder: The project.
        reviewed: The lock to expect the same of; see :func:`proof_status`.

    Raises:
        MissingDependencyError: There is no prover on this machine.
        TheoremError: See :func:`proof_status`.
    """
    digest = sources_digest(rocq_folder)
    expected = None if reviewed is None else {proof.name: proof for proof in reviewed.theorems}
    return RocqLock(
        theorems=tuple(proof_status(rocq_folder, expected)),
        digest=digest,
        prover=prover_version(),
        allowed_axioms=ALLOWED_AXIOMS,
    )


def _refuse_unsound(lock: RocqLock, rocq_folder: Path) -> None:
    unsound = [f"{t.name}: {'; '.join(t.reasons)}" for t in lock.theorems if t.status == "unsound"]
    if unsound:
        raise TheoremError("unsound proofs in {}:\n  {}".format(rocq_folder, "\n  ".join(unsound)))
