"""Checks become a record: one row per statement, everything that was tried, nothing rounded."""

import dataclasses

import pytest

from gonio.errors import SettingError, TheoremError
from gonio.pipelines.theorems import check_theorems
from gonio.records import read_measurement, write_measurement
from gonio.theorems import runner

NAMES = ("stableRank_mul_le_min", "iid_coord_moment_ratio_floor")


def test_record_holds_every_statement(tmp_path):
    calls = []
    measurement = check_theorems(
        NAMES, examples=10, seed=4, progress=lambda *call: calls.append(call)
    )
    record, table = measurement.record, measurement.tables["checks"]
    assert record.kind == "theorem-check"
    assert record.seed == 4
    assert record.settings == {"names": list(NAMES), "family": None, "examples": 10}
    assert list(table["name"]) == list(NAMES)
    assert list(table["status"]) == ["refuted", "proved-weaker"]
    assert list(table["examples"]) == [10, 10]
    assert table["counterexample"].isna().all()
    assert record.value("statements").value == 2
    assert record.value("cases_tried").value == 20
    assert record.value("failed").value == 0
    assert calls == [
        (NAMES[0], 0, 2),
        (NAMES[1], 1, 2),
        ("checks done", 2, 2),
    ]
    again = read_measurement(write_measurement(measurement, tmp_path / "checks"))
    assert again.record == record
    assert list(again.tables["checks"]["worst_margin"]) == list(table["worst_margin"])


def test_a_failed_check_is_a_row_with_its_counterexample(monkeypatch):
    check = runner.CHECKS["gradients_of_factors"]
    broken = dataclasses.replace(check, margin=check.mutant.margin)
    monkeypatch.setattr(runner, "CHECKS", {**runner.CHECKS, check.name: broken})
    measurement = check_theorems(("lora_gradients",), examples=20)
    row = measurement.tables["checks"].set_index("name").loc["lora_gradients"]
    assert row["status"] == "failed"
    assert row["worst_margin"] < 0
    assert "numerator" in row["counterexample"]
    assert measurement.record.value("failed").value == 1


def test_family_and_bad_input():
    measurement = check_theorems(family="J", examples=3)
    assert set(measurement.tables["checks"]["family"]) == {"J"}
    with pytest.raises(TheoremError, match="did you mean lora_gradients"):
        check_theorems(("lora_gradient",))
    with pytest.raises(SettingError, match="at least 1"):
        check_theorems(NAMES, examples=0)
