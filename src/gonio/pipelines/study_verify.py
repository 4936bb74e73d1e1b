"""Does a study's folder still hold what it was closed with, and may it leave without weights?"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from gonio.errors import GonioError, OutputError, SettingError
from gonio.files import file_sha256, replace_file
from gonio.pipelines.study import open_study
from gonio.pipelines.study_cells import CELL_FILE, cell_key, read_state
from gonio.pipelines.study_ledger import LEDGER_FILE, LEFT_OUT_FILE, study_files
from gonio.pipelines.study_spec import StudySpec, plan_cells
from gonio.records import Measurement, make_measurement, make_value

__all__ = ["export_study", "verify_study"]

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")

_Drift = Iterator[tuple[str, str]]


def verify_study(out: Path) -> Measurement:
    """Hash everything again: outputs of the cells, models, records, ledger, and the cells' inputs.

    Args:
        out: Folder of a study, or of an unpacked export, whose weights are not missed.

    Returns:
        Kind ``study-verification``; table ``drift``, one row per difference: ``path`` and
        ``what`` (``edited``, ``missing``, ``added``, or why an input differs); values ``files``,
        ``left_out`` (weights that an export lacks) and ``drifted``.

    Raises:
        SettingError: There is no study in the folder, or no ledger.
    """
    spec = open_study(out)
    ledger = _ledger(out)
    now = dict(study_files(out))
    drift = list(_differences(ledger, {name: file_sha256(path) for name, path in now.items()}))
    checked = len(ledger)
    planned = {cell.name for cell in plan_cells(spec)}
    for cell in sorted(planned):
        folder = out / "cells" / cell
        state = read_state(folder)
        if state is None or state.status != "finished":
            continue
        drift += [(f"cells/{cell}/{n}", what) for n, what in _cell_drift(folder, state.outputs)]
        checked += len(state.outputs)
    left_out = _left_out(out)
    expected = {(name, "missing") for name in left_out}
    drift = [row for row in drift if row not in expected]
    drift += _strangers(out, planned)
    drift += _input_drift(spec, out, left_out)
    table = pd.DataFrame(sorted(drift), columns=["path", "what"], dtype="object")
    return make_measurement(
        "study-verification",
        f"Verification of: {spec.title}",
        settings={"study": spec.model_dump(mode="json")},
        values=[
            make_value("files", checked - len(left_out)),
            make_value("left_out", len(left_out), note="weights that an export does not hold"),
            make_value("drifted", len(table)),
        ],
        tables={"drift": table},
    )


def export_study(out: Path, path: Path) -> int:
    """Pack a study without weights as ``.tar.gz``; the same folder gives the same bytes.

    Unpacked, it can be shown, verified and drawn; its ``study.json`` makes the study again.

    Args:
        out: Folder of a study.
        path: The archive to write.

    Returns:
        Files of the study packed; the list of the weights left out is one more.

    Raises:
        SettingError: There is no study in the folder.
        OutputError: The archive would lie in the study, or cannot be written.
    """
    open_study(out)
    if path.resolve().is_relative_to(out.resolve()):
        raise OutputError(f"{path} lies in the study it would pack\nChoose a place outside {out}.")
    files = {
        each.relative_to(out).as_posix(): each
        for each in sorted(out.rglob("*"))
        if each.is_file()
        and each.name != LEFT_OUT_FILE
        and not any(part.startswith(".") for part in each.relative_to(out).parts)
    }
    weights = {name for name, each in files.items() if each.suffix in _WEIGHTS}
    listed = json.dumps(sorted(weights | set(_left_out(out))), indent=2) + "\n"
    with (
        replace_file(path) as staging,
        staging.open("wb") as raw,
        # Neither the time nor the archive's name goes into the gzip header.
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        _add(archive, LEFT_OUT_FILE, listed.encode())
        for name in sorted(files.keys() - weights):
            _add(archive, name, files[name].read_bytes())
    return len(files) - len(weights)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(f"study/{name}")
    entry.size, entry.mode = len(content), 0o644
    archive.addfile(entry, io.BytesIO(content))


def _left_out(out: Path) -> list[str]:
    """Weights that the export in this folder lacks; none for a study's own folder.

    Raises:
        SettingError: The list cannot be read.
    """
    path = out / LEFT_OUT_FILE
    if not path.is_file():
        return []
    try:
        return [str(name) for name in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise SettingError(f"cannot read {path}: {error}") from error


def _ledger(out: Path) -> dict[str, str]:
    path = out / LEDGER_FILE
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        return {str(name): str(digest) for name, digest in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingError(
            f"no ledger in {out}: {type(error).__name__}\nIt is written when a run ends: "
            f"gonio study resume {out}"
        ) from error


def _differences(before: dict[str, str], now: dict[str, str]) -> _Drift:
    for name in sorted(before | now):
        if name not in now:
            yield name, "missing"
        elif name not in before:
            yield name, "added"
        elif before[name] != now[name]:
            yield name, "edited"


def _cell_drift(folder: Path, outputs: dict[str, str]) -> _Drift:
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    now = {name: file_sha256(folder / name) for name in names if name != CELL_FILE}
    return _differences(outputs, now)


def _strangers(out: Path, planned: set[str]) -> _Drift:
    """Folders among the cells that no cell of the plan is called."""
    for folder in sorted((out / "cells").glob("*")):
        if folder.name not in planned and not folder.name.startswith("."):
            yield f"cells/{folder.name}", "added"


def _input_drift(spec: StudySpec, out: Path, left_out: Sequence[str]) -> _Drift:
    """Finished cells whose settings or model files are no longer those that determined them."""
    for cell in plan_cells(spec):
        state = read_state(out / "cells" / cell.name)
        if state is None or state.status != "finished":
            continue
        built = cell.model.built
        if built and any(name.startswith(f"models/{cell.model.name}/") for name in left_out):
            continue  # its other files are in the ledger
        source = str(out / "models" / cell.model.name) if built else str(cell.model.source)
        place = f"inputs of cells/{cell.name}"
        try:
            key = cell_key(cell, spec, source, state.environment.gonio)
        except GonioError as error:
            yield place, str(error).splitlines()[0]
        else:
            if key != state.key:
                yield place, "settings or files of the model differ"
