"""The ledger of a study: what every number was made from, in words and as hashes.

Three files in the study's folder, written anew after every run: ``PROVENANCE.md`` and
``FIGURES.md`` for people, ``ledger.json`` for `gonio study verify`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from gonio.files import file_sha256, write_text
from gonio.pipelines.study_analysis import STUDY_RECORD
from gonio.pipelines.study_cells import CELL_FILE, CellState, read_state
from gonio.pipelines.study_spec import StudySpec, plan_cells
from gonio.records import Environment, Record, find_measurements, read_measurement

__all__ = ["FIGURES", "LEDGER_FILE", "LEFT_OUT_FILE", "study_files", "write_ledger"]

LEDGER_FILE = "ledger.json"
LEFT_OUT_FILE = "left_out.json"  # in an export: the weights it lacks
PROVENANCE_FILE = "PROVENANCE.md"
FIGURES_FILE = "FIGURES.md"

# Anchor on the site: title, and the tables of records/study that the figure draws.
FIGURES: dict[str, tuple[str, tuple[str, ...]]] = {
    "study-width": ("Stable rank by width", ("stable_rank", "trends")),
    "study-steps": ("Stable rank by step", ("steps", "transients")),
    "study-overlap": ("Overlap with the base model by layer", ("layers", "overlaps")),
    "study-alignment": ("Two trainings of a model compared", ("alignment",)),
    "study-gains": ("Energy that gains of rows or columns explain", ("gains",)),
    "study-depth": ("Overlap of neighboring layers' updates", ("depth",)),
    "study-behavior": ("Geometry against behavior", ("cells", "associations")),
    "study-bitfit": ("Share of the loss reduction that biases reach", ("bitfit",)),
}


def write_ledger(spec: StudySpec, out: Path) -> None:
    """Write the ledger of a study as its folder stands.

    Raises:
        RecordError: A record cannot be read.
        OutputError: The folder cannot be written.
    """
    write_text(out / PROVENANCE_FILE, _provenance(spec, out))
    write_text(out / FIGURES_FILE, _figures(out))
    hashes = {name: file_sha256(path) for name, path in study_files(out)}
    text = json.dumps({"schema_version": 1, "files": hashes}, indent=2) + "\n"
    write_text(out / LEDGER_FILE, text)


def study_files(out: Path) -> Iterator[tuple[str, Path]]:
    """Every file of a study but the ledger itself and what a closed cell hashes, by name.

    Hidden files (the lock, half-written ones) do not count.
    """
    for path in sorted(out.rglob("*")):
        place = path.relative_to(out)
        if not path.is_file() or any(part.startswith(".") for part in place.parts):
            continue
        in_cell = place.parts[0] == "cells" and len(place.parts) > 2
        if place.name in (LEDGER_FILE, LEFT_OUT_FILE) or (
            in_cell and place.parts[2:] != (CELL_FILE,)
        ):
            continue
        yield place.as_posix(), path


def _provenance(spec: StudySpec, out: Path) -> str:
    lines = [
        f"# Provenance: {spec.title}",
        "",
        "Written by gonio from the records in this folder. `gonio study verify FOLDER` hashes "
        "everything again and names what differs.",
        "",
        "- made by: `gonio study run study.json --out NEW_FOLDER` (`study.json` of this folder)",
        "- one cell alone: delete its folder, then `gonio study resume FOLDER`",
        f"- sha256 of `study.json`: `{file_sha256(out / 'study.json')}`",
        "",
        "## Cells",
    ]
    for cell in plan_cells(spec):
        state = read_state(out / "cells" / cell.name)
        lines += ["", f"### {cell.name}", "", *_cell_lines(state)]
    lines += ["", "## Records", ""]
    for folder in find_measurements(out):
        record = read_measurement(folder).record
        place = folder.relative_to(out).as_posix()
        lines += [f"### {place}", "", *_record_lines(record, folder), ""]
    return "\n".join(lines).rstrip() + "\n"


def _cell_lines(state: CellState | None) -> list[str]:
    if state is None:
        return ["- not run"]
    lines = [
        f"- {state.status} after {state.seconds:.1f} s, seed {state.settings.get('seed')}",
        f"- determined by (settings, model files, version): `{state.key}`",
        f"- {_versions(state.environment)}",
    ]
    if state.reason:
        lines.append(f"- reason: {' '.join(state.reason.split())}")
    return lines + [f"- `{digest}` {name}" for name, digest in sorted(state.outputs.items())]


def _record_lines(record: Record, folder: Path) -> list[str]:
    tables = ", ".join(record.tables) or "none"
    return [
        f"- {record.kind}: {record.title}",
        f"- sha256 of `record.json`: `{file_sha256(folder / 'record.json')}`",
        f"- {record.created}, seed {record.seed}, {record.dtype} on {record.device}",
        f"- {_versions(record.environment)}",
        f"- tables: {tables}",
        *(f"- input `{entry.sha256}` {entry.name}" for entry in record.inputs),
    ]


def _versions(environment: Environment) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in environment.packages.items())
    return (
        f"gonio {environment.gonio}, Python {environment.python}, {packages}; "
        f"{environment.platform}, threads: {environment.threads}"
    )


def _figures(out: Path) -> str:
    lines = [
        "# Figures",
        "",
        "`gonio site build --from FOLDER --out SITE` draws them on `SITE/adapters.html`, each "
        f"from the tables of `{STUDY_RECORD}` named here, beside the first study's numbers.",
        "",
        "| figure | anchor | tables | sha256, start |",
        "| --- | --- | --- | --- |",
    ]
    for anchor, (title, tables) in FIGURES.items():
        paths = [out / STUDY_RECORD / f"{name}.parquet" for name in tables]
        found = [path for path in paths if path.is_file()]
        names = ", ".join(path.stem for path in found) or "none: see the table missing"
        hashes = ", ".join(f"`{file_sha256(path)[:16]}`" for path in found)
        lines.append(f"| {title} | figure-{anchor} | {names} | {hashes} |")
    return "\n".join(lines) + "\n"
