"""Figures of an observation: angles and the study's rule, laws, spectra, sinks and outliers."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gonio.errors import RecordError
from gonio.records import make_measurement
from gonio.site.cache_spectrum_figures import eigenvalue_figure, rank_heatmap
from gonio.site.collapse_figures import collapse_figure, tail_figure
from gonio.site.collection import collect
from gonio.site.leading_figures import leading_figure
from gonio.site.observation_figures import observation_figures
from gonio.site.sign_angle_figures import sign_angle_figure
from gonio.site.sink_figures import outlier_figure, sink_figure


def entry_of(tables):
    record = make_measurement(
        "key-geometry", "made-up numbers", settings={}, values=[], tables=tables
    )
    return collect([record]).records[0]


@pytest.fixture
def tables(records):
    """The tables of the made-up observation, free to change."""
    (found,) = [m for m in records if m.record.kind == "key-geometry"]
    return {name: table.copy() for name, table in found.tables.items()}


def drawn(panel) -> list[dict]:
    """The rows of every layer of a chart that has an inline table of its own."""
    return [row for rows in json.loads(panel.json)["datasets"].values() for row in rows]


def measured(panel) -> list[dict]:
    """The rows of a heat map that have a value."""
    return [row for row in drawn(panel) if "per_window" in row]


def test_every_table_of_an_observation_has_a_figure(tables):
    figures = observation_figures(entry_of(tables))
    assert [figure.name for figure in figures] == [
        *("cosine-layers", "cosine-heads", "rotation-convergence", "sign-angles"),
        *("phase-collapse", "tails", "cache-spectra", "cache-ranks"),
        *("attention-sinks", "norm-outliers", "leading-tokens"),
    ]
    for figure in figures:
        assert figure.table.rows
        assert figure.description
        assert figure.sources
        for panel in figure.panels:
            assert panel.spec["description"]
            assert None not in {row.get("layer", 0) for row in drawn(panel)}


def test_records_with_cosines_only_have_the_figures_of_cosines(tables):
    few = {name: tables[name] for name in ("heads", "convergence")}
    assert [figure.name for figure in observation_figures(entry_of(few))] == [
        *("cosine-layers", "cosine-heads", "rotation-convergence")
    ]


@pytest.mark.parametrize(("cosine", "rule"), [(0.72, "2 bits: up to 44°"), (0.71, "3 bits: above")])
def test_the_rule_colors_layers_by_the_angle_to_their_signs(tables, cosine, rule):
    """The cosine of 44 degrees is 0.7193, which lies between the two cosines."""
    heads = tables["heads"]
    raw = (heads["what"] == "key_post") & (heads["transform"] == "none")
    heads.loc[raw, "mean_cosine"] = cosine
    figure = sign_angle_figure(entry_of(tables))
    points = [row for row in drawn(figure.panels[0]) if "rule" in row]
    assert all(row["rule"].startswith(rule) for row in points)
    for row in points:
        assert row["angle"] == pytest.approx(math.degrees(np.arccos(cosine)), rel=1e-5)
        assert row["lost"] == pytest.approx(1 - cosine**2, rel=1e-5)
    assert figure.chance == "random direction, 36.8°"
    learned = [row for row in drawn(figure.panels[1]) if "rule" in row]
    assert {row["rule"] for row in learned} == {"2 bits: up to 44°"}


def test_wide_heads_have_one_bit_at_any_angle(tables):
    tables["spectra"]["top_chance"] = 1 / 512
    assert sign_angle_figure(entry_of(tables)).legend == ("1 bit: heads of 512",)


def test_bars_reach_over_the_heads_of_a_layer(tables):
    heads = tables["heads"]
    raw = heads[(heads["what"] == "key_post") & (heads["transform"] == "none")]
    extremes = raw.groupby("layer")["mean_cosine"].agg(["min", "max"])
    points = [r for r in drawn(sign_angle_figure(entry_of(tables)).panels[0]) if "rule" in r]
    for row in points:
        low, high = extremes.loc[row["layer"]]
        assert math.cos(math.radians(row["low"])) == pytest.approx(high, rel=1e-5)
        assert math.cos(math.radians(row["high"])) == pytest.approx(low, rel=1e-5)


def test_reference_laws_have_the_moments_that_are_drawn(tables):
    """Moment ratio and excess kurtosis of each law, from SciPy's own distributions."""
    laws = {"uniform": stats.uniform(-1, 2), "Gaussian": stats.norm(), "Laplace": stats.laplace()}
    ratio, kurtosis, _ = tail_figure(entry_of(tables)).panels
    named = [
        {row["name"]: row["y"] for row in drawn(panel) if "name" in row}
        for panel in (ratio, kurtosis)
    ]
    for name, law in laws.items():
        expected = law.expect(abs) ** 2 / law.expect(lambda x: x**2)
        assert named[0][name] == pytest.approx(expected, rel=1e-5)
        assert named[1][name] == pytest.approx(float(law.stats(moments="k")), abs=1e-9)


def test_collapse_is_drawn_beside_a_random_line(tables):
    figure = collapse_figure(entry_of(tables))
    assert figure.chance == "random line, 80.2°"
    assert len(figure.legend) == 3
    rows = [row for row in drawn(figure.panels[0]) if "stage" in row]
    layers = tables["layers"]
    mine = layers[(layers["what"] == "value") & (layers["layer"] == 2)]
    (found,) = [row for row in rows if row["stage"] == "values" and row["layer"] == 2]
    assert found["value"] == pytest.approx(mine["phase_angle"].item(), rel=1e-5)


def test_models_without_rotary_embedding_have_no_line_for_it(tables):
    for name in ("layers", "spectra", "eigenvalues"):
        tables[name] = tables[name][tables[name]["what"] != "key_pre"]
    entry = entry_of(tables)
    assert len(collapse_figure(entry).legend) == 2
    assert len(eigenvalue_figure(entry).panels) == len(rank_heatmap(entry).panels) == 2


def test_spectra_say_how_many_directions_half_of_the_energy_takes(tables):
    """Shares 1, r, r^2, ... with r = 0.7: the first two hold 0.51 of the sum, one 0.30."""
    figure = eigenvalue_figure(entry_of(tables))
    assert "half of it takes at most 2." in figure.panels[0].spec["description"]
    assert figure.legend == ("first layers (0 to 1)", "middle layers (2)", "last layers (3)")
    rows = [row for row in drawn(figure.panels[0]) if "share" in row]
    total = sum(0.7**n for n in range(16))
    assert max(row["share"] for row in rows) == pytest.approx(1 / total, rel=1e-5)


def test_spectra_of_zero_heads_are_left_out(tables):
    tables["eigenvalues"].loc[tables["eigenvalues"]["layer"] == 0, "share"] = np.nan
    tables["spectra"].loc[tables["spectra"]["layer"] == 0, "effective_rank"] = np.nan
    entry = entry_of(tables)
    ranks = drawn(rank_heatmap(entry).panels[0])
    assert {row["layer"] for row in ranks} == {1, 2, 3}
    assert all(2 ** row["octaves"] == pytest.approx(row["rank"] / 16, rel=1e-4) for row in ranks)
    assert eigenvalue_figure(entry).legend[0] == "first layers (1)"
    for name, column in (("eigenvalues", "share"), ("spectra", "effective_rank")):
        tables[name][column] = np.nan
    assert eigenvalue_figure(entry_of(tables)) is None
    assert rank_heatmap(entry_of(tables)) is None


def test_sinks_are_placed_by_position_then_by_token(tables):
    figure = sink_figure(entry_of(tables))
    rows = measured(figure.panels[0])
    places = list(dict.fromkeys(row["place"] for row in rows))
    assert places == ["position 0", "later ' the'", "later '\\n'"]
    assert {row["held"] for row in rows if row["place"] == "later ' the'"} == {0.2}
    assert "position 0 in 3" in figure.description
    spec = json.loads(figure.panels[0].json)
    for layer in spec["layer"]:  # layer 0 has no sink
        assert layer["encoding"]["x"]["scale"]["domain"] == [0, 1, 2, 3]


def test_places_within_the_threshold_are_drawn_and_say_so(tables):
    """Every place has a cell in every layer: a value, or gray with words."""
    for figure in (sink_figure(entry_of(tables)), outlier_figure(entry_of(tables))):
        rows = drawn(figure.panels[0])
        cells = [(row["place"], row["layer"]) for row in rows]
        assert len(cells) == len(set(cells)) == 4 * len({place for place, _ in cells})
        blank = [row for row in rows if "per_window" not in row]
        assert {row["layer"] for row in blank} == {0}
        assert {row["value"] for row in blank} == {figure.chance} == {"within the threshold"}


def test_rare_tokens_are_one_place_with_means_weighted_by_count(tables):
    extra = [
        {**tables["sinks"].iloc[1].to_dict(), "token": f"t{n}", "found": 40 - n} for n in range(8)
    ]
    extra += [
        {**extra[0], "token": "rare", "found": 1, "per_window": 0.1, "value": 0.9},
        {**extra[0], "token": "rarer", "found": 3, "per_window": 0.3, "value": 0.5},
    ]
    tables["sinks"] = pd.DataFrame(extra).astype({"position": "Int64"})
    rows = measured(sink_figure(entry_of(tables)).panels[0])
    assert [row["place"] for row in rows][-1] == "other later tokens"
    assert rows[-1]["value"] == pytest.approx((0.9 + 3 * 0.5) / 4)
    assert rows[-1]["held"] == pytest.approx(0.6 * 0.4)


def test_outliers_are_drawn_in_octaves(tables):
    figure = outlier_figure(entry_of(tables))
    assert [panel.title for panel in figure.panels] == ["norms of keys"]
    for row in measured(figure.panels[0]):
        assert row["octaves"] == pytest.approx(math.log2(row["value"]), rel=1e-5)


def test_zero_vectors_have_the_strongest_color(tables):
    sinks = tables["sinks"]
    is_first = (sinks["criterion"] == "key_norm") & (sinks["layer"] == 1)
    sinks.loc[is_first, "value"] = 0.0
    rows = measured(outlier_figure(entry_of(tables)).panels[0])
    strongest = min(row["octaves"] for row in rows)
    assert {row["octaves"] for row in rows if row["value"] == 0} == {strongest}
    sinks.loc[sinks["criterion"] == "key_norm", "value"] = 0.0
    rows = measured(outlier_figure(entry_of(tables)).panels[0])
    for row in rows:
        assert row["octaves"] == pytest.approx(-math.log2(3), rel=1e-5)


def test_first_positions_have_a_color_whatever_they_are(tables):
    """Made up: attention 0.4 / (1 + position) from layer 1 on, chance 0.02; short first values."""
    figure = leading_figure(entry_of(tables))
    attention, keys, values = (drawn(panel) for panel in figure.panels)
    assert len(attention) == len(keys) == len(values) == 4 * 8
    for row in attention:
        lift = (20 if row["layer"] else 1) / (1 + row["position"])
        assert row["octaves"] == pytest.approx(math.log2(lift), abs=1e-5)
    assert {row["ratio"] for row in values if row["position"] == 0} == {0.1}
    assert "position 0 of layer 0, 0.1." in figure.panels[2].spec["description"]
    assert figure.table.rows[8] == ("1", "0", "0.4", "0.02", "0.5", "0.1")


def test_first_positions_that_no_query_judges_have_norms_alone(tables):
    tables["leading_tokens"]["attention"] = None  # as read back from JSON
    assert len(leading_figure(entry_of(tables)).panels) == 2
    tables["leading_tokens"]["value_norm"] = 0.0
    assert [panel.title[:13] for panel in leading_figure(entry_of(tables)).panels] == [
        "norms of keys"
    ]
    del tables["leading_tokens"]  # a record of an earlier version
    assert leading_figure(entry_of(tables)) is None
    assert len(observation_figures(entry_of(tables))) == 11


def test_without_sinks_there_is_no_figure_and_a_missing_column_is_named(tables):
    sinks = tables["sinks"]
    for empty in (sinks.iloc[:0], pd.DataFrame()):  # the latter as read back from JSON
        tables["sinks"] = empty
        assert sink_figure(entry_of(tables)) is outlier_figure(entry_of(tables)) is None
    tables["sinks"] = sinks.drop(columns="token")
    with pytest.raises(RecordError, match="has no column token"):
        sink_figure(entry_of(tables))
    tables["layers"] = tables["layers"].drop(columns="phase_angle")
    with pytest.raises(RecordError, match="has no column phase_angle"):
        collapse_figure(entry_of(tables))
