"""Tables of records as LaTeX (booktabs), wide ones in blocks, intervals beside their values."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gonio.records import Value
from gonio.site.numbers import is_missing, json_rows, json_value
from gonio.site.tex_text import MISSING_TEX, escape, number_text, numbers_with_interval

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LONG_TABLE", "identifying_columns", "table_tex", "values_tex"]

LONG_TABLE = 50  # rows from which a table may break over pages

_LINE = 108  # characters of a block's line at \\footnotesize on a page of 17 cm
_GAP = 3  # characters between columns
_WIDEST = 30  # characters of a text before it is broken into lines
_HEADING = 12  # characters of a line of a heading, where its words allow it

Row = Mapping[str, Any]


@dataclass(frozen=True)
class _Column:
    """One column of the printed table: its heading, how a cell is made, its place in the line."""

    heading: str
    cell: Callable[[Row], str]
    is_number: bool
    width: int


def table_tex(table: pd.DataFrame) -> str:
    """A table as LaTeX: ``tabular``, or ``longtable`` from :data:`LONG_TABLE` rows on.

    Columns ``x_low`` and ``x_high`` (or ``low`` and ``high`` right after ``x``) are printed as the
    interval of ``x``, to its precision. A table wider than a page is several blocks, each with
    the columns that tell rows apart.
    """
    rows = json_rows(table)
    identifying = identifying_columns(table)
    columns = dict(_columns(table, rows))
    head = [column for name, column in columns.items() if name in identifying]
    rest = [column for name, column in columns.items() if name not in identifying]
    return "\n\\medskip\n\n".join(_block(rows, part) for part in _blocks(head, rest))


def values_tex(values: Sequence[Value]) -> str:
    """The values of a record as LaTeX: quantity, value, interval, chance."""
    rows: list[dict[str, Any]] = [{"value": value} for value in values]

    def quantity(row: Row) -> str:
        return escape(row["value"].name.replace("_", " "))

    def number(row: Row) -> str:
        value = row["value"]
        unit = f" {escape(value.unit)}" if value.unit else ""
        return _value_texts(value)[0] + unit

    def interval(row: Row) -> str:
        return _bounds(*_value_texts(row["value"])[1:])

    def chance(row: Row) -> str:
        return "" if row["value"].chance is None else number_text(row["value"].chance)

    columns = [_Column("quantity", quantity, False, 0), _Column("value", number, False, 0)]
    if any(value.interval for value in values):
        columns.append(_Column("interval", interval, False, 0))
    if any(value.chance is not None for value in values):
        columns.append(_Column("chance", chance, True, 0))
    if any(isinstance(v.value, str) and len(v.value) > _WIDEST for v in values):
        columns[1] = _Column("value", number, False, _WIDEST + 1)
    return _block(rows, columns)


def _value_texts(value: Value) -> tuple[str, str, str]:
    if isinstance(value.value, str):
        return escape(value.value), "", ""
    if value.interval is None:
        return number_text(value.value), "", ""
    return numbers_with_interval(value.value, value.interval.low, value.interval.high)


def identifying_columns(table: pd.DataFrame) -> tuple[str, ...]:
    """The first columns of texts and whole numbers that tell all rows apart; none if they cannot.

    Columns that add nothing to those before them are left out.
    """
    chosen: list[str] = []
    groups = min(1, len(table))
    for column in table.columns:
        if groups == len(table) and chosen:
            break
        if table[column].dtype.kind in "fc" or table[column].isna().any():
            continue
        if table[column].map(lambda cell: isinstance(cell, (list, dict))).any():
            continue
        refined = len(table.drop_duplicates([*chosen, column]))
        if refined > groups or (refined == len(table) == 1):
            chosen.append(str(column))
            groups = refined
    return tuple(chosen) if groups == len(table) else ()


def _columns(table: pd.DataFrame, rows: Sequence[Row]) -> list[tuple[str, _Column]]:
    names = [str(name) for name in table.columns]
    found = []
    bounds = _intervals(names, rows)
    of_an_interval = {name for pair in bounds.values() for name in pair}
    for name in names:
        if name in of_an_interval:
            continue
        lines = textwrap.wrap(name.replace("_", " "), _HEADING, break_long_words=False)
        at_least = max(map(len, lines), default=0)
        heading = _stack([escape(line) for line in lines])
        cells = [row[name] for row in rows]
        is_number = all(_is_number(cell) or cell is None for cell in cells)
        if name in bounds:
            column = _Column(heading, _interval_cell(name, *bounds[name]), False, 23)
        else:
            longest = max((len(_plain(cell)) for cell in cells), default=0)
            width = max(at_least, min(longest, 9) if is_number else longest)
            column = _Column(heading, _cell(name), is_number, width)
        found.append((name, column))
    return found


def _intervals(names: Sequence[str], rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """Columns whose bounds stand beside them, by what the names say and the numbers bear out."""
    found = {}
    for place, name in enumerate(names):
        pairs = [(f"{name}_low", f"{name}_high")]
        if tuple(names[place + 1 : place + 3]) == ("low", "high"):
            pairs.append(("low", "high"))
        for low, high in pairs:
            if {low, high} <= set(names) and all(_encloses(row, low, name, high) for row in rows):
                found[name] = (low, high)
    return found


def _encloses(row: Row, low: str, name: str, high: str) -> bool:
    cells = [row[low], row[name], row[high]]
    if not all(_is_number(cell) or cell is None for cell in cells):
        return False
    present = [cell for cell in cells if cell is not None]
    return present == sorted(present)


def _is_number(cell: Any) -> bool:
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def _plain(cell: Any) -> str:
    return "" if cell is None else str(cell)


def _cell(name: str) -> Callable[[Row], str]:
    def make(row: Row) -> str:
        cell = row[name]
        if is_missing(cell):
            return MISSING_TEX
        if _is_number(cell):
            return number_text(cell)
        return escape({True: "yes", False: "no"}.get(cell) or str(json_value(cell)))

    return make


def _interval_cell(name: str, low: str, high: str) -> Callable[[Row], str]:
    def make(row: Row) -> str:
        value, lower, upper = numbers_with_interval(row[name], row[low], row[high])
        return f"{value} {_bounds(lower, upper)}" if lower != MISSING_TEX else value

    return make


def _stack(lines: Sequence[str]) -> str:
    return r"\shortstack{" + r"\\".join(lines) + "}" if len(lines) > 1 else "".join(lines)


def _bounds(low: str, high: str) -> str:
    return f"{{[}}{low}, {high}{{]}}" if low else ""


def _blocks(head: Sequence[_Column], rest: Sequence[_Column]) -> list[list[_Column]]:
    """Columns split so that each block, with the columns of ``head``, fits a line."""
    room = _LINE - sum(min(column.width, _WIDEST) + _GAP for column in head)
    blocks: list[list[_Column]] = []
    left = 0
    for column in rest:
        width = min(column.width, _WIDEST) + _GAP
        if not blocks or width > left:
            blocks.append([*head])
            left = room
        blocks[-1].append(column)
        left -= width
    return blocks or [list(head)]


def _block(rows: Sequence[Row], columns: Sequence[_Column]) -> str:
    name = "longtable" if len(rows) >= LONG_TABLE else "tabular"
    kinds = "".join(
        "r"
        if column.is_number
        else "l"
        if column.width <= _WIDEST
        else r">{\raggedright\arraybackslash}p{0.27\linewidth}"
        for column in columns
    )
    heading = " & ".join(column.heading for column in columns)
    lines = [rf"\begin{{{name}}}{{@{{}}{kinds}@{{}}}}", r"\toprule", rf"{heading} \\", r"\midrule"]
    if name == "longtable":
        lines.append(r"\endhead")
    lines += [" & ".join(column.cell(row) for column in columns) + r" \\" for row in rows]
    return "\n".join([*lines, r"\bottomrule", rf"\end{{{name}}}", ""])
