r"""Names and numbers as LaTeX that every engine sets, whatever they hold.

Names in records are untrusted. All that means something to TeX is replaced, and the result is
ASCII: what LaTeX has no plain command for is printed as its code point, such as ``{[}U+4E2D{]}``.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from functools import cache
from importlib.resources import files
from typing import Any

from gonio.site.numbers import is_missing

__all__ = ["MISSING_TEX", "escape", "number_text", "numbers_with_interval"]

MISSING_TEX = "---"

_DIGITS = 4  # significant, as on the pages
_LIGATURES = re.compile(r"([-',])(?=\1)")  # two hyphens would become a dash
_MOST_DECIMALS = 6


def escape(text: str) -> str:
    """A text as one line of LaTeX that prints it and does nothing else, in ASCII.

    Brackets and stars are replaced too: after the end of a table's row they would be read as its
    arguments.
    """
    words = unicodedata.normalize("NFC", " ".join(text.split()))
    pieces = _LIGATURES.split(words)
    escaped = ["".join(map(_escape_character, piece)) for piece in pieces]
    return "".join(piece + "{}" * (place % 2) for place, piece in enumerate(escaped))


@cache
def _symbols() -> tuple[dict[str, str], dict[str, str]]:
    """Characters, and combining accents, with their LaTeX."""
    text = (files("gonio.site") / "tex_symbols.json").read_text(encoding="utf-8")
    data: dict[str, dict[str, str]] = json.loads(text)
    math_symbols = {name: f"${command}$" for name, command in data["math"].items()}
    return {**math_symbols, **data["text"], **data["special"]}, data["accents"]


def _escape_character(character: str) -> str:
    symbols, accents = _symbols()
    if character in symbols:
        return symbols[character]
    if " " <= character <= "~":
        return character
    letter, accent, rest = (*unicodedata.normalize("NFD", character), "", "", "")[:3]
    if accent in accents and not rest and letter.isascii():
        dotless = rf"\{letter}" if letter in "ij" and accents[accent] not in "cd" else letter
        return rf"\{accents[accent]}{{{dotless}}}"
    return rf"\texttt{{{{[}}U+{ord(character):04X}{{]}}}}"


def number_text(value: Any, digits: int = _DIGITS) -> str:
    r"""A number with ``digits`` significant digits, as LaTeX for text and for formulas.

    Whole numbers keep all digits, in groups of three; tiny and huge ones are powers of ten;
    missing ones are a dash.
    """
    if is_missing(value):
        return MISSING_TEX
    number = float(value)
    if (number.is_integer() and abs(number) < 1e15) or 10 ** (digits - 1) <= abs(number) < 1e7:
        return _ensure_math(f"{round(number):,}".replace(",", r"\,"))
    mantissa, _, exponent = f"{number:.{digits}g}".partition("e")
    if exponent:
        mantissa += rf"\times10^{{{int(exponent)}}}"
    return _ensure_math(mantissa)


def numbers_with_interval(value: Any, low: Any, high: Any) -> tuple[str, str, str]:
    """A value and its bounds to the same decimal place: two digits of the interval's half width.

    Where that place is no use (whole numbers, no interval, a very narrow, wide or small one), each
    has four significant digits.
    """
    place = _decimals(low, high)
    is_whole = not any(is_missing(n) or float(n) % 1 for n in (value, low, high))
    if place is None or is_whole or is_missing(value) or abs(float(value)) >= 1e7:
        return number_text(value), number_text(low), number_text(high)
    first, second, third = (
        _ensure_math(f"{float(part):,.{place}f}".replace(",", r"\,")) for part in (value, low, high)
    )
    return first, second, third


def _decimals(low: Any, high: Any) -> int | None:
    if is_missing(low) or is_missing(high) or not float(low) < float(high):
        return None
    half = (float(high) - float(low)) / 2
    place = max(0, 1 - math.floor(math.log10(half)))
    return place if place <= _MOST_DECIMALS and half < 1e6 else None


def _ensure_math(text: str) -> str:
    """Digits and a point are the same in a formula and outside; all else needs one."""
    return text if text.replace(".", "").isdigit() else rf"\ensuremath{{{text}}}"
