"""The commands of docs/caches.md exist with the options it gives, and its Python runs."""

import re
import shlex
from pathlib import Path

import click
import pytest

from gonio.cli.main import cli

PAGE = Path(__file__).parents[1] / "docs" / "caches.md"
TEXT = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL))
COMMANDS = re.findall(r"^gonio .*$", SHELL, flags=re.MULTILINE)
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
FEWER = {
    "calibration=4096, evaluation=3072": "calibration=128, evaluation=128",
    "split.calibration, 512": "split.calibration, 64",
    "model, split.calibration, method": "model, split.calibration, window=64, method",
    "split.evaluation, 512": "split.evaluation, 64",
    "prefill=256, chunk=32": "prefill=32, chunk=8",
    "samples=1024": "samples=64",
}


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = shlex.split(line)[1:]
    for name in re.findall(r"[\w.]+\.safetensors|[\w.]+\.json", line):
        Path(name).touch()
    command: click.Command = cli
    context = click.Context(command)
    while isinstance(command, click.Group):
        found = command.get_command(context, arguments.pop(0))
        assert found is not None, line
        command = found
    command.make_context("gonio", arguments)


def test_the_page_has_commands_and_python():
    assert len(COMMANDS) >= 10
    assert len(PYTHON) >= 5
    for few in FEWER:
        assert any(few in block for block in PYTHON), few


@pytest.mark.slow
def test_the_examples_run_one_after_another(tmp_path, monkeypatch):
    """In one namespace, with fewer tokens."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in PYTHON:
        for many, few in FEWER.items():
            block = block.replace(many, few)
        exec(block, names)
    assert names["out"].shape[1] == names["prompt"].shape[1] + 8
    assert (tmp_path / "prompt.safetensors").is_file()
    assert set(names["scores"]["method"]) == {"full", "4 bits", "zeros"}
