"""One cell of a study: trained, measured, and closed with the hashes of what it left.

A cell's folder holds ``trained`` (the adapter or biases), ``records`` (``training``, ``spectrum``
and ``base``) and, written last, ``cell.json``. A cell whose file agrees with the settings that
determine it is finished and is never run again; anything else is begun anew.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

from gonio import __version__
from gonio.errors import GonioError
from gonio.files import file_sha256, write_text
from gonio.models import resolve_source
from gonio.pipelines.adapter_compare import compare_adapter_with_base
from gonio.pipelines.adapters import inspect_adapter
from gonio.pipelines.study_spec import Cell, StudySpec
from gonio.pipelines.training import train_adapter
from gonio.records import Environment, Measurement, describe_environment, write_measurement

__all__ = [
    "CELL_FILE",
    "TRAINED",
    "CellState",
    "CellTask",
    "cell_key",
    "cell_task",
    "failed_state",
    "read_state",
    "run_cell",
]

CELL_FILE = "cell.json"
TRAINED = "trained"


class CellState(BaseModel):
    """What is known of a cell that ended.

    Attributes:
        name: The cell.
        status: ``finished`` or ``failed``.
        key: Hash of all that determines its numbers.
        settings: The same, readable.
        reason: Why it failed.
        seconds: Wall time.
        environment: Versions of what computed it.
        outputs: sha256 of every file it left, by path below its folder.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    name: str
    status: Literal["finished", "failed"]
    key: str
    settings: dict[str, Any]
    reason: str = ""
    seconds: float
    environment: Environment
    outputs: dict[str, str]


@dataclass(frozen=True)
class CellTask:
    """A cell and where it is worked on; it pickles, so that any worker can run it.

    Attributes:
        cell: The cell.
        spec: The study.
        model: Source of its model.
        folder: The cell's folder.
        key: Hash of all that determines the cell's numbers.
    """

    cell: Cell
    spec: StudySpec
    model: str
    folder: Path
    key: str


def cell_task(cell: Cell, spec: StudySpec, model: str, folder: Path) -> CellTask:
    """The task of a cell; the model must be there, since its files are hashed."""
    return CellTask(cell, spec, model, folder, cell_key(cell, spec, model))


def cell_key(cell: Cell, spec: StudySpec, model: str, version: str = __version__) -> str:
    """Hash of all that determines a cell's numbers: settings, model files, version of gonio.

    Args:
        cell: The cell.
        spec: The study.
        model: Source of its model.
        version: Version of gonio.

    Raises:
        ModelError: The model cannot be found.
    """
    hashes = {path.name: file_sha256(path) for path in _model_files(model)}
    text = json.dumps([_settings(cell, spec), hashes, version], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_state(folder: Path, key: str | None = None) -> CellState | None:
    """How a cell ended; None for one that did not, or was determined by something else.

    Args:
        folder: The cell's folder.
        key: What the cell must be determined by; anything unless given.
    """
    try:
        text = (folder / CELL_FILE).read_text(encoding="utf-8")
        state = CellState.model_validate_json(text)
    except (OSError, UnicodeDecodeError, ValidationError):
        return None
    return state if key is None or state.key == key else None


def run_cell(task: CellTask) -> CellState:
    """Train, measure and close a cell, or return how it ended when it is finished.

    A failure that gonio explains closes the cell as failed, and the next run tries again; what is
    a defect is raised.
    """
    task.folder.parent.mkdir(parents=True, exist_ok=True)
    # A worker given up for lost may still be writing; its lock ends with it.
    with FileLock(task.folder.parent / f".{task.folder.name}.lock"):
        done = read_state(task.folder, task.key)
        if done is not None and done.status == "finished":
            return done
        if task.folder.exists():
            shutil.rmtree(task.folder)
        started = time.perf_counter()
        try:
            with _threads(task.spec.threads):
                _measure(task)
        except GonioError as error:
            return failed_state(task, error, time.perf_counter() - started)
        return _closed(task, "finished", time.perf_counter() - started)


def failed_state(task: CellTask, error: Exception, seconds: float = 0.0) -> CellState:
    """Close a cell as failed: with gonio's own message, else with the name of the defect."""
    named = str(error) if isinstance(error, GonioError) else f"{type(error).__name__}: {error}"
    return _closed(task, "failed", seconds, named)


def _closed(
    task: CellTask, status: Literal["finished", "failed"], seconds: float, reason: str = ""
) -> CellState:
    state = CellState(
        name=task.cell.name,
        status=status,
        key=task.key,
        settings=_settings(task.cell, task.spec),
        reason=reason,
        seconds=seconds,
        environment=describe_environment(),
        outputs=_outputs(task.folder) if status == "finished" else {},
    )
    write_text(task.folder / CELL_FILE, state.model_dump_json(indent=2) + "\n")
    return state


def _measure(task: CellTask) -> None:
    """Every record of the cell."""
    cell, spec, records = task.cell, task.spec, task.folder / "records"
    trained = task.folder / TRAINED
    has_matrices = cell.kind != "bitfit"
    found = train_adapter(
        cell.kind,
        task.model,
        spec.data,
        cell.recipe,
        trained,
        held_out=spec.held_out,
        data_seed=spec.data_seed,
        device=spec.device,
        spectrum_every=spec.spectrum_every or None if has_matrices else None,
        overwrite=True,
    )
    write_measurement(_named(found, cell), records / "training")
    if has_matrices:
        write_measurement(_named(inspect_adapter(trained, seed=0), cell), records / "spectrum")
        compared = compare_adapter_with_base(trained, task.model, spec.ks, seed=0)
        write_measurement(_named(compared, cell), records / "base")


def _named(measurement: Measurement, cell: Cell) -> Measurement:
    """The measurement under the cell's name, which tells it apart where records are gathered."""
    settings = {**measurement.record.settings, "label": cell.name}
    record = measurement.record.model_copy(update={"settings": settings})
    return replace(measurement, record=record)


def _settings(cell: Cell, spec: StudySpec) -> dict[str, Any]:
    """What determines the numbers of a cell, besides the files of its model."""
    return {
        "model": cell.model.model_dump(mode="json", exclude={"recipes", "width"}),
        "recipe_name": cell.recipe_name,
        "kind": cell.kind,
        "recipe": cell.recipe.model_dump(mode="json"),
        "seed": cell.seed,
        **spec.model_dump(
            mode="json",
            include={"data", "data_seed", "held_out", "ks", "spectrum_every", "device", "threads"},
        ),
    }


def _model_files(model: str) -> list[Path]:
    folder = resolve_source(model).folder()
    return sorted([*folder.glob("*.safetensors"), folder / "config.json"])


def _outputs(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
