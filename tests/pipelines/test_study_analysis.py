"""The analyses find what was put into made-up cells, and no more."""

import math

import numpy as np
import pandas as pd
import pytest

from gonio.pipelines.study_behavior import bitfit_share, geometry_and_behavior
from gonio.pipelines.study_cells import CellState
from gonio.pipelines.study_geometry import (
    depth_correlations,
    gain_residuals,
    overlaps_with_base,
    stable_rank_by_step,
    stable_rank_by_width,
)
from gonio.pipelines.study_spec import Cell, StudyModel
from gonio.pipelines.study_tables import FinishedCell, cells_table, over_seeds
from gonio.records import describe_environment, make_measurement, make_value
from gonio.training import BitFitRecipe, DpoRecipe

BASIC = {"steps": 4, "learning_rate": 1e-3, "batch_size": 2, "max_length": 32}


def make_cell(kind, model="m", seed=1, width=64.0, **records):
    settings = BASIC | {"seed": seed}
    lora = {"r": 4, "lora_alpha": 8}
    recipe = BitFitRecipe(**settings) if kind == "bitfit" else DpoRecipe(**settings, **lora)
    cell = Cell(
        f"{model}_{kind}_{seed}", StudyModel(name=model, source="x"), kind, kind, recipe, seed
    )
    state = CellState(
        name=cell.name,
        status="finished",
        key="",
        settings={},
        seconds=1.0,
        environment=describe_environment(),
        outputs={},
    )
    return FinishedCell(cell, width, None, state, records)


def made(kind, values=(), **tables):
    return make_measurement(
        kind, "TEST DATA, not measured", settings={}, values=values, tables=tables
    )


def ranked(model, recipe, seed, width, stable_rank, **more):
    row = {"cell": f"{model}{recipe}{seed}", "model": model, "recipe": recipe, "seed": seed}
    return row | {"width": width, "stable_rank": stable_rank, "stable_rank_chance": 8.0} | more


def test_a_trend_is_found_over_models_and_not_over_seeds():
    rows = [
        ranked(f"m{width}", "dpo", seed, width, 2.0 + 0.5 * math.log2(width) + noise)
        for width in (64, 128, 256, 512, 1024)
        for seed, noise in ((1, 0.01), (2, -0.01))
    ]
    found = stable_rank_by_width(pd.DataFrame(rows))
    trend = found.tables["trends"].set_index("quantity").loc["stable_rank"]
    assert trend["slope"] == pytest.approx(0.5)
    assert trend["low"] <= 0.5 <= trend["high"]
    assert trend["models"] == 5
    assert trend["p_value"] == trend["smallest_p"] == pytest.approx(1 / 60)
    table = found.tables["stable_rank"]
    assert list(table["seeds"]) == [2] * 5
    assert table["ratio"].tolist() == pytest.approx((table["stable_rank"] / 8.0).tolist())
    assert "below 0.017" in trend["says"]
    value = {v.name: v for v in found.values}["stable_rank_slope_dpo"]
    assert value.chance == 0.0
    assert value.value == pytest.approx(0.5)


def test_one_width_or_unknown_widths_give_a_reason():
    rows = [ranked("a", "dpo", 1, 64, 3.0), ranked("b", "dpo", 1, math.nan, 4.0)]
    found = stable_rank_by_width(pd.DataFrame(rows))
    assert list(found.tables) == ["stable_rank"]
    assert "1 width" in found.missing[0][1]
    nothing = stable_rank_by_width(pd.DataFrame([ranked("a", "bitfit", 1, 64, math.nan)]))
    assert nothing.tables == {}
    assert nothing.missing


def geometry(courses, layers=4):
    """Stable ranks by step and module; a course is the mean at every step."""
    rows = []
    for step, mean in enumerate(courses, start=1):
        for layer in range(layers):
            for place, name in enumerate(("q_proj", "o_proj")):
                rows.append(
                    {
                        "step": step,
                        "module": f"model.layers.{layer}.self_attn.{name}",
                        "stable_rank": mean + 0.01 * (layer - 1.5) * step + 0.1 * (place - 0.5),
                        "random_lora_stable_rank": 9.0,
                    }
                )
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("course", "word"),
    [((2.0, 5.0, 8.0), "rise"), ((5.0, 3.0, 2.0), "fall"), ((3.0, 3.0), "show no change")],
)
def test_the_course_of_the_stable_rank(course, word):
    cell = make_cell("dpo", training=made("training", geometry=geometry(course)))
    found = stable_rank_by_step([cell])
    row = found.tables["transients"].iloc[0]
    assert row["course"] == word
    assert row["change"] == pytest.approx(course[-1] - course[0])
    assert row["low"] <= row["change"] <= row["high"]
    assert row["lowest"] == pytest.approx(min(course))
    steps = found.tables["steps"]
    assert steps["stable_rank"].tolist() == pytest.approx(list(course))
    assert (steps["quartile_low"] < steps["quartile_high"]).all()
    assert (steps["chance"] == 9.0).all()


def test_a_study_that_follows_no_update_says_so():
    found = stable_rank_by_step([make_cell("bitfit", training=made("training"))])
    assert "spectrum_every" in found.missing[0][1]


def test_overlaps_are_means_over_modules_then_seeds():
    def record(ratio):
        rows = [
            {"layer": layer, "projection": name, "side": side, "k": k, "k_from": "fixed"}
            | {
                "overlap": 0.1 * ratio,
                "chance": 0.1,
                "overlap_ratio": ratio + delta,
                "z_score": 1.0,
            }
            for layer in (0, 1)
            for name, delta in (("q_proj", -0.5), ("o_proj", 0.5))
            for side in ("left", "right")
            for k in (1, 2)
        ]
        rows.append({**rows[0], "k_from": "stable_rank", "overlap_ratio": 1e9})
        return made("adapter-base-overlap", overlaps=pd.DataFrame(rows))

    cells = [make_cell("dpo", seed=seed, base=record(seed + 1.0)) for seed in (1, 2)]
    found = overlaps_with_base(cells, 2)
    row = found.tables["overlaps"].query("side == 'right' and k == 2").iloc[0]
    assert row["overlap_ratio"] == pytest.approx(2.5)
    assert row["high"] - row["overlap_ratio"] == pytest.approx(12.706 * 0.5, rel=1e-4)
    layers = found.tables["layers"]
    assert set(layers["k"]) == {2}
    assert len(layers) == 2 * 2 * 2  # cells, sides, layers
    assert {value.chance for value in found.values} == {1.0}
    assert overlaps_with_base([make_cell("bitfit")], 2).missing


def test_gain_residuals_stand_beside_their_null():
    row = ranked("a", "dpo", 1, 64, 3.0)
    for side in ("column", "row"):
        row |= {f"{side}_gain_residual": 0.9, f"{side}_gain_residual_chance": 0.98}
        row |= {f"{side}_gain_residual_z_score": -3.0}
    table = gain_residuals(pd.DataFrame([row])).tables["gains"]
    assert set(table["side"]) == {"column", "row"}
    assert (table["chance"] - table["residual"]).tolist() == pytest.approx([0.08, 0.08])
    assert table["low"].isna().all()


def test_depth_correlators_say_what_few_layers_allow():
    decays = pd.DataFrame(
        [
            {"projection": name, "side": "left", "layers": 4, "nearest": 0.5}
            | {"nearest_chance": 0.1, "nearest_p_value": 0.08, "rank_correlation": -0.9}
            | {"rank_p_value": 0.08, "decay_length": math.nan, "reason": "no decay seen"}
            for name in ("q_proj", "all")
        ]
    )
    cells = [
        make_cell("dpo", spectrum=made("adapter-spectrum", depth_decay=decays)),
        make_cell("dpo", seed=2, spectrum=made("adapter-spectrum")),
        make_cell("bitfit"),
    ]
    found = depth_correlations(cells)
    assert list(found.tables["depth"]["projection"]) == ["all"]
    assert found.tables["depth"]["smallest_p"].iloc[0] == pytest.approx(1 / 12)
    assert found.values[0].value == 0
    assert "m_dpo_2" in found.missing[0][1]


def trained(loss, margins):
    values = [make_value("last_quarter_loss", loss)]
    return made("training", values, held_out=pd.DataFrame({"margin": margins}))


def test_the_share_of_biases_is_a_ratio_of_loss_reductions():
    rng = np.random.default_rng(0)
    margins = rng.normal(4.0, 1.0, 40)
    cells = [
        make_cell("dpo", training=trained(0.4, margins)),
        make_cell("bitfit", training=trained(0.6, 0.25 * margins)),
    ]
    table = bitfit_share(cells).tables["bitfit"].set_index("measure")
    assert table.loc["training", "share"] == pytest.approx(
        (math.log(2) - 0.6) / (math.log(2) - 0.4)
    )
    losses = [-np.log(1 / (1 + np.exp(-0.1 * f * margins))).mean() for f in (0.25, 1.0)]
    share = (math.log(2) - losses[0]) / (math.log(2) - losses[1])
    assert table.loc["held_out", "share"] == pytest.approx(share)
    assert table.loc["held_out", "low"] < share < table.loc["held_out", "high"]


def test_no_share_of_nothing():
    cells = [
        make_cell("dpo", training=trained(0.8, [-1.0, -2.0])),
        make_cell("bitfit", training=trained(0.6, [1.0, 1.0])),
        make_cell("bitfit", seed=2, training=trained(0.6, [1.0, 1.0])),
    ]
    found = bitfit_share(cells)
    assert found.tables["bitfit"]["share"].isna().all()
    assert found.tables["bitfit"]["reason"].str.contains("lowered no loss").all()
    assert found.values[0].value is None
    assert bitfit_share(cells[1:]).missing


def test_geometry_and_behavior_over_models_and_cells():
    rows = []
    for place, model in enumerate("abcde"):
        for seed in (1, 2):
            x = place + 0.1 * seed
            more = {"right_overlap_ratio": -x, "held_out_margin": 2 * x, "held_out_kl_to_base": 1.0}
            rows.append(ranked(model, "dpo", seed, 64, x, **more))
    table = geometry_and_behavior(pd.DataFrame(rows)).tables["associations"]
    row = table.query("unit == 'models' and geometry == 'stable_rank'").set_index("behavior")
    assert row.loc["held_out_margin", "pearson"] == pytest.approx(1.0)
    assert row.loc["held_out_margin", "n"] == 5
    assert row.loc["held_out_margin", "pearson_p"] == pytest.approx(1 / 60)
    assert math.isnan(row.loc["held_out_kl_to_base", "pearson"])
    assert (table.query("unit == 'cells'")["n"] == 10).all()
    opposite = table.query("geometry == 'right_overlap_ratio' and behavior == 'held_out_margin'")
    assert opposite["spearman"].tolist() == pytest.approx([-1.0, -1.0])


def test_cells_without_a_quantity_have_none():
    table = cells_table([make_cell("bitfit", training=made("training"))], 5)
    assert table["stable_rank"].isna().all()
    assert table["width"].tolist() == [64.0]
    assert over_seeds(table, ["model"], "stable_rank").empty
