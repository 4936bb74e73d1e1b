"""The README's commands exist with the options it gives, and its Python runs."""

import re
import shlex
from pathlib import Path

import click
import pytest

from gonio.cli.main import cli

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8") if README.exists() else ""
COMMANDS = sorted(set(re.findall(r"^(gonio .*?)(?:\s+#.*)?$", TEXT, flags=re.MULTILINE)))
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line):
    command: click.Command = cli
    arguments = shlex.split(line)[1:]
    context = click.Context(command)
    while isinstance(command, click.Group):
        found = command.get_command(context, arguments.pop(0))
        assert found is not None, line
        command = found
    command.make_context("gonio", arguments)


def test_there_is_something_to_test():
    assert len(COMMANDS) >= 12
    assert len(PYTHON) == 2


def test_the_cache_example_runs(tmp_path, monkeypatch):
    """With fewer calibration tokens, so that it takes seconds."""
    monkeypatch.chdir(tmp_path)
    source = PYTHON[1]
    assert "calibration=4096" in source
    names: dict[str, object] = {}
    exec(source.replace("calibration=4096", "calibration=512"), names)
    assert names["codec"].bits_per_element(seq_len=64) == 1.25
    assert (tmp_path / "smollm2-1bit.safetensors").is_file()
