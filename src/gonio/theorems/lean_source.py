"""Reads Lean 4 source text: what one file declares, and what its text shows of each proof.

Text shows holes (``sorry`` and what stands for it), proofs that trust the compiler, statements that
say nothing, and notes of the authors. It does not show what a proof rests on: a lemma used may be
unproved, a notation or a macro may hide a hole, and the text may not even compile.

A hole is ``sorry`` as a token, or ``sorryAx``, the axiom behind it; other names that contain the
word, such as ``sorry_free``, are none. ``admit`` and ``stop`` are holes where a tactic stands.
"""

import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field

from gonio.theorems.lean_commands import DECLARING, Command, LeanFile, split_lean
from gonio.theorems.lean_lexer import Comment
from gonio.theorems.lean_statement import describe_statement, statement_stop

__all__ = ["LeanDeclaration", "LeanScan", "scan_lean"]

_UNNAMED_KINDS = ("instance", "example")
_CONTEXT = ("variable", "include", "omit")
_SWITCHES = frozenset(
    ("debug.skipKernelTC", "debug.byAsSorry", "debug.proofAsSorry", "debug.terminalTacticsAsSorry")
)
_BEFORE_TACTIC = frozenset(("by", ";", "<;>", "·", ".", "=>", "(", "{", "|", "then", "else", "do"))
_BEFORE_TACTIC_WORDS = _BEFORE_TACTIC | {"all_goals", "any_goals", "try", "repeat", "first"}
_NOT_BEHIND_TACTIC = (":=", ":", ",", "=>")
_COMPILER = frozenset(("native_decide", "Lean.ofReduceBool", "Lean.trustCompiler"))
_WEAKENING = re.compile(r"\bWEAKENING\b.*?(?=\n\s*(?:--)?\s*\n|-/|\Z)", re.DOTALL)
_COMMENT_MARKS = re.compile(r"^\s*--", re.MULTILINE)


@dataclass(frozen=True)
class LeanDeclaration:
    """A declaration as its text shows it."""

    kind: str  # theorem, lemma, def, ...
    name: str  # as written; `instance#2` for the second unnamed instance of the file
    full_name: str  # with the namespaces around it
    line: int  # of the keyword, from 1
    end_line: int
    statement: str  # the signature: what stands between the name and the body
    is_private: bool
    is_named: bool
    holes: tuple[str, ...]  # `sorry`, `admit`, ...: each word once
    trusts_compiler: bool
    vacuity: str  # "", "true" or "reflexive"
    is_by_rfl: bool
    weakening: str  # the note of the authors, "" if there is none
    context: tuple[str, ...]  # `variable` commands in force, whose binders the statement may use


@dataclass(frozen=True)
class LeanScan:
    """What the text of one file shows."""

    declarations: tuple[LeanDeclaration, ...]
    findings: tuple[str, ...]  # "line N: ..." for holes outside declarations, switched-off checks


@dataclass
class _Scope:
    kind: str  # namespace, section or mutual
    name: str
    context: tuple[str, ...]


@dataclass
class _Reader:
    file: LeanFile
    commands: list[Command]
    scopes: list[_Scope] = field(default_factory=lambda: [_Scope("file", "", ())])
    declarations: list[LeanDeclaration] = field(default_factory=list)
    findings: list[tuple[int, str]] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)  # `variable ... in`: for what follows only

    def __post_init__(self) -> None:
        self.line_starts = [0, *(m.end() for m in re.finditer("\n", self.file.text))]
        self.counts = dict.fromkeys(_UNNAMED_KINDS, 0)
        self.notes = _comments_by_command(self.file, self.commands, self.line_of)

    def line_of(self, offset: int) -> int:
        return bisect_right(self.line_starts, offset)

    def read(self) -> LeanScan:
        tokens = self.file.tokens
        for token in tokens:
            if token.text in _SWITCHES:
                self._find(token.start, f"{token.text} turns a check off")
        if self.commands:
            self._note_holes(0, self.commands[0].start, "before the first command")
        for number, command in enumerate(self.commands):
            if command.word in DECLARING:
                self._declare(number, command)
            elif command.word in ("namespace", "section", "mutual"):
                self._open(command)
            elif command.word == "end":
                self._close(command)
            else:
                if command.word in _CONTEXT:
                    self._extend_context(command)
                if not _is_chained(self.file, command):
                    self.pending.clear()
                self._note_holes(command.start, command.stop, f"in `{command.word}`")
        ordered = [f"line {line}: {what}" for line, what in sorted(self.findings)]
        return LeanScan(tuple(self.declarations), tuple(ordered))

    def _find(self, offset: int, what: str) -> None:
        self.findings.append((self.line_of(offset), what))

    def _note_holes(self, start: int, stop: int, where: str) -> None:
        """Report holes outside declarations: a macro or a notation may spread them."""
        for position in range(start, stop):
            if _is_sorry(self.file, position):
                self._find(self.file.tokens[position].start, f"sorry {where}")

    def _name_parts(self, command: Command) -> list[str]:
        """The name behind ``namespace``, ``section`` or ``end``, if it is on the same line."""
        behind = command.head + 1
        if behind >= command.stop or self.file.tokens[behind].kind != "word":
            return []
        if self.file.begins_line(behind):
            return []
        return _split_name(self.file.tokens[behind].text)

    def _open(self, command: Command) -> None:
        context = self.scopes[-1].context
        for part in self._name_parts(command) or [""]:
            self.scopes.append(_Scope(command.word, part, context))

    def _close(self, command: Command) -> None:
        parts = self._name_parts(command)
        inner = self.scopes[-max(1, len(parts)) :]
        if self.scopes[0] not in inner and [s.name for s in inner] == (parts or [""]):
            del self.scopes[-len(inner) :]
            return
        what = " ".join(["end", ".".join(parts)]).strip()
        self._find(self.file.tokens[command.head].start, f"`{what}` closes nothing that is open")

    def _extend_context(self, command: Command) -> None:
        text = self.file.spell(command.head, command.stop)
        if text.endswith(" in"):
            self.pending.append(text.removesuffix(" in"))
        else:
            self.scopes[-1].context += (text,)

    def _declare(self, number: int, command: Command) -> None:
        tokens, kind = self.file.tokens, command.word
        behind = command.head + 1
        named = _name_position(self.file, command)
        if named is None:
            self.counts[kind] += 1
            name = f"{kind}#{self.counts[kind]}"
        else:
            name, behind = tokens[named].text, named + 1
            if named > command.head + 1 and kind == "class":
                kind = f"{kind} {tokens[named - 1].text}"
        stop = statement_stop(self.file, behind, command.stop, kind)
        last = tokens[command.stop - 1]
        modifiers = {tokens[p].text for p in self.file.top_level(command.start, command.head)}
        shape = describe_statement(self.file, behind, stop, command.stop)
        self.declarations.append(
            LeanDeclaration(
                kind=kind,
                name=name,
                full_name=self._full_name(name),
                line=self.line_of(tokens[command.head].start),
                end_line=self.line_of(last.end - 1),
                statement=self.file.spell(behind, stop),
                is_private="private" in modifiers,
                is_named=named is not None,
                holes=self._holes(behind, stop, command),
                trusts_compiler=_trusts_compiler(self.file, behind, command.stop),
                vacuity=shape.vacuity,
                is_by_rfl=shape.is_by_rfl,
                weakening=_weakening(self.file, self.notes.get(number, [])),
                context=(*self.scopes[-1].context, *self.pending),
            )
        )
        self.pending.clear()

    def _full_name(self, name: str) -> str:
        if name.startswith("_root_."):
            return name.removeprefix("_root_.")
        path = [scope.name for scope in self.scopes if scope.kind == "namespace"]
        return ".".join([*path, name])

    def _holes(self, behind: int, body: int, command: Command) -> tuple[str, ...]:
        file, has_tactics, position = self.file, False, behind
        found: dict[str, None] = {}  # in order of appearance
        while position < command.stop:
            text = file.tokens[position].text
            if file.is_quotation(position):
                self._note_holes(position, file.partner[position], "in a quotation")
                position = file.partner[position]
            elif text == "by":
                has_tactics = True
            elif _is_sorry(file, position) or (
                text in ("admit", "stop")
                and has_tactics
                and position >= body
                and _is_tactic(file, position, command.stop)
            ):
                found[text] = None
            position += 1
        if command.word == "proof_wanted":
            found["proof_wanted"] = None
        return tuple(found)


def _split_name(name: str) -> list[str]:
    return re.findall(r"«[^»]*»|[^.]+", name)


def _name_position(file: LeanFile, command: Command) -> int | None:
    """Where the declared name stands, None for an instance or an example without one."""
    position = command.head + 1
    if command.word == "example":
        return None
    if command.word == "instance" and position in file.partner:
        # `instance (priority := low) name`: only then can a name follow a bracket
        if file.tokens[position].text != "(" or file.tokens[position + 1].text != "priority":
            return None
        position = file.partner[position] + 1
    elif command.word == "class" and file.tokens[position].text in ("inductive", "abbrev"):
        position += 1
    if position < command.stop and file.tokens[position].kind == "word":
        return position
    return None


def _is_sorry(file: LeanFile, position: int) -> bool:
    token = file.tokens[position]
    if token.text in ("sorryAx", "_root_.sorryAx"):
        return token.kind == "word"
    if token.text != "sorry" or token.kind != "word":
        return False
    # `x.1.sorry` is a field; `.sorry` after a space may be a bullet, and is taken for a hole
    return not (file.is_field(position) and _is_glued(file, position - 1))


def _is_glued(file: LeanFile, position: int) -> bool:
    return position > 0 and file.tokens[position - 1].end == file.tokens[position].start


def _is_tactic(file: LeanFile, position: int, stop: int) -> bool:
    """Whether ``admit`` or ``stop``, which can also be names, stands where a tactic does."""
    token = file.tokens[position]
    following = file.tokens[position + 1].text if position + 1 < stop else ""
    if token.kind != "word" or following in _NOT_BEHIND_TACTIC or file.is_field(position):
        return False
    return file.begins_line(position) or file.tokens[position - 1].text in _BEFORE_TACTIC_WORDS


def _trusts_compiler(file: LeanFile, start: int, stop: int) -> bool:
    for position in range(start, stop):
        token = file.tokens[position]
        if token.kind != "word":
            continue
        if token.text in _COMPILER:
            return True
        before = file.tokens[position - 1].text
        if token.text == "native" and before == "+":  # decide +native
            return True
    return False


def _weakening(file: LeanFile, comments: list[Comment]) -> str:
    """The paragraph that begins with WEAKENING, of one comment or of adjoining line comments."""
    pieces: list[str] = []
    for comment, before in zip(comments, [None, *comments], strict=False):
        gap = file.text[before.end : comment.start] if before else ""
        pieces.append("\n" if gap.strip(" ") == "\n" else "\n\n")
        pieces.append(comment.text)
    match = _WEAKENING.search("".join(pieces))
    return " ".join(_COMMENT_MARKS.sub("", match.group()).split()) if match else ""


def _comments_by_command(
    file: LeanFile, commands: list[Command], line_of: Callable[[int], int]
) -> dict[int, list[Comment]]:
    """Which command each comment belongs to, section headings (``/-! -/``) left out.

    A comment between two commands belongs to the one before if it stands on its last line or is
    indented more than the one after; else to the one after, past any ``... in`` between.
    """

    def column(offset: int) -> int:
        return offset - (file.text.rfind("\n", 0, offset) + 1)

    def is_of_previous(comment: Comment, number: int) -> bool:
        if number == 0 or comment.text.startswith("/--"):
            return False
        if line_of(comment.start) == line_of(ends[number - 1] - 1):
            return True
        margin = column(starts[number]) if number < len(commands) else 0
        return column(comment.start) > margin

    starts = [file.tokens[command.start].start for command in commands]
    ends = [file.tokens[command.stop - 1].end for command in commands]
    targets = list(range(len(commands) + 1))  # past any `... in`
    for number in reversed(range(len(commands))):
        if _is_chained(file, commands[number]):
            targets[number] = targets[number + 1]
    owners: dict[int, list[Comment]] = {}
    number = 0  # the first command that ends behind the comment
    for comment in file.comments:
        if comment.text.startswith("/-!"):
            continue
        while number < len(commands) and ends[number] <= comment.start:
            number += 1
        owner = number
        if number == len(commands) or comment.start < starts[number]:
            if is_of_previous(comment, number):
                owner -= 1
            else:
                owner = targets[number]
        owners.setdefault(owner, []).append(comment)
    return owners


def _is_chained(file: LeanFile, command: Command) -> bool:
    """Whether a command is of the form ``... in``, for the command behind it."""
    return command.word not in DECLARING and file.tokens[command.stop - 1].text == "in"


def scan_lean(text: str, label: str = "the text") -> LeanScan:
    """Scan the text of one ``.lean`` file; nothing is executed.

    Args:
        text: The whole file.
        label: What to call the file in errors.

    Returns:
        Declarations in order of appearance, and what was found to distrust.

    Raises:
        TheoremError: A comment or a string is not closed, or a comment ends that never began.
    """
    return _Reader(*split_lean(text, label)).read()
