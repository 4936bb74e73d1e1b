"""The status of every statement: proofs compiled and compared with their lock, checks run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gonio
from gonio.errors import SettingError
from gonio.pipelines.theorems import (
    CheckSettings,
    ProgressCallback,
    check_rows,
    record_checks,
    run_checks,
)
from gonio.theorems.catalogue import Entry, load_catalogue
from gonio.theorems.rocq import (
    ProofStatus,
    compile_lock,
    find_lock_drift,
    has_prover,
    locked_statuses,
    read_lock,
    sources_digest,
)
from gonio.theorems.rocq_library import check_library
from gonio.theorems.runner import CheckResult
from gonio.theorems.status_file import (
    SCHEMA_VERSION,
    ProofOrigin,
    TheoremStatusFile,
    count_words,
    status_rows,
)

__all__ = ["ProofMode", "ProofReport", "read_proofs", "theorem_status"]

ProofMode = Literal["auto", "compile", "lock"]


class ProofReport(NamedTuple):
    """What is known of the proofs, where it comes from, and what differs from the lock."""

    proofs: dict[str, ProofStatus]
    origin: ProofOrigin
    drift: list[str]


def theorem_status(
    rocq_folder: Path | None,
    *,
    mode: ProofMode = "auto",
    with_library: bool = False,
    checks: CheckSettings | None,
    url_base: str | None = None,
    entries: Sequence[Entry] | None = None,
    lock: Path | None = None,
    progress: ProgressCallback | None = None,
) -> TheoremStatusFile:
    """Compile the proofs, ask the prover, run the checks, and compute every status.

    Args:
        rocq_folder: The Rocq project; None where there is none (an installed package).
        mode: ``compile`` asks the prover, ``lock`` believes the lock; ``auto`` compiles where there
            are sources and a prover.
        with_library: Also let ``coqchk`` check the compiled library.
        checks: Cases and seed of the executable checks; None leaves them out.
        url_base: Address of the Rocq project on the web, for links to lines.
        entries: The statements; the whole catalogue by default.
        lock: The reviewed lock; by default the one inside the package.
        progress: Called with what is done, steps done and steps in all.

    Raises:
        MissingDependencyError: ``compile`` is asked for and there is no prover.
        SettingError: ``compile`` or ``with_library`` is asked for and cannot be.
        TheoremError: The proofs do not compile, or there is no lock.
    """
    chosen = load_catalogue() if entries is None else tuple(entries)
    if progress is not None:
        progress("asking the prover", 0, 0)
    proofs, origin, drift = read_proofs(rocq_folder, mode, lock)
    if with_library:
        if rocq_folder is None or origin.method == "lock":
            raise SettingError("coqchk reads compiled proofs; there are none where a lock is read")
        origin = origin.model_copy(update={"library": check_library(rocq_folder)})
    results = {} if checks is None else run_checks(chosen, checks, progress)
    rows = status_rows(chosen, results, proofs, url_base)
    counts, family_counts = count_words(rows)
    return TheoremStatusFile(
        schema_version=SCHEMA_VERSION,
        gonio=gonio.__version__,
        proofs=origin,
        drift=(
            *drift,
            *(
                f"{name}: {row.name} rests on it, and no theorem of the proofs has that name"
                for row in rows
                for name in row.missing
            ),
        ),
        counts=counts,
        family_counts=family_counts,
        theorems=rows,
        checks=None if checks is None else _checks_json(chosen, checks, results, proofs),
    )


def read_proofs(rocq_folder: Path | None, mode: ProofMode, lock: Path | None = None) -> ProofReport:
    """What the prover says of every theorem, or what the lock says it said.

    Args:
        rocq_folder: The Rocq project, if there is one.
        mode: See :func:`theorem_status`.
        lock: The reviewed lock; by default the one inside the package.

    Raises:
        MissingDependencyError: ``compile`` is asked for and there is no prover.
        SettingError: ``compile`` is asked for and there are no sources.
        TheoremError: The proofs do not compile, or there is no lock.
    """
    reviewed = read_lock(lock)
    if mode == "compile" and rocq_folder is None:
        raise SettingError("there is nothing to compile: name the Rocq project with --rocq FOLDER")
    asks = rocq_folder is not None and (mode == "compile" or (mode == "auto" and has_prover()))
    if asks and rocq_folder is not None:
        said = compile_lock(rocq_folder, reviewed)
        drift = find_lock_drift(reviewed, said)
        theorems: Sequence[ProofStatus] = said.theorems
    else:
        said = reviewed
        theorems = locked_statuses(rocq_folder, lock)
        stale = (theorem.reasons for theorem in theorems if theorem.status == "stale")
        drift = list(dict.fromkeys(reason for reasons in stale for reason in reasons))
    return ProofReport(
        {theorem.name: theorem for theorem in theorems},
        ProofOrigin(
            method="compiled" if asks else "lock",
            prover=said.prover,
            digest=said.digest,
            sources=_sources(rocq_folder, reviewed.digest),
            allowed_axioms=said.allowed_axioms,
            library=None,
        ),
        drift,
    )


def _sources(
    rocq_folder: Path | None, digest: str
) -> Literal["those of the lock", "changed", "absent"]:
    if rocq_folder is None:
        return "absent"
    return "those of the lock" if sources_digest(rocq_folder) == digest else "changed"


def _checks_json(
    entries: Sequence[Entry],
    settings: CheckSettings,
    results: dict[str, CheckResult],
    proofs: dict[str, ProofStatus],
) -> dict[str, Any]:
    """Record and rows of the checks, as ``gonio theorem check --json`` prints them."""
    record = record_checks(entries, settings, results, proofs).record
    rows = [
        {key: _finite(value) for key, value in row.items()}
        for row in check_rows(entries, results, proofs)
    ]
    return {"record": record.model_dump(mode="json"), "tables": {"checks": rows}}


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
