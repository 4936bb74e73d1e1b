"""Writing and reading measurements: one folder, ``record.json`` and a Parquet file per table.

The folder is assembled under a temporary name and renamed when complete (:mod:`gonio.files`).
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from pydantic import ValidationError

from gonio.errors import RecordError
from gonio.files import replace_folder
from gonio.records.schema import Measurement, Record

__all__ = ["find_measurements", "read_measurement", "write_measurement"]

_RECORD_NAME = "record.json"


def write_measurement(measurement: Measurement, folder: Path) -> Path:
    """Write ``record.json`` and the tables to ``folder``, replacing what was there.

    Returns:
        The folder.

    Raises:
        OutputError: The folder cannot be written.
        RecordError: The record names other tables than the measurement holds.
    """
    record = measurement.record
    if set(record.tables) != set(measurement.tables):
        raise RecordError(
            f"record {record.kind!r} names the tables {sorted(record.tables)}, "
            f"the measurement holds {sorted(measurement.tables)}"
        )
    with replace_folder(folder) as staging:
        for name, table in measurement.tables.items():
            table.to_parquet(staging / f"{name}.parquet", index=False)
        text = record.model_dump_json(indent=2) + "\n"
        (staging / _RECORD_NAME).write_text(text, encoding="utf-8")
    return folder


def read_measurement(folder: Path) -> Measurement:
    """Read a measurement written by :func:`write_measurement`.

    Raises:
        RecordError: No record is there, it does not follow the schema, or a table is missing.
    """
    path = folder / _RECORD_NAME
    try:
        record = Record.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"no record at {path}: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise RecordError(
            f"not a record of this version: {path}\n  {where}: {first['msg']}\n"
            "Measure again, or read it with the version of gonio that wrote it."
        ) from error
    tables = {}
    for name in record.tables:
        table_path = folder / f"{name}.parquet"
        try:
            tables[name] = pd.read_parquet(table_path)
        except (OSError, ValueError) as error:
            raise RecordError(
                f"record {path} names the table {name}, unreadable: {error}"
            ) from error
    return Measurement(record, tables)


def find_measurements(root: Path) -> list[Path]:
    """Folders below ``root`` (itself included) that hold a record, sorted by path.

    Raises:
        RecordError: ``root`` is not a folder.
    """
    if not root.is_dir():
        raise RecordError(f"no folder of records at {root}")
    found = (path.parent for path in root.rglob(_RECORD_NAME))
    return sorted(path for path in found if not _is_hidden(path.relative_to(root)))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
