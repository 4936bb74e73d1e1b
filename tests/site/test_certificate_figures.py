"""Figures of certificates: bounds above errors by layer, slack by head, and what is left out."""

import json

import pandas as pd
import pytest

from gonio.errors import RecordError
from gonio.records import make_measurement
from gonio.site.certificate_figures import bounds_figure, certificate_figures, slack_figure
from gonio.site.collection import collect
from gonio.site.commands import COMMANDS
from gonio.site.pages import make_pages
from gonio.theorems import load_families

BOUNDS = {"weights": 2.0, "scores": 5.0, "queries": 20.0, "norms": 40.0}  # over the error


def heads(exact: tuple[int, ...] = ()) -> pd.DataFrame:
    """Two codecs on a text; three layers of two heads; error 0.01 (1 + layer + head)."""
    rows = []
    for codec in ("given", "guaranteed"):
        for layer in range(3):
            for head in range(2):
                error = 0.0 if layer in exact else 0.01 * (1 + layer + head)
                bounds = {
                    f"bound_{rung}": error * times * (1 + head) + 1e-13
                    for rung, times in BOUNDS.items()
                }
                rows.append(
                    {"codec": codec, "text": "calibration", "layer": layer, "head": head}
                    | {"value_range": 2.0, "error": error, **bounds}
                )
    return pd.DataFrame(rows)


def entry(table: pd.DataFrame, **settings):
    found = make_measurement(
        "cache-certificate", "made up", settings=settings, values=[], tables={"heads": table}
    )
    return collect([found]).records[0]


def drawn(panel) -> list[dict]:
    """Every row of data of a chart."""
    return [row for rows in json.loads(panel.json)["datasets"].values() for row in rows]


def test_bounds_are_largest_over_heads_and_over_the_range():
    figure = bounds_figure(entry(heads(), budget=0.05))
    assert [panel.title for panel in figure.panels] == [
        "given codec, calibration tokens",
        "guaranteed codec, calibration tokens",
    ]
    assert figure.chance == "budget: 0.05"
    assert figure.legend[0] == "measured error"
    rows = drawn(figure.panels[0])
    found = {(row["layer"], row["series"]): row["value"] for row in rows if "series" in row}
    for layer in range(3):
        error = 0.01 * (2 + layer) / 2
        assert found[layer, "measured error"] == pytest.approx(error)
        assert found[layer, "bound from weights"] == pytest.approx(2 * 2 * error)
        assert found[layer, "bound from the largest norms"] == pytest.approx(40 * 2 * error)
    assert {"chance": 0.05} in rows
    assert "measured error 0.02" in figure.description


def test_slack_is_bound_over_error_and_exact_heads_have_none():
    figure = slack_figure(entry(heads(exact=(1,))))
    rows = drawn(figure.panels[0])
    assert {(row["layer"], row["head"]) for row in rows} == {(0, 0), (0, 1), (2, 0), (2, 1)}
    assert sorted(row["slack"] for row in rows) == pytest.approx([2.0, 2.0, 4.0, 4.0])
    assert "from 2 to 4" in figure.description
    assert slack_figure(entry(heads(exact=(0, 1, 2)))) is None
    assert bounds_figure(entry(heads(exact=(0, 1, 2)))) is None  # nothing but rounding to draw


def test_a_certificate_has_a_section_and_its_statements_link_to_it():
    found = make_measurement(
        "cache-certificate", "made up", settings={}, values=[], tables={"heads": heads()}
    )
    pages = make_pages(collect([found]), load_families())
    sections = {section.kind: section for section in pages["caches.html"]["sections"]}
    names = [figure.name for figure in sections["cache-certificate"].figures]
    assert names == ["certificate-bounds", "certificate-slack"]
    assert COMMANDS["cache-certificate"] == "gonio cache certify"


def test_a_table_without_bounds_is_refused():
    with pytest.raises(RecordError, match="bound_weights"):
        certificate_figures(entry(heads().drop(columns="bound_weights")))
