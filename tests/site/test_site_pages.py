"""What the pages say: links, escaping, text beside charts, nulls, and what is missing."""

import hashlib
import json
import math
import re
from importlib import import_module

import click
import numpy as np
import pandas as pd
import pytest

from gonio.records import make_measurement, make_value
from gonio.site import build_site
from gonio.site.collection import collect
from gonio.site.commands import COMMANDS, WAYS
from gonio.site.numbers import is_missing, show, slug
from gonio.site.pages import make_pages
from gonio.theorems import load_catalogue, load_families

EVIL = "<script>alert(1)</script>&\"'"


@pytest.fixture(params=["site", "empty_site"])
def any_site(request):
    """A site with every kind of record, and one without any."""
    return request.getfixturevalue(request.param)


def specs_of(page) -> list[dict]:
    """The chart specifications of a page, read as strict JSON."""
    return [
        json.loads(text, parse_constant=lambda token: pytest.fail(f"{token} in a specification"))
        for text in page.specs
    ]


def test_every_link_resolves_inside_the_site(read, any_site):
    assert read.broken_links(any_site, read.parse(any_site)) == []


def test_pages_are_well_formed(read, any_site):
    assert {
        name: page.problems for name, page in read.parse(any_site).items() if page.problems
    } == {}


def test_the_checkers_can_fail(read, site):
    """A dead file, a dead anchor, an outside link, a crossed tag and a doubled id are seen."""
    links = read.Page(
        '<a href="gone.html"></a><a href="index.html#gone"></a><a href="//x.org"></a>'
    )
    assert len(read.broken_links(site, read.parse(site) | {"p.html": links})) == 3
    assert read.Page("<p><b></p></b>").problems
    assert read.Page('<i id="a"></i><i id="a"></i>').problems == ["id 'a' occurs 2 times"]
    assert read.Page("<div>").problems == ["<div> is never closed"]


def test_nothing_is_loaded_from_a_network(site):
    """No page, script or style sheet of ours names an address to load."""
    for path in [*site.glob("*.html"), site / "assets" / "site.js", site / "assets" / "site.css"]:
        text = path.read_text(encoding="utf-8")
        # An address to go to, where a source publishes something, loads nothing.
        text = re.sub(r'<a href="https://[^"]*" rel="external noreferrer">', "<a>", text)
        found = set(re.findall(r"(?:https?:)?//[a-z][\w.-]+", text))
        assert found <= {"http://www.w3.org", "//www.w3.org"}, path.name
        assert "@import" not in text
        assert "@font-face" not in text


def test_the_first_page_is_small(read, site):
    """Below 1 MB with all that it loads."""
    page = read.parse(site)["index.html"]
    loaded = {a.get("src") for tag, a in page.elements if tag == "script"} - {None}
    loaded |= {a["href"] for tag, a in page.elements if a.get("rel") == "stylesheet"}
    assert {"assets/site.css", "assets/site.js"} < loaded
    sizes = {name: (site / name).stat().st_size for name in ("index.html", *loaded)}
    assert sum(sizes.values()) < 1_000_000, sizes


def test_every_record_can_be_downloaded_and_is_what_the_page_says(read, site, records):
    """A file each, with the digest beside it; and each record names the figures it is drawn in."""
    text = (site / "provenance.html").read_text(encoding="utf-8")
    files = re.findall(r'href="(records/[\w-]+\.json)" download', text)
    assert len(set(files)) == len(records) == len(list((site / "records").iterdir()))
    for name in set(files):
        digest = hashlib.sha256((site / name).read_bytes()).hexdigest()
        assert f'id="sha256-{digest}"' in text
    pages = read.parse(site)
    for name in ("adapters.html", "caches.html"):
        html = (site / name).read_text(encoding="utf-8")
        for part in html.split('<figure class="figure" id="')[1:]:
            figure, sources = part.split('"')[0], part.split("</figure>")[0]
            if figure == "figure-explorer":
                continue  # it draws whatever the reader picks
            entries = set(re.findall(r'href="provenance\.html#([\w-]+)"', sources))
            assert entries <= pages["provenance.html"].ids.keys()
            for entry in entries:
                section = text.split(f'class="entry" id="{entry}"')[1].split("</section>")[0]
                assert f'href="{name}#{figure}"' in section


def test_text_from_records_is_escaped(read, tmp_path):
    """Labels, titles, notes, settings and cells cannot add an element to a page."""
    table = pd.DataFrame({"step": [1, 2], "loss": [1.0, 0.5]})
    measurement = make_measurement(
        "training",
        EVIL,
        settings={"label": EVIL, EVIL: [EVIL]},
        values=[make_value(EVIL, 1.0, unit=EVIL, note=EVIL)],
        tables={"log": table},
    )
    site = build_site([measurement], tmp_path / "out").parent
    pages = read.parse(site)
    for name in ("adapters.html", "provenance.html"):
        text = (site / name).read_text(encoding="utf-8")
        assert "<script>alert" not in text
        assert EVIL in "".join(pages[name].words)
    assert specs_of(pages["adapters.html"])[0]["layer"]
    assert not set("<>&") & set("".join(pages["adapters.html"].specs))
    assert not any(page.problems for page in pages.values())
    assert read.broken_links(site, pages) == []


def test_every_chart_has_words_a_table_and_a_record(read, site):
    """The accessible name, the table and the link stand beside each chart."""
    pages = read.parse(site)
    for name in ("index.html", "adapters.html", "caches.html"):
        elements = pages[name].elements
        charts = [a for _, a in elements if a.get("class") == "chart"]
        figures = [a["id"] for tag, a in elements if tag == "figure" and a["class"] == "figure"]
        drawn = [figure for figure in figures if figure != "figure-statuses"]
        assert len(charts) >= len(drawn) > 0
        assert all(a["role"] == "img" and len(a["aria-label"]) > 40 for a in charts)
        assert sum(a.get("class") == "numbers" for _, a in elements) == len(drawn)
        text = (site / name).read_text(encoding="utf-8")
        for part in text.split('<figure class="figure"')[1:]:
            body = part.split("</figure>")[0]
            assert "<table" in body
            if "figure-statuses" not in body[:40]:
                assert "provenance.html#" in body


def test_every_chart_draws_its_null(read, site):
    """Chance is in every chart but the token loss, which has none and says so."""
    pages = read.parse(site)
    without = []
    for name in ("index.html", "adapters.html", "caches.html"):
        for spec in specs_of(pages[name]):
            text = json.dumps(spec)
            if '"style": "chance' not in text and "domainMid" not in text:
                without.append(spec["description"])
    assert len(without) == 1
    assert without[0].startswith("clm: loss (nats per token)")
    assert "the token loss has no such level" in "".join(pages["adapters.html"].words)


def test_every_encoded_field_is_in_the_data(read, site):
    """A misspelled field would draw an empty chart without any error."""
    pages = read.parse(site)
    checked = 0
    for name in ("index.html", "adapters.html", "caches.html"):
        for spec in specs_of(pages[name]):
            rows = {key: set().union(*values) for key, values in spec["datasets"].items()}
            made = set(re.findall(r'"as": "(\w+)"', json.dumps(spec)))  # by the chart itself
            for layer in spec.get("layer", [spec]):
                fields = set(re.findall(r'"field": "(\w+)"', json.dumps(layer["encoding"])))
                data = layer.get("data", spec.get("data"))["name"]
                missing = fields - rows[data] - made
                assert not missing, (spec["description"][:60], missing)
                checked += len(fields)
    assert checked > 100


def test_charts_have_no_color_of_their_own(read, site):
    """Light and dark come from the page."""
    for name in ("index.html", "adapters.html", "caches.html"):
        text = "".join(read.parse(site)[name].specs)
        assert not re.search(r"#[0-9a-f]{3,6}\b|rgb\(", text)


def test_undefined_numbers_are_dashes(read, site):
    """NaN, None and NA become a dash on the page, never a word."""
    for page in read.parse(site).values():
        words = " ".join(page.words)
        assert not re.search(r"\b(NaN|nan(?!\))|None|<NA>)\b", words)
    text = (site / "adapters.html").read_text(encoding="utf-8")
    assert re.search(r"undefined quantity</th><td class=\"num\">\N{EM DASH}</td>", text)
    words = " ".join(read.parse(site)["adapters.html"].words)
    assert "2 updates are zero or outside the numbered layers" in words


def test_a_missing_kind_names_its_command(read, empty_site):
    """Each section without a record says what to run, and shows no chart."""
    pages = read.parse(empty_site)
    adapters = " ".join(pages["adapters.html"].words)
    caches = " ".join(pages["caches.html"].words)
    for kind, way in WAYS.items():
        if kind not in ("theorem-check", "adapter-fleet"):
            assert way.line in adapters + caches
    assert WAYS["theorem-check"].line in " ".join(pages["theorems.html"].words)
    assert not any(page.specs for page in pages.values())
    statuses = {a["data-status"] for _, a in pages["theorems.html"].elements if "data-status" in a}
    # what proofs alone support
    assert statuses <= {"proved", "proved-weaker", "refuted", "deprecated", "open"}


@pytest.mark.parametrize(
    "line", sorted(set(COMMANDS.values()) | {"gonio demo", "gonio site build"})
)
def test_the_commands_named_exist(line):
    """What a section tells the reader to run is a command of ours."""
    _, noun, *verbs = line.split()
    command = getattr(import_module(f"gonio.cli.{noun}"), noun)
    for verb in verbs:
        assert isinstance(command, click.Group)
        assert verb in command.commands
        command = command.commands[verb]
    assert isinstance(command, click.Command)


@pytest.mark.parametrize("kind", WAYS)
def test_the_lines_to_run_are_understood(kind):
    """Options and arguments of a line that a section tells the reader to run are the command's."""
    way = WAYS[kind]
    _, noun, verb, *arguments = way.line.split()
    command = getattr(import_module(f"gonio.cli.{noun}"), noun).commands[verb]
    assert command.make_context(verb, list(arguments)).command is command
    assert way.target == arguments[-1]
    with pytest.raises(click.NoSuchOption):
        command.make_context(verb, [*arguments, "--no-such-option"])


@pytest.mark.parametrize("kept", ["adapter-spectrum", "cache-evaluation"])
def test_a_site_of_one_record_says_what_else_to_run(make, read, kept, tmp_path):
    """Every section is either drawn or names its command; no chart is without data."""
    found = [m for m in make.records(2, 1, 2) if m.record.kind == kept]
    site = build_site(found, tmp_path / "out").parent
    for name in ("adapters.html", "caches.html"):
        text = (site / name).read_text(encoding="utf-8")
        for part in re.findall(r"<section id=\"([a-z-]+)\">(.*?)</section>", text, re.DOTALL):
            kind = "adapter-spectrum" if part[0] == "explorer" else part[0]
            is_told = f"<code>{WAYS[kind].line}" in part[1]
            assert is_told != ('class="chart"' in part[1]), part[0]
    for page in read.parse(site).values():
        for spec in specs_of(page):
            assert any(spec.get("datasets", {}).values())


def test_an_unknown_kind_is_in_provenance_only(read, tmp_path):
    odd = make_measurement("odd-kind", "TEST DATA", settings={}, values=[], tables={})
    pages = read.parse(build_site([odd], tmp_path / "out").parent)
    assert [name for name, page in pages.items() if "odd-kind" in " ".join(page.words)] == [
        "provenance.html"
    ]


def test_the_theorems_figures_rest_on_are_in_the_catalogue(records):
    """A misspelled name would silently lose its link."""
    known = {entry.name for entry in load_catalogue()}
    pages = make_pages(collect(records), load_families())
    named = {
        theorem
        for page in ("adapters.html", "caches.html")
        for section in pages[page]["sections"]
        for figure in section.figures
        for theorem in figure.theorems
    }
    assert named
    assert named <= known


def test_cards_carry_the_computed_status(read, site, records):
    """One card per entry, the chip from the record, and the counts add up."""
    elements = read.parse(site)["theorems.html"].elements
    cards = {a["id"]: a["data-status"] for tag, a in elements if tag == "article"}
    checks = records[-1].tables["checks"]
    assert cards == {f"theorem-{r['name']}": r["status"] for _, r in checks.iterrows()}
    families = make_pages(collect(records), load_families())["theorems.html"]["counts"]
    assert sum(family.total for family in families) == len(checks)
    assert sum(sum(family.counts.values()) for family in families) == len(checks)


def test_formulas_are_mathml(site):
    """Every formula of the catalogue converts; the fallback is for what does not."""
    text = (site / "theorems.html").read_text(encoding="utf-8")
    assert text.count("<math ") == len(load_catalogue())
    assert 'class="latex"' not in text


def test_the_newest_check_of_a_statement_counts(read, tmp_path):
    """Two records of the same statement: the later one gives the status."""
    name = load_catalogue()[0].name

    def checked(status, created):
        found = make_measurement(
            "theorem-check",
            "TEST DATA",
            settings={},
            values=[],
            tables={"checks": pd.DataFrame([{"name": name, "status": status}])},
        )
        record = found.record.model_copy(update={"created": created})
        return type(found)(record, found.tables)

    new, old = checked("checked", "2026-02-02T00:00:00"), checked("failed", "2026-01-01T00:00:00")
    page = read.parse(build_site([new, old], tmp_path / "out").parent)["theorems.html"]
    status = {a["id"]: a["data-status"] for tag, a in page.elements if tag == "article"}
    assert status[f"theorem-{name}"] == "checked"


def test_pages_of_a_real_size_stay_small(make, read, tmp_path):
    """30 layers, 7 projections, 2 adapters: below 1.5 MB a page."""
    site = build_site(make.records(30, 3, 40), tmp_path / "out").parent
    sizes = {path.name: path.stat().st_size for path in site.glob("*.html")}
    assert max(sizes.values()) < 1_500_000, sizes
    assert read.broken_links(site, read.parse(site)) == []


@pytest.mark.parametrize("layers", [1, 2])
def test_a_model_of_few_layers_is_drawn(make, read, layers, tmp_path):
    """One layer has no width; the null band still has."""
    site = build_site(make.records(layers, 1, 1), tmp_path / "out").parent
    specs = specs_of(read.parse(site)["adapters.html"])
    spec = next(spec for spec in specs if "stable rank of" in spec["description"])
    tables = spec["datasets"].values()
    band = next(rows for rows in tables if {"shape", "low"} <= set(rows[0]))
    assert band[0]["layer"] < band[1]["layer"]


def test_an_adapter_of_zero_updates_only_has_nothing_to_draw(make, read, tmp_path):
    measurement = make.spectrum("dpo", 1, np.random.default_rng(0))
    measurement.tables["modules"]["stable_rank"] = math.nan
    page = read.parse(build_site([measurement], tmp_path / "out").parent)["adapters.html"]
    assert not page.specs
    words = " ".join(" ".join(page.words).split())
    assert "holds nothing to draw here" in words
    assert WAYS["adapter-spectrum"].line in words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "\N{EM DASH}"),
        (math.nan, "\N{EM DASH}"),
        (pd.NA, "\N{EM DASH}"),
        (math.inf, "\N{EM DASH}"),
        (0, "0"),
        (-1.5, "\N{MINUS SIGN}1.5"),
        (18412.0, "18\N{NARROW NO-BREAK SPACE}412"),
        (10770.4, "10\N{NARROW NO-BREAK SPACE}770"),
        (0.66512345, "0.6651"),
        (1.5e-7, "1.5 \N{MULTIPLICATION SIGN} 10\u207b\u2077"),
        (True, "yes"),
        ("words", "words"),
    ],
    ids=str,
)
def test_numbers_for_people(value, text):
    assert show(value) == text


def test_what_counts_as_missing():
    assert [is_missing(x) for x in (None, math.nan, pd.NA, pd.NaT, math.inf)] == [True] * 5
    assert [is_missing(x) for x in (0, "", False, -1.0)] == [False] * 4


@pytest.mark.parametrize(
    "text", ["DPO run 7", "../../etc", "<b>", "", "\N{GREEK SMALL LETTER BETA}"]
)
def test_slugs_are_safe_file_names(text):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug(text))
