"""The command line as a user meets it: help, exit codes, messages, streams."""

import json
import math
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

import gonio
from gonio.cli.main import cli
from gonio.cli.output import _short

BAD_INPUT = {
    "unknown model": ["cache", "observe", "no-such-model"],
    "unknown model to show": ["model", "show", "no-such-model"],
    "unknown model to fetch": ["model", "fetch", "no-such-model"],
    "missing text": ["cache", "observe", "smollm2-135m", "--text", "absent.txt"],
    "missing codec": ["cache", "evaluate", "smollm2-135m", "--codec", "absent.safetensors"],
    "missing adapter": ["adapter", "inspect", "absent"],
    "unknown model to weigh": ["weights", "measure", "no-such-model"],
    "unknown model to rotate": ["weights", "rotate", "no-such-model", "--out", "x"],
    "no bundle": ["adapter", "select", "absent", "--out", "x"],
    "unknown theorem": ["theorem", "show", "no_such_theorem"],
    "missing results": ["site", "build", "--from", "absent", "--out", "site"],
    "unwritable codec": ["cache", "calibrate", "smollm2-135m", "--out", "/proc/x/codec"],
    "unwritable demo": ["demo", "--out", "/proc/x/demo"],
    "unwritable adapter": ["train", "dpo", "smollm2-135m", "--out", "/proc/x/adapter"],
    "unknown model to train": ["train", "clm", "no-such-model", "--out", "adapter"],
    "missing pairs": ["train", "dpo", "smollm2-135m", "--data", "absent.jsonl", "--out", "a"],
}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, prog_name="gonio")


def every_command(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from every_command(child, (*path, name))


def test_help_is_light_and_fast():
    """Processor time of a process of its own; neither torch nor transformers is loaded."""
    code = (
        "import sys\nfrom gonio.cli.main import main\n"
        "try: main()\nfinally: print(sorted(sys.modules))"
    )
    before = _children_seconds()
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True
    )
    seconds = _children_seconds() - before
    modules = done.stdout.splitlines()[-1]
    for heavy in ("'torch'", "'transformers'", "'numpy'", "'pandas'", "'rich'"):
        assert heavy not in modules
    assert seconds < 0.3


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("path", list(every_command(cli)), ids=lambda p: " ".join(p) or "gonio")
def test_every_command_has_help_and_an_example_that_fits(path):
    result = run(*path, "--help")
    assert result.exit_code == 0
    assert "Example:" in result.output
    assert "\\b" not in result.output
    assert max(len(line) for line in result.output.splitlines()) <= 80


@pytest.mark.parametrize("arguments", BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_is_one_message_and_exit_code_2(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert result.stderr.startswith(("Error: ", "Usage: "))
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_command_is_bad_usage():
    assert run("nonsense").exit_code == 2
    assert run("cache", "nonsense").exit_code == 2


def test_version():
    assert gonio.__version__ in run("--version").output


def test_json_keeps_full_precision_and_provenance():
    result = run("model", "show", "smollm2-135m", "--json")
    content = json.loads(result.stdout)
    assert content["record"]["kind"] == "model"
    assert content["record"]["inputs"][0]["sha256"]
    assert content["tables"]["tensors"][0]["elements"] == 134515008


def test_csv_and_json_exclude_each_other():
    result = run("model", "list", "--csv", "--json")
    assert result.exit_code == 2
    assert "exclude" in result.stderr


def test_output_goes_to_a_file_that_is_not_overwritten_unasked(tmp_path):
    target = tmp_path / "models.csv"
    first = run("model", "list", "--csv", "--output", str(target))
    assert (first.exit_code, first.stdout) == (0, "")
    assert target.read_text().startswith("name,here,license")
    again = run("model", "list", "--output", str(target))
    assert again.exit_code == 2
    assert "--force" in again.stderr
    assert target.read_text().startswith("name,here,license")
    assert run("model", "list", "--output", str(target), "--force").exit_code == 0
    assert target.read_text().startswith("Bundled models")


def test_a_reader_that_goes_away_is_no_error():
    gonio_script = Path(sys.executable).with_name("gonio")
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = f"{gonio_script} theorem list --json | head -c 1 > /dev/null; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


def test_tables_hold_numbers_of_every_kind():
    cells = [None, True, "word", 3, 2.0, 1.23456, 1e300, math.nan, math.inf, -math.inf]
    assert [_short(cell) for cell in cells] == [
        *("", "True", "word", "3", "2", "1.235", "1e+300", "", "inf", "-inf"),
    ]
