"""Where a Lean signature ends, and whether the statement in it says anything.

Notations are unknown to a reader of text, so a statement is taken apart only as far as quantifiers
before a comma, premises before an arrow and enclosing parentheses go.
"""

from typing import Literal, NamedTuple

from gonio.theorems.lean_commands import LeanFile

__all__ = ["Shape", "describe_statement", "statement_stop"]

Vacuity = Literal["", "true", "reflexive"]

_BINDING = frozenset(("let", "letI", "have", "haveI", "let_fun"))
_MATCHING = frozenset(("match", "fun", "λ", "nomatch"))
_ARROWS = ("→", "->")
_REACHING = frozenset(("∃", "∃!", "∀", "fun", "λ", "let", "have", "if"))  # over an arrow
_OR = "\N{LOGICAL OR}"
_CONNECTIVES = _REACHING | {*_ARROWS, "∧", _OR, "¬", "by"}
_BY_RFL = (("rfl",), ("by", "rfl"), (".", "rfl"), ("Iff.rfl",))


class Shape(NamedTuple):
    """What the tokens of a statement and of its proof show."""

    vacuity: Vacuity  # it concludes True, or relates a term to itself
    is_by_rfl: bool  # both sides are the same by definition


def statement_stop(file: LeanFile, start: int, stop: int, kind: str) -> int:
    """Where the body of a declaration begins: at ``:=``, ``where`` or the first ``| pattern =>``.

    Args:
        file: The file.
        start: The token behind the name.
        stop: Behind the last token of the declaration.
        kind: Its keyword.

    Returns:
        A token position; ``stop`` if there is no body.
    """
    if kind == "axiom":
        return stop
    tokens = file.tokens
    bindings, may_match, no_equation_before = 0, True, -1
    for position in file.top_level(start, stop):
        text = tokens[position].text
        if text == ":=":
            if not bindings:
                return position
            bindings -= 1
        elif text in ("where", "deriving"):
            return position
        elif text in _BINDING:
            bindings += 1
        elif text in _MATCHING:
            may_match = False
        elif text == "|" and may_match and _is_spaced(file, position):
            if "inductive" in kind:
                return position
            if position >= no_equation_before:
                equation, end = _has_arrow(file, position, stop)
                if equation:
                    return position
                no_equation_before = end
    return stop


def _is_spaced(file: LeanFile, position: int) -> bool:
    """Whether a bar has space around it; those of an absolute value are written without."""
    before, bar, behind = position - 1, file.tokens[position], position + 1
    return (
        behind < len(file.tokens)
        and file.tokens[before].end < bar.start
        and bar.end < file.tokens[behind].start
    )


def _has_arrow(file: LeanFile, start: int, stop: int) -> tuple[bool, int]:
    """Whether ``=>`` comes before ``:=`` outside brackets, and where the first of them stands."""
    for position in file.top_level(start, stop):
        text = file.tokens[position].text
        if text in ("=>", ":="):
            return text == "=>", position
    return False, stop


def describe_statement(file: LeanFile, start: int, body: int, stop: int) -> Shape:
    """What can be seen of a statement without understanding it.

    Args:
        file: The file.
        start: The token behind the name.
        body: Where the body begins.
        stop: Behind the last token of the declaration.
    """
    proof = tuple(token.text for token in file.tokens[body + 1 : min(stop, body + 4)])
    is_by_rfl = proof[: stop - body - 1] in _BY_RFL
    colon = next((p for p in file.top_level(start, body) if file.tokens[p].text == ":"), None)
    if colon is None:
        return Shape("", is_by_rfl)
    return Shape(_vacuity(file, colon + 1, body), is_by_rfl)


def _vacuity(file: LeanFile, start: int, stop: int) -> Vacuity:
    start, stop = _conclusion(file, start, stop)
    if stop == start + 1 and file.tokens[start].text == "True":
        return "true"
    signs = [p for p in file.top_level(start, stop) if file.tokens[p].text in ("=", "↔")]
    if len(signs) != 1 or any(
        file.tokens[p].text in _CONNECTIVES for p in file.top_level(start, stop)
    ):
        return ""
    left = file.tokens[start : signs[0]]
    right = file.tokens[signs[0] + 1 : stop]
    is_same = [token.text for token in left] == [token.text for token in right]
    return "reflexive" if left and is_same else ""


def _conclusion(file: LeanFile, start: int, stop: int) -> tuple[int, int]:
    """The part of a proposition behind its quantifiers and premises."""
    has_iff = _has_iff(file, start, stop)
    while start < stop:
        if file.partner.get(start) == stop - 1 and file.tokens[start].text == "(":
            start, stop = start + 1, stop - 1
            has_iff = _has_iff(file, start, stop)
            continue
        behind = _behind_premise(file, start, stop, has_iff)
        if behind is None:
            break
        start = behind
    return start, stop


def _has_iff(file: LeanFile, start: int, stop: int) -> bool:
    return any(file.tokens[position].text == "↔" for position in file.top_level(start, stop))


def _behind_premise(file: LeanFile, start: int, stop: int, has_iff: bool) -> int | None:
    """Behind the first quantifier or premise, None if there is none to be taken off."""
    if file.tokens[start].text == "∀":
        commas = (p for p in file.top_level(start, stop) if file.tokens[p].text == ",")
        return next((comma + 1 for comma in commas), None)
    if has_iff:  # it binds weaker than an arrow
        return None
    for position in file.top_level(start, stop):
        text = file.tokens[position].text
        if text in _ARROWS:
            return position + 1
        if text in _REACHING:
            return None
    return None
