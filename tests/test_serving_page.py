"""The commands of docs/serving.md exist with the options it gives, and its Python runs."""

import re
import shlex
import warnings
from pathlib import Path

import click
import pytest

from gonio.cli.main import cli

PAGE = Path(__file__).parents[1] / "docs" / "serving.md"
TEXT = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL))
COMMANDS = re.findall(r"^gonio .*$", SHELL, flags=re.MULTILINE)
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
FEWER = {"tokens=1024, window=256": "tokens=64, window=32"}


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_of_the_serving_page_parse(line):
    arguments = shlex.split(line)[1:]
    command: click.Command = cli
    context = click.Context(command)
    while isinstance(command, click.Group):
        found = command.get_command(context, arguments.pop(0))
        assert found is not None, line
        command = found
    command.make_context("gonio", arguments)


def test_the_serving_page_has_commands_and_python():
    assert len(COMMANDS) >= 6
    assert len(PYTHON) >= 5
    for many in FEWER:
        assert any(many in block for block in PYTHON), many


def run_blocks(names: dict[str, object], replacements: dict[str, str]) -> None:
    for block in PYTHON:
        for old, new in replacements.items():
            block = block.replace(old, new)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's advice on saving
            exec(block, names)
    assert len(names["answers"]) == 3
    assert names["logits"].shape[0] == 3
    assert len(names["pairs"]) == 2


def test_the_serving_examples_run_on_a_tiny_model(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    run_blocks(names, {"smollm2-135m": str(tiny_folder), **FEWER})


@pytest.mark.slow
def test_the_serving_examples_run_on_the_bundled_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_blocks({}, FEWER)
