"""A study from its specification to its records: every cell once, whatever interrupts it.

The folder of a study holds ``study.json`` (the specification), ``models`` (built ones), ``cells``
(:mod:`gonio.pipelines.study_cells`), ``records/study`` (what is concluded from all cells) and the
ledger (:mod:`gonio.pipelines.study_ledger`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout
from pydantic import ValidationError

from gonio.errors import OutputError, SettingError
from gonio.files import require_writable, write_text
from gonio.pipelines.engines import Engine, require_engine, run_tasks
from gonio.pipelines.study_analysis import conclude_study, read_conclusions
from gonio.pipelines.study_cells import (
    CellState,
    CellTask,
    cell_task,
    failed_state,
    read_state,
    run_cell,
)
from gonio.pipelines.study_ledger import write_ledger
from gonio.pipelines.study_models import build_model
from gonio.pipelines.study_spec import Cell, StudySpec, check_study, plan_cells
from gonio.records import Measurement, make_measurement, make_value
from gonio.training.backend import require_datasets, require_trl
from gonio.training.sources import load_split

__all__ = ["StudyRun", "open_study", "run_study", "study_status"]

Progress = Callable[[str, int, int], None]

SPEC_FILE = "study.json"
_LOCK = ".lock"


@dataclass(frozen=True)
class StudyRun:
    """What a run of a study did.

    Attributes:
        out: The study's folder.
        spec: The study.
        states: How each cell ended, in the order of the plan.
        ran: Names of the cells that this run worked on.
    """

    out: Path
    spec: StudySpec
    states: tuple[CellState, ...]
    ran: tuple[str, ...]

    @property
    def failed(self) -> list[CellState]:
        """The cells that failed."""
        return [state for state in self.states if state.status == "failed"]


def run_study(
    spec: StudySpec,
    out: Path,
    *,
    engine: Engine = "local",
    workers: int | None = None,
    progress: Progress | None = None,
) -> StudyRun:
    """Run every cell that is not finished.

    Everything that can be wrong is checked before a weight is read. A cell that fails is noted
    and the others go on; a worker that is lost costs its cell a retry.

    Args:
        spec: The study.
        out: Folder of the study: new, empty, or of the same study.
        engine: ``local`` or ``ray``.
        workers: Cells worked on at a time; one unless given, with Ray as many as it has CPUs.
        progress: Called as ``progress(what, cells done, cells)``.

    Raises:
        SettingError: A recipe or the engine is refused.
        ModelError: A model cannot be found or taken.
        DataError: The data cannot be read or are too few.
        OutputError: The folder holds something else, or another run works in it.
        RecordError: A record of a finished cell is damaged.
    """
    require_engine(engine, workers)
    require_datasets()
    require_trl()
    cells = check_study(spec)
    for count in sorted({cell.recipe.num_examples for cell in cells}):
        load_split(spec.data, train=count, held_out=spec.held_out, seed=spec.data_seed)
    _claim(spec, out)
    try:
        with FileLock(out / _LOCK, timeout=0):
            tasks = _tasks(spec, cells, out)
            done = {task.cell.name for task in tasks if _is_finished(task)}
            states = _run_cells(tasks, done, engine, workers, progress)
            conclude_study(spec, out, progress=progress)
            write_ledger(spec, out)
    except Timeout as error:
        raise OutputError(f"another run is working in {out}; wait for it to end.") from error
    ordered = tuple(states[cell.name] for cell in cells)
    return StudyRun(out, spec, ordered, tuple(c.name for c in cells if c.name not in done))


def open_study(out: Path) -> StudySpec:
    """The specification of a study that was begun in a folder.

    Raises:
        SettingError: There is none, or it is of another version.
    """
    path = out / SPEC_FILE
    try:
        return StudySpec.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise SettingError(
            f"no study in {out}: {reason}\nBegin one with: gonio study run SPEC.toml --out {out}"
        ) from error


def study_status(out: Path) -> Measurement:
    """How far a study is, and what it concludes so far.

    Returns:
        Kind ``study-status``; table ``cells``, one row per planned cell: ``cell, model, recipe,
        seed, status`` (``finished``, ``failed`` or ``waiting``)``, seconds, reason``. Values and
        tables of the study's record beside it, its cells as ``measured``.

    Raises:
        SettingError: There is no study in the folder.
        RecordError: Its record cannot be read.
    """
    spec = open_study(out)
    rows = []
    for cell in plan_cells(spec):
        state = read_state(out / "cells" / cell.name)
        rows.append(
            {
                "cell": cell.name,
                "model": cell.model.name,
                "recipe": cell.recipe_name,
                "seed": cell.seed,
                "status": "waiting" if state is None else state.status,
                "seconds": float("nan") if state is None else state.seconds,
                "reason": "" if state is None else state.reason,
            }
        )
    table = pd.DataFrame(rows)
    counts = table["status"].value_counts()
    values = [
        make_value(name, int(counts.get(name, 0))) for name in ("finished", "failed", "waiting")
    ]
    tables = {"cells": table}
    concluded = read_conclusions(out)
    if concluded is not None:
        values += concluded.record.values[1:]  # the first counts the finished cells
        tables |= {n: t for n, t in concluded.tables.items() if n != "cells"}
        tables["measured"] = concluded.tables["cells"]
    return make_measurement(
        "study-status",
        spec.title,
        settings={"study": spec.model_dump(mode="json")},
        values=values,
        tables=tables,
        inputs=[] if concluded is None else concluded.record.inputs,
        seed=None,
    )


def _claim(spec: StudySpec, out: Path) -> None:
    """Make the folder this study's, or refuse one that is not."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"cannot write a study to {out}: a file is there")
    require_writable(out)
    path = out / SPEC_FILE
    if not path.exists():
        # Hidden files are locks and what a killed run had half written.
        others = sorted(each.name for each in out.iterdir() if not each.name.startswith("."))
        if others:
            raise OutputError(
                f"{out} is not empty and holds no study (found {', '.join(others[:3])})\n"
                "Choose a new folder."
            )
        write_text(path, spec.model_dump_json(indent=2) + "\n")
    elif open_study(out) != spec:
        raise OutputError(
            f"{out} holds another study\nChoose another folder, or go on with that one: "
            f"gonio study resume {out}"
        )


def _tasks(spec: StudySpec, cells: list[Cell], out: Path) -> list[CellTask]:
    sources = {}
    for model in spec.models:
        folder = out / "models" / model.name
        sources[model.name] = (
            str(build_model(model.built, folder)) if model.built else str(model.source)
        )
    return [
        cell_task(cell, spec, sources[cell.model.name], out / "cells" / cell.name) for cell in cells
    ]


def _is_finished(task: CellTask) -> bool:
    state = read_state(task.folder, task.key)
    return state is not None and state.status == "finished"


def _run_cells(
    tasks: list[CellTask],
    done: set[str],
    engine: Engine,
    workers: int | None,
    progress: Progress | None,
) -> dict[str, CellState]:
    states = {}
    for task in tasks:
        if task.cell.name in done:
            state = read_state(task.folder, task.key)
            assert state is not None  # it was read a moment ago, under the study's lock
            states[task.cell.name] = state
    waiting = [task for task in tasks if task.cell.name not in done]
    if progress is not None:
        progress(f"{len(done)} cells were finished before", len(done), len(tasks))
    spec = tasks[0].spec
    running = run_tasks(
        run_cell,
        waiting,
        engine=engine,
        workers=workers,
        cpus=spec.threads,
        gpus=0.0 if spec.device == "cpu" else 1.0,
    )
    with closing(running) as results:
        for task, result in results:
            ended = failed_state(task, result) if isinstance(result, Exception) else result
            states[task.cell.name] = ended
            if progress is not None:
                progress(task.cell.name, len(states), len(tasks))
    return states
