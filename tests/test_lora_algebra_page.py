"""The pages on LoRA algebra: their commands exist with the options given, and their Python runs."""

import re
import shlex
from pathlib import Path

import click
import numpy as np
import pytest
import torch

from gonio.cli.main import cli

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("rank-choice", "bounds", "gradients")
TEXTS = {
    name: path.read_text(encoding="utf-8")
    for name in (*PAGES, "lora-algebra")
    if (path := DOCS / f"{name}.md").exists()
}
SHELL = "\n".join(
    block for text in TEXTS.values() for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
)
COMMANDS = re.findall(r"^gonio .*$", SHELL, flags=re.MULTILINE)


def found_by(line: str) -> tuple[click.Command, list[str]]:
    arguments = shlex.split(line)[1:]
    command: click.Command = cli
    context = click.Context(command)
    while isinstance(command, click.Group):
        found = command.get_command(context, arguments.pop(0))
        assert found is not None, line
        command = found
    return command, arguments


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command, arguments = found_by(line)
    command.make_context("gonio", arguments)


def run(page: str) -> dict[str, object]:
    """Names after the page's blocks ran one after another."""
    blocks = re.findall(r"```python\n(.*?)```", TEXTS[page], flags=re.DOTALL)
    assert len(blocks) >= 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    return names


def test_the_overview_names_pages_and_commands_that_exist():
    text = TEXTS["lora-algebra"]
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert (DOCS / target).is_file(), target
    assert {f"{page}.md" for page in PAGES} <= set(re.findall(r"\]\(([^)#]+)", text))
    for command in re.findall(r"`(gonio [a-z ]+)`", text):
        found_by(command)


def test_the_page_on_ranks_shows_what_it_says():
    names = run("rank-choice")
    assert names["fit"].shape == pytest.approx(0.8, rel=1e-3)
    assert names["comparison"].best == "power"
    assert np.isnan(names["at_one"]).all()
    choice = names["choice"]
    assert choice.rank == 16  # 0.95 is the first within 5 % of 0.975
    assert choice.low <= 16 <= choice.high
    left_out, errors = names["left_out"], names["errors"]
    assert errors.loc[2, "frobenius_error"] == pytest.approx(float(left_out.norm()), rel=1e-5)
    assert errors.loc[2, "plain_sum"] == pytest.approx(float(left_out.sum()), rel=1e-5)


def test_the_page_on_bounds_shows_what_it_says():
    names = run("bounds")
    assert float(names["draws"].max()) < names["bound"] < names["of_full_rank"]
    assert names["printed"] == pytest.approx(0.392, abs=1e-3)
    assert names["printed"] < (6 / 8 + 3 * 2 / 8) / 3 == 0.5
    assert names["without_constant"] == pytest.approx(1.2**0.5)
    assert names["gain"] == 50
    assert names["full"].total == 16_000_000
    assert names["lora"].total == 2_000_000 + 16 * 20_000
    correlations = names["correlations"]
    assert torch.allclose(correlations, torch.ones_like(correlations))


def test_the_page_on_gradients_shows_what_it_says():
    names = run("gradients")
    assert not names["start"].lora_a.any()
    assert names["start"].lora_b.any()
    assert names["rounding"] < 1e-6
    assert names["fall"] == pytest.approx(10, rel=0.3)
