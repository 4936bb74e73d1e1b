"""Messages about files that others wrote: short, on one line, and without control characters."""

from __future__ import annotations

from reprlib import Repr

__all__ = ["one_line", "shown"]

_LINE_LIMIT = 240  # characters; a tensor name or a library's message has no bound of its own

_REPR = Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 60
_REPR.maxlevel = 3


def one_line(text: object, limit: int = _LINE_LIMIT) -> str:
    """Text of a file or a library as part of one line of a message.

    Args:
        text: Anything with a ``str``.
        limit: Characters kept, about; the middle of longer text is left out.

    Returns:
        The text with line breaks, control characters and lone surrogates escaped.
    """
    line = _shortened(str(text), limit)
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return _shortened(line, limit)


def shown(value: object) -> str:
    """A value read from JSON as ``repr`` shows it, shortened in length and depth."""
    return one_line(_REPR.repr(value))


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit // 2]} ... {text[-(limit // 2) :]}"
