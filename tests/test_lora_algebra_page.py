"""The commands of docs/lora-algebra.md exist with the options it gives, and its Python runs."""

import re
import shlex
from pathlib import Path

import click
import pytest
import torch

from gonio.cli.main import cli

PAGE = Path(__file__).parents[1] / "docs" / "lora-algebra.md"
TEXT = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL))
COMMANDS = re.findall(r"^gonio .*$", SHELL, flags=re.MULTILINE)
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


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


def test_the_page_has_commands_and_python():
    assert len(COMMANDS) >= 6
    assert len(PYTHON) >= 6


def test_the_examples_run_one_after_another_and_show_what_the_page_says():
    names: dict[str, object] = {}
    for block in PYTHON:
        exec(block, names)
    assert names["fit"].shape == pytest.approx(0.8, rel=1e-3)
    assert names["comparison"].best == "power"
    left_out, errors = names["left_out"], names["errors"]
    assert errors.loc[2, "frobenius_error"] == pytest.approx(float(left_out.norm()), rel=1e-5)
    assert errors.loc[2, "plain_sum"] == pytest.approx(float(left_out.sum()), rel=1e-5)
    assert float(names["draws"].max()) < names["bound"]
    assert names["printed"] == pytest.approx(0.392, abs=1e-3)
    assert names["gain"] == 50
    assert names["full"].total == 16_000_000
    assert names["lora"].total == 2_000_000 + 16 * 20_000
    correlations = names["correlations"]
    assert torch.allclose(correlations, torch.ones_like(correlations))
    assert not names["start"].lora_a.any()
    assert names["start"].lora_b.any()
    assert names["rounding"] < 1e-6
