"""The figures added to the adapters and caches pages: their numbers by another route."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gonio.errors import RecordError
from gonio.records import make_measurement
from gonio.site.charts import log_ticks
from gonio.site.collection import collect
from gonio.site.cross_model_figures import (
    LAWS,
    centering_figure,
    cross_model_figure,
    moment_reference_figure,
)
from gonio.site.degradation_figures import context_figure, pairs_figure
from gonio.site.depth_figures import depth_correlator_figure
from gonio.site.explorer import ALL, explorer_figure
from gonio.site.limit_figures import limit_excess_figure, limit_figure
from gonio.site.memory_figures import allocation_check_figure, memory_breakdown_figure
from gonio.site.projection_figures import projection_overlap_figure
from gonio.site.weight_figures import expert_gap_figure, weight_sign_figure

NAN = math.nan


def entry(kind, label="one", /, **tables):
    """A record of made-up tables; nothing here was measured."""
    tables = {name: pd.DataFrame(table) for name, table in tables.items()}
    found = make_measurement(kind, label, settings={"label": label}, values=[], tables=tables)
    return collect([found]).records[0]


def drawn(panel) -> list[dict]:
    """The rows of every inline table of a chart, and its own."""
    spec = json.loads(panel.json)
    return [row for rows in spec["datasets"].values() for row in rows]


def cells(figure, *columns):
    """Columns of a figure's table, as text."""
    places = [figure.table.columns.index(name) for name in columns]
    return [tuple(row[place] for place in places) for row in figure.table.rows]


def test_few_round_ticks_whatever_the_range():
    for low, high in ((1, 1), (1.3, 1.4), (1, 9), (0.02, 30), (1, 1e7), (1e-9, 1e9)):
        ticks = log_ticks(low, high)
        assert 1 <= len(ticks) <= 6
        assert all(low * 0.99 <= tick <= high * 1.01 for tick in ticks)


def test_depth_is_drawn_by_projection_and_side_with_its_decay_in_the_table():
    depth = [
        {"projection": name, "side": side, "distance": d, "pairs": 5 - d}
        | {"correlation": 0.4 / d, "low": NAN if d == 3 else 0.1, "high": NAN if d == 3 else 0.6}
        for name in ("self_attn.o_proj", "self_attn.q_proj", "all")
        for side in ("left", "right")
        for d in (1, 2, 3)
    ]
    decay = {"projection": "all", "side": "left", "layers": 4, "decay_length": 3.5}
    decay |= {"decay_low": 2.0, "decay_high": 5.0, "nearest": 0.4, "nearest_chance": 0.1}
    decay |= {"nearest_p_value": 0.01, "rank_correlation": -0.9, "reason": ""}
    figure = depth_correlator_figure([entry("adapter-spectrum", depth=depth, depth_decay=[decay])])
    assert figure.legend == ("all", "self_attn.q_proj", "self_attn.o_proj")
    assert [panel.title.split(", ")[1][:4] for panel in figure.panels] == ["what", "what"]
    rows = [row for row in drawn(figure.panels[0]) if "distance" in row]
    assert {row["correlation"] for row in rows if row["distance"] == 2} == {0.2}
    assert [row["chance"] for row in drawn(figure.panels[0]) if "chance" in row] == [0.0]
    assert cells(figure, "decay length (layers)", "p") == [("3.5", "0.01")]
    assert depth_correlator_figure([entry("adapter-spectrum", modules=[{"module": "a"}])]) is None


def test_projections_have_the_mean_of_their_layers_and_the_spread_of_that_mean():
    ratios = {"q_proj": (0.5, 1.5, 4.0), "o_proj": (1.0, 1.0, 1.0)}
    overlaps = [
        {"module": f"{layer}.{name}", "layer": layer, "projection": name, "side": "left"}
        | {"dimension": 100, "k": 5, "k_from": "fixed", "chance": 0.05}
        | {"overlap": 0.05 * ratio, "overlap_ratio": ratio, "z_score": (ratio - 1) / 0.3}
        for name, values in ratios.items()
        for layer, ratio in enumerate(values)
    ]
    figure = projection_overlap_figure([entry("adapter-base-overlap", overlaps=overlaps)])
    rows = [row for row in drawn(figure.panels[0]) if "mean" in row]
    (q_proj,) = [row for row in rows if row["projection"] == "q_proj"]
    assert q_proj["mean"] == pytest.approx(2.0)
    assert (q_proj["lower"], q_proj["upper"]) == (1.0, 2.75)
    assert q_proj["spread"] == pytest.approx(0.3 / math.sqrt(3), rel=1e-5)
    assert figure.choice.options == ("5",)
    assert len(figure.panels) == 1  # no rows of the right side


def heads(chance=0.8, **cosines):
    """Two layers of two heads; the second layer 0.1 higher."""
    return [
        {"layer": layer, "head": head, "what": "key_post", "transform": name}
        | {"mean_cosine": value + 0.1 * layer, "chance": chance}
        for name, value in cosines.items()
        for layer in range(2)
        for head in range(2)
    ]


def test_lift_is_each_model_over_its_own_chance():
    small = entry("key-geometry", "small", heads=heads(0.8, none=0.55, learned=0.83))
    large = entry("key-geometry", "large", heads=heads(0.5, none=0.55))
    figure = cross_model_figure([small, large])
    (panel,) = figure.panels
    lifts = {(row["model"], row["choice"]): row for row in drawn(panel)}
    assert lifts["small", "no rotation"]["lift"] == pytest.approx(-25)
    assert lifts["small", "learned rotation"]["lift"] == pytest.approx(10)
    assert lifts["large", "no rotation"]["text"] == "+20%"
    scale = json.loads(panel.json)["layer"][0]["encoding"]["color"]["scale"]
    assert scale == {"domain": [-25.0, 25.0], "domainMid": 0}


def test_centering_is_told_in_points_with_the_layers_it_lifts():
    rows = heads(none=0.5, channel=0.6)
    for row in rows:
        if row["transform"] == "channel" and row["layer"] == 1:
            row["mean_cosine"] = 0.55
    figure = centering_figure([entry("key-geometry", heads=rows)])
    (point,) = [row for row in drawn(figure.panels[0]) if "gain" in row]
    assert (point["low"], point["high"]) == (pytest.approx(-5), pytest.approx(10))
    assert point["gain"] == pytest.approx(2.5)
    assert cells(figure, "layers lifted") == [("1 of 2",)]
    assert centering_figure([entry("key-geometry", heads=heads(none=0.5))]) is None


def test_laws_have_the_moment_ratio_that_integration_gives():
    laws = {
        "uniform": stats.uniform(-1, 2),
        "Gaussian": stats.norm(),
        "logistic": stats.logistic(),
        "Student t, 5 degrees": stats.t(5),
        "Laplace": stats.laplace(),
        "Student t, 3 degrees": stats.t(3),
    }
    for name, law in laws.items():
        assert LAWS[name] == pytest.approx(law.expect(abs) ** 2 / law.var(), rel=1e-6), name
    angles = (np.arange(200_000) + 0.5) * 2 * np.pi / 200_000
    sine = np.abs(np.sin(angles)).mean() ** 2 / np.square(np.sin(angles)).mean()
    assert LAWS["sine"] == pytest.approx(sine, rel=1e-6)
    assert list(LAWS.values()) == sorted(LAWS.values(), reverse=True)
    layers = [{"what": "value", "moment_ratio": ratio} for ratio in (0.5, 0.7)]
    figure = moment_reference_figure([entry("key-geometry", "mine", layers=layers)])
    assert ("mine", "values", "0.6", "0.5", "0.7") in figure.table.rows
    assert moment_reference_figure([entry("key-geometry", heads=heads(none=0.5))]) is None


SCORES = {"perplexity_ratio": 4.0, "perplexity_ratio_low": NAN, "perplexity_ratio_high": NAN}
SCORES |= {"logit_kl": 0.5, "scored_tokens": 10}


def test_damage_is_drawn_by_tokens_read_and_by_length_where_it_varied():
    place = {"protocol": "cache", "context_length": 128, **SCORES}
    positions = [
        {**place, "method": name, "context_from": first, "context_to": last}
        for name in ("full", "zeros")
        for first, last in ((1, 63), (64, 127))
    ]
    lengths = [{**place, "method": "zeros", "context_length": n} for n in (128, 256)]
    figure = context_figure(entry("cache-evaluation", positions=positions, lengths=lengths))
    assert [panel.title for panel in figure.panels] == [
        "through a cache (prefill, then chunks), window of 128 tokens",
        "through a cache (prefill, then chunks), by context length",
    ]
    assert figure.legend == ("zeros (keeps nothing)",)  # full precision is the dashed line
    middles = [row["tokens"] for row in drawn(figure.panels[0]) if "tokens" in row]
    assert middles == pytest.approx([math.sqrt(63), math.sqrt(64 * 127)], rel=1e-5)
    assert len(context_figure(entry("cache-evaluation", positions=positions)).panels) == 1
    assert context_figure(entry("cache-evaluation", methods=[{"method": "full"}])) is None


def test_pairs_name_both_codecs_and_the_protocol():
    pair = {"protocol": "cache", "context_length": 64, "first": "sign-none", "second": "zeros"}
    pair |= {"windows": 2, "perplexity_ratio": 2.0, "logit_kl_difference": 0.1}
    for name in ("perplexity_ratio", "logit_kl_difference"):
        pair |= {f"{name}_low": 0.5, f"{name}_high": 3.0}
    figure = pairs_figure(entry("cache-evaluation", pairs=[pair]))
    assert "1 bit, no rotation / zeros (keeps nothing)" in figure.description
    assert figure.table.rows[0][2:5] == ("2", "0.5", "3")


MIB = 2**20


def test_parts_of_the_memory_add_up_to_its_share():
    memory = [
        {"method": name, "seq_len": n, "key_bytes": n * MIB, "value_bytes": 2 * n * MIB}
        | {"side_bytes": 3 * MIB, "total_bytes": (3 * n + 3) * MIB, "bf16_bytes": 8 * n * MIB}
        for name in ("sign-none", "mine")
        for n in (1, 3)
    ]
    figure = memory_breakdown_figure(entry("cache-evaluation", memory=memory))
    rows = [row for row in drawn(figure.panels[0]) if "part" in row]
    for method in ("1 bit, no rotation", "mine"):
        parts = [row for row in rows if (row["method"], row["length"]) == (method, "3")]
        assert [row["part"] for row in parts] == ["keys", "values", "fixed side data"]
        assert [row["from"] for row in parts[1:]] == [row["to"] for row in parts[:-1]]
        assert parts[-1]["to"] == pytest.approx(12 / 24)
    assert figure.choice.options == ("1", "3")


def test_allocated_bytes_stand_over_those_reported():
    row = {"method": "mine", "seq_len": 9, "dtype": "float32", "reported_bytes": MIB}
    row |= {"allocated_bytes": 2 * MIB, "allocated_over_reported": 2.0}
    nothing = {**row, "method": "zeros", "allocated_over_reported": NAN}
    figure = allocation_check_figure(entry("cache-evaluation", allocation=[row, nothing]))
    assert cells(figure, "method", "allocated over reported") == [("mine", "2")]


def limits(scale):
    return [
        {"part": part, "layer": layer, "bits": 2.0 + layer, "error": 4 * scale, "gaussian": scale}
        | {"shannon": scale / 2, "over_gaussian": 10 * math.log10(4)}
        | {"over_shannon": 10 * math.log10(8)}
        for part in ("keys", "values")
        for layer in range(2)
    ]


def test_limits_are_means_over_layers_in_decibels():
    figure = limit_figure([entry("cache-calibration", limits=limits(0.1))])
    assert len(figure.panels) == 2
    rows = {row["series"]: row for row in drawn(figure.panels[0])}
    assert {row["bits"] for row in rows.values()} == {2.5}
    assert rows["codec"]["db"] == pytest.approx(10 * math.log10(0.4), rel=1e-5)
    assert rows["Gaussian limit, D(R)"]["db"] == pytest.approx(-10)
    assert rows["Shannon lower bound"]["db"] == pytest.approx(10 * math.log10(0.05), rel=1e-5)
    # Eight times the bound is one and a half bits: a bit is a factor of four.
    assert cells(figure, "excess over Shannon (bits)") == [("1.5",)] * 2
    assert limit_figure([entry("cache-calibration", lengths=[{"seq_len": 1}])]) is None
    with pytest.raises(RecordError, match="no column shannon"):
        limit_figure(
            [entry("cache-calibration", limits=pd.DataFrame(limits(1)).drop(columns="shannon"))]
        )


def test_layers_are_drawn_beside_the_bound():
    figure = limit_excess_figure([entry("cache-calibration", limits=limits(1.0))])
    rows = [row for row in drawn(figure.panels[1]) if "layer" in row]
    assert [row["over_shannon"] for row in rows] == pytest.approx([9.0309] * 2)
    assert [row["chance"] for row in drawn(figure.panels[1]) if "chance" in row] == [0.0]


def test_weights_are_told_apart_by_part_of_the_layer():
    matrices = [
        {"projection": name, "layer": layer, "expert": NAN, "choice": choice, "cosine": cosine}
        | {"cosine_chance": 0.8, "beta": 0.6, "bits_per_weight": 1.5}
        for name in ("self_attn.q_proj", "mlp.down_proj")
        for layer, cosine in enumerate((0.8, 0.88))
        for choice in ("none", "learned", "none+rank16")
    ]
    figure = weight_sign_figure(entry("weight-signs", matrices=matrices))
    assert [panel.title for panel in figure.panels] == ["Attention", "Feed-forward"]
    assert figure.legend == ("learned rotation", "no rotation")
    (row, _) = [row for row in drawn(figure.panels[1]) if "lift" in row]
    assert (row["lift"], row["low"], row["high"]) == pytest.approx((5, 0, 10))


def test_gaps_of_experts_stand_beside_rows_dealt_at_random():
    experts = [
        {"layer": 0, "projection": "experts.w1", "expert": n, "gap": gap, "null_gap": -gap}
        for n, gap in enumerate((0.01, 0.03))
    ]
    figure = expert_gap_figure(entry("weight-signs", experts=experts))
    assert cells(figure, "rows", "own minus shared (points)", "experts") == [
        ("the experts", "2", "2"),
        ("rows dealt at random", "\N{MINUS SIGN}2", "2"),
    ]
    assert expert_gap_figure(entry("weight-signs", matrices=[{"choice": "none"}])) is None


def modules(layers, value, projections=("q_proj", "o_proj")):
    return [
        {"layer": layer, "projection": name, "stable_rank": value + place + layer}
        | {"random_lora_stable_rank": 9.0}
        for layer in layers
        for place, name in enumerate(projections)
    ]


def test_the_explorer_sets_runs_of_other_depths_beside_each_other():
    """Depth is 0 at the first and 1 at the last layer of each run; means are over projections."""
    short = entry("adapter-spectrum", "short", modules=modules(range(3), 2.0))
    long = entry("adapter-spectrum", "long", modules=modules(range(2, 11), 3.0))
    gains = [{"layer": 0, "projection": "q_proj", "column_gain_residual_z_score": -2.0}]
    gains[0]["row_gain_residual_z_score"] = 1.0
    overlaps = [
        {"layer": 0, "projection": "q_proj", "side": side, "k": k, "overlap_ratio": ratio}
        | {"k_from": "fixed"}
        for side, ratio in (("left", 3.0), ("right", 1.0))
        for k in (5, 10)
    ]
    base = entry("adapter-base-overlap", "short", overlaps=overlaps, gains=gains)
    explorer = explorer_figure([short, long, base])
    assert explorer.runs == ("short", "long")  # the base overlap joins its adapter's run
    rows = [row for row in drawn(explorer.figure.panels[0]) if row["projection"] == ALL]
    depths = {run: [r["depth"] for r in rows if r["name"] == run] for run in explorer.runs}
    assert depths["short"] == [0, 0.5, 1]
    assert depths["long"] == pytest.approx(np.linspace(0, 1, 9).tolist())
    first = rows[0]
    assert (first["stable_rank"], first["stable_rank_chance"]) == (2.5, 9)
    assert (first["left_overlap"], first["left_overlap_chance"]) == (3, 1)
    assert (first["column_gain"], first["column_gain_chance"]) == (-2, 0)
    assert [option.title for option in explorer.projections] == [ALL, "q_proj", "o_proj"]
    assert {"stable_rank", "left_overlap", "row_gain"} <= {q.value for q in explorer.quantities}
    assert explorer_figure([]) is None


def test_the_explorer_takes_the_cells_of_a_study():
    layers = [
        {"model": "m", "recipe": recipe, "seed": seed, "side": "right", "layer": layer, "k": 5}
        | {"overlap_ratio": 1.0 + layer}
        for recipe in ("dpo", "clm")
        for seed in (1, 2)
        for layer in range(3)
    ]
    explorer = explorer_figure([entry("study", layers=layers)])
    assert explorer.runs == tuple(f"m, {r}, seed {s}" for r in ("dpo", "clm") for s in (1, 2))
    assert [option.value for option in explorer.projections] == [ALL]
    assert [option.value for option in explorer.quantities] == ["right_overlap"]
    assert explorer.shown == (0, 1, 2, 3)
    params = {p["name"]: p["value"] for p in explorer.figure.panels[0].spec["params"]}
    assert params["runs"] == "|0|1|2|3|"
