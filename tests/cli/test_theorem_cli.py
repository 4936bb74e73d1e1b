"""``gonio theorem``: thin commands, exit codes 0, 1 and 2."""

import dataclasses
import json

import pytest
from click.testing import CliRunner, Result

from gonio.cli.main import cli
from gonio.theorems import load_catalogue, runner


def _gonio(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["theorem", *arguments])


def test_list_prints_every_name_whole():
    result = _gonio("list")
    assert result.exit_code == 0
    assert all(entry.name in result.stdout for entry in load_catalogue())
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_list_as_json_has_the_sentences():
    rows = json.loads(_gonio("list", "--family", "B", "--json").stdout)["rows"]
    assert {row["family"] for row in rows} == {"B"}
    assert all(row["sentence"].endswith(".") for row in rows)


def test_list_counts_and_filters():
    whole = _gonio("list").stdout
    assert whole.startswith(f"{len(load_catalogue())} statements: ")
    assert "  E  Near the sign lattice: 3" in whole
    chosen = _gonio("list", "--family", "A", "--status", "refuted", "--source", "lazy-rudder")
    assert "stableRank_mul_le_min" in chosen.stdout
    assert "stableRank_le_rank" not in chosen.stdout
    rows = json.loads(_gonio("list", "--source", "lora-essay", "--json").stdout)["rows"]
    assert {row["source"] for row in rows} == {"lora-essay"}


def test_check_of_a_family_runs_its_statements():
    result = _gonio("check", "--family", "G", "--examples", "5", "--json")
    rows = json.loads(result.stdout)["tables"]["checks"]
    assert [row["name"] for row in rows] == ["avg_amplification_eq_frob_div_sqrt"]
    assert rows[0]["worst_margin"] > 0


def test_show_prints_statement_and_erratum():
    result = _gonio("show", "srht_floor_d_independent")
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert "decreases strictly" in text
    assert "x = x" in text


def test_check_prints_margins_and_what_was_tried():
    result = _gonio("check", "zero_init", "--examples", "5")
    assert result.exit_code == 0
    assert "worst margin" in result.stdout
    assert "automatic differentiation" in " ".join(result.stdout.split())


def test_check_as_json_is_the_record():
    result = _gonio("check", "zero_init", "--examples", "5", "--seed", "9", "--json")
    payload = json.loads(result.stdout)
    assert payload["record"]["seed"] == 9
    assert payload["tables"]["checks"][0]["status"] == "proved"


def test_a_failed_check_exits_with_1_and_shows_the_case(monkeypatch):
    check = runner.CHECKS["sign_cosine_formula"]
    broken = dataclasses.replace(check, margin=check.mutant.margin)
    monkeypatch.setattr(runner, "CHECKS", {**runner.CHECKS, check.name: broken})
    result = _gonio("check", "cos_sign_quant_formula")
    assert result.exit_code == 1
    assert "smallest counterexample: Key(entries=(0, 1), exponent=0)" in result.stderr
    assert "failed" in result.stdout


def test_a_toothless_check_exits_with_1(monkeypatch):
    check = runner.CHECKS["sign_cosine_formula"]
    mutant = dataclasses.replace(check.mutant, margin=check.margin)
    toothless = dataclasses.replace(check, mutant=mutant)
    monkeypatch.setattr(runner, "CHECKS", {**runner.CHECKS, check.name: toothless})
    result = _gonio("check", "cos_sign_quant_formula", "--examples", "5")
    assert result.exit_code == 1
    assert "cannot tell it from a wrong statement" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "zero_int"),
        ("show", "zero_int"),
        ("list", "--family", "Z"),
        ("list", "--status", "proven"),
        ("list", "--source", "arxiv"),
        ("check", "--seed=-1"),
    ],
)
def test_bad_input_exits_with_2(arguments):
    result = _gonio(*arguments)
    assert result.exit_code == 2
    assert "Error:" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["list", "show", "check", "errata"])
def test_help_has_an_example_on_its_own_lines(command):
    lines = _gonio(command, "--help").stdout.splitlines()
    assert any(line.strip().startswith(f"gonio theorem {command}") for line in lines)
