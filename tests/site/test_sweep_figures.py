"""The figure of a sweep: points, curves only where they have values, nothing from nothing."""

import json

import numpy as np
import pandas as pd
import pytest

from gonio.errors import RecordError
from gonio.linalg.curves import curve_values
from gonio.records import make_measurement, make_value
from gonio.site.collection import collect
from gonio.site.pages import make_pages
from gonio.site.sweep_figures import sweep_figure
from gonio.theorems import load_families

RANKS = [1, 2, 4, 8]
FORMULAS = {"log": "a + c / log r", "power": "a + c r^-b", "exponential": "a + c exp(-r / s)"}


def sweep(recommended=4, **tables):
    ranks = pd.DataFrame(
        {
            "rank": RANKS,
            "gain": [0.1, 0.4, 0.6, 0.7],
            "gain_low": [0.0, 0.3, 0.5, np.nan],
            "gain_high": [0.2, 0.5, 0.7, np.nan],
            "chosen_share": [0.0, 0.1, 0.8, 0.1],
        }
    )
    curves = pd.DataFrame(
        {
            "form": list(FORMULAS),
            "formula": list(FORMULAS.values()),
            "limit": 1.0,
            "limit_low": [np.nan, 0.9, 0.8],
            "limit_high": [np.nan, 1.1, 1.5],
            "amplitude": -0.5,
            "shape": [np.nan, 1.0, 3.0],
        }
    )
    found = {"ranks": ranks, "curves": curves, **tables}
    values = [
        make_value("recommended_rank", recommended),
        make_value("curve", "3 ranks above 1 are too few to tell."),
    ]
    return make_measurement(
        "adapter-sweep", "made up", settings={"metric": "margin"}, values=values, tables=found
    )


def figure_of(measurement):
    (entry,) = collect([measurement]).records
    return sweep_figure(entry)


def test_points_and_curves_are_drawn_where_they_have_values():
    figure = figure_of(sweep())
    assert figure.legend == ("measured", *FORMULAS.values())
    assert len(figure.panels) == 1
    assert [row[0] for row in figure.table.rows] == ["1", "2", "4", "8"]
    spec = json.loads(figure.panels[0].json)
    lines = next(layer for layer in spec["layer"] if layer["mark"]["type"] == "line")
    points = spec["datasets"][lines["data"]["name"]]
    by_formula = {name: [p for p in points if p["series"] == name] for name in FORMULAS.values()}
    assert min(p["rank"] for p in by_formula["a + c / log r"]) == 2
    assert min(p["rank"] for p in by_formula["a + c r^-b"]) == 1
    last = by_formula["a + c exp(-r / s)"][-1]
    assert last["gain"] == pytest.approx(
        float(curve_values("exponential", [8], 1.0, -0.5, 3.0)[0]), rel=1e-5
    )
    assert "too few" in figure.description
    assert "1 for a + c / log r; 1 (0.9 to 1.1) for a + c r^-b; 1 (0.8 to 1.5)" in figure.caption


def test_the_spectrum_gives_a_second_panel():
    spectrum = pd.DataFrame({"rank": range(9), "relative_error": np.linspace(1, 0, 9)})
    figure = figure_of(sweep(spectrum=spectrum))
    assert [panel.title for panel in figure.panels][1] == "error of the update"
    assert figure.theorems == ("residual_topk_eckart_young",)
    assert figure.table.columns[-1] == "relative error"
    zero = pd.DataFrame({"rank": [0], "relative_error": [np.nan]})
    assert len(figure_of(sweep(spectrum=zero)).panels) == 1


def test_no_recommendation_is_said_and_missing_columns_are_refused():
    assert "none, since no rank gains anything" in figure_of(sweep(recommended=None)).caption
    with pytest.raises(RecordError):
        figure_of(sweep(ranks=pd.DataFrame({"rank": [1]})))


def test_the_page_of_adapters_shows_sweeps_or_says_what_to_run():
    families = load_families()
    for records, count in (([], 0), ([sweep()], 1)):
        page = make_pages(collect(records), families)["adapters.html"]
        section = next(s for s in page["sections"] if s.name == "adapter-sweep")
        assert len(section.figures) == count
