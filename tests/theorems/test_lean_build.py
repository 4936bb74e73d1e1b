"""What Lean says of axioms, on recorded output; the runner of commands is replaced."""

import re
from pathlib import Path

import pytest

from gonio.errors import MissingDependencyError, TheoremError
from gonio.theorems.lean import read_lean_project
from gonio.theorems.lean_build import Finished, ask_lean, parse_axioms, run_command

SOURCE = """\
namespace N
theorem clean : P := h
theorem classical : P := h
theorem rests : P := h
theorem holds : P := gap
theorem compiled : P := by native_decide
theorem compiled_anew : P := by native_decide
theorem stub : True := trivial
/-- WEAKENING: less. -/
theorem weaker' : P := h
private theorem hidden : P := h
theorem lost : P := h
end N
"""
# The wording and the line breaks are those of Lean 4.
SAID = {
    "N.clean": "'N.clean' does not depend on any axioms",
    "N.classical": "'N.classical' depends on axioms: [propext, Classical.choice, Quot.sound]",
    "N.rests": (
        "'N.rests' depends on axioms: [propext,\n Classical.choice,\n N.own_axiom,\n Quot.sound]"
    ),
    "N.holds": "'N.holds' depends on axioms: [propext, sorryAx]",
    "N.compiled": (
        "'N.compiled' depends on axioms: [Lean.ofReduceBool, Lean.trustCompiler, propext]"
    ),
    "N.compiled_anew": (
        "'N.compiled_anew' depends on axioms: [N.compiled_anew._native.native_decide.ax_1]"
    ),
    "N.stub": "'N.stub' does not depend on any axioms",
    "N.weaker'": "'N.weaker'' depends on axioms: [propext]",
    "N.lost": "probe.lean:20:14: error: unknown constant 'N.lost'",
}


class FakeLean:
    """Answers `lake build` and `lake env lean FILE` as Lean would."""

    def __init__(self, code: int = 0):
        self.code = code
        self.commands: list[tuple[str, ...]] = []

    def __call__(self, command, folder):
        self.commands.append(tuple(command))
        if command[1] == "build":
            return Finished(self.code, "error: Lean exited with code 1\n")
        probe = Path(command[-1]).read_text("utf-8")
        self.commands[-1] = (*command[:-1], probe.splitlines()[0])
        lines = ["a line some `initialize` block printed"]
        for question in probe.splitlines()[1:]:
            if mark := re.fullmatch(r'#print "(.*)"', question):
                lines.append(mark[1])
            else:
                lines.append(SAID[question.removeprefix("#print axioms ")])
        return Finished(1, "\n".join(lines) + "\n")  # Lean exits with 1: one constant is unknown


@pytest.fixture
def project(tmp_path):
    (tmp_path / "lakefile.toml").write_text('name = "n"\nsrcDir = "src"\n')
    (tmp_path / "src" / "N").mkdir(parents=True)
    (tmp_path / "src" / "N" / "Basic.lean").write_text(SOURCE)
    (tmp_path / "Apart.lean").write_text("theorem apart : P := h\n")
    compiled = tmp_path / ".lake" / "build" / "lib" / "lean" / "N"
    compiled.mkdir(parents=True)
    (compiled / "Basic.olean").write_bytes(b"")
    return tmp_path


def test_lean_decides_where_it_was_asked(project):
    fake = FakeLean()
    report = ask_lean(read_lean_project(project), project, fake)
    assert fake.commands == [
        ("lake", "build"),
        ("lake", "env", "lean", "import N.Basic"),
    ]
    assert {entry.name: entry.status for entry in report.theorems} == {
        "apart": "proven-by-text",
        "clean": "proven",
        "classical": "proven",
        "rests": "rests-on-axiom",
        "holds": "sorry",
        "compiled": "compiler-trusted",
        "compiled_anew": "compiler-trusted",
        "stub": "stub",
        "weaker'": "proven-weaker",
        "hidden": "proven-by-text",
        "lost": "proven-by-text",
    }
    found = {entry.name: entry for entry in report.theorems}
    assert found["rests"].axioms == ("propext", "Classical.choice", "N.own_axiom", "Quot.sound")
    assert found["clean"].axioms == ()
    assert found["hidden"].axioms is None
    assert "unknown constant" in found["lost"].notes[-1]
    assert found["apart"].notes == ("lake did not build its file",)
    assert report.method == "build"
    assert report.counts["proven"] == 2
    assert report.counts["sorry"] == 1


def test_an_answer_without_the_mark_is_not_believed(project):
    def liar(command, folder):
        return Finished(0, "'N.clean' does not depend on any axioms\n")

    with pytest.raises(TheoremError, match=r"answered nothing about N\.Basic"):
        ask_lean(read_lean_project(project), project, liar)


def test_a_failed_build_is_an_error(project):
    with pytest.raises(TheoremError, match="lake build failed"):
        ask_lean(read_lean_project(project), project, FakeLean(code=1))


def test_a_folder_without_a_lakefile_is_not_built(tmp_path):
    (tmp_path / "A.lean").write_text("theorem a : P := h\n")
    fake = FakeLean()
    with pytest.raises(TheoremError, match="no lakefile"):
        ask_lean(read_lean_project(tmp_path), tmp_path, fake)
    assert fake.commands == []


def test_a_missing_command_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="lake not found"):
        run_command(("lake", "build"), tmp_path)


def test_run_command_joins_output_and_keeps_the_code(tmp_path):
    done = run_command(("sh", "-c", "echo out; echo err >&2; exit 3"), tmp_path)
    assert done == Finished(3, "out\nerr\n")


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("'Classical.em' depends on axioms: [propext, Classical.choice, Quot.sound]\n",
         {"Classical.em": ("propext", "Classical.choice", "Quot.sound")}),
        ("info: Foo.lean:3:0: 'a' does not depend on any axioms\n"
         "Foo.lean:4:0: warning: declaration uses 'sorry'\n'b' depends on axioms: [sorryAx]",
         {"a": (), "b": ("sorryAx",)}),
        ("'f'_x'' depends on axioms: [propext]", {"f'_x'": ("propext",)}),
        ("'«weird name».b' does not depend on any axioms", {"«weird name».b": ()}),
        ("'d' depends on axioms: [propext,\n Classical.choice,\n Lean.ofReduceBool]",
         {"d": ("propext", "Classical.choice", "Lean.ofReduceBool")}),
        ("unknown constant 'x'", {}),
    ],
)  # fmt: skip
def test_recorded_output_is_parsed(output, expected):
    assert parse_axioms(output) == expected
