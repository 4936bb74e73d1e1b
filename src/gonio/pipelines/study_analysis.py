"""All analyses of a study as one record, and the ledger beside it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pandas as pd

from gonio.errors import RecordError
from gonio.pipelines.study_alignment import align_recipes
from gonio.pipelines.study_behavior import bitfit_share, geometry_and_behavior
from gonio.pipelines.study_cells import CELL_FILE
from gonio.pipelines.study_geometry import (
    depth_correlations,
    gain_residuals,
    overlaps_with_base,
    stable_rank_by_step,
    stable_rank_by_width,
)
from gonio.pipelines.study_spec import StudySpec, plan_cells
from gonio.pipelines.study_tables import cells_table, overlap_k, read_cells
from gonio.records import (
    InputFile,
    Measurement,
    Value,
    file_input,
    make_measurement,
    make_value,
    read_measurement,
    write_measurement,
)

__all__ = ["STUDY_RECORD", "analyze_study", "conclude_study", "read_conclusions"]

Progress = Callable[[str, int, int], None]

STUDY_RECORD = "records/study"


def analyze_study(spec: StudySpec, out: Path, *, progress: Progress | None = None) -> Measurement:
    """Every analysis over the finished cells of a study.

    Args:
        spec: The study.
        out: Its folder.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        Kind ``study``; tables ``cells`` (first), ``stable_rank``, ``trends``, ``steps``,
        ``transients``, ``overlaps``, ``layers``, ``gains``, ``depth``, ``alignment``, ``bitfit``,
        ``associations``: those for which the cells have the ingredients; ``missing`` says why one
        is not there.

    Raises:
        RecordError: A record of a finished cell cannot be read.
        AdapterError: An adapter of a finished cell cannot be read.
    """
    cells, k = read_cells(spec, out), overlap_k(spec)
    table = cells_table(cells, k)
    tables = {"cells": table}
    values: list[Value] = []
    missing: list[tuple[str, str]] = []
    if cells:
        for finding in (
            stable_rank_by_width(table),
            stable_rank_by_step(cells),
            overlaps_with_base(cells, k),
            gain_residuals(table),
            depth_correlations(cells),
            align_recipes(cells, k, progress=progress),
            bitfit_share(cells),
            geometry_and_behavior(table),
        ):
            tables |= finding.tables
            values += finding.values
            missing += finding.missing
    planned = plan_cells(spec)
    done = {cell.cell.name for cell in cells}
    missing += [("cells", f"{c.name} is not finished") for c in planned if c.name not in done]
    if missing:
        tables["missing"] = pd.DataFrame(missing, columns=["analysis", "reason"])
    return make_measurement(
        "study",
        spec.title,
        settings={"label": spec.title, "study": spec.model_dump(mode="json"), "overlap_k": k},
        values=[
            make_value("finished_cells", len(cells), note=f"of {len(planned)} planned"),
            *values,
        ],
        tables=tables,
        inputs=_inputs(spec, out),
        seed=0,
    )


def conclude_study(spec: StudySpec, out: Path, *, progress: Progress | None = None) -> Path | None:
    """Write ``records/study``, unless it was made from these very cells; None without cells.

    A damaged record is written anew.

    Raises:
        RecordError: A record of a finished cell cannot be read.
        OutputError: The folder cannot be written.
    """
    inputs, folder = _inputs(spec, out), out / STUDY_RECORD
    if not inputs:
        return None
    with suppress(RecordError):
        if (folder / "record.json").is_file() and read_measurement(folder).record.inputs == inputs:
            return folder
    return write_measurement(analyze_study(spec, out, progress=progress), folder)


def read_conclusions(out: Path) -> Measurement | None:
    """The study's record; None before there is one.

    Raises:
        RecordError: It cannot be read.
    """
    folder = out / STUDY_RECORD
    return read_measurement(folder) if (folder / "record.json").is_file() else None


def _inputs(spec: StudySpec, out: Path) -> tuple[InputFile, ...]:
    """The closed cells; their files carry the hashes of everything in them."""
    names = [f"cells/{cell.name}/{CELL_FILE}" for cell in plan_cells(spec)]
    return tuple(file_input(out / name, name) for name in names if (out / name).is_file())
