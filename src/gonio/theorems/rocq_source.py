"""Reads Rocq source text: where its theorems stand, and what in it could make a proof worthless.

The prover is asked what a theorem rests on (:mod:`gonio.theorems.rocq`); this module adds what only
the text shows: the line of each theorem, proofs given up, axioms of the project's own, and switches
that turn a check of the kernel off. It is deliberately strict: a construct it does not need to
accept is reported rather than understood.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["SourceScan", "SourceTheorem", "scan_source", "strip_comments"]

_PREFIX = (
    r"(?:(?:#\[[^\]]*\]|(?:Time|Fail|Succeed|Local|Global|Program|Polymorphic|Monomorphic|Private"
    r"|Cumulative|NonCumulative)\b|Timeout\s+\d+\b)\s*)*"
)
_NAME = r"[^\W\d][\w']*"
_DECLARATION = re.compile(
    _PREFIX + r"(?P<word>Theorem|Lemma|Fact|Remark|Corollary|Proposition|Property|Example"
    r"|Definition|Fixpoint|CoFixpoint|Instance|Let)\s+(?P<name>" + _NAME + ")"
)
_ASSUMPTION = re.compile(
    _PREFIX + r"(?P<word>Axioms?|Parameters?|Conjectures?|Primitive|Declare\s+Module"
    r"|Variables?|Hypothes[ie]s|Context)\b(?P<rest>.*)",
    re.DOTALL,
)
_SECTION_WORDS = ("Variable", "Variables", "Hypothesis", "Hypotheses", "Context")
_SCOPE = re.compile(
    _PREFIX + r"(?P<word>Section|Module\s+Type|Module)\s+(?:Import\s+|Export\s+)?"
    r"(?P<name>" + _NAME + ")(?P<rest>.*)",
    re.DOTALL,
)
_END = re.compile(r"End\s+(?P<name>" + _NAME + r")\s*\Z")
_UNSAFE = re.compile(
    r"\bUnset\s+(?:Guard|Positivity|Universe)\s+Checking\b|\bbypass_check\b|\bDefinitional\s+UIP\b"
    r"|\A" + _PREFIX + r"(?:Load|Declare\s+ML\s+Module|Add\s+(?:Rec\s+)?LoadPath|Drop)\b"
)
_ADMIT = re.compile(r"\A(?:Admitted\Z|Admit\s+Obligations\b)")
_IMPORT = re.compile(
    r"\A(?:From\s|Require\s|Import\s|Export\s|(?:Local\s+|Global\s+)?Open\s+Scope\s)"
)


@dataclass(frozen=True)
class SourceTheorem:
    """A ``Theorem`` as the text declares it."""

    name: str
    qualified: str  # within its file: the modules around it, then the name
    line: int  # from 1


@dataclass(frozen=True)
class SourceScan:
    """What the text of one file shows."""

    theorems: tuple[SourceTheorem, ...]
    admitted: frozenset[str]  # declarations whose proof is given up
    assumed: frozenset[str]  # names the file assumes outside any section
    findings: tuple[str, ...]  # "line N: ..." for axioms and switched-off checks
    imports: tuple[str, ...]  # sentences that import modules or open scopes, without the period
    modules: frozenset[str]  # modules the file itself declares


def strip_comments(text: str) -> str:
    """The text with comments and the insides of strings blanked; line numbers stay.

    Comments nest, and strings inside comments hide comment marks, as in the prover.
    """
    kept: list[str] = []
    depth, in_string, position = 0, False, 0
    while position < len(text):
        pair, char = text[position : position + 2], text[position]
        if not in_string and pair == "(*":
            depth, position = depth + 1, position + 2
            kept.append("  ")
            continue
        if not in_string and depth and pair == "*)":
            depth, position = depth - 1, position + 2
            kept.append("  ")
            continue
        if char == '"':
            in_string = not in_string
            kept.append(" " if depth else char)
        else:
            kept.append(char if char == "\n" or not (depth or in_string) else " ")
        position += 1
    return "".join(kept)


def _sentences(code: str) -> Iterator[tuple[int, str]]:
    """Each sentence (up to a period before white space) with the line it starts on."""
    start = 0
    for match in re.finditer(r"\.(?=\s|\Z)", code):
        raw = code[start : match.start()]
        body = raw.lstrip(" \t\r\n{}-+*")
        line = code.count("\n", 0, start + len(raw) - len(body)) + 1
        yield line, body.rstrip()
        start = match.end()


def _assumed_names(rest: str) -> list[str]:
    groups = re.findall(r"\(([^():]*):", rest) if rest.lstrip().startswith("(") else []
    return re.findall(_NAME, " ".join(groups) or rest.split(":", 1)[0])


def scan_source(text: str) -> SourceScan:
    """Scan the text of one ``.v`` file.

    Args:
        text: The whole file.

    Returns:
        Theorems in order of appearance, and what was found to distrust.
    """
    scanner = _Scanner()
    for line, sentence in _sentences(strip_comments(text)):
        scanner.read(line, sentence)
    return SourceScan(
        theorems=tuple(scanner.theorems),
        admitted=frozenset(scanner.admitted),
        assumed=frozenset(scanner.assumed),
        findings=tuple(scanner.findings),
        imports=tuple(scanner.imports),
        modules=frozenset(scanner.modules),
    )


@dataclass
class _Scanner:
    """What was seen up to a sentence, and which sections and modules are open there."""

    theorems: list[SourceTheorem] = field(default_factory=list)
    admitted: set[str] = field(default_factory=set)
    assumed: set[str] = field(default_factory=set)
    findings: list[str] = field(default_factory=list)
    imports: list[str] = field(default_factory=list)
    modules: set[str] = field(default_factory=set)
    scopes: list[tuple[bool, str]] = field(default_factory=list)  # (is a section, name)
    current: str = "Unnamed_thm"  # what a proof that follows proves; the prover's name for a Goal

    def read(self, line: int, sentence: str) -> None:
        """Take in one sentence, which starts on a line."""
        if unsafe := _UNSAFE.search(sentence):
            self.findings.append(f"line {line}: {' '.join(unsafe.group().split())}")
        if _ADMIT.match(sentence):
            self.admitted.add(self.current)
        elif _IMPORT.match(sentence):
            self.imports.append(" ".join(sentence.split()))
        elif end := _END.match(sentence):
            if self.scopes and self.scopes[-1][1] == end["name"]:
                self.scopes.pop()
        elif scope := _SCOPE.match(sentence):
            self._open(scope)
        elif assumption := _ASSUMPTION.match(sentence):
            self._assume(line, assumption)
        elif declared := _DECLARATION.match(sentence):
            self.current = declared["name"]
            if declared["word"] == "Theorem":
                path = [name for is_section, name in self.scopes if not is_section]
                qualified = ".".join([*path, self.current])
                self.theorems.append(SourceTheorem(self.current, qualified, line))

    def _open(self, scope: re.Match[str]) -> None:
        is_section = scope["word"] == "Section"
        if not is_section:
            self.modules.add(scope["name"])
        if is_section or ":=" not in scope["rest"]:  # "Module X := Y" opens nothing
            self.scopes.append((is_section, scope["name"]))

    def _assume(self, line: int, assumption: re.Match[str]) -> None:
        word = " ".join(assumption["word"].split())
        if word in _SECTION_WORDS and any(is_section for is_section, _ in self.scopes):
            return  # a premise of what the section proves
        names = _assumed_names(assumption["rest"])
        self.assumed.update(names)
        if word == "Declare Module":
            self.modules.update(names)
        self.findings.append(f"line {line}: {word} {' '.join(names)}")
