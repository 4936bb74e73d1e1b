"""Records: whole or absent, strict, full precision, with provenance."""

import hashlib
import json
import math

import pandas as pd
import pytest

from gonio.errors import DataError, OutputError, RecordError
from gonio.linalg.resampling import Interval
from gonio.records import (
    Measurement,
    file_input,
    find_measurements,
    make_measurement,
    make_value,
    read_measurement,
    text_input,
    write_measurement,
)


@pytest.fixture
def measurement() -> Measurement:
    table = pd.DataFrame({"layer": [0, 1], "value": [1 / 3, math.nan], "name": ["a", "b"]})
    interval = Interval(0.1, 0.2, 0.95, "BCa")
    values = [
        make_value("third", 1 / 3, chance=0.5, interval=interval),
        make_value("undefined", math.nan, note="no modules"),
    ]
    return make_measurement(
        "test-kind",
        "A test",
        settings={"k": [1, 2]},
        values=values,
        tables={"rows": table},
        inputs=[text_input("text", "abc")],
        seed=7,
    )


def test_a_measurement_survives_the_disk_at_full_precision(tmp_path, measurement):
    found = read_measurement(write_measurement(measurement, tmp_path / "one"))
    assert found.record == measurement.record
    assert found.record.value("third").value == 1 / 3
    pd.testing.assert_frame_equal(found.tables["rows"], measurement.tables["rows"])


def test_what_is_not_finite_becomes_null_and_says_so(measurement):
    value = measurement.record.value("undefined")
    assert value.value is None
    assert value.note == "no modules (undefined: nan)"


def test_provenance_names_versions_seed_and_hashes(tmp_path, measurement):
    record = measurement.record
    assert {"torch", "transformers", "peft"} <= set(record.environment.packages)
    assert record.seed == 7
    assert record.inputs[0].sha256 == hashlib.sha256(b"abc").hexdigest()
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert file_input(path).sha256 == record.inputs[0].sha256
    with pytest.raises(DataError, match="cannot read"):
        file_input(tmp_path / "absent")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"surprise": 1}, "surprise"),
        ({"schema_version": 2}, "schema_version"),
        ({"kind": "No Slug"}, "kind"),
        ({"values": [{"name": "x"}]}, "values.0.value"),
    ],
)
def test_records_of_another_shape_are_refused(tmp_path, measurement, change, reason):
    folder = write_measurement(measurement, tmp_path / "one")
    path = folder / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RecordError, match=reason):
        read_measurement(folder)


def test_a_missing_or_broken_table_is_refused(tmp_path, measurement):
    folder = write_measurement(measurement, tmp_path / "one")
    (folder / "rows.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(RecordError, match="rows, unreadable"):
        read_measurement(folder)
    (folder / "rows.parquet").unlink()
    with pytest.raises(RecordError, match="rows, unreadable"):
        read_measurement(folder)


def test_a_failed_write_leaves_the_earlier_record(tmp_path, measurement):
    folder = write_measurement(measurement, tmp_path / "one")
    bad = Measurement(measurement.record, {"rows": pd.DataFrame({"x": [object()]})})
    with pytest.raises(Exception, match="object"):
        write_measurement(bad, folder)
    assert read_measurement(folder).record == measurement.record
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_tables_and_record_must_agree(tmp_path, measurement):
    with pytest.raises(RecordError, match="names the tables"):
        write_measurement(Measurement(measurement.record, {}), tmp_path / "one")


def test_an_unwritable_place_is_one_clear_error(tmp_path, measurement):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        write_measurement(measurement, tmp_path / "file" / "one")


def test_find_measurements_sorts_and_skips_hidden(tmp_path, measurement):
    for name in ("b", "a/deep", ".staging"):
        write_measurement(measurement, tmp_path / name)
    found = [path.relative_to(tmp_path).as_posix() for path in find_measurements(tmp_path)]
    assert found == ["a/deep", "b"]
    with pytest.raises(RecordError, match="no folder of records"):
        find_measurements(tmp_path / "absent")
