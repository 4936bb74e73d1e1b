"""A measurement as one JSON file: what the site offers for download and what commands print.

The form is that of ``--json``: an object with ``record`` and ``tables``, each table a list of
rows at full precision. It can be read back, so a site can be built from such files too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from gonio.errors import RecordError
from gonio.records import Measurement, Record
from gonio.site.numbers import json_rows
from gonio.theorems.status_file import TheoremStatusFile, read_status_file

__all__ = ["read_json", "read_source", "to_json"]


def to_json(measurement: Measurement) -> str:
    """Record and tables as JSON, one line per table row; undefined numbers are null."""
    record = json.dumps(measurement.record.model_dump(mode="json"), indent=1, allow_nan=False)
    tables = []
    for name, table in measurement.tables.items():
        rows = ",\n".join(json.dumps(row, allow_nan=False) for row in json_rows(table))
        tables.append(f"{json.dumps(name)}: [\n{rows}\n]")
    return f'{{"record": {record},\n"tables": {{{",".join(tables)}}}}}\n'


def read_source(path: Path) -> tuple[Measurement | None, TheoremStatusFile | None]:
    """Read a file a site is built from: a record, or statuses of theorems.

    Of a file of theorem statuses, also the record of its checks, in which the statuses are those
    that were computed with the proofs of that file; None if it was written without checks.

    Raises:
        RecordError: The file cannot be read, is of neither form, or lacks a table.
        TheoremError: It is a file of theorem statuses, but not of this version.
    """
    content = _load(path)
    if not isinstance(content, dict) or not {"theorems", "checks"} <= set(content):
        return _measurement(content, path), None
    checks = content["checks"]
    return None if checks is None else _measurement(checks, path), read_status_file(path)


def read_json(path: Path) -> Measurement:
    """Read what :func:`to_json`, or a command with ``--json``, wrote.

    Of a file of theorem statuses, the record of its checks.

    Raises:
        RecordError: The file cannot be read, is not of that form, or lacks a table.
        TheoremError: It is a file of theorem statuses, but not of this version.
    """
    measurement, _ = read_source(path)
    if measurement is None:
        raise RecordError(
            f"{path} holds statuses of theorems without their checks\n"
            "Write it again without --no-checks."
        )
    return measurement


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"no record at {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise RecordError(f"not a record: {path} is not JSON ({error})") from error


def _measurement(content: Any, path: Path) -> Measurement:
    if not isinstance(content, dict) or set(content) != {"record", "tables"}:
        raise RecordError(
            f"not a record: {path}\n  expected an object with the fields record and tables, as "
            "commands of gonio print with --json"
        )
    try:
        record = Record.model_validate_json(json.dumps(content["record"]))
        tables = {str(name): pd.DataFrame(rows) for name, rows in content["tables"].items()}
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the record"
        raise RecordError(
            f"not a record of this version: {path}\n  {where}: {first['msg']}"
        ) from error
    except (AttributeError, TypeError, ValueError) as error:
        raise RecordError(f"not a record: the tables of {path} are not lists of rows") from error
    if set(tables) != set(record.tables):
        raise RecordError(
            f"{path} names the tables {sorted(record.tables)}, it holds {sorted(tables)}"
        )
    return Measurement(record, tables)
