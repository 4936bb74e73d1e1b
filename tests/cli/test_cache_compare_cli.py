"""``gonio cache compare``: what it prints, what it refuses, what is missing."""

import json

import pytest
from click.testing import CliRunner

from gonio.cli.main import cli


def run(*arguments):
    return CliRunner().invoke(cli, ["cache", "compare", *map(str, arguments)], prog_name="gonio")


@pytest.fixture(scope="module")
def options(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    small = ("--windows", 2, "--window", 64, "--prefill", 32, "--calibration-tokens", 128)
    where = ("--work", folder / "work", "--peer-folder", folder / "peers")
    return (tiny_folder, *small, *where, "--methods", "affine 2,affine K2")


def test_tables_name_the_frontier_and_what_is_not_installed(options):
    done = run(*options, "--peers", "quanto")
    assert done.exit_code == 0, done.output
    words = " ".join(done.output.split())
    assert "teacher-forced: keys, values exact; * frontier" in words
    assert "cache: keys and values" in words
    assert "affine 2 *" in words
    assert "optimum-quanto==0.2.7: gonio cache compare MODEL --install --peers quanto" in words
    assert max(len(line) for line in done.stdout.splitlines()) <= 80


def test_json_holds_the_record_and_csv_the_rows(options):
    found = json.loads(run(*options, "--peers", "none", "--json").stdout)
    assert found["record"]["kind"] == "cache-comparison"
    assert found["record"]["settings"]["windows"] == [2, 64]
    names = {row["method"] for row in found["tables"]["methods"]}
    assert names == {"full", "zeros", "affine 2", "affine K2 V2"}
    table = run(*options, "--peers", "none", "--csv").stdout.splitlines()
    assert table[0].startswith("method,")
    assert len(table) == 1 + 2 * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--peers", "quonto"), "no peer is called 'quonto'"),
        (("--methods", "sine"), "no method begins with 'sine'"),
        (("--codec", "absent.safetensors"), "absent.safetensors"),
    ],
)
def test_bad_input_is_refused_with_one_message(tiny_folder, arguments, message):
    done = run(tiny_folder, *arguments)
    assert done.exit_code == 2
    assert message in done.output
    assert "Traceback" not in done.output
