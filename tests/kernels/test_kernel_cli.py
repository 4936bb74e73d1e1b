"""``gonio model show --kernels`` says what runs here, and why nothing faster does."""

import json

import pytest
from click.testing import CliRunner

from gonio.cli.main import cli
from gonio.kernels import available_levels, native


def test_it_names_the_best_level():
    done = CliRunner().invoke(cli, ["model", "show", "--kernels", "--json"])
    assert done.exit_code == 0, done.output
    values = {v["name"]: v["value"] for v in json.loads(done.stdout)["record"]["values"]}
    assert values["level"] == available_levels()[-1]


def test_it_says_why_nothing_is_compiled(tmp_path, monkeypatch):
    monkeypatch.setenv("GONIO_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    native.forget()
    try:
        done = CliRunner().invoke(cli, ["model", "show", "--kernels"])
    finally:
        monkeypatch.undo()
        native.forget()
    assert done.exit_code == 0, done.output
    assert "no C compiler found" in done.stdout


@pytest.mark.parametrize("arguments", [[], ["somewhere", "--kernels"]], ids=str)
def test_a_model_or_the_kernels_but_one_of_them(arguments):
    done = CliRunner().invoke(cli, ["model", "show", *arguments])
    assert done.exit_code == 2
    assert "name a model, or ask for --kernels" in done.output
