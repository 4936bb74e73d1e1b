"""The commands of docs/variants.md exist with the options it gives, and its Python runs."""

import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest
import torch

from gonio.cli.main import cli
from gonio.pipelines.train_variants import VARIANTS
from gonio.training import make_recipe

PAGE = Path(__file__).parents[1] / "docs" / "variants.md"
TEXT = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL))
COMMANDS = re.findall(r"^gonio .*$", SHELL, flags=re.MULTILINE)
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
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


def test_the_page_has_commands_python_and_every_variant():
    assert len(COMMANDS) >= 10
    assert len(PYTHON) >= 3
    assert all(f"`{name}`" in TEXT or f"| {name} |" in TEXT for name in VARIANTS)


def test_the_recipe_is_one():
    (text,) = TOML
    assert make_recipe("clm", **tomllib.loads(text)).variant.density == 0.25


def test_the_examples_run_one_after_another_and_show_what_the_page_says():
    names: dict[str, object] = {}
    for block in PYTHON:
        exec(block, names)
    assert names["is_exact"]
    assert names["share"] == pytest.approx((32 * 0.25 + 1) / 32, abs=1e-3)
    assert names["rank_of_product"] > 40
    missed, sigma = names["missed"], names["sigma"]
    assert float(missed) == pytest.approx(float(sigma[4:].norm()), rel=1e-9)
    assert float(missed) > 0.1 * float(sigma.norm())
    assert names["at_start"] == 0.0
    gradients = names["by_factors"]
    inner = float(torch.sum(gradients.lora_b.double() * names["lora_b"].double()))
    assert names["later"] == pytest.approx(inner, rel=1e-5)  # <grad_B, B> = s <G, B A> too
