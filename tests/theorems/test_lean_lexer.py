"""Tokens of Lean text: comments nest, strings hide code, and what is not closed is refused."""

# ruff: noqa: RUF001  (Lean is written with Greek and double-struck letters)

import pytest

from gonio.errors import TheoremError
from gonio.theorems.lean_lexer import lex_lean


def words(text: str) -> list[str]:
    return [token.text for token in lex_lean(text).tokens]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a /- b /- c -/ d -/ e", ["a", "e"]),
        ("a /-- doc -/ b /-! head -/ c", ["a", "b", "c"]),
        ("a -- b /- c\nd", ["a", "d"]),
        ("a /- -- b -/ c", ["a", "c"]),
        ("a /-/ b -/ c", ["a", "c"]),  # the slash that opens does not close
        ("x/-1-/y", ["x", "y"]),  # no space is needed
        ('"a -- b" c', ['"a -- b"', "c"]),
        ('"a \\" b" c', ['"a \\" b"', "c"]),
        ('"a\\\\" c', ['"a\\\\"', "c"]),
        ('r"a\\" c', ['r"a\\"', "c"]),
        ('r#"a " b"# c', ['r#"a " b"#', "c"]),
        ('bar "x"', ["bar", '"x"']),
        ("'\"' c '\\'' d", ["'\"'", "c", "'\\''", "d"]),
        ("x' = y''", ["x'", "=", "y''"]),
        ("f '' s ∩ g ⁻¹' t'", ["f", "''", "s", "∩", "g", "⁻", "¹", "'", "t'"]),
        ("«weird name».b.«c.d»", ["«weird name».b.«c.d»"]),
        ("α₁.β ℝ x_1! λx", ["α₁.β", "ℝ", "x_1!", "λ", "x"]),
        ("foo.{u, v}", ["foo", ".", "{", "u", ",", "v", "}"]),
        ("h.1.sorry 1sorry", ["h", ".", "1", ".", "sorry", "1", "sorry"]),
        ("`sorry ``Nat.sorry `(x)", ["`sorry", "``Nat.sorry", "`(", "x", ")"]),
        ("a:=b::c|>.d", ["a", ":=", "b", "::", "c", "|>", ".", "d"]),
        ("0x1F 1_000 2.5e-3", ["0x1F", "1_000", "2.5e-3"]),
        ("", []),
    ],
)
def test_text_splits_as_lean_splits_it(text, expected):
    assert words(text) == expected


def test_braces_of_an_interpolated_string_hold_code():
    text = 's!"a {f "}" (g {x := s!"{deep}"})} \\{no} sorry" after'
    assert words(text) == [
        *("s!", '"a {', "f", '"}"', "(", "g", "{", "x", ":=", "s!", '"{', "deep", '}"', "}", ")"),
        *('} \\{no} sorry"', "after"),
    ]


def test_a_plain_string_has_no_code():
    assert words('x "a {b}" c') == ["x", '"a {b}"', "c"]


def test_offsets_point_into_the_text():
    text = 'def «a b» /- c -/ := s!"{x}" -- end\n'
    split = lex_lean(text)
    assert all(text[token.start : token.end] == token.text for token in split.tokens)
    assert [text[c.start : c.end] for c in split.comments] == ["/- c -/", "-- end"]


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("a\n/- b /- c -/", 2, "a comment (/-) is never closed"),
        ("a /--/ b", 1, "never closed"),  # a doc comment, as in Lean
        ("a\nb -/ c", 2, "a comment ends (-/) that never began"),
        ('a\n\n"b', 3, "a string is never closed"),
        ('r#"b"', 1, "a raw string is never closed"),
        ('s!"a {b', 1, "inside an interpolated string"),
        ('s!"a {b} c', 1, "a string is never closed"),
    ],
)
def test_what_is_not_closed_is_refused_with_its_line(text, line, what):
    with pytest.raises(TheoremError) as error:
        lex_lean(text, "Foo.lean")
    assert f"Foo.lean, line {line}: " in str(error.value)
    assert what in str(error.value)
