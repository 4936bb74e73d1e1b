"""``gonio theorem lean``: tables that fit, JSON with a schema, exit codes 0, 1 and 2."""

import json
import sys

import pytest
from click.testing import CliRunner, Result

from gonio.cli.main import cli
from gonio.theorems.lean import read_lean_report

SOURCE = """\
theorem stableRank_le_rank : P := sorry
theorem a_name_that_is_longer_than_its_column_and_must_not_be_cut_short : P := h
"""


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "project" / "A_folder_with_a_long_name" / "A_file_with_a_long_name.lean"
    path.parent.mkdir(parents=True)
    path.write_text(SOURCE)
    return path


def _lean(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["theorem", "lean", *map(str, arguments)])


def test_the_table_fits_and_cuts_no_name(source):
    result = _lean(source.parents[1])
    assert result.exit_code == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "by text alone" in result.stdout
    assert "proven-by-text 1, sorry 1" in " ".join(result.stdout.split())
    cells = "".join(line[:40].strip() for line in result.stdout.splitlines())
    assert "a_name_that_is_longer_than_its_column_and_must_not_be_cut_short" in cells


def test_json_is_the_report(source, tmp_path):
    path = tmp_path / "report.json"
    assert _lean(source, "--json", "--output", path).exit_code == 0
    report = read_lean_report(path)
    assert report.schema_version == 1
    assert report.theorems[0].family == "A"
    assert json.loads(_lean(source, "--json").stdout) == json.loads(path.read_text("utf-8"))
    assert _lean(source, "--json", "--output", path).exit_code == 2


def test_csv_has_a_row_per_declaration(source):
    lines = _lean(source, "--csv").stdout.splitlines()
    assert lines[0].startswith("name,full_name,kind,family,status")
    assert len(lines) == 3


def test_drift_exits_with_1_and_names_it(source, tmp_path):
    path = tmp_path / "report.json"
    _lean(source.parents[1], "--json", "--output", path)
    assert _lean(source.parents[1], "--against", path).exit_code == 0
    source.write_text(SOURCE.replace("P := sorry", "Q := h"))
    result = _lean(source.parents[1], "--against", path)
    assert result.exit_code == 1
    assert "status of stableRank_le_rank: sorry -> proven-by-text" in result.stderr
    assert "statement of stableRank_le_rank changed" in result.stderr


def test_bad_input_exits_with_2(source, tmp_path):
    for arguments in (
        (tmp_path / "missing",),
        (source, "--against", tmp_path / "missing.json"),
        (source, "--against", source),
        (source.parents[1], "--build"),
    ):
        result = _lean(*arguments)
        assert result.exit_code == 2
        assert result.stderr.startswith("Error: ")
        assert "Traceback" not in result.stderr


def test_the_help_says_what_was_tested():
    text = " ".join(_lean("--help").stdout.split())
    assert "only tested on recorded output" in text
    assert "nothing is executed without --build" in text


LAKE = """\
#!{python}
# Answers as lake and Lean 4 do: what they print of a built project with one axiom of its own.
import pathlib, re, sys
if sys.argv[1] == "build":
    compiled = pathlib.Path(".lake/build/lib/lean")
    compiled.mkdir(parents=True, exist_ok=True)
    (compiled / "Basic.olean").write_bytes(b"")
    print("Build completed successfully.")
else:
    assert sys.argv[1:3] == ["env", "lean"]
    for line in pathlib.Path(sys.argv[3]).read_text().splitlines():
        if mark := re.fullmatch('#print "(.*)"', line):
            print(mark[1])
        elif name := re.fullmatch("#print axioms (.*)", line):
            print(f"'{{name[1]}}' depends on axioms: [propext,\\n Classical.choice,\\n own]")
"""


@pytest.fixture
def lake_project(tmp_path):
    project = tmp_path / "lake_project"
    project.mkdir()
    (project / "lakefile.toml").write_text('name = "basic"\n')
    (project / "Basic.lean").write_text("theorem stableRank_le_rank : P := h\n")
    return project


def test_a_machine_without_lake_says_so_and_names_the_other_way(
    lake_project, tmp_path, monkeypatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    result = _lean(lake_project, "--build")
    assert result.exit_code == 2
    assert "lake not found" in result.stderr
    assert "Leave --build out" in result.stderr
    assert "by text alone" in _lean(lake_project).stdout


def test_a_build_replaces_what_text_suggests_and_says_so(lake_project, tmp_path, monkeypatch):
    lake = tmp_path / "bin" / "lake"
    lake.parent.mkdir()
    lake.write_text(LAKE.format(python=sys.executable))
    lake.chmod(0o755)
    monkeypatch.setenv("PATH", str(lake.parent))
    report = tmp_path / "built.json"
    assert _lean(lake_project, "--build", "--json", "--output", report).exit_code == 0
    found = read_lean_report(report)
    assert found.method == "build"
    assert found.theorems[0].status == "rests-on-axiom"
    assert found.theorems[0].axioms == ("propext", "Classical.choice", "own")
    assert "by lake build and #print axioms" in " ".join(
        _lean(lake_project, "--build").stdout.split()
    )
    assert _lean(lake_project, "--build", "--against", report).exit_code == 0
    result = _lean(lake_project, "--against", report)  # text against a build: no verdict
    assert result.exit_code == 2
    assert "do not compare" in result.stderr
