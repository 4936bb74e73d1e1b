"""How numbers and names look on the page, and how tables become JSON.

Rounding happens here and nowhere else: records keep full precision, and so do the JSON files
offered for download.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from gonio.records import IntervalRecord

__all__ = [
    "MISSING",
    "capitalized",
    "chart_number",
    "is_missing",
    "json_rows",
    "json_value",
    "rows_of",
    "show",
    "show_interval",
    "show_range",
    "slug",
]

MISSING = "\N{EM DASH}"
_SUPERSCRIPTS = str.maketrans(
    "-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"
)


def capitalized(words: str) -> str:
    """The words as the beginning of a sentence; names after the first letter stay as they are."""
    return words[:1].upper() + words[1:]


def is_missing(value: Any) -> bool:
    """None, NaN, an infinity or pandas' NA: nothing that can be drawn or compared."""
    if value is None:
        return True
    if isinstance(value, str):
        return False
    try:
        return not math.isfinite(float(value))
    except (TypeError, ValueError):
        return type(value).__name__ in {"NAType", "NaTType"}


def show(value: Any, digits: int = 4) -> str:
    """A value for people: ``digits`` significant digits, a true minus sign, a dash for missing.

    Args:
        value: Number, truth value, text, or anything :func:`is_missing` accepts.
        digits: Significant digits of a number that is not an integer.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or type(value).__name__ in {"bool", "bool_"}:
        return "yes" if value else "no"
    if is_missing(value):
        return MISSING
    number = float(value)
    if (number.is_integer() and abs(number) < 1e15) or 10 ** (digits - 1) <= abs(number) < 1e7:
        text = f"{round(number):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    else:
        text = f"{number:.{digits}g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        text = f"{mantissa} \N{MULTIPLICATION SIGN} 10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
    return text.replace("-", "\N{MINUS SIGN}")


def show_range(low: Any, high: Any) -> str:
    """``low to high`` for people, a dash when either bound is missing."""
    if is_missing(low) or is_missing(high):
        return MISSING
    return f"{show(low)} to {show(high)}"


def show_interval(interval: IntervalRecord | None) -> str:
    """The bounds of a stored interval, a dash when there is none."""
    return MISSING if interval is None else show_range(interval.low, interval.high)


def chart_number(value: Any) -> float | int | None:
    """A number at the precision a chart can show (six significant digits), None if missing."""
    if is_missing(value):
        return None
    number = float(value)
    return int(number) if number.is_integer() and abs(number) < 1e15 else float(f"{number:.6g}")


def json_value(value: Any) -> Any:
    """A cell as JSON, full precision; NaN, infinities and NA become null."""
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return None if is_missing(value) else str(value)


def rows_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table by column name, cells as they are."""
    return [
        {str(name): cell for name, cell in row.items()} for row in table.to_dict(orient="records")
    ]


def json_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as JSON objects, full precision."""
    return [{name: json_value(cell) for name, cell in row.items()} for row in rows_of(table)]


def slug(text: str) -> str:
    """Lower-case letters, digits and hyphens, safe in file names and anchors; never empty."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unnamed"
