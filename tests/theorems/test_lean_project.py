"""Reports of whole Lean projects: statuses, files, malformed input, drift."""

# ruff: noqa: RUF001  (Lean is written with Greek and double-struck letters)

import json

import pytest

from gonio.errors import TheoremError
from gonio.theorems.lean import LeanReport, read_lean_project, read_lean_report
from gonio.theorems.lean_drift import find_drift

GEOMETRY = """\
import Mathlib
namespace Geometry

/-- The energy. -/
noncomputable def energy (x : ℝ) : ℝ := x ^ 2

/-- WEAKENING NOTE: only the bound. -/
theorem random_overlap (U : Submodule ℝ V) : overlap U ≤ 1 := by
  simp

theorem energy_nonneg (x : ℝ) : 0 ≤ energy x := by
  unfold energy; positivity

theorem stableRank_le_rank : srank M ≤ M.rank := sorry
theorem intent : True := sorry
theorem floor_d_independent : floor = floor := rfl
theorem decided : check 12 = true := by native_decide
axiom srht (k : Key) : cosine (R k) = c
private lemma helper : 1 ≤ 2 := by decide
noncomputable def subspace : Submodule ℝ V := sorry
example : 1 + 1 = 2 := rfl

end Geometry
"""


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "lean"
    (folder / "Geometry").mkdir(parents=True)
    (folder / "lakefile.toml").write_text('name = "geometry"\n')
    (folder / "Geometry" / "Basic.lean").write_text(GEOMETRY, encoding="utf-8")
    (folder / "Geometry.lean").write_text("import Geometry.Basic\n")
    for skipped in (".lake/packages/mathlib", "build/ir", "lake-packages/std", ".git"):
        (folder / skipped).mkdir(parents=True)
        (folder / skipped / "Hidden.lean").write_text("theorem hidden : P := sorry\n")
    return folder


def rewrite(folder, old, new):
    path = folder / "Geometry" / "Basic.lean"
    text = path.read_text("utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")
    return read_lean_project(folder)


def test_statuses_counts_and_places(project):
    report = read_lean_project(
        project, url_base="https://example.org/blob/main/lean/", families={"energy_nonneg": "A"}
    )
    assert report.source_files == ("Geometry/Basic.lean", "Geometry.lean")
    assert [(entry.name, entry.status) for entry in report.theorems] == [
        ("random_overlap", "proven-weaker-by-text"),
        ("energy_nonneg", "proven-by-text"),
        ("stableRank_le_rank", "sorry"),
        ("intent", "stub"),
        ("floor_d_independent", "vacuous"),
        ("decided", "compiler-trusted"),
        ("srht", "axiom"),
        ("helper", "proven-by-text"),
        ("example#1", "proven-by-text"),
    ]
    assert [(e.name, e.status) for e in report.definitions] == [
        ("energy", "definition"),
        ("subspace", "sorry"),
    ]
    assert report.counts == {
        "theorems": 9,
        "axiom": 1,
        "compiler-trusted": 1,
        "proven-by-text": 3,
        "proven-weaker-by-text": 1,
        "sorry": 1,
        "stub": 1,
        "vacuous": 1,
        "definitions": 2,
        "definitions_with_sorry": 1,
    }
    entry = report.theorems[1]
    assert (entry.full_name, entry.family) == ("Geometry.energy_nonneg", "A")
    assert (entry.file, entry.line, entry.end_line) == ("Geometry/Basic.lean", 11, 12)
    assert entry.source_url == "https://example.org/blob/main/lean/Geometry/Basic.lean#L11"
    assert entry.axioms is None
    assert report.theorems[0].notes == ("WEAKENING NOTE: only the bound.",)
    assert report.method == "text"
    assert any("behind a lemma" in limit for limit in report.unseen)


def test_one_file_and_windows_line_ends(tmp_path):
    path = tmp_path / "One.lean"
    path.write_bytes(b"theorem a : P := h\r\ntheorem b : Q :=\r\n  sorry\r\n")
    report = read_lean_project(path)
    assert [(e.file, e.line, e.end_line, e.status) for e in report.theorems] == [
        ("One.lean", 1, 1, "proven-by-text"),
        ("One.lean", 2, 3, "sorry"),
    ]


def test_a_report_survives_its_file(project, tmp_path):
    report = read_lean_project(project)
    path = tmp_path / "report.json"
    path.write_text(report.model_dump_json(), encoding="utf-8")
    assert read_lean_report(path) == report


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"theorem a : P := /- sorry", "line 1: a comment (/-) is never closed"),
        (b"theorem a : P := h -/", "a comment ends (-/) that never began"),
        (b'theorem a : P := "h', "a string is never closed"),
        (b"theorem a : \xff := h", "byte 12 is not UTF-8"),
    ],
)
def test_malformed_files_are_refused_by_name(project, content, message):
    (project / "Geometry" / "Bad.lean").write_bytes(content)
    with pytest.raises(TheoremError) as error:
        read_lean_project(project)
    assert "Bad.lean" in str(error.value)
    assert message in str(error.value)


def test_nothing_to_read_is_refused(tmp_path):
    with pytest.raises(TheoremError, match="no such file or folder"):
        read_lean_project(tmp_path / "missing")
    with pytest.raises(TheoremError, match=r"no \.lean file in"):
        read_lean_project(tmp_path)
    other = tmp_path / "proof.v"
    other.write_text("Theorem a : True.")
    with pytest.raises(TheoremError, match="not a Lean source file"):
        read_lean_project(other)
    folder = tmp_path / "Folder.lean"
    folder.mkdir()
    with pytest.raises(TheoremError, match=r"no \.lean file in"):
        read_lean_project(folder)
    (tmp_path / "Dangling.lean").symlink_to(tmp_path / "nowhere")
    with pytest.raises(TheoremError, match=r"cannot read .*Dangling\.lean"):
        read_lean_project(tmp_path)


def test_an_unchanged_project_has_not_drifted(project):
    before = read_lean_project(project)
    assert find_drift(before, read_lean_project(project)) == []
    moved = rewrite(project, "import Mathlib\n", "import Mathlib\n\n-- moved\n\n")
    assert moved != before
    assert find_drift(before, moved) == []
    reformatted = rewrite(project, "0 ≤ energy x := by\n", "-- why\n    0 ≤  energy x := by\n")
    assert find_drift(before, reformatted) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("  simp\n", "  sorry\n",
         ["status of Geometry.random_overlap: proven-weaker-by-text -> sorry"]),
        ("0 ≤ energy x", "-1 ≤ energy x",
         ["statement of Geometry.energy_nonneg changed\n"
          "  was (x : ℝ) : 0 ≤ energy x\n  is  (x : ℝ) : -1 ≤ energy x"]),
        ("theorem intent : True := sorry\n", "",
         ["vanished: Geometry.intent (stub, Geometry/Basic.lean:15)"]),
        ("example :", "theorem new : P := h\nexample :",
         ["added: Geometry.new (proven-by-text, Geometry/Basic.lean:21)"]),
        ("theorem stableRank_le_rank : srank M ≤ M.rank := sorry",
         "axiom stableRank_le_rank : srank M ≤ M.rank",
         ["status of Geometry.stableRank_le_rank: sorry -> axiom"]),
        ("example : 1 + 1 = 2", "example : 1 + 2 = 3",
         ["vanished: example `: 1 + 1 = 2` in Geometry/Basic.lean (proven-by-text, "
          "Geometry/Basic.lean:21)",
          "added: example `: 1 + 2 = 3` in Geometry/Basic.lean (proven-by-text, "
          "Geometry/Basic.lean:21)"]),
        ("ℝ := x ^ 2", "ℝ := sorry", ["status of Geometry.energy: definition -> sorry"]),
        ("example :", 'macro "m" : tactic => `(tactic| sorry)\nexample :',
         ["newly found: Geometry/Basic.lean: sorry in `macro`"]),
        ("example :", "variable (h : False)\nexample :",
         ["variables in force at example `: 1 + 1 = 2` in Geometry/Basic.lean changed\n"
          "  were none\n  are  variable (h : False)"]),
        ("(x : ℝ) : 0 ≤ energy x", '(x : ℝ) (s : f "a  b") : 0 ≤ energy x',
         ["statement of Geometry.energy_nonneg changed\n"
          "  was (x : ℝ) : 0 ≤ energy x\n  is  (x : ℝ) (s : f \"a  b\") : 0 ≤ energy x"]),
    ],
)  # fmt: skip
def test_each_drift_is_named(project, old, new, expected):
    before = read_lean_project(project)
    after = rewrite(project, old, new)
    assert find_drift(before, after) == expected
    assert len(find_drift(after, before)) == len(expected)


def test_a_name_declared_in_two_files_is_compared_in_each(project):
    (project / "Copy.lean").write_text(GEOMETRY, encoding="utf-8")
    before = read_lean_project(project)
    after = rewrite(project, "  simp\n", "  sorry\n")
    assert find_drift(before, after) == [
        "status of Geometry.random_overlap in Geometry/Basic.lean: proven-weaker-by-text -> sorry"
    ]


def test_text_and_build_do_not_compare(project):
    report = read_lean_project(project)
    built = report.model_copy(update={"method": "build"})
    with pytest.raises(TheoremError, match="do not compare"):
        find_drift(report, built)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"method": "guess"}, "method"),
        ({"extra": 1}, "extra"),
        ({"schema_version": 2}, "schema_version"),
        ({"theorems": [{"name": "a"}]}, "theorems.0"),
    ],
)
def test_a_report_of_another_shape_is_refused(project, tmp_path, change, where):
    content = json.loads(read_lean_project(project).model_dump_json()) | change
    path = tmp_path / "report.json"
    path.write_text(json.dumps(content))
    with pytest.raises(TheoremError, match=where):
        read_lean_report(path)


def test_a_report_that_is_none_is_refused(tmp_path):
    path = tmp_path / "report.json"
    with pytest.raises(TheoremError, match="cannot read"):
        read_lean_report(path)
    path.write_text("not json")
    with pytest.raises(TheoremError, match="not a report of Lean theorems"):
        read_lean_report(path)


def test_the_schema_has_the_fields_of_the_sources(project):
    content = read_lean_project(project).model_dump()
    assert {"source_files", "source_url_base", "counts", "theorems"} <= set(content)
    entry = content["theorems"][0]
    assert {"name", "kind", "family", "status", "file", "line", "source_url", "axioms"} <= set(
        entry
    )
    assert LeanReport.model_validate(content)
