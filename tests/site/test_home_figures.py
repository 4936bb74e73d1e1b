"""The home page's sentences: computed from the records, and silent where there is nothing."""

import numpy as np
import pandas as pd
import pytest

from gonio.records import make_measurement
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
    from gonio.site import build_site

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
