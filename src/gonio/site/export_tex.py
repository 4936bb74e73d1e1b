r"""Records as LaTeX and CSV: every table, and every number under a name a paper can call.

A number is called by its key, ``\gonio{RECORD/QUANTITY}`` for a value of a record and
``\gonio{RECORD/TABLE/ROW/COLUMN}`` for a cell. Keys are made of what a number is called in its
record, never of its place, so they stay when rows are added. A key nobody defined is an error.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gonio.errors import OutputError
from gonio.files import replace_folder
from gonio.records import Measurement, Value
from gonio.site.collection import SiteRecord, collect
from gonio.site.numbers import json_rows, slug
from gonio.site.tex_tables import LONG_TABLE, identifying_columns, table_tex, values_tex
from gonio.site.tex_text import escape, number_text, numbers_with_interval

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MARKER", "export_tex", "table_keys", "value_macros"]

MARKER = ".gonio-tex"
_STYLE = "gonio.sty"


def export_tex(
    sources: Sequence[Measurement | Path | str], out: Path | str, *, overwrite: bool = False
) -> Path:
    """Write every table of the records as LaTeX and CSV, and every number as a macro.

    ``tables/RECORD.*`` hold a record's values and ``tables/RECORD--TABLE.*`` its tables; the CSV
    has full precision and, in its first column, the beginning of its numbers' keys.
    ``macros/RECORD.tex`` defines the values, ``macros/RECORD--TABLE.tex`` the cells. The same
    records give the same bytes.

    Args:
        sources: Measurements, folders that hold records at any depth, and files written with
            ``--json --output FILE``.
        out: Folder to write: new or empty, or an earlier export with ``overwrite``.
        overwrite: Replace an earlier export.

    Returns:
        A document that sets the values and the shorter tables, ``OUT/main.tex``.

    Raises:
        RecordError: A source is missing or holds no record.
        OutputError: ``out`` holds something, or cannot be written.
    """
    folder = Path(out).resolve()
    _require_replaceable(folder, overwrite)
    records = collect(sources).records
    with replace_folder(folder) as staging:
        try:
            for name, text in _files(records):
                path = staging / name
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8", newline="")
        except OSError as error:
            raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
    return folder / "main.tex"


def _require_replaceable(folder: Path, overwrite: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / MARKER).is_file():
        raise OutputError(
            f"cannot write to {folder}: it holds something else\n"
            f"  expected a new or empty folder, or an earlier export (with {MARKER})\n"
            "Choose another place with --out."
        )
    if not overwrite:
        raise OutputError(f"{folder} exists and is not replaced; give --force to replace it.")


def _files(records: Sequence[SiteRecord]) -> Iterator[tuple[str, str]]:
    """Name and text of every file of an export."""
    yield MARKER, "written by gonio site export-tex\n"
    yield _STYLE, (files("gonio.site") / "assets" / _STYLE).read_text(encoding="utf-8")
    yield "main.tex", _document(records)
    yield "tables.csv", _csv(_TABLE_FIELDS, _inventory(records))
    for entry in records:
        name, values = entry.identifier, entry.record.values
        if values:
            yield f"macros/{name}.tex", _definitions(value_macros(name, values))
            yield f"tables/{name}.tex", values_tex(values)
            yield f"tables/{name}.csv", _csv(_VALUE_FIELDS, _value_rows(name, values))
        for table, frame in entry.measurement.tables.items():
            keys = table_keys(frame)
            start = f"{name}/{slug(table)}"
            yield f"macros/{name}--{table}.tex", _cell_definitions(start, frame, *keys)
            yield f"tables/{name}--{table}.tex", table_tex(frame)
            yield f"tables/{name}--{table}.csv", _table_csv(start, frame, *keys)


def value_macros(identifier: str, values: Sequence[Value]) -> dict[str, str]:
    """LaTeX of the values of a record by key, bounds, interval and chance under keys below it."""
    macros = {}
    names = _distinct([value.name for value in values])
    for name, value in zip(names, values, strict=True):
        key = f"{identifier}/{name}"
        if isinstance(value.value, str):
            macros[key] = escape(value.value)
            continue
        macros[key] = number_text(value.value)
        if value.interval is not None:
            bounds = value.interval.low, value.interval.high
            macros[key], low, high = numbers_with_interval(value.value, *bounds)
            macros |= {f"{key}/low": low, f"{key}/high": high}
            macros[f"{key}/interval"] = f"{{[}}{low}, {high}{{]}}"
            macros[f"{key}/confidence"] = number_text(100 * value.interval.confidence)
        if value.chance is not None:
            macros[f"{key}/chance"] = number_text(value.chance)
    return macros


def table_keys(table: pd.DataFrame) -> tuple[list[str], list[str]]:
    """The parts of the keys that name the rows, and those that name the columns.

    A row is named by its identifying columns, or by its number, from 1, where it has none.
    """
    identifying = identifying_columns(table)
    cells = json_rows(table[list(identifying)])
    rows = [" ".join(map(str, row.values())) for row in cells]
    if not identifying:
        rows = [str(number) for number in range(1, len(table) + 1)]
    return _distinct(rows), _distinct([str(name) for name in table.columns])


def _distinct(names: Sequence[str]) -> list[str]:
    """Slugs; where two names share one, both end in a hash of their name (and their number)."""
    slugs = [slug(name) for name in names]
    shared = Counter(slugs)
    found = []
    seen: Counter[str] = Counter()
    for name, key in zip(names, slugs, strict=True):
        seen[name] += 1
        if shared[key] > 1:
            key += f"-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
            key += f"-{seen[name]}" if seen[name] > 1 else ""
        found.append(key)
    return found


def _definitions(macros: dict[str, str]) -> str:
    lines = [rf"\goniovalue{{{key}}}{{{text}}}" for key, text in macros.items()]
    return "\n".join([*lines, ""])


def _cell_definitions(
    start: str, table: pd.DataFrame, row_keys: Sequence[str], column_keys: Sequence[str]
) -> str:
    names = [str(name) for name in table.columns]
    lines = []
    for key, row in zip(row_keys, json_rows(table), strict=True):
        lines.append(rf"\goniorow{{{start}/{key}}}")
        lines += [
            rf"\goniocell{{{column}}}{{{number_text(row[name])}}}"
            for name, column in zip(names, column_keys, strict=True)
            if _is_number(row[name])
        ]
    return "\n".join([*lines, ""])


def _is_number(cell: Any) -> bool:
    return cell is None or (isinstance(cell, int | float) and not isinstance(cell, bool))


_VALUE_FIELDS = (
    *("key", "name", "value", "unit", "low", "high", "confidence", "method", "chance", "note"),
)
_TABLE_FIELDS = ("record", "kind", "title", "measured", "table", "rows", "columns", "file", "key")


def _value_rows(identifier: str, values: Sequence[Value]) -> Iterator[list[Any]]:
    names = _distinct([value.name for value in values])
    for name, v in zip(names, values, strict=True):
        found = v.interval
        bounds = [found.low, found.high, found.confidence, found.method] if found else [None] * 4
        yield [f"{identifier}/{name}", v.name, v.value, v.unit, *bounds, v.chance, v.note]


def _table_csv(
    start: str, table: pd.DataFrame, row_keys: Sequence[str], column_keys: Sequence[str]
) -> str:
    """The table at full precision; a number's key is its row's and, after a slash, its column's."""
    names = [str(name) for name in table.columns]
    heads = [
        name if name == key or slug(name) == key else f"{name} ({key})"
        for name, key in zip(names, column_keys, strict=True)
    ]
    rows = json_rows(table)
    lines = ([f"{start}/{key}", *row.values()] for key, row in zip(row_keys, rows, strict=True))
    return _csv(["key", *heads], lines)


def _inventory(records: Sequence[SiteRecord]) -> Iterator[list[Any]]:
    for entry in records:
        record, name = entry.record, entry.identifier
        about = [name, record.kind, record.title, record.created]
        yield [*about, "", len(record.values), len(_VALUE_FIELDS), f"tables/{name}", name]
        for table, frame in entry.measurement.tables.items():
            size = [len(frame), len(frame.columns)]
            yield [*about, table, *size, f"tables/{name}--{table}", f"{name}/{slug(table)}"]


def _csv(head: Sequence[str], rows: Any) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return stream.getvalue()


def _document(records: Sequence[SiteRecord]) -> str:
    """A document with, for each record, its values beside their keys and its shorter tables."""
    parts = [_PREAMBLE]
    for entry in records:
        name, record = entry.identifier, entry.record
        parts.append(rf"\section{{{escape(record.title)}}}")
        parts.append(
            rf"Record \texttt{{{_breakable(name)}}}, kind \texttt{{{escape(record.kind)}}}, "
            rf"measured {escape(record.created)}." + "\n"
        )
        if record.values:
            parts += [rf"\input{{macros/{name}}}", _key_table(name, record.values)]
        for table, frame in entry.measurement.tables.items():
            start = f"{name}/{slug(table)}"
            parts.append(rf"\subsection{{{escape(table.replace('_', ' '))}}}")
            parts.append(
                rf"{len(frame)} rows, keys \texttt{{{_breakable(start)}/\ldots}}, "
                rf"file \texttt{{{_breakable(escape(f'tables/{name}--{table}'))}}}." + "\n"
            )
            if len(frame) < LONG_TABLE:
                parts.append(rf"\input{{tables/{name}--{table}}}")
    return "\n".join([*parts, r"\end{document}", ""])


def _key_table(identifier: str, values: Sequence[Value]) -> str:
    lines = [
        r"\begin{longtable}{@{}>{\raggedright\ttfamily\arraybackslash}p{0.55\linewidth}"
        r">{\raggedright\arraybackslash}p{0.4\linewidth}@{}}",
        r"\toprule",
        r"\normalfont key & \textbackslash gonio\{key\} \\",
        r"\midrule",
        r"\endhead",
    ]
    macros = value_macros(identifier, values)
    lines += [rf"{_breakable(key)} & \gonio{{{key}}} \\" for key in macros]
    return "\n".join([*lines, r"\bottomrule", r"\end{longtable}"])


def _breakable(key: str) -> str:
    return key.replace("/", r"/\allowbreak{}").replace("-", r"-\allowbreak{}")


_PREAMBLE = r"""% Everything in this export, to look at.
% A paper needs gonio.sty and the files it uses.
\documentclass{article}
\usepackage[a4paper, margin=2cm]{geometry}
\usepackage{gonio}
\setlength{\parindent}{0pt}
\raggedright
\begin{document}
\footnotesize
"""
