"""The finished cells of a study as tables: what every analysis starts from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from gonio.errors import GonioError
from gonio.linalg.association import student_interval
from gonio.models import resolve_source
from gonio.models.quiet import quiet_transformers
from gonio.pipelines.study_cells import TRAINED, CellState, read_state
from gonio.pipelines.study_spec import Cell, StudyModel, StudySpec, plan_cells
from gonio.records import Measurement, Value, read_measurement

__all__ = ["Finding", "FinishedCell", "cells_table", "over_seeds", "overlap_k", "read_cells"]

_RECORDS = ("training", "spectrum", "base")
_BEHAVIOR = (
    *("held_out_margin", "held_out_preference_accuracy", "held_out_kl_to_base"),
    *("held_out_kl_from_base", "held_out_log_ratio", "first_loss", "last_quarter_loss"),
)
_LARGEST_K = 5  # the first study's choice, which its figures are compared at


@dataclass(frozen=True)
class Finding:
    """What one analysis found.

    Attributes:
        tables: By name.
        values: Summary values.
        missing: ``(analysis, why there is nothing)``.
    """

    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    values: tuple[Value, ...] = ()
    missing: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class FinishedCell:
    """A finished cell with its records.

    Attributes:
        cell: The cell.
        width: Hidden size of its model; NaN where the model's files are gone.
        folder: The cell's folder.
        state: How it ended.
        records: Its records by name.
    """

    cell: Cell
    width: float
    folder: Path
    state: CellState
    records: dict[str, Measurement]

    @property
    def trained(self) -> Path:
        """Folder of the adapter or the biases."""
        return self.folder / TRAINED

    @property
    def labels(self) -> dict[str, Any]:
        """The columns that name the cell."""
        return {
            "cell": self.cell.name,
            "model": self.cell.model.name,
            "recipe": self.cell.recipe_name,
            "objective": self.cell.kind,
            "seed": self.cell.seed,
        }

    def table(self, record: str, name: str) -> pd.DataFrame | None:
        """A table of one of its records; None where there is none."""
        found = self.records.get(record)
        return None if found is None else found.tables.get(name)


def read_cells(spec: StudySpec, out: Path) -> list[FinishedCell]:
    """Every finished cell of the plan.

    Raises:
        RecordError: A record of a finished cell cannot be read.
    """
    widths = {model.name: _width(model, out) for model in spec.models}
    found = []
    for cell in plan_cells(spec):
        folder = out / "cells" / cell.name
        state = read_state(folder)
        if state is not None and state.status == "finished":
            records = {
                name: read_measurement(folder / "records" / name)
                for name in _RECORDS
                if name == "training" or (folder / "records" / name).is_dir()
            }
            found.append(FinishedCell(cell, widths[cell.model.name], folder, state, records))
    return found


def cells_table(cells: Iterable[FinishedCell], k: int) -> pd.DataFrame:
    """One row per finished cell: geometry beside chance, and behavior.

    Args:
        cells: The cells.
        k: Directions that ``left_overlap`` and ``right_overlap`` compare.

    Returns:
        ``cell, model, recipe, objective, seed, width``; ``stable_rank`` with
        ``stable_rank_chance``; for each side ``left_overlap``, its chance and ratio; gain
        residuals with chance and z-score; held-out behavior; ``seconds``. NaN where a cell has no
        such quantity (BitFit changes no matrix).
    """
    rows = []
    for cell in cells:
        row = {**cell.labels, "width": cell.width}
        spectrum, base = cell.records.get("spectrum"), cell.records.get("base")
        row |= _with_chance(spectrum, "stable_rank")
        for side in ("left", "right"):
            name = f"{side}_overlap"
            row |= _with_chance(base, f"{name}_k{k}", name)
            row[f"{name}_ratio"] = row[name] / row[f"{name}_chance"]
        for name in ("column_gain_residual", "row_gain_residual"):
            row |= _with_chance(base, name)
            row[f"{name}_z_score"] = _value(base, f"{name}_z_score")
        row |= {name: _value(cell.records.get("training"), name) for name in _BEHAVIOR}
        rows.append({**row, "seconds": cell.state.seconds})
    return pd.DataFrame(rows)


def over_seeds(table: pd.DataFrame, by: Sequence[str], column: str) -> pd.DataFrame:
    """Means over seeds with Student's interval; NaN bounds where there is one seed.

    Rows without a value are left out.

    Returns:
        The columns of ``by``, ``seeds``, the mean under the column's name, ``low`` and ``high``.
    """
    rows = []
    for key, group in table[table[column].notna()].groupby(list(by), sort=False):
        interval = student_interval(group[column].tolist())
        rows.append(
            {
                **dict(zip(by, key if isinstance(key, tuple) else (key,), strict=True)),
                "seeds": len(group),
                column: float(group[column].mean()),
                "low": interval.low if interval else math.nan,
                "high": interval.high if interval else math.nan,
            }
        )
    return pd.DataFrame(rows, columns=[*by, "seeds", column, "low", "high"])


def overlap_k(spec: StudySpec) -> int:
    """The number of directions that tables and figures of overlap show: 5 or the nearest below."""
    return max((k for k in spec.ks if k <= _LARGEST_K), default=min(spec.ks))


def _width(model: StudyModel, out: Path) -> float:
    if model.width is not None:
        return float(model.width)
    from transformers import AutoConfig

    try:
        folder = out / "models" / model.name if model.built else _folder(str(model.source))
        with quiet_transformers():
            config = AutoConfig.from_pretrained(folder)
        return float(config.get_text_config().hidden_size)
    except (GonioError, OSError, ValueError, AttributeError):
        return math.nan


def _folder(source: str) -> Path:
    return resolve_source(source).folder()


def _value(measurement: Measurement | None, name: str) -> float:
    for value in measurement.record.values if measurement else ():
        if value.name == name and isinstance(value.value, int | float):
            return float(value.value)
    return math.nan


def _with_chance(measurement: Measurement | None, name: str, called: str = "") -> dict[str, float]:
    """A value of a record and its chance level."""
    called = called or name
    chance = math.nan
    for value in measurement.record.values if measurement else ():
        if value.name == name and value.chance is not None:
            chance = value.chance
    return {called: _value(measurement, name), f"{called}_chance": chance}
