"""Work in steps that survive interruption: each leaves a record, finished ones are not redone.

A step whose record is there, and whose needs were not redone, is not run again. Killed anywhere,
the next run redoes only the unfinished step.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from filelock import FileLock, Timeout

from gonio.errors import OutputError, RecordError
from gonio.files import require_writable, write_text
from gonio.records import Measurement, read_measurement, write_measurement

__all__ = ["Progress", "Step", "StepListener", "claimed_folder", "record_folder", "run_steps"]

Progress = Callable[[str, int, int], None]
Run = TypeVar("Run")

_SETTINGS_NAME = "settings.json"
_LOCK_NAME = ".lock"


@dataclass(frozen=True)
class Step(Generic[Run]):
    """One resumable unit of work.

    Attributes:
        name: Name of its record.
        title: What it does, for people.
        run: Does it, given what the whole run shares.
        needs: Steps whose results it reads.
        leaves: Paths below the output folder that it writes besides its record.
    """

    name: str
    title: str
    run: Callable[[Run, Progress], Measurement]
    needs: tuple[str, ...] = ()
    leaves: tuple[str, ...] = ()


class StepListener(Protocol):
    """Told what happens, for progress bars."""

    def start(self, step: Step[Any], number: int, total: int) -> None:
        """A step begins."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Part of the step is done."""

    def finish(self, step: Step[Any], seconds: float | None) -> None:
        """A step ended; ``seconds`` is None when an earlier run's record was used."""


@contextmanager
def claimed_folder(
    out: Path, settings: Mapping[str, Any], folders: Sequence[str]
) -> Iterator[None]:
    """Hold an output folder: new, empty, or of an earlier run with the same settings.

    What a killed run left under temporary names (they start with a dot) is deleted.

    Args:
        out: The folder.
        settings: What an earlier run must agree with (JSON types).
        folders: Names of the folders below ``out`` that steps write to.

    Raises:
        OutputError: The folder holds something else, cannot be written, or another run holds it.
    """
    _check_folder(out, settings)
    try:
        with FileLock(out / _LOCK_NAME, timeout=0):
            _remove_unfinished(out, folders)
            yield
    except Timeout as error:
        raise OutputError(f"another run is working in {out}; wait for it to end.") from error


def run_steps(
    steps: Sequence[Step[Run]], run: Run, out: Path, listener: StepListener
) -> tuple[dict[str, Measurement], int]:
    """Run every step that is not done yet, in order.

    Args:
        steps: The steps; a step comes after those it needs.
        run: What the steps share.
        out: Output folder; records go to ``out/records``.
        listener: Told what happens.

    Returns:
        Every step's measurement by name, and how many steps ran.

    Raises:
        GonioError: A step failed; what was finished is kept.
    """
    redone: set[str] = set()
    records: dict[str, Measurement] = {}
    for number, step in enumerate(steps, 1):
        listener.start(step, number, len(steps))
        found = None if redone.intersection(step.needs) else _finished(out, step)
        seconds = None
        if found is None:
            started = time.perf_counter()
            found = step.run(run, listener.progress)
            write_measurement(found, record_folder(out, step.name))
            redone.add(step.name)
            seconds = time.perf_counter() - started
        records[step.name] = found
        listener.finish(step, seconds)
    return records, len(redone)


def record_folder(out: Path, name: str) -> Path:
    """Where the record called ``name`` of a run is kept."""
    return out / "records" / name


def _finished(out: Path, step: Step[Any]) -> Measurement | None:
    """The record of an earlier run, when it and what the step leaves are there."""
    if not all((out / path).exists() for path in step.leaves):
        return None
    try:
        return read_measurement(record_folder(out, step.name))
    except RecordError:
        return None


def _check_folder(out: Path, settings: Mapping[str, Any]) -> None:
    if out.exists() and not out.is_dir():
        raise OutputError(f"cannot write results to {out}: a file is there")
    require_writable(out)
    note = out / _SETTINGS_NAME
    if not note.exists():
        others = sorted(path.name for path in out.iterdir() if path.name != _LOCK_NAME)
        if others:
            raise OutputError(
                f"{out} is not empty and holds no run of gonio (found {', '.join(others[:3])})\n"
                "Choose a new folder."
            )
        write_text(note, json.dumps(settings, indent=2) + "\n")
        return
    try:
        found = dict(json.loads(note.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise OutputError(f"cannot read {note}: {error}\nChoose another folder.") from error
    different = sorted(k for k in {*found, *settings} if found.get(k) != settings.get(k))
    if different:
        raise OutputError(
            f"{out} holds a run with other settings ({', '.join(different)})\n"
            "Choose another folder, or delete it."
        )


def _remove_unfinished(out: Path, folders: Sequence[str]) -> None:
    for folder in folders:
        for path in (out / folder).glob(".*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
