"""Declarations of Lean text, construct by construct."""

# ruff: noqa: RUF001  (Lean is written with Greek and double-struck letters)

import pytest

from gonio.theorems.lean_source import LeanDeclaration, scan_lean


def declared(text: str) -> list[tuple[str, str]]:
    return [(found.kind, found.full_name) for found in scan_lean(text).declarations]


def only(text: str) -> LeanDeclaration:
    (found,) = scan_lean(text).declarations
    return found


@pytest.mark.parametrize(
    ("text", "kind", "name", "statement"),
    [
        ("theorem a (n : Nat) : n = n + 0 := rfl", "theorem", "a", "(n : Nat) : n = n + 0"),
        ("lemma a : P := by\n  simp", "lemma", "a", ": P"),
        ("def a : Nat → Nat\n  | 0 => 1\n  | n + 1 => n", "def", "a", ": Nat → Nat"),
        ("def a : Nat → Nat | 0 => 1 | n + 1 => n", "def", "a", ": Nat → Nat"),
        ("theorem a : |x| ≤\n  |y| := by simp", "theorem", "a", ": |x| ≤ |y|"),
        ("theorem a : | x | ≤ 1 := fun y => z", "theorem", "a", ": | x | ≤ 1"),
        ("theorem a : let y := 1; y = 1 := rfl", "theorem", "a", ": let y := 1; y = 1"),
        ("def a (x : Nat := 1) : Nat := x", "def", "a", "(x : Nat := 1) : Nat"),
        (
            "theorem a : match x with | 0 => P | _ => Q := h",
            "theorem",
            "a",
            ": match x with | 0 => P | _ => Q",
        ),
        ("axiom a (P : Prop) : P", "axiom", "a", "(P : Prop) : P"),
        ("abbrev a := Nat", "abbrev", "a", ""),
        ("opaque a : Nat", "opaque", "a", ": Nat"),
        ("instance a : Add Nat where\n  add := f", "instance", "a", ": Add Nat"),
        ("instance (priority := low) a : Add Nat := ⟨f⟩", "instance", "a", ": Add Nat"),
        ("instance : Add Nat := ⟨f⟩", "instance", "instance#1", ": Add Nat"),
        (
            "instance [Foo α] : Bar α where",
            "instance",
            "instance#1",
            "[Foo α] : Bar α",
        ),
        ("example : 1 = 2 := sorry", "example", "example#1", ": 1 = 2"),
        ("structure a (n : Nat) extends B where\n  x : Nat := 1\nderiving Repr", "structure", "a",
         "(n : Nat) extends B"),
        ("class a (α : Type) : Prop where\n  h : P", "class", "a", "(α : Type) : Prop"),
        ("class inductive a : Prop\n  | mk : a", "class inductive", "a", ": Prop"),
        ("inductive a (α : Type u)\n  | nil : a α\n  deriving Repr", "inductive", "a",
         "(α : Type u)"),
        ("inductive a where | nil", "inductive", "a", ""),
        ("theorem a.{u, v} (α : Type u) : P := h", "theorem", "a", ".{u, v} (α : Type u) : P"),
        ("theorem «a b».c' : P := h", "theorem", "«a b».c'", ": P"),
        ("theorem αβ₁ : P := h", "theorem", "αβ₁", ": P"),
        ("proof_wanted a : P", "proof_wanted", "a", ": P"),
    ],
)  # fmt: skip
def test_each_kind_of_declaration(text, kind, name, statement):
    found = only(text)
    assert (found.kind, found.full_name, found.statement) == (kind, name, statement)
    assert (found.line, found.end_line) == (1, text.count("\n") + 1)
    assert found.is_named == ("#" not in name)


@pytest.mark.parametrize(
    ("prefix", "is_private"),
    [
        ("@[simp, to_additive foo] ", False),
        ('@[simp]\n@[deprecated "theorem x : sorry" (since := "2026")]\n', False),
        ("private ", True),
        ("@[simp] private noncomputable ", True),
        ("protected ", False),
        ("unsafe ", False),
        ("nonrec ", False),
        ("/-- theorem x : True := sorry -/\n", False),
        ("public meta ", False),
        ("open Foo Bar in\n", False),
        ("open Foo in set_option maxRecDepth 10 in\n@[simp] ", False),
        ("set_option pp.all true in ", False),
        ("variable (n : Nat) in\n", False),
        ("attribute [local instance] foo in\n", False),
        ("#guard_msgs in\n", False),
        ("omit [Foo α] in\n/-- doc -/\n", False),
        ("end Nothing ", False),
    ],
)
@pytest.mark.parametrize("before", ["", "import Foo\n", "theorem x : P := by\n  simp\n\n"])
def test_prefixes_belong_to_no_name(prefix, is_private, before):
    text = f"{before}{prefix}theorem a : P := h"
    found = scan_lean(text).declarations[-1]
    assert (found.kind, found.full_name, found.is_private) == ("theorem", "a", is_private)
    assert found.line == text.count("\n") + 1


def test_namespaces_and_sections_make_full_names():
    text = """\
namespace A.B
theorem one : P := h
section
namespace C
theorem two : P := h
theorem _root_.Top.three : P := h
end C
theorem four : P := h
end
noncomputable section Named
theorem five : P := h
end Named
end B
theorem six : P := h
end A
theorem seven : P := h
"""
    names = [name for _, name in declared(text)]
    assert names == ["A.B.one", "A.B.C.two", "Top.three", "A.B.four", "A.B.five", "A.six", "seven"]
    assert scan_lean(text).findings == ()


@pytest.mark.parametrize("end", ["end B", "end", "end A.B", "end A end A"])
def test_an_end_that_closes_nothing_is_found(end):
    scan = scan_lean(f"namespace A\n{end}\ntheorem a : P := h\n")
    assert any("closes nothing that is open" in finding for finding in scan.findings)


def test_the_end_of_an_anonymous_section_takes_no_word_of_the_next_line():
    assert declared("section\nend\nlemma a : P := h") == [("lemma", "a")]


def test_mutual_and_where_blocks():
    text = """\
mutual
def even : Nat → Bool | 0 => true | n + 1 => odd n
def odd : Nat → Bool | 0 => false | n + 1 => even n
end
def f : Nat := go 3
where
  go (n : Nat) : Nat := n
  @[simp] help : 1 = 1 := rfl
def g : Nat := 1
"""
    assert declared(text) == [("def", name) for name in ("even", "odd", "f", "g")]
    assert [(d.line, d.end_line) for d in scan_lean(text).declarations][2] == (5, 8)


def test_several_declarations_on_one_line():
    text = "namespace A theorem a : P := h end A theorem b : Q := h variable (n : Nat)"
    assert declared(text) == [("theorem", "A.a"), ("theorem", "b")]


@pytest.mark.parametrize(
    "noise",
    [
        'syntax "theorem" ident : command',
        'macro "mk" n:ident : command => `(theorem $n : True := trivial)',
        "macro_rules\n  | `(foo $x) => `(def y := $x)",
        'macro "mk" : command => `(\ntheorem hidden : P := h)',
        'notation "theorem!" x => f x',
        'elab "e" : command => do\n  elabCommand (← `(command| axiom hidden : False))',
        "deriving instance DecidableEq, Repr for Foo",
        "deriving noncomputable instance Fintype for Foo",
        "attribute [instance] foo\nattribute [-instance] bar",
        '@[inherit_doc] infixl:65 " +++ " => f',
        'scoped[Foo] notation "x" => theoremx',
        "alias ⟨a', _root_.b'⟩ := c",
        "variable {α : Type*} [inst : Foo α]",
        "universe u v",
        "initialize foo : IO.Ref Nat ← IO.mkRef 0",
        "export Foo (bar baz)",
        "#eval f .theorem x.axiom",
        "-- theorem hidden : P := h",
        "/- /- theorem hidden : P := h -/ def y := 1 -/",
    ],
)
def test_what_declares_nothing_here(noise):
    text = f"theorem a : P := h\n{noise}\ntheorem b : Q := h\n"
    assert declared(text) == [("theorem", "a"), ("theorem", "b")]


def test_terms_and_tactics_that_look_like_commands():
    text = """\
theorem a : P := by
  open Classical in simp
  set_option maxRecDepth 10 in
  decide
  exact (f (instance := x) .def #[y] #s)
theorem b : Q := by
  case lemma_like => exact h.theorem
"""
    found = scan_lean(text).declarations
    assert [(d.name, d.end_line) for d in found] == [("a", 5), ("b", 7)]


def test_a_bracket_left_open_hides_nothing_behind_a_line_start():
    assert declared("theorem a : (P := h\ntheorem b : Q := h") == [
        ("theorem", "a"),
        ("theorem", "b"),
    ]


@pytest.mark.parametrize(
    ("body", "holes"),
    [
        (":= sorry", ("sorry",)),
        (":= by sorry", ("sorry",)),
        (":= by\n  constructor\n  · sorry\n  · exact h", ("sorry",)),
        (":= by\n  constructor\n  .sorry", ("sorry",)),
        (":= fun x => (f x).trans sorry", ("sorry",)),
        (":= by\n  refine ⟨_, ?_⟩ <;> sorry", ("sorry",)),
        (":= by simp -- sorry", ()),
        (":= by /- sorry -/ simp", ()),
        (':= by trace "sorry"', ()),
        (':= by trace r#"sorry"#', ()),
        (':= by trace s!"{sorry}"', ("sorry",)),
        (':= by trace s!"\\{sorry}"', ()),
        (":= by exact sorry_free", ()),
        (":= by exact not_sorry h.sorry x.1.sorry", ()),
        (":= by exact «sorry»", ()),
        (":= foo `sorry ``sorryAx", ()),
        (":= sorryAx _", ("sorryAx",)),
        (":= @sorryAx P true", ("sorryAx",)),
        (":= by admit", ("admit",)),
        (":= by\n  simp\n  admit", ("admit",)),
        (":= by simp; admit", ("admit",)),
        (":= f include alias prefix sorry", ("sorry",)),  # names, in the middle of a line
        (":= by exact admit", ()),
        (":= f (admit := 1)", ()),
        (":= by\n  stop\n  simp", ("stop",)),
        (":= f { start := 0, stop := 1 }", ()),
        ("\n  | 0 => h\n  | n + 1 => sorry", ("sorry",)),
        (":= h\nwhere\n  g : Nat := sorry", ("sorry",)),
        (":= by first | simp | sorry | admit", ("sorry", "admit")),
    ],
)
def test_holes(body, holes):
    first, second = scan_lean(f"theorem a : P {body}\ntheorem b : Q := h").declarations
    assert (first.holes, second.holes) == (holes, ())


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (":= by native_decide", True),
        (":= by decide +native", True),
        (":= Lean.ofReduceBool _ _ rfl", True),
        (":= by decide", False),
        (":= by simp [native_decide_lemma] -- native_decide", False),
    ],
)
def test_trust_in_the_compiler(body, expected):
    assert only(f"theorem a : P {body}").trusts_compiler is expected


@pytest.mark.parametrize(
    ("statement", "vacuity"),
    [
        (": True", "true"),
        ("(n : Nat) : True", "true"),
        (": ∀ n : Nat, (P n → True)", "true"),
        (": P → Q → True", "true"),
        (": x = x", "reflexive"),
        (": ∀ d, 0 < d → f (d + 1) = f (d + 1)", "reflexive"),
        (": P ↔ P", "reflexive"),
        (": True ∧ P", ""),
        (": ∃ n, True", ""),
        (": P ↔ Q → True", ""),
        (": x = x + 0", ""),
        (": P ∧ x = P ∧ x", ""),
        (": P → Q ↔ Q", ""),
        (": (fun _ => True) = g", ""),
        (": (h : True) → P", ""),
    ],
)
def test_statements_that_say_nothing(statement, vacuity):
    assert only(f"theorem a {statement} := by simp").vacuity == vacuity


@pytest.mark.parametrize("proof", ["rfl", "by rfl", ".rfl", "Iff.rfl", "by\n  rfl"])
def test_proofs_by_definition(proof):
    first, second = scan_lean(
        f"theorem a : x = y := {proof}\ntheorem b : P := rfl.trans h"
    ).declarations
    assert (first.is_by_rfl, second.is_by_rfl) == (True, False)


@pytest.mark.parametrize(
    ("text", "notes"),
    [
        ("/-- WEAKENING: less\nproved.\n\nMore. -/\ntheorem a : P := h\ntheorem b : Q := h",
         ["WEAKENING: less proved.", ""]),
        ("-- WEAKENING: less\n-- proved.\nopen A in\ntheorem a : P := h\ntheorem b : Q := h",
         ["WEAKENING: less proved.", ""]),
        ("theorem a : P := h -- WEAKENING x\ntheorem b : Q := h", ["WEAKENING x", ""]),
        ("theorem a : P := by\n  simp\n  -- WEAKENING x\n\ntheorem b : Q := h",
         ["WEAKENING x", ""]),
        ("theorem a : P := by\n  simp\n\n-- WEAKENING x\ntheorem b : Q := h", ["", "WEAKENING x"]),
        ("theorem a : P := by\n  -- WEAKENING x\n  simp\ntheorem b : Q := h", ["WEAKENING x", ""]),
        ("theorem a : P := h\n@[simp] -- WEAKENING x\ntheorem b : Q := h", ["", "WEAKENING x"]),
        ("/-! WEAKENING of the file -/\ntheorem a : P := h", [""]),
        ('theorem a : P := f "WEAKENING"', [""]),
    ],
)  # fmt: skip
def test_weakening_notes_belong_to_one_declaration(text, notes):
    assert [found.weakening for found in scan_lean(text).declarations] == notes


def test_variables_in_force():
    text = """\
variable (n : Nat)
section
variable {m : Nat} -- a comment
theorem a : P := h
variable (k : Nat) in
theorem b : P := h
end
theorem c : P := h
"""
    assert [found.context for found in scan_lean(text).declarations] == [
        ("variable (n : Nat)", "variable {m : Nat}"),
        ("variable (n : Nat)", "variable {m : Nat}", "variable (k : Nat)"),
        ("variable (n : Nat)",),
    ]


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ('macro "m" : tactic => `(tactic| sorry)', "line 2: sorry in `macro`"),
        ('notation "⊠" => sorry', "line 2: sorry in `notation`"),
        ("variable (h : P := sorry)", "line 2: sorry in `variable`"),
        ("def m : M := `(sorry)", "line 2: sorry in a quotation"),
        ("set_option debug.skipKernelTC true", "line 2: debug.skipKernelTC turns a check off"),
        ("set_option debug.byAsSorry true in\ntheorem a : P := by simp",
         "line 2: debug.byAsSorry turns a check off"),
    ],
)  # fmt: skip
def test_holes_outside_declarations_are_found(text, finding):
    scan = scan_lean(f"\n{text}\n")
    assert scan.findings == (finding,)
    assert all(not found.holes for found in scan.declarations)


@pytest.mark.parametrize(
    "text",
    [
        "theorem a : " + "(" * 20000 + "True" + ")" * 20000 + " := trivial",
        "/-" * 20000 + "-/" * 20000 + "theorem a : True := trivial",
        "namespace A\n" * 2000 + "theorem a : True := trivial\n" + "end A\n" * 2000,
        "theorem a : " + "P → " * 20000 + "True := trivial",
        "open A in " * 20000 + "theorem a : True := trivial",
        "theorem a : True := f " + 's!"{' * 20000 + '}"' * 20000,
        "private " * 20000 + "theorem a : True := trivial",
        "variable (x) in\n-- c\n" * 5000 + "theorem a : True := trivial",
    ],
    ids=["brackets", "comments", "namespaces", "arrows", "opens", "strings", "modifiers", "chain"],
)
def test_deep_nesting_is_read(text):
    found = only(text)
    assert (found.name, found.vacuity) == ("a", "true")
