"""The frontier figure: who is drawn, who is joined, and what the table admits."""

import json

import pandas as pd
import pytest

from gonio.errors import RecordError
from gonio.records import make_measurement
from gonio.site.collection import collect
from gonio.site.pareto_figures import comparison_figures, frontier_figure

NAN = float("nan")


def row(method, origin, bits, ratio, **other):
    return {
        "method": method,
        "origin": origin,
        "version": "" if origin == "gonio" else "1.0",
        "parts": "keys",
        "protocol": "teacher-forced",
        "status": "ok",
        "message": "",
        "bits": bits,
        "key_bits": bits,
        "value_bits": 16.0,
        "held_key_bits": bits,
        "held_value_bits": 16.0,
        "held_bits": NAN,
        "side_bytes": 0.0,
        "perplexity_ratio": ratio,
        "perplexity_ratio_low": ratio * 0.9,
        "perplexity_ratio_high": ratio * 1.1,
        "logit_kl": 0.1,
        "same_top1": 0.9,
        "is_frontier": False,
        **other,
    }


ROWS = [
    row("full", "full", NAN, 1.0, parts=""),
    row("zeros", "gonio", 0.0, 400.0),
    row("entropy", "gonio", 1.5, 1.2, is_frontier=True),
    row("affine", "gonio", 3.0, 1.4),
    row("<other>", "pack", 3.0, 1.1, is_frontier=True, held_key_bits=16.0),
    row("other both", "pack", 3.0, 1.3, parts="both"),
    row("chunks", "pack", NAN, 1.3, protocol="cache", held_bits=5.25),
    row("broken", "pack", NAN, NAN, status="failed", message="no such luck"),
]


def entry(rows):
    found = make_measurement(
        "cache-comparison",
        "made up",
        settings={},
        values=[],
        tables={"methods": pd.DataFrame(rows)},
    )
    return collect([found]).records[0]


@pytest.fixture(scope="module")
def figure():
    return frontier_figure(entry(ROWS))


def values_of(panel, layer):
    data = layer.get("data", panel.spec.get("data", {}))
    return data["values"] if "values" in data else panel.spec["datasets"][data["name"]]


def drawn(panel):
    points = [point for layer in panel.spec["layer"] for point in values_of(panel, layer)]
    return {point["method"] for point in points if "method" in point}


def test_scored_methods_are_drawn_by_part_and_controls_are_not(figure):
    assert [panel.title.split()[0] for panel in figure.panels] == ["Keys", "Keys"]
    assert drawn(figure.panels[0]) == {"entropy", "affine", "<other>"}
    assert drawn(figure.panels[1]) == {"other both"}
    assert figure.legend == ("gonio", "pack")
    assert "<" not in figure.panels[0].json


def test_the_line_joins_the_frontier_alone(figure):
    lines = [x for x in figure.panels[0].spec["layer"] if x["mark"]["type"] == "line"]
    assert len(lines) == 1
    assert {p["method"] for p in values_of(figure.panels[0], lines[0])} == {"entropy", "<other>"}
    scale = json.dumps(figure.panels[0].spec)
    assert '"type": "log"' in scale
    assert "entropy 1.5 bits 1.2" in figure.description


def test_the_table_keeps_failures_and_what_is_really_held(figure):
    rows = {each[0]: each for each in figure.table.rows}
    assert len(rows) == len(ROWS)
    column = figure.table.columns.index
    assert rows["<other>"][column("held bits")] == "16 / 16"
    assert rows["chunks"][column("held bits")] == "5.25"
    assert rows["broken"][column("status")] == "no such luck"
    assert "Rows that failed: 1." in figure.caption


def test_nothing_scored_is_no_figure_and_a_lost_column_an_error():
    assert comparison_figures([entry(ROWS[:2] + ROWS[-1:])]) == [None]
    with pytest.raises(RecordError, match="is_frontier"):
        frontier_figure(
            entry([{k: v for k, v in each.items() if k != "is_frontier"} for each in ROWS])
        )
