"""The folder: whole or absent, deterministic, and never in place of somebody's files."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from gonio.errors import (
    MissingDependencyError,
    OutputError,
    RecordError,
    SettingError,
    TheoremError,
)
from gonio.records import make_measurement, write_measurement
from gonio.site import build_site, dependencies
from gonio.site.build import MARKER
from gonio.site.environment import PAGES
from gonio.site.interchange import read_json, to_json
from gonio.site.status_export import STATUS_FILE


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def small(kind="odd-kind", label="a", **settings):
    """A record of a kind the site does not know."""
    table = pd.DataFrame({"x": [1.0, math.nan], "text": ["<b>", None]})
    return make_measurement(
        kind, "TEST DATA", settings={"label": label, **settings}, values=[], tables={"t": table}
    )


def test_every_page_and_asset_is_there(site):
    """The pages of the menu, the assets, and one JSON file per record."""
    found = contents(site)
    assert set(PAGES) <= set(found)
    assert {f"assets/{name}" for name in ("vega.js", "site.js", "site.css")} <= set(found)
    assert len([name for name in found if name.startswith("records/")]) == 10
    assert not [name for name in found if name.endswith("record.json")]


def test_the_same_records_give_the_same_bytes(site, records, tmp_path):
    """Order and place do not matter; a record met twice counts once."""
    again = build_site([*reversed(records), records[0]], tmp_path / "again").parent
    assert contents(again) == contents(site)


def test_records_on_disk_and_in_memory_give_the_same_site(site, records, tmp_path):
    """Parquet and JSON both keep every number."""
    for place, measurement in enumerate(records):
        write_measurement(measurement, tmp_path / "results" / f"r{place}")
    stored = build_site([tmp_path / "results"], tmp_path / "stored").parent
    assert contents(stored) == contents(site)
    files = sorted((site / "records").glob("*.json"))
    read_back = build_site(files, tmp_path / "read-back").parent
    assert contents(read_back) == contents(site)


def test_nothing_around_the_build_shows_in_it(site, records, tmp_path):
    """Another process, hash seed, folder, locale, time zone, order and age of files: same bytes."""
    for place, measurement in enumerate(reversed(records)):
        folder = write_measurement(measurement, tmp_path / f"r{place}")
        for path in tmp_path.rglob("*"):
            os.utime(path, (86400 * place, 86400 * place))
        assert folder
    code = "import sys; from gonio.site import build_site; build_site(sys.argv[2:], sys.argv[1])"
    settings = {"PYTHONHASHSEED": "4711", "TZ": "Asia/Tokyo", "LC_ALL": "C", "LANG": "C"}
    folders = [f"r{place}" for place in (3, 0, *range(4, len(records)), 2, 1)]
    subprocess.run(
        [sys.executable, "-c", code, "out", *folders],
        cwd=tmp_path,
        env=os.environ | settings | {"SOURCE_DATE_EPOCH": "1"},
        check=True,
    )
    assert contents(tmp_path / "out") == contents(site)


def test_a_site_without_records_takes_its_date_from_outside(monkeypatch, tmp_path):
    """SOURCE_DATE_EPOCH where no record has a date; never the clock."""
    foot = {}
    for seconds in ("", "86400"):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", seconds)
        page = build_site([], tmp_path / f"site{seconds}")
        foot[seconds] = page.read_text(encoding="utf-8").split("<footer")[1]
    assert "1970-01-02T00:00:00+00:00" in foot["86400"]
    assert "newest" not in foot[""]
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(SettingError, match="SOURCE_DATE_EPOCH is 'yesterday'"):
        build_site([], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_figures_keep_their_anchors_when_a_record_is_added(make, tmp_path):
    """A second record of a kind gets anchors of its own, whatever comes first."""
    one, two, three = (make.records(layers, 2, 5)[7] for layers in (2, 3, 4))
    anchors = []
    for number, measurements in enumerate([[one, two], [one, two, three]]):
        text = (build_site(measurements, tmp_path / str(number)).parent / "caches.html").read_text()
        named = set(re.findall(r'id="figure-([\w-]+)"', text))
        anchors.append({name for name in named if "key-geometry" in name})
    assert anchors[0]
    assert all("key-geometry" in name for name in anchors[1])
    assert len(anchors[1]) == 2 * len(anchors[0])


def test_two_files_of_statuses_are_refused(site, tmp_path):
    content = json.loads((site / STATUS_FILE).read_text(encoding="utf-8"))
    (tmp_path / "other.json").write_text(json.dumps(content | {"gonio": "0.0.0"}))
    with pytest.raises(RecordError, match="a second file of theorem statuses"):
        build_site([site / STATUS_FILE, tmp_path / "other.json"], tmp_path / "out")
    (tmp_path / "other.json").write_text(json.dumps(content | {"trust": "me"}))
    with pytest.raises(TheoremError, match="trust: Extra inputs"):
        build_site([tmp_path / "other.json"], tmp_path / "out")


def test_another_record_gives_another_site(site, records, tmp_path):
    """The comparison above can fail: dropping one record changes pages."""
    fewer = build_site(records[1:], tmp_path / "fewer").parent
    changed = [name for name, data in contents(site).items() if contents(fewer).get(name) != data]
    assert {"adapters.html", "provenance.html"} <= set(changed)


def test_downloads_keep_full_precision_and_write_nan_as_null(site, records):
    """The JSON holds the tables' exact numbers and no token JSON does not know."""
    for measurement in records:
        text = to_json(measurement)
        content = json.loads(text, parse_constant=lambda token: pytest.fail(f"{token} in JSON"))
        assert text.encode() in contents(site / "records").values()
        for name, table in measurement.tables.items():
            for column in table.select_dtypes("float").columns:
                stored = [row[column] for row in content["tables"][name]]
                expected = [None if math.isnan(x) else x for x in table[column].tolist()]
                assert stored == expected


def test_a_site_is_replaced_but_nothing_else_is(tmp_path):
    """The marker decides; a refused folder keeps its files."""
    out = tmp_path / "out"
    build_site([small()], out)
    (out / "stale.html").write_text("old")
    build_site([small(label="b")], out)
    assert not (out / "stale.html").exists()
    (out / MARKER).unlink()
    before = contents(out)
    with pytest.raises(OutputError, match="holds something else"):
        build_site([small()], out)
    assert contents(out) == before


def test_an_empty_folder_is_used_and_a_file_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    assert build_site([], tmp_path / "empty").is_file()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="a file is there"):
        build_site([], tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_records_inside_the_site_are_not_deleted(tmp_path):
    """A site is not built over the results it is built from."""
    out = tmp_path / "site"
    build_site([], out)
    write_measurement(small(), out / "results")
    with pytest.raises(OutputError, match="replace the records"):
        build_site([out / "results"], out)
    assert (out / "results" / "record.json").is_file()


def test_a_failed_build_leaves_the_old_site(site, tmp_path):
    """A broken record changes nothing on disk and leaves nothing beside it."""
    out = tmp_path / "site"
    build_site([small()], out)
    before = contents(tmp_path)
    broken = small("adapter-spectrum")
    with pytest.raises(RecordError, match="has no table 'modules'"):
        build_site([broken], out)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("missing", ["altair", "jinja2", "latex2mathml", "vl_convert"])
def test_a_missing_extra_is_named_before_any_work(missing, monkeypatch, tmp_path):
    real = dependencies.find_spec
    monkeypatch.setattr(
        dependencies, "find_spec", lambda name: None if name == missing else real(name)
    )
    with pytest.raises(MissingDependencyError, match=r"pip install 'gonio\[site\]'"):
        build_site([tmp_path / "not even there"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_column_is_named(tmp_path):
    table = pd.DataFrame({"step": [1, 2]})
    broken = make_measurement(
        "training", "TEST DATA", settings={"kind": "dpo"}, values=[], tables={"log": table}
    )
    with pytest.raises(RecordError, match="no column loss"):
        build_site([broken], tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "expected an object"),
        ('{"record": {"kind": 3}, "tables": {}}', "not a record of this version"),
    ],
)
def test_a_file_that_is_no_record_is_refused(text, message, tmp_path):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(RecordError, match=message):
        read_json(path)


def test_a_file_without_its_tables_is_refused(tmp_path):
    content = json.loads(to_json(small()))
    path = tmp_path / "r.json"
    path.write_text(json.dumps(content | {"tables": {}}))
    with pytest.raises(RecordError, match="names the tables"):
        read_json(path)


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(RecordError, match="no record in"):
        build_site([tmp_path], tmp_path / "out")
    with pytest.raises(RecordError, match="no folder of records"):
        build_site([tmp_path / "nowhere"], tmp_path / "out")


def test_records_with_the_same_label_stay_apart(tmp_path):
    """Each gets a page entry and a file of its own."""
    site = build_site([small(size=1), small(size=2)], tmp_path / "out").parent
    names = sorted(path.name for path in (site / "records").iterdir())
    assert len(names) == 2
    assert all(name.startswith("odd-kind-a-") for name in names)


def test_a_record_of_kind_record_is_not_taken_for_a_result(tmp_path):
    """Its download must not be found as a record when the site lies among the results."""
    measurement = make_measurement("record", "TEST DATA", settings={}, values=[], tables={})
    site = build_site([measurement], tmp_path / "out").parent
    assert [path.name for path in (site / "records").iterdir()] == ["record-1.json"]
