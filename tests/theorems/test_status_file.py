"""The status file: a schema that is generated, rows that agree with the other pages, one reader."""

import json
from importlib.resources import files

import pytest
from pydantic import ValidationError

from gonio.errors import TheoremError
from gonio.theorems import load_catalogue
from gonio.theorems.status_file import (
    ProofOrigin,
    TheoremRow,
    TheoremStatusFile,
    count_words,
    read_status_file,
    status_rows,
    status_schema,
)
from gonio.theorems.tables import locked_proofs, theorem_table

ENTRIES = load_catalogue()
PROOFS = locked_proofs()
ROWS = status_rows(ENTRIES, {}, PROOFS, url_base="https://example.org/rocq/")
# What the status files of the two sources hold of each statement, as gonio calls it.
OF_THE_SOURCES = {"name", "kind", "family", "status", "file", "line", "source_url", "axioms"}


def make_file(**changes: object) -> TheoremStatusFile:
    counts, family_counts = count_words(ROWS)
    origin = ProofOrigin(
        method="lock",
        prover="8.16.1",
        digest="0" * 64,
        sources="absent",
        allowed_axioms=(),
        library=None,
    )
    return TheoremStatusFile(
        schema_version=1,
        gonio="0.1.0",
        proofs=origin,
        drift=(),
        counts=counts,
        family_counts=family_counts,
        theorems=ROWS,
        checks=None,
    ).model_copy(update=changes)


def test_the_schema_in_the_package_is_generated():
    """After a change of the classes: gonio theorem status --schema > theorem-status.schema.json."""
    stored = files("gonio.theorems").joinpath("theorem-status.schema.json").read_text("utf-8")
    assert stored == status_schema() + "\n"
    schema = json.loads(stored)
    assert schema["properties"]["schema_version"]["const"] == 1
    assert set(schema["required"]) == set(TheoremStatusFile.model_fields)


def test_rows_hold_what_the_files_of_the_sources_hold():
    assert set(TheoremRow.model_fields) >= OF_THE_SOURCES
    assert "counts" in TheoremStatusFile.model_fields


def test_rows_are_those_of_the_list():
    table = theorem_table().set_index("name")["status"]
    assert {row.name: row.status for row in ROWS} == dict(table)


def test_a_proof_has_a_place_and_axioms_and_nothing_else_has():
    for entry, row in zip(ENTRIES, ROWS, strict=True):
        has_proof = bool(entry.declarations)
        assert (row.file is not None) == (row.line is not None) == has_proof
        assert (row.axioms is not None) == (row.statement is not None) == has_proof
        assert [proof.name for proof in row.declarations] == list(entry.declarations)
        assert row.missing == ()
        if has_proof:
            assert row.source_url == f"https://example.org/rocq/{row.file}#L{row.line}"


def test_counts_add_up():
    whole, by_family = count_words(ROWS)
    assert whole["statements"] == len(ENTRIES) == sum(whole.values()) - whole["statements"]
    assert sum(family["statements"] for family in by_family.values()) == len(ENTRIES)
    assert {word for family in by_family.values() for word in family} == set(whole)


def test_a_declaration_the_proofs_lack_is_missing_and_unproved():
    entry = next(entry for entry in ENTRIES if entry.rocq is not None)
    proofs = {name: proof for name, proof in PROOFS.items() if name != entry.rocq}
    row = status_rows([entry], {}, proofs)[0]
    assert row.missing == (entry.rocq,)
    assert row.status == "open"
    assert row.source_url is None


@pytest.mark.parametrize(
    ("change", "is_red"),
    [
        ({}, False),
        ({"drift": ("a name: in the lock, not in the sources",)}, True),
        ({"theorems": (ROWS[0].model_copy(update={"status": "failed"}),)}, True),
    ],
)
def test_drift_and_failure_are_red(change, is_red):
    assert make_file(**change).is_red == is_red


def test_round_trip_and_refusals(tmp_path):
    path = tmp_path / "theorem-status.json"
    path.write_text(make_file().model_dump_json(indent=1))
    assert read_status_file(path) == make_file()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"trust": "me"}))
    with pytest.raises(TheoremError, match=r"trust: Extra inputs[\s\S]*gonio theorem status"):
        read_status_file(path)
    with pytest.raises(TheoremError, match="cannot read"):
        read_status_file(tmp_path / "absent.json")
    with pytest.raises(ValidationError):
        TheoremRow.model_validate(ROWS[0].model_dump() | {"status": "proven"})
