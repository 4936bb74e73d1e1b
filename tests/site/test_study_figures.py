"""A study's figures: the reader's numbers beside the first study's, and what they admit."""

import json
import math
import re

import pandas as pd
import pytest

from gonio.errors import RecordError
from gonio.linalg.association import what_points_can_say
from gonio.pipelines.study_ledger import FIGURES
from gonio.records import make_measurement
from gonio.site.collection import collect
from gonio.site.first_study import first_study
from gonio.site.pages import make_pages
from gonio.site.study_behavior_figures import behavior_figure, bitfit_figure
from gonio.site.study_figures import overlap_figure, step_figure, width_figure
from gonio.site.study_null_figures import alignment_figure, depth_figure, study_gain_figure
from gonio.theorems import load_families

NAN = math.nan
SAYS = what_points_can_say(3)


def tables():
    """Three models, two recipes, two seeds. Test data: nothing here was measured."""
    cells, ranks, steps, transients, layers = [], [], [], [], []
    gains, depth, alignment = [], [], []
    for place, model in enumerate(("a", "b", "c<")):
        for recipe in ("dpo", "clm"):
            names = {"model": model, "recipe": recipe}
            ranks.append(
                {**names, "width": 64.0 * 2**place, "seeds": 2, "stable_rank": 2.0 + place}
                | {"low": -9.0, "high": 19.0, "chance": 7.0, "ratio": (2.0 + place) / 7}
            )
            gains += [
                {**names, "seeds": 2, "side": side, "residual": 0.97, "low": 0.96, "high": 0.98}
                | {"chance": 0.99, "z_score": -3.0}
                for side in ("column", "row")
            ]
            alignment.append(
                {"model": model, "first": f"{model}_{recipe}_42", "second": f"{model}_{recipe}_117"}
                | {"relation": f"{recipe}, other seed", "modules": 3, "k": 5, "cosine": 0.1}
                | {"cosine_z_score": 4.0, "left_overlap_ratio": 3.0, "right_overlap_ratio": NAN}
            )
            for seed in (42, 117):
                cell = {"cell": f"{model}_{recipe}_{seed}", **names, "seed": seed}
                cells.append(
                    {**cell, "stable_rank": 2.0 + place + seed / 1e3, "right_overlap_ratio": 1.5}
                    | {"held_out_margin": place - 1.0, "held_out_kl_to_base": 0.01 * place}
                )
                steps += [{**cell, "step": s, "stable_rank": 2.0, "chance": 7.0} for s in (5, 10)]
                transients.append(
                    {**cell, "first_step": 5, "last_step": 10, "first": 2.0, "last": 2.5}
                    | {"chance": 7.0, "change": 0.5, "low": 0.1, "high": 0.9, "course": "rise"}
                )
                depth += [
                    {**cell, "side": side, "layers": 4, "nearest": -0.1, "nearest_chance": 0.2}
                    | {"nearest_p_value": 0.9, "smallest_p": 1 / 12, "decay_length": NAN}
                    for side in ("left", "right")
                ]
                layers += [
                    {**cell, "side": side, "layer": layer, "k": 5, "overlap_ratio": 1.0 + layer}
                    for side in ("left", "right")
                    for layer in range(3)
                ]
    cells.append({**cells[0], "recipe": "bitfit", "stable_rank": NAN})
    trend = {"recipe": "dpo", "quantity": "stable_rank", "slope": 1.0, "p_value": 1 / 3}
    bitfit = {"model": "a", "seed": 42, "bitfit_reduction": 0.1, "dpo_reduction": 0.2}
    association = {"recipe": "dpo", "unit": "models", "geometry": "stable_rank", "n": 3}
    return {
        "cells": pd.DataFrame(cells),
        "stable_rank": pd.DataFrame(ranks),
        "trends": pd.DataFrame([trend | {"says": SAYS}]),
        "steps": pd.DataFrame(steps),
        "transients": pd.DataFrame(transients),
        "layers": pd.DataFrame(layers),
        "gains": pd.DataFrame(gains),
        "depth": pd.DataFrame(depth),
        "alignment": pd.DataFrame(alignment),
        "associations": pd.DataFrame(
            [association | {"behavior": "held_out_margin", "pearson": 1.0, "pearson_p": 1 / 3}]
        ),
        "bitfit": pd.DataFrame(
            [
                bitfit
                | {"measure": "training", "share": 0.5, "low": NAN, "high": NAN, "reason": ""},
                bitfit | {"measure": "held_out", "share": NAN, "reason": "no reduction"},
            ]
        ),
    }


def entry(found):
    measured = make_measurement("study", "made up", settings={}, values=[], tables=found)
    return collect([measured]).records[0]


def test_every_figure_of_the_index_is_drawn_and_no_other():
    page = make_pages(collect([entry(tables()).measurement]), load_families())["adapters.html"]
    figures = next(s for s in page["sections"] if s.kind == "study").figures
    assert [figure.name for figure in figures] == list(FIGURES)
    for figure in figures:
        assert len(figure.sources) == 1
        assert all(panel.json for panel in figure.panels)  # finite numbers, no markup
        assert "None" not in figure.description + figure.caption
        assert not re.search(r"\bnan\b", figure.description + figure.caption)


def test_the_first_study_stands_beside_the_readers_numbers():
    found = entry(tables())
    for draw in (width_figure, overlap_figure, study_gain_figure, behavior_figure, bitfit_figure):
        figure = draw(found)
        assert "first study" in json.dumps([panel.title for panel in figure.panels]) + "".join(
            figure.legend
        ) + json.dumps(figure.table.rows)
        assert first_study()["url"] in figure.caption
    assert "1/64" not in width_figure(found).caption


def test_four_traces_and_chance_per_model():
    figure = overlap_figure(entry(tables()))
    assert figure.legend == ("dpo, seed 42", "dpo, seed 117", "clm, seed 42", "clm, seed 117")
    assert len(figure.panels) == 4  # three models and the first study's
    for panel in figure.panels:
        drawn = [row for rows in panel.spec["datasets"].values() for row in rows]
        assert {row["series"] for row in drawn if "series" in row} == set(figure.legend)
        assert [row["chance"] for row in drawn if "chance" in row] == [1.0]
    assert figure.chance == "chance = 1"


def test_a_caption_says_what_the_number_of_models_allows():
    assert SAYS in width_figure(entry(tables())).caption
    caption = behavior_figure(entry(tables())).caption
    assert SAYS in caption
    assert what_points_can_say(5) in caption  # the first study's five
    assert "does not contain its own estimate" in caption
    without = {name: t for name, t in tables().items() if name not in ("trends", "associations")}
    assert "two widths" in width_figure(entry(without)).caption
    assert "Fewer than three models" in behavior_figure(entry(without)).caption


def test_what_is_not_in_the_record_is_not_drawn():
    only = {"cells": tables()["cells"].assign(stable_rank=NAN)}
    draws = (width_figure, step_figure, overlap_figure, behavior_figure, bitfit_figure)
    draws += (alignment_figure, study_gain_figure, depth_figure)
    assert [draw(entry(only)) for draw in draws] == [None] * len(draws)
    with pytest.raises(RecordError, match="no column"):
        step_figure(entry(tables() | {"steps": tables()["steps"].drop(columns="chance")}))


def drawn(panel):
    """Points of a chart with all their numbers."""
    return [row for rows in panel.spec["datasets"].values() for row in rows if "value" in row]


def test_gains_are_told_as_multiples_of_chance():
    """Of an unexplained share of 0.97 beside 0.99, gains explain three times what chance does."""
    columns, rows = study_gain_figure(entry(tables())).panels
    mine, published = drawn(columns)[0], drawn(columns)[-1]
    assert (mine["value"], mine["low"], mine["high"]) == pytest.approx((3.0, 2.0, 4.0))
    assert mine["chance"] == published["chance"] == 1.0
    assert published["label"] == "pythia-410m (first study)"
    assert published["value"] == pytest.approx((1 - 0.9996963774736695) * 3072)
    assert drawn(rows)[-2]["value"] == pytest.approx((1 - 0.9983021109533414) * 1024, rel=1e-5)


def test_adapters_and_layers_stand_beside_their_nulls():
    figure = alignment_figure(entry(tables()))
    assert [panel.title for panel in figure.panels] == [
        "Cosine of the updates",
        "Overlap of what they write, over chance",  # what they read is known of no pair
    ]
    chances = [{point["chance"] for point in drawn(panel)} for panel in figure.panels]
    assert chances == [{0.0}, {1.0}]
    figure = depth_figure(entry(tables()))
    assert {point["chance"] for point in drawn(figure.panels[0])} == {0.2}
    assert len(drawn(figure.panels[0])) == len(drawn(figure.panels[1])) == 12
    assert "smallest possible p" in figure.table.columns
    assert "activations" in figure.caption


def test_the_first_study_is_carried_over_unchanged():
    """Spot checks against the published files, and what follows from them."""
    found = first_study()
    ranks = {
        (r["model"], r["recipe"], r["seed"]): r["stable_rank"] for r in found["stable_rank"]["rows"]
    }
    assert ranks["pythia-70m", "dpo", 42] == 3.9295013958395746
    assert ranks["pythia-1b", "clm", 42] == 2.8938
    assert len(found["behavior"]["rows"]) == 5
    assert len(found["overlap"]["rows"]) == 4 * 16
    share = bitfit_figure(entry(tables())).table.rows[-1]
    assert share[0] == "pythia-410m (first study)"
    assert float(share[4]) == pytest.approx((0.693147 - 0.660123) / (0.693147 - 0.487), rel=1e-3)
