"""``gonio theorem status`` and ``counts``: files written, exit codes 0, 1 and 2."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gonio.cli import theorem_status
from gonio.cli.main import cli
from gonio.theorems import load_catalogue, rocq
from gonio.theorems.counts import BEGIN, END, counts_block
from gonio.theorems.rocq import has_prover
from gonio.theorems.status_file import read_status_file

LOCK_ONLY = ("status", "--proofs", "lock", "--no-checks")


def _gonio(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["theorem", *map(str, arguments)])


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty folder, and no Rocq project beside the sources: the lock stands alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(theorem_status, "_default_project", lambda: None)
    return tmp_path


def test_the_file_is_written_and_says_that_a_lock_was_believed(here):
    result = _gonio(*LOCK_ONLY)
    assert result.exit_code == 0, result.stderr
    found = read_status_file(here / "theorem-status.json")
    assert found.proofs.method == "lock"
    assert found.checks is None
    text = " ".join(result.stdout.split())
    assert "read from the lock of Rocq" in text
    assert "not compiled here" in text
    assert "Checks: not run." in text
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert all(entry.name in result.stdout for entry in load_catalogue())


def test_json_is_the_file_and_csv_has_a_row_per_statement(here):
    printed = _gonio(*LOCK_ONLY, "--json").stdout
    assert json.loads(printed) == json.loads((here / "theorem-status.json").read_text("utf-8"))
    lines = _gonio(*LOCK_ONLY, "--csv", "--out", "again.json").stdout.splitlines()
    assert len(lines) == 1 + len(load_catalogue())
    assert lines[0].startswith("name,family,status,axioms")


def test_a_file_is_replaced_on_demand_only(here):
    (here / "theorem-status.json").write_text("mine")
    assert _gonio(*LOCK_ONLY).exit_code == 2
    assert (here / "theorem-status.json").read_text() == "mine"
    assert _gonio(*LOCK_ONLY, "--force").exit_code == 0


def test_sources_that_are_not_those_of_the_lock_exit_with_1(here, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(here)
    (here / "rocq").mkdir()
    (here / "rocq/_CoqProject").write_text("-R . Tiny\n")
    result = _gonio(*LOCK_ONLY)
    assert result.exit_code == 1
    assert result.stderr.count("drift: ") == 1
    assert "the sources in rocq changed after this was computed" in result.stderr
    assert "--write-lock" in result.stderr
    found = read_status_file(here / "theorem-status.json")
    assert found.is_red
    assert found.proofs.sources == "changed"


@pytest.mark.skipif(not has_prover(), reason="the Rocq prover is not installed")
def test_a_project_that_lost_every_name_exits_with_1(here):
    (here / "tiny").mkdir()
    (here / "tiny/_CoqProject").write_text("-R . Tiny\nA.v\n")
    (here / "tiny/A.v").write_text("Theorem t : 1 = 1. Proof. reflexivity. Qed.\n")
    result = _gonio("status", "--rocq", "tiny", "--no-checks")
    assert result.exit_code == 1
    assert "drift: lower_bound_of_intent: in the lock, not in the sources" in result.stderr
    assert "drift: t: in the sources, not in the lock" in result.stderr
    assert "compiled from" in result.stdout
    # and a machine without the prover refuses when told to compile
    result = CliRunner(env={"PATH": str(here)}).invoke(
        cli, ["theorem", "status", "--rocq", "tiny", "--proofs", "compile", "--out", "b.json"]
    )
    assert result.exit_code == 2
    assert "apt-get install" in result.stderr


def test_the_lock_is_written_again_only_when_asked(here, monkeypatch):
    written = []
    monkeypatch.setattr(rocq, "write_lock", written.append)
    (here / "tiny").mkdir()
    (here / "tiny/_CoqProject").write_text("-R . Tiny\n")
    _gonio(*LOCK_ONLY, "--rocq", "tiny", "--out", "first.json")
    assert written == []
    _gonio(*LOCK_ONLY, "--rocq", "tiny", "--write-lock", "--out", "second.json")
    assert written == [Path("tiny")]


def test_the_schema_is_printed_and_nothing_written(here):
    result = _gonio("status", "--schema")
    assert json.loads(result.stdout)["title"] == "TheoremStatusFile"
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("status", "--rocq", "absent"),
        ("status", "--proofs", "lock", "--coqchk"),
        ("status", "--proofs", "believe"),
        ("counts", "--into", "absent.md"),
    ],
)
def test_bad_input_exits_with_2(arguments, here):
    result = _gonio(*arguments)
    assert result.exit_code == 2
    assert "Error:" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(here.iterdir()) == []


def test_counts_are_printed_and_put_in_place(here):
    assert _gonio("counts").stdout == counts_block() + "\n"
    page = here / "page.md"
    page.write_text(f"{BEGIN}{END}")
    assert "was updated" in _gonio("counts", "--into", page).stdout
    assert "is up to date" in _gonio("counts", "--into", page).stdout
    assert page.read_text() == counts_block()


@pytest.mark.parametrize("command", ["status", "counts"])
def test_help_has_an_example_on_its_own_lines(command):
    lines = _gonio(command, "--help").stdout.splitlines()
    assert any(line.strip().startswith(f"gonio theorem {command}") for line in lines)
