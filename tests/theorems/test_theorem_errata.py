"""The errata page is generated, complete, and the committed copy is the generated one."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from gonio.cli.main import cli
from gonio.theorems import load_catalogue
from gonio.theorems.errata import errata_entries, errata_page

COMMITTED = Path(__file__).parents[2] / "docs" / "errata.md"
PAGE = errata_page()


def test_committed_page_is_the_generated_one():
    cure = "run `gonio theorem errata --output docs/errata.md --force`"
    assert COMMITTED.read_text(encoding="utf-8") == PAGE, cure


@pytest.mark.parametrize("entry", errata_entries(), ids=lambda entry: entry.name)
def test_every_erratum_has_its_correction_and_its_evidence(entry):
    section = PAGE.split(f"### `{entry.name}`\n")[1].split("\n##")[0]
    assert entry.erratum in section
    assert entry.sentence in section
    assert f"$$ {entry.latex} $$" in section
    assert "Evidence: " in section
    assert entry.check is None or f"check `{entry.check}`" in section
    assert all(f"`{name}`" in section for name in entry.replaced_by)


def test_statements_without_erratum_are_left_out():
    clean = [entry.name for entry in load_catalogue() if entry.erratum is None]
    assert "rank_add_le" in clean
    assert all(f"### `{name}`" not in PAGE for name in clean)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("stableRank_mul_le_min", "**Refuted.**"),
        ("stable_rank_acoustic_scaling", "Definitional"),
        ("subspace_dilution", "Vacuous"),
        ("gamma_right_alignment", "**A measurement.**"),
        ("narrowDim_rank_k_ceiling_formula", "**Withdrawn.**"),
        ("lora_parameter_gain", "its own formula gives 50"),
    ],
)
def test_what_is_wrong_is_named(name, word):
    assert word in PAGE.split(f"### `{name}`\n")[1].split("\n##")[0]


def test_command_prints_and_writes_the_page(tmp_path):
    runner, path = CliRunner(), tmp_path / "errata.md"
    assert runner.invoke(cli, ["theorem", "errata"]).stdout == PAGE
    assert runner.invoke(cli, ["theorem", "errata", "--output", str(path)]).exit_code == 0
    assert path.read_text(encoding="utf-8") == PAGE
    refused = runner.invoke(cli, ["theorem", "errata", "--output", str(path)])
    assert refused.exit_code == 2
    assert "give --force" in refused.stderr
