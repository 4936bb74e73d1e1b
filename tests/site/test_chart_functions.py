"""The charts as functions: what they take, what they return, and that each draws measured data."""

import inspect
import json
from dataclasses import replace

import pandas as pd
import pytest

from gonio.errors import RecordError
from gonio.records import make_measurement, write_measurement
from gonio.site import plots
from gonio.site.chart_data import records_of
from gonio.site.interchange import to_json
from gonio.site.plots import cross_model_chart, recall_chart, stable_rank_chart, training_chart

FUNCTIONS = sorted(set(plots.__all__) - {"Data", "chart_of", "records_of"})
LOG = pd.DataFrame({"step": [1, 2, 3], "loss": [3.0, 2.5, 2.75]})


def run(loss=0.0):
    """A training record, made up."""
    tables = {"log": LOG.assign(loss=LOG["loss"] + loss)}
    return make_measurement("training", "made up", settings={}, values=[], tables=tables)


def drawn(chart) -> list[float]:
    """The losses of a chart."""
    datasets = chart.to_dict()["datasets"].values()
    return sorted(row["value"] for rows in datasets for row in rows if "value" in row)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_says_what_it_draws(name):
    function = getattr(plots, name)
    assert function.__name__ == name
    title, rest = inspect.getdoc(function).split("\n", 1)
    assert title[0].isupper() or title[0].isdigit()
    assert title.endswith(".")
    for part in ("Args:", "Returns:", "Raises:", "Records of kind", "is the table"):
        assert part in rest


def test_data_may_come_in_any_form(tmp_path):
    folder = write_measurement(run(), tmp_path / "records" / "one")
    file = tmp_path / "one.json"
    file.write_text(to_json(run()), encoding="utf-8")
    for data in (run(), LOG, {"log": LOG}, folder, str(folder.parent), file, [run()], (LOG,)):
        assert drawn(training_chart(data)) == [2.5, 2.75, 3.0]
    assert len(drawn(training_chart([run(), LOG.assign(loss=1.0)]))) == 6


def test_a_chart_is_altairs_and_carries_the_print_theme():
    import altair as alt

    chart = training_chart(LOG)
    assert isinstance(chart, alt.TopLevelMixin)
    spec = json.loads(chart.to_json())  # validated against the schema of Vega-Lite
    assert "vega-lite" in spec["$schema"]
    assert spec["config"]["background"]


def test_what_cannot_be_drawn_is_named():
    with pytest.raises(RecordError, match=r"no record of kind key-geometry .* found training"):
        cross_model_chart(run())
    with pytest.raises(RecordError, match=r"'log' .* has no column step"):
        training_chart(LOG.drop(columns="step"))
    with pytest.raises(RecordError, match="recall_chart has nothing to draw"):
        recall_chart({"methods": LOG})
    with pytest.raises(RecordError, match="no folder of records"):
        training_chart("nowhere")


def test_other_kinds_are_left_out():
    other = make_measurement("other", "made up", settings={}, values=[], tables={"log": LOG})
    assert len(records_of([run(), other], "training", "log")) == 1
    with pytest.raises(RecordError, match="adapter-spectrum"):
        stable_rank_chart([other])


class Silent:
    """A listener of the demo that says nothing."""

    def start(self, step, number, total):
        """A step begins."""

    def progress(self, what, done, total):
        """Part of it is done."""

    def finish(self, step, seconds):
        """It ended."""


# The record kinds that the demo of a tiny model does not write.
UNMEASURED = {
    *("adapter-fleet", "adapter-sweep", "study", "cache-comparison", "cache-allocation"),
    *("cache-certificate", "weight-signs"),
}


@pytest.mark.slow
def test_every_function_draws_what_the_demo_measured(tiny_folder, tmp_path):
    """Every chart of the kinds that the demo writes compiles to Vega and has data."""
    import vl_convert

    from gonio.pipelines.demo import QUICK, run_demo

    out = tmp_path / "demo"
    run_demo(out, replace(QUICK, model=str(tiny_folder)), Silent())
    drawn, without = set(), {}
    for name in FUNCTIONS:
        try:
            chart = getattr(plots, name)(out / "records")
        except RecordError as error:
            without[name] = str(error)
            continue
        spec = chart.to_dict()
        vl_convert.vegalite_to_vega(spec)
        assert any(len(rows) for rows in spec["datasets"].values()), name
        drawn.add(name)
    assert {"explorer_chart", "cross_model_chart", "memory_breakdown_chart"} <= drawn
    reasons = tuple(f"no record of kind {kind} " for kind in UNMEASURED)
    missing = {n: why for n, why in without.items() if not why.startswith(reasons)}
    # Codecs of the demo's kinds have no limits where none is in a weighted basis.
    assert set(missing) <= {"limit_chart", "limit_layer_chart", "depth_chart"}, missing
