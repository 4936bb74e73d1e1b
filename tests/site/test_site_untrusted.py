"""Names in records are untrusted: every text of every kind of record, written as a script."""

import json

import pytest

from gonio.records import Measurement, text_input
from gonio.site import build_site

EVIL = "<script>alert(1)</script>&\"'"
CLOSING = "</script><img src=x onerror=alert(2)>"
# Columns that name nothing the site compares with: what the measured model or file is called.
FREE = ("module", "token", "tried", "mutant", "counterexample", "mutant_counterexample")


def poisoned(measurement, place):
    """The same measurement, its names as hostile as they can be."""
    record = measurement.record
    named = {"model": EVIL, "label": f"{EVIL}{place}", "text": CLOSING}
    known = {key: value for key, value in record.settings.items() if key not in named}
    values = [value.model_copy(update={"note": EVIL, "unit": EVIL}) for value in record.values]
    record = record.model_copy(
        update={
            "title": f"{EVIL} {CLOSING}",
            "settings": known | named | {EVIL: {CLOSING: [EVIL]}},
            "inputs": (text_input(f"{CLOSING}.safetensors", EVIL),),
            "values": tuple(values),
            "device": EVIL,
        }
    )
    tables = {}
    for name, table in measurement.tables.items():
        table = table.copy()
        for column in table.columns:
            if column in FREE:
                table[column] = [f"{CLOSING}{EVIL}{cell}" for cell in table[column]]
            elif column == "projection":
                table[column] = table[column].replace({"q_proj": EVIL, "k_proj": CLOSING})
        tables[name] = table
    return Measurement(record, tables)


@pytest.fixture(scope="module")
def hostile(records, tmp_path_factory):
    """A site of poisoned records of every kind."""
    found = [poisoned(measurement, place) for place, measurement in enumerate(records)]
    return build_site(found, tmp_path_factory.mktemp("hostile") / "site").parent


def test_hostile_names_are_text_on_every_page(hostile, read):
    """No element of theirs, no broken page, no lost name."""
    pages = read.parse(hostile)
    for name, page in pages.items():
        text = (hostile / name).read_text(encoding="utf-8")
        assert "<script>alert" not in text, name
        assert "<img" not in text, name
        assert page.problems == [], name
        for spec in page.specs:
            assert not set("<>&") & set(spec)
            json.loads(spec)
    for name in ("index.html", "adapters.html", "caches.html", "theorems.html", "provenance.html"):
        assert EVIL in "".join(pages[name].words) or CLOSING in "".join(pages[name].words), name
    assert any("script\\u003ealert" in spec for spec in pages["adapters.html"].specs)
    assert read.broken_links(hostile, pages) == []
    assert all(path.suffix == ".json" for path in (hostile / "records").iterdir())


@pytest.mark.browser
def test_hostile_names_run_nothing(browser, hostile):
    """In a real browser: no dialog, no error, no request, and the charts show the name."""
    problems = []
    page = browser.new_page()
    page.set_default_timeout(120_000)
    page.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda m: m.type == "error" and problems.append(m.text))
    page.on("request", lambda request: _note_network(problems, request.url))
    for name in ("index", "adapters", "caches", "theorems", "provenance"):
        page.goto((hostile / f"{name}.html").as_uri())
        if page.locator(".chart").count():
            page.wait_for_function("document.documentElement.dataset.charts === 'ready'")
            page.locator(".chart svg .mark-symbol path").first.hover(force=True)
            page.wait_for_timeout(200)
        if name == "adapters":
            drawn = page.locator(".chart svg").all_text_contents()
            assert any("<script>" in text for text in drawn)
        assert page.locator("img").count() == 0
    page.close()
    assert problems == []


def _note_network(problems, url):
    if not url.startswith(("file://", "data:")):
        problems.append(url)
