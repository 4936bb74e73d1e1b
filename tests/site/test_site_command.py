"""``gonio site build``: the library's result on the terminal, and exit code 2 on bad input."""

import pytest
from click.testing import CliRunner

from gonio.cli.main import cli
from gonio.records import make_measurement, write_measurement


@pytest.fixture
def results(tmp_path):
    """Two folders of records."""
    for name in ("a", "b"):
        measurement = make_measurement(
            "odd-kind", "TEST DATA", settings={"label": name}, values=[], tables={}
        )
        write_measurement(measurement, tmp_path / name / "deep")
    return tmp_path / "a", tmp_path / "b"


def test_build_prints_the_page_to_open(results, tmp_path):
    out = tmp_path / "site"
    command = ["site", "build", "--from", *map(str, results), "--out", str(out)]
    found = CliRunner().invoke(cli, command)
    assert found.exit_code == 0, found.output
    assert found.stdout.strip() == str(out / "index.html")
    assert len(list((out / "records").iterdir())) == 2


def test_a_missing_folder_is_bad_input(tmp_path):
    command = ["site", "build", "--from", str(tmp_path / "no"), "--out", str(tmp_path / "site")]
    found = CliRunner().invoke(cli, command)
    assert found.exit_code == 2
    assert "no folder of records at" in found.stderr
    assert "Traceback" not in found.output
    assert not (tmp_path / "site").exists()


def test_a_broken_record_is_bad_input(results, tmp_path):
    (results[0] / "deep" / "record.json").write_text('{"kind": 1}')
    command = ["site", "build", "--from", str(results[0]), "--out", str(tmp_path / "site")]
    found = CliRunner().invoke(cli, command)
    assert found.exit_code == 2
    assert "not a record of this version" in found.stderr


def test_somebody_elses_folder_is_bad_input(results, tmp_path):
    command = ["site", "build", "--from", str(results[0]), "--out", str(results[1])]
    found = CliRunner().invoke(cli, command)
    assert found.exit_code == 2
    assert "holds something else" in found.stderr
    assert (results[1] / "deep" / "record.json").is_file()


def test_help_has_an_example():
    found = CliRunner().invoke(cli, ["site", "build", "--help"])
    assert found.exit_code == 0
    assert "gonio site build --from" in found.output
