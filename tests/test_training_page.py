"""The commands of docs/training.md exist with the options it gives, and its study runs."""

import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from gonio.cli.main import cli
from gonio.pipelines.study_spec import plan_cells, read_study
from gonio.training import read_recipe

PAGE = Path(__file__).parents[1] / "docs" / "training.md"
TEXT = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
SHELL = re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL)
COMMANDS = re.findall(r"^gonio .*$", "\n".join(SHELL), flags=re.MULTILINE)
TOML = re.findall(r"```toml\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = shlex.split(line)[1:]
    command: click.Command = cli
    context = click.Context(command)
    while isinstance(command, click.Group):
        found = command.get_command(context, arguments.pop(0))
        assert found is not None, line
        command = found
    command.make_context("gonio", arguments)


def test_the_files_are_a_recipe_and_a_study(tmp_path):
    recipe, study = tmp_path / "recipe.toml", tmp_path / "study.toml"
    recipe.write_text(TOML[0], encoding="utf-8")
    study.write_text(TOML[1], encoding="utf-8")
    assert read_recipe("dpo", recipe).r == 8
    assert len(plan_cells(read_study(study))) == 2 * 3 * 2
    assert len(COMMANDS) >= 9


@pytest.mark.slow
def test_every_command_runs_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.toml").write_text(TOML[0], encoding="utf-8")
    Path("study.toml").write_text(TOML[1], encoding="utf-8")
    for line in COMMANDS:
        result = CliRunner().invoke(cli, shlex.split(line)[1:])
        assert result.exit_code == 0, (line, result.output)
