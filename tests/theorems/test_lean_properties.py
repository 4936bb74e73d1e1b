"""Random Lean-like files whose declarations are known are read back exactly."""

# ruff: noqa: RUF001  (Lean is written with Greek and double-struck letters)

from contextlib import suppress
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from gonio.errors import TheoremError
from gonio.theorems.lean_source import LeanDeclaration, scan_lean

NAMES = st.sampled_from(
    ("a", "b'", "foo_bar", "αβ", "x₁", "sorry_free", "«weird name»", "«theorem».c", "A.b", "get!")
)
SPACES = st.sampled_from(("A", "B.C", "«name space»", "Z'"))
# What a comment, a string or a quotation may hold without declaring anything.
DECOYS = st.lists(
    st.sampled_from(
        ("theorem evil : True := sorry", "sorry", "admit", "end", "namespace X", "section", "' ( [",
         "axiom evil : False", "⟨ ) ]", "native_decide", ":=", "| 0 => sorry", "«", "mutual")
    ),
    max_size=3,
).map(" ".join)  # fmt: skip
COMMENTS = st.recursive(
    DECOYS.map("/- {} -/".format) | DECOYS.map("-- {}\n".format),
    lambda inner: st.lists(inner, max_size=2).map(lambda parts: f"/- {' '.join(parts)} -/"),
    max_leaves=4,
)
STRINGS = st.one_of(
    DECOYS.map('"{} \\" /- -- {{"'.format),
    DECOYS.map('r#"{} " \\"#'.format),
    DECOYS.map('s!"{{f "{0}"}} \\{{ {0}"'.format),
    st.sampled_from(("'\"'", "'\\''", "`sorry", "``theorem.foo", "f⁻¹' s'")),
)
GAPS = st.one_of(st.just(" "), st.just("\n  "), COMMENTS.map(" {}\n  ".format))
# Proofs as tokens, and the holes in them.
PROOFS = st.sampled_from(
    (
        (":= h", ()),
        (":= by simp [ f , g ]", ()),
        (":= sorry", ("sorry",)),
        (":= by exact ( f sorry )", ("sorry",)),
        (":= by constructor <;> admit", ("admit",)),
        (":= by open A in simp", ()),
        (":= sorry_free .trans h.sorry", ()),
        (":= fun | 0 => h | n => sorryAx", ("sorryAx",)),
        ("| 0 => h | n + 1 => g where g := h", ()),
        (":= `(theorem evil : sorry )", ()),
    )
)
STATEMENTS = st.sampled_from(
    (
        ": P",
        "( n : Nat ) : n < n + 1",
        ": |x| ≤ |y|",
        ": let z := 1 ; z = 1",
        ".{u, v} { α : Type u } [ Foo α ] : ∀ x ∈ s , ∃ y , R x y",
        ": ( f <| fun x => x ) ⁻¹ = g",
    )
)
KINDS = st.sampled_from(("theorem", "lemma", "def", "abbrev"))
PREFIXES = st.sampled_from(
    ("", "@[simp]", "private", "@[to_additive (attr := simp) foo] protected noncomputable",
     "open A B in", "set_option pp.all true in @[local instance]", "omit [Foo α] in")
)  # fmt: skip
NOISE = st.sampled_from(
    (
        'macro "m" : command => `(theorem evil : True := trivial)',
        "variable {α : Type*} [Foo α]",
        "open scoped Foo",
        "deriving instance Repr for Foo",
        'notation "theorem" x => f x',
        "attribute [instance] foo",
        "#check (theorem_like : Nat)",
        "set_option autoImplicit false",
    )
)


@dataclass
class Written:
    """A text as it grows, and what it declares."""

    text: str = ""
    path: list[str] = field(default_factory=list)
    expected: list[tuple[object, ...]] = field(default_factory=list)


def write_declaration(data: st.DataObject, out: Written, indent: str) -> None:
    prefix, kind, name = (data.draw(choices) for choices in (PREFIXES, KINDS, NAMES))
    statement, string = data.draw(STATEMENTS), data.draw(STRINGS)
    proof, holes = data.draw(PROOFS)
    tokens = [*statement.split(" "), *proof.split(" "), "|>.f", string]
    out.text += indent + (f"{prefix} " if prefix else "")
    line = out.text.count("\n") + 1
    out.text += f"{kind} {name}"
    for number, token in enumerate(tokens):
        is_tight = number == 0 and token.startswith(".{")
        gap = "" if is_tight else data.draw(GAPS)
        # a gap may not begin the line of `open ... in`, which would be a command there
        out.text += (" " if token in ("open", "A", "in") else gap) + token
    full = ".".join([*out.path, name])
    last = out.text.count("\n") + 1
    out.expected.append((kind, full, line, last, statement, "private" in prefix, holes))
    out.text += "\n"


def write_items(data: st.DataObject, out: Written, depth: int) -> None:
    indent = data.draw(st.sampled_from(("", "  ")))
    for _ in range(data.draw(st.integers(0, 3))):
        what = data.draw(st.integers(0, 6 if depth else 3))
        if what <= 1:
            write_declaration(data, out, indent)
        elif what == 2:
            out.text += indent + data.draw(COMMENTS) + "\n"
        elif what == 3:
            out.text += indent + data.draw(NOISE) + "\n"
        else:
            write_scope(data, out, depth, what, indent)


def write_scope(data: st.DataObject, out: Written, depth: int, what: int, indent: str) -> None:
    word = {4: "namespace", 5: "section", 6: "mutual"}[what]
    name = "" if word == "mutual" else data.draw(SPACES)
    if word == "section" and data.draw(st.booleans()):
        name = ""
    before = list(out.path)
    if word == "namespace":
        out.path.append(name)
    out.text += f"{indent}{word} {name}".rstrip() + "\n"
    write_items(data, out, depth - 1)
    out.text += f"{indent}end {name}".rstrip() + "\n"
    out.path = before


@settings(max_examples=80, deadline=None, database=None, derandomize=True)
@given(st.data())
def test_known_declarations_are_recovered(data):
    out = Written()
    write_items(data, out, depth=3)
    scan = scan_lean(out.text)
    found = [
        (d.kind, d.full_name, d.line, d.end_line, d.statement, d.is_private, d.holes)
        for d in scan.declarations
    ]
    assert found == out.expected
    assert not any("closes nothing" in finding for finding in scan.findings)


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(decoy=DECOYS, gap=GAPS, comment=COMMENTS)
def test_hiding_a_hole_closes_it_and_showing_one_opens_it(decoy, gap, comment):
    def holes(body: str) -> tuple[str, ...]:
        first, second = scan_lean(f"theorem a : P := by\n  {body}\ntheorem b : P := h").declarations
        assert second.holes == ()
        return first.holes

    assert holes(f"simp{gap}at h") == ()
    assert holes(f"simp{gap}sorry") == ("sorry",)
    assert holes(f"{comment}\n  sorry") == ("sorry",)
    assert holes(f"simp /- {decoy} sorry -/") == ()
    assert holes(f"simp -- sorry {decoy}") == ()
    assert holes(f'trace "sorry {decoy}"') == ()


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(st.text(alphabet="ab theorem:=\n.-/\"'`«»()[]{}|sorry#@!r0 λ∀→", max_size=60))
def test_any_text_is_read_or_refused(text):
    lines = text.count("\n") + 1
    found: tuple[LeanDeclaration, ...] = ()
    with suppress(TheoremError):
        found = scan_lean(text).declarations
    assert all(1 <= d.line <= d.end_line <= lines for d in found)
