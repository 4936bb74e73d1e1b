"""Splits Lean 4 source text into tokens and comments, without a Lean toolchain.

The rules are those of Lean's own tokenizer where they decide what is code: comments nest, doc
comments are comments, strings may be raw or interpolated (the braces of ``s!"{n}"`` hold code),
a quote may start a character or end an identifier. Notations may add tokens a lexer cannot know;
everything unknown becomes one token per character, which is enough to find declarations.
"""

import re
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from gonio.errors import TheoremError

__all__ = ["Comment", "LeanTokens", "Token", "lex_lean"]

Kind = Literal["word", "text", "sign"]

_FIRST = (
    "A-Za-z_\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u017f\u0391-\u039f\u03a1\u03a2\u03a4-\u03a9"
    "\u03b1-\u03ba\u03bc-\u03fb\u1f00-\u1ffe\u2100-\u214f\U0001d49c-\U0001d59f"
)  # Greek without lambda, Pi and Sigma, which bind
_REST = _FIRST + "0-9'!?\u2080-\u2089\u2090-\u209c\u1d62-\u1d6a\u2c7c"
_PART = rf"(?:«[^«»\n]*+»|[{_FIRST}][{_REST}]*+)"
_WORD = rf"{_PART}(?:\.{_PART})*+"
_TOKEN = re.compile(
    rf"""(?P<space>\s++)
    | (?P<line>--[^\n]*+)
    | (?P<block>/-[-!]?)
    | (?P<stray>-/)
    | (?P<raw>r(?P<hashes>\#*+)")
    | (?P<text>``?{_WORD}
        | '(?:\\(?:x[0-9a-fA-F]{{2}}|u[0-9a-fA-F]{{4}}|[^\n])|[^'\\\n])')
    | (?P<quote>")
    | (?P<word>{_WORD})
    | (?P<number>0[xX][0-9a-fA-F_]+|0[bB][01_]+|\d[\d_]*+(?:\.\d++)?(?:[eE][+-]?\d++)?)
    | (?P<sign>:=|=>|@\[|\#\[|`[(\[]|<;>|::|\|>|<\|>?|\|\|+|==|&&|<-|->|''|\.\.+|.)
    """,
    re.VERBOSE | re.DOTALL,
)
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_PIECE = re.compile(r'(?:[^"\\{]|\\.)*+["{]', re.DOTALL)
_COMMENT_MARK = re.compile(r"/-|-/")
_INTERPOLATING = frozenset(
    ("s!", "m!", "f!", "throwError", "logInfo", "logWarning", "logError", "dbg_trace")
)


class Token(NamedTuple):
    """A piece of code; ``text`` tokens are literals, whose content is no code."""

    kind: Kind
    text: str
    start: int  # offset into the file

    @property
    def end(self) -> int:
        """Offset behind the token."""
        return self.start + len(self.text)


class Comment(NamedTuple):
    """A comment with its marks."""

    text: str
    start: int  # offset into the file

    @property
    def end(self) -> int:
        """Offset behind the comment."""
        return self.start + len(self.text)


@dataclass(frozen=True)
class LeanTokens:
    """What the text of one file is made of."""

    tokens: list[Token]
    comments: list[Comment]


@dataclass
class _Lexer:
    text: str
    label: str
    position: int = 0
    tokens: list[Token] = field(default_factory=list)
    comments: list[Comment] = field(default_factory=list)
    holes: list[int] = field(default_factory=list)  # open braces in each interpolation around here

    def run(self) -> LeanTokens:
        while match := _TOKEN.match(self.text, self.position):
            self.position = match.end()
            kind, start = match.lastgroup, match.start()
            if kind in ("hashes", "raw"):
                self._raw_string(match)
            elif kind == "line":
                self.comments.append(Comment(match.group(), start))
            elif kind == "block":
                self._block_comment(match)
            elif kind == "quote":
                self._string(start)
            elif kind == "stray":
                raise self._error(start, "a comment ends (-/) that never began (/-)")
            elif kind == "word":
                self.tokens.append(Token("word", match.group(), start))
            elif kind in ("text", "number"):
                self.tokens.append(Token("text", match.group(), start))
            elif kind == "sign":
                self._sign(match.group(), start)
        if self.holes:
            raise self._error(len(self.text), "the file ends inside an interpolated string")
        return LeanTokens(self.tokens, self.comments)

    def _error(self, position: int, what: str) -> TheoremError:
        line = self.text.count("\n", 0, position) + 1
        return TheoremError(f"not readable as Lean: {self.label}, line {line}: {what}")

    def _block_comment(self, opening: re.Match[str]) -> None:
        depth = 1
        while depth:
            mark = _COMMENT_MARK.search(self.text, self.position)
            if mark is None:
                raise self._error(opening.start(), "a comment (/-) is never closed (-/)")
            depth += 1 if mark.group() == "/-" else -1
            self.position = mark.end()
        self.comments.append(Comment(self.text[opening.start() : self.position], opening.start()))

    def _raw_string(self, opening: re.Match[str]) -> None:
        closing = '"' + opening["hashes"]
        end = self.text.find(closing, self.position)
        if end < 0:
            raise self._error(opening.start(), "a raw string is never closed")
        self._literal(opening.start(), end + len(closing))

    def _string(self, start: int) -> None:
        if self.tokens and self.tokens[-1].text in _INTERPOLATING:
            self._piece(start)
            return
        match = _STRING.match(self.text, start)
        if match is None:
            raise self._error(start, "a string is never closed")
        self._literal(start, match.end())

    def _piece(self, start: int) -> None:
        """Text of an interpolated string, up to its end or to the next brace."""
        match = _PIECE.match(self.text, start + 1)
        if match is None:
            raise self._error(start, "a string is never closed")
        if match.group().endswith("{"):
            self.holes.append(0)
        self._literal(start, match.end())

    def _literal(self, start: int, end: int) -> None:
        self.tokens.append(Token("text", self.text[start:end], start))
        self.position = end

    def _sign(self, sign: str, start: int) -> None:
        if self.holes:
            if sign == "{":
                self.holes[-1] += 1
            elif sign == "}":
                self.holes[-1] -= 1
                if self.holes[-1] < 0:
                    self.holes.pop()
                    self._piece(start)
                    return
        self.tokens.append(Token("sign", sign, start))


def lex_lean(text: str, label: str = "the text") -> LeanTokens:
    """Tokens and comments of a Lean file, in order.

    Args:
        text: The whole file.
        label: What to call the file in errors.

    Raises:
        TheoremError: A comment or a string is not closed, or a comment ends that never began.
    """
    return _Lexer(text, label).run()
