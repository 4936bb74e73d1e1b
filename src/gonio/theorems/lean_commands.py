"""Splits the tokens of a Lean file into commands: where each declaration begins and ends.

Lean reserves the words that begin declarations, so outside brackets such a word begins a command
wherever it stands. Other command words can also be identifiers; they count at the beginning of a
line only. Syntax quotations hold code that is not declared here, and are stepped over.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from gonio.theorems.lean_lexer import Comment, Token, lex_lean

__all__ = ["DECLARING", "Command", "LeanFile", "split_lean"]

_NAMED = frozenset(
    ("theorem", "lemma", "def", "abbrev", "axiom", "opaque", "structure", "class", "inductive")
)
_NAMED_AT_LINE_START = frozenset(("coinductive", "irreducible_def", "proof_wanted"))
DECLARING = _NAMED | _NAMED_AT_LINE_START | {"instance", "example"}
_SCOPES = frozenset(("namespace", "section", "end", "mutual"))
_OPENING = frozenset(("open", "set_option"))  # also begin terms and tactics: `open A in ...`
_AT_LINE_START = frozenset(
    (
        *("variable", "universe", "include", "omit", "attribute", "export", "import", "prelude"),
        *("notation", "notation3", "infix", "infixl", "infixr", "prefix", "postfix", "macro"),
        *("macro_rules", "syntax", "declare_syntax_cat", "elab", "elab_rules", "simproc"),
        *("dsimproc", "initialize", "builtin_initialize", "alias", "run_cmd", "run_elab"),
        *("run_meta", "add_decl_doc", "library_note", "assert_not_exists", "unif_hint"),
        *("initialize_simps_projections", "suppress_compilation", "unsuppress_compilation"),
        *("register_option", "register_simp_attr", "declare_aesop_rule_sets", "module"),
    )
)
_MODIFIERS = frozenset(
    ("private", "protected", "noncomputable", "unsafe", "partial", "nonrec", "local", "scoped")
)
_SOFT_MODIFIERS = frozenset(("public", "meta"))  # words of the module system, else identifiers
_OPENERS = {"(": ")", "[": "]", "{": "}", "⟨": "⟩", "@[": "]", "#[": "]", "`(": ")", "`[": "]"}
_CLOSERS = frozenset(_OPENERS.values())
_QUOTATIONS = ("`(", "`[")
_BEGINNING = DECLARING | _SCOPES | _AT_LINE_START | {"#"}
_QUERIES = frozenset(("eval", "check", "print", "guard", "guard_msgs", "reduce", "synth"))
_STARTING = _BEGINNING | _OPENING | _MODIFIERS | _SOFT_MODIFIERS | {"@[", "deriving"}
_LOOK_AHEAD = 400  # tokens within which `open ... in` must show its `in`


@dataclass(frozen=True)
class Command:
    """A command as token positions: ``start <= head < stop``."""

    word: str  # the keyword; `deriving`, `#` and the like included
    start: int  # its first token: an attribute or a modifier, or the keyword itself
    head: int  # the keyword
    stop: int  # behind its last token


@dataclass
class LeanFile:
    """Tokens of a file with what was computed of them once."""

    text: str
    tokens: list[Token]
    comments: list[Comment]
    partner: dict[int, int] = field(default_factory=dict)  # opening token -> closing token

    def __post_init__(self) -> None:
        open_here: list[int] = []
        waiting = dict.fromkeys(_CLOSERS, 0)
        for position, token in enumerate(self.tokens):
            if token.kind != "sign":
                continue
            if token.text in _OPENERS:
                open_here.append(position)
                waiting[_OPENERS[token.text]] += 1
            elif waiting.get(token.text):
                while True:  # brackets left open inside are dropped
                    opener = open_here.pop()
                    closer = _OPENERS[self.tokens[opener].text]
                    waiting[closer] -= 1
                    if closer == token.text:
                        self.partner[opener] = position
                        break

    def begins_line(self, position: int) -> bool:
        """Whether a token is the first on its line."""
        if position == 0:
            return True
        return "\n" in self.text[self.tokens[position - 1].end : self.tokens[position].start]

    def is_at_margin(self, position: int) -> bool:
        """Whether a token stands at the very left."""
        start = self.tokens[position].start
        return start == 0 or self.text[start - 1] == "\n"

    def is_field(self, position: int) -> bool:
        """Whether a word is glued to a period before it, so that it is a name and no keyword."""
        if position == 0:
            return False
        before = self.tokens[position - 1]
        return before.text == "." and before.end == self.tokens[position].start

    def is_quotation(self, position: int) -> bool:
        """Whether a quotation, whose end is known, begins at a token."""
        return self.tokens[position].text in _QUOTATIONS and position in self.partner

    def top_level(self, start: int, stop: int) -> Iterator[int]:
        """Positions in a range that no bracket of the range encloses; brackets are left out."""
        position = start
        while position < stop:
            if position in self.partner and self.partner[position] < stop:
                position = self.partner[position] + 1
            else:
                yield position
                position += 1

    def spell(self, start: int, stop: int) -> str:
        """The tokens of a range with comments left out and white space as single spaces."""
        pieces: list[str] = []
        for position in range(start, stop):
            token = self.tokens[position]
            if position > start and self.tokens[position - 1].end < token.start:
                pieces.append(" ")
            pieces.append(token.text)
        return "".join(pieces)


@dataclass
class _Splitter:
    file: LeanFile
    failed_before: int = 0  # up to this token no command was found to begin
    is_local: dict[int, bool] = field(default_factory=dict)  # what is known of each `open`

    def heads(self) -> Iterator[tuple[int, int]]:
        """Start and keyword of each command."""
        tokens, brackets, position = self.file.tokens, 0, 0
        while position < len(tokens):
            token = tokens[position]
            if token.text in _STARTING and (not brackets or self.file.is_at_margin(position)):
                head = self._head(position)
                if head is not None:
                    yield position, head
                    brackets, position = 0, self._behind_keyword(head)
                    continue
            if self.file.is_quotation(position):
                position = self.file.partner[position]
            elif token.kind == "sign":
                if position in self.file.partner:
                    brackets += 1
                elif token.text in _CLOSERS:
                    brackets = max(0, brackets - 1)
            position += 1

    def _head(self, start: int) -> int | None:
        """Where the keyword of a command that starts here is; None if none does."""
        if start < self.failed_before:
            return None
        position = self._behind_modifiers(start)
        if position < len(self.file.tokens) and self._is_keyword(position, start):
            return position
        self.failed_before = position
        return None

    def _behind_modifiers(self, position: int) -> int:
        tokens = self.file.tokens
        while position < len(tokens):
            token = tokens[position]
            if token.text == "@[" and position in self.file.partner:
                position = self.file.partner[position] + 1
            elif token.text in _MODIFIERS and not self.file.is_field(position):
                position += 1
                if token.text == "scoped" and position in self.file.partner:
                    position = self.file.partner[position] + 1  # scoped[Name] notation ...
            elif token.text in _SOFT_MODIFIERS and self._modifies(position):
                position += 1
            else:
                break
        return position

    def _behind_keyword(self, head: int) -> int:
        """Past the second word of ``class inductive`` and ``deriving instance``, no commands."""
        word, following = self.file.tokens[head].text, self._next_text(head)
        if word == "class" and following in ("inductive", "abbrev"):
            return head + 2
        if word == "deriving":
            return head + (2 if following == "instance" else 3)
        return head + 1

    def _modifies(self, position: int) -> bool:
        following = position + 1
        return (
            self.file.begins_line(position)
            and following < len(self.file.tokens)
            and not self.file.begins_line(following)
            and self.file.tokens[following].text in _BEGINNING | _MODIFIERS | _SOFT_MODIFIERS
        )

    def _is_keyword(self, position: int, start: int) -> bool:
        tokens, file = self.file.tokens, self.file
        word = tokens[position].text
        if word == "#":  # also a notation for the size of a set
            return file.begins_line(start) and self._next_text(position) in _QUERIES
        if tokens[position].kind != "word" or file.is_field(position):
            return False
        begins = file.begins_line(start) or (start > 0 and tokens[start - 1].text == "in")
        if word in _NAMED or (word in _NAMED_AT_LINE_START and begins):
            return self._is_word(position + 1)
        if word in ("instance", "example") or word in _SCOPES:
            return True
        if word == "deriving":
            return self._next_text(position) == "instance" or (
                self._next_text(position) == "noncomputable"
                and self._next_text(position + 1) == "instance"
            )
        if word in _OPENING:
            return begins and not self._is_local(position)
        return word in _AT_LINE_START and begins

    def _is_word(self, position: int) -> bool:
        return position < len(self.file.tokens) and self.file.tokens[position].kind == "word"

    def _next_text(self, position: int) -> str:
        following = position + 1
        return self.file.tokens[following].text if following < len(self.file.tokens) else ""

    def _is_local(self, position: int) -> bool:
        """Whether ``open ... in`` or ``set_option ... in`` is part of a term or a tactic."""
        chain: list[int] = []  # `open A in open B in ...`: what follows the last one decides
        here: int | None = position
        while here is not None and here not in self.is_local:
            chain.append(here)
            here = self._behind_in(here)
            word = "" if here is None else self.file.tokens[here].text
            if word not in _OPENING:
                is_local = here is not None and word not in _BEGINNING
                break
        else:
            is_local = here is not None and self.is_local[here]
        self.is_local |= dict.fromkeys(chain, is_local)
        return is_local

    def _behind_in(self, position: int) -> int | None:
        """What the ``in`` of ``open ... in`` is followed by; None if there is no ``in``."""
        tokens = self.file.tokens
        for here in range(position + 1, min(len(tokens) - 1, position + _LOOK_AHEAD)):
            text = tokens[here].text
            if text == "in":
                behind = self._behind_modifiers(here + 1)
                return behind if behind < len(tokens) else None
            if text in _NAMED or text in _SCOPES or (text in _OPENING and here > position + 1):
                return None
        return None


def split_lean(text: str, label: str = "the text") -> tuple[LeanFile, list[Command]]:
    """Tokens and commands of a Lean file.

    Args:
        text: The whole file.
        label: What to call the file in errors.

    Raises:
        TheoremError: The text cannot be split into tokens.
    """
    source = lex_lean(text, label)
    file = LeanFile(text, source.tokens, source.comments)
    heads = list(_Splitter(file).heads())
    stops = [*(start for start, _ in heads), len(file.tokens)][1:]
    commands = [
        Command(file.tokens[head].text, start, head, stop)
        for (start, head), stop in zip(heads, stops, strict=True)
    ]
    return file, commands
