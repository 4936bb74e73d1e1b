"""The home page's sentences: computed from the records, and silent where there is nothing."""

import numpy as np
import pandas as pd
import pytest

from gonio.records import make_measurement
from gonio.site import build_site
from gonio.site.adapter_figures import stable_rank_summary
from gonio.site.collection import collect
from gonio.site.environment import make_environment
from gonio.site.formula import to_mathml
from gonio.site.home_figures import perplexity_summary


@pytest.fixture
def evaluation(make):
    """A made-up record of predictions through caches."""
    found = make.records(1, 1, 1)
    return next(m for m in found if m.record.kind == "cache-evaluation")


def changed(measurement, methods: pd.DataFrame):
    """The only record of a site, with another table of methods."""
    record = measurement.record
    tables = {**measurement.tables, "methods": methods}
    again = make_measurement(record.kind, "TEST", settings={}, values=[], tables=tables)
    return collect([again]).records[0]


def test_the_finding_names_the_best_and_the_worst_cache(evaluation):
    frame = evaluation.tables["methods"].copy()
    mine = frame["protocol"] == "cache"
    ratios = {"full": 1.0, "zeros": 900.0, "sign-learned": 3.5, "sign-none": 70.0}
    for name, ratio in ratios.items():
        frame.loc[mine & (frame["method"] == name), "perplexity_ratio"] = ratio
    others = mine & ~frame["method"].isin(ratios)
    frame.loc[others, "perplexity_ratio"] = 10.0
    figure = perplexity_summary(changed(evaluation, frame))
    assert figure.finding == (
        "Perplexity as a multiple of full precision's: at best 3.5 (1 bit, learned rotation), "
        "at worst 70 (1 bit, no rotation), 900 if the cache keeps nothing."
    )
    assert not figure.is_table_open


def test_without_a_compressed_cache_there_is_no_finding(evaluation):
    frame = evaluation.tables["methods"]
    kept = frame[frame["method"].isin(["full", "zeros"])]
    assert perplexity_summary(changed(evaluation, kept)).finding == ""
    assert perplexity_summary(changed(evaluation, frame.iloc[:0])) is None


def test_of_many_methods_the_nearest_and_the_farthest_are_drawn(evaluation):
    """Made up: 30 methods with ratios 2 to 31 beside full precision and the empty cache."""
    frame = evaluation.tables["methods"]
    own = frame[frame["method"].isin(["full", "zeros"])]
    many = [
        own[own["method"] == "full"].assign(method=f"m{n}", perplexity_ratio=2.0 + n)
        for n in range(30)
    ]
    figure = perplexity_summary(changed(evaluation, pd.concat([own, *many])))
    names = {row[0] for row in figure.table.rows}
    assert {"m0", "m1", "m2", "m3", "m4", "m29"} < names
    assert len(names) == 8
    assert "24 other methods are on the page of caches." in figure.caption
    assert "at best 2 (m0), at worst 31 (m29)" in figure.finding


def test_no_number_of_records_makes_the_home_page_heavy(evaluation, make, tmp_path):
    """Ten adapters and codecs of long names, an evaluation of forty methods of long names."""
    rng = np.random.default_rng(0)
    frame = evaluation.tables["methods"]
    own = frame[frame["method"].isin(["full", "zeros"])]
    wide = [
        own[own["method"] == "full"].assign(method=f"a long method, number {n}") for n in range(40)
    ]
    records = [changed(evaluation, pd.concat([own, *wide])).measurement]
    for n in range(10):
        label = f"{n} an adapter or a codec with a name of sixty letters or so"
        records.append(make.spectrum(label, 1, rng))
        settings = {"label": label}
        records.append(
            make_measurement("cache-calibration", "TEST", settings=settings, values=[], tables={})
        )
    page = build_site(records, tmp_path / "out")
    home = page.read_text(encoding="utf-8")
    assert "The first 3 of 10 adapters; their page has all." in home
    assert home.count("8 more</a>") == 2
    loaded = [p for p in (page.parent / "assets").iterdir() if f"assets/{p.name}" in home]
    assert len(home.encode()) + sum(path.stat().st_size for path in loaded) < 1_000_000


def test_the_finding_of_adapters_holds_the_extremes_of_the_chart(make):
    entry = collect([make.spectrum("dpo", 3, np.random.default_rng(0))]).records[0]
    figure = stable_rank_summary([entry])
    medians = entry.table("modules", ()).groupby("projection")["stable_rank"].median()
    assert f"{medians.min():.2g} to {medians.max():.2g} after training" in figure.finding


def test_codecs_of_one_model_have_names_of_their_own():
    """And the same names whatever else is on the site."""
    made = [
        make_measurement(
            "cache-calibration",
            "TEST",
            settings={"model": "m", "method": "sign", "bits": 1, "rotation": rotation},
            values=[],
            tables={},
        )
        for rotation in ("none", "learned")
    ]
    names = {entry.identifier for entry in collect(made).records}
    assert names == {"cache-calibration-m-sign-1-none", "cache-calibration-m-sign-1-learned"}
    assert collect(made[1:]).records[0].identifier in names


def test_only_the_checks_in_use_stand_on_the_home_page(make, read, tmp_path):
    """Of two records of the same checks the newer one speaks; provenance keeps both."""
    found = next(m for m in make.records(1, 1, 1) if m.record.kind == "theorem-check")
    older = found.record.model_copy(update={"created": "2001-01-01T00:00:00+00:00"})
    both = [found, type(found)(older, found.tables)]
    site = build_site(both, tmp_path / "out").parent
    home = (site / "index.html").read_text(encoding="utf-8")
    provenance = (site / "provenance.html").read_text(encoding="utf-8")
    records = {entry.identifier: entry.record.created for entry in collect(both).records}
    shown = {name for name in records if f"provenance.html#{name}" in home}
    assert {records[name] for name in shown} == {found.record.created}
    assert all(f'id="{name}"' in provenance for name in records)


def test_arrows_keep_their_distance_and_names_may_break():
    text = to_mathml(r"a = 0 \iff b", block=True)
    assert '<mo lspace="0.5em" rspace="0.5em">&#x027FA;</mo>' in text
    breakable = make_environment().filters["breakable"]
    assert breakable("gonio.a_b") == "gonio.<wbr>a_<wbr>b"
    assert "<script>" not in breakable("<script>")
