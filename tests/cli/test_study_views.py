"""What `gonio study show` prints: every analysis, within 80 columns."""

import math

import pandas as pd
import pytest

from gonio.cli.output import Output
from gonio.cli.study_views import study_summary, study_views
from gonio.records import make_measurement, make_value

NAMES = {"model": "smollm2-135m", "recipe": "dpo", "cell": "gpt-neox-tiny_dpo_seed117"}
BOUNDS = {"low": -0.012345, "high": 1.23456}
TABLES = {
    "stable_rank": {"width": 576.0, "stable_rank": 2.34567, "chance": 9.87654},
    "trends": {"quantity": "stable_rank_over_chance", "slope": -0.012345}
    | {"p_value": 1 / 3, "smallest_p": 1 / 3},
    "transients": {"first": 2.34567, "last": 2.34567, "course": "show no change"},
    "overlaps": {"side": "right", "k": 5, "overlap_ratio": 1.23456},
    "layers": {"k": 5},
    "alignment": {"relation": "other recipe, other seed", "cosine": 0.0123456}
    | {"left_overlap_ratio": 12.3456, "right_overlap_ratio": math.nan},
    "gains": {"side": "column", "residual": 0.98765, "chance": 0.98765, "z_score": -1.23456},
    "depth": {"side": "right", "nearest": -0.0012345, "nearest_chance": 0.0012345}
    | {"nearest_p_value": 0.123456, "smallest_p": 0.0833333},
    "bitfit": {"seed": 117, "measure": "held_out", "share": -1.23456}
    | {"bitfit_reduction": -0.012345, "dpo_reduction": 0.012345},
    "associations": {"unit": "models", "geometry": "stable_rank", "behavior": "held_out_margin"}
    | {"pearson": -0.98765, "pearson_low": -0.98765, "pearson_high": 0.98765, "pearson_p": 1 / 3}
    | {"spearman": -0.5, "spearman_p": 1 / 3},
}


def found():
    tables = {name: pd.DataFrame([NAMES | BOUNDS | row]) for name, row in TABLES.items()}
    values = [
        make_value("finished", 3),
        make_value("stable_rank_slope_dpo", 0.1),
        make_value("what_the_trends_can_show", "n = 3: little " * 8),
    ]
    return make_measurement("study-status", "A study", settings={}, values=values, tables=tables)


def test_every_analysis_is_printed_and_fits(capsys):
    measured = study_summary(found())
    views = study_views(measured.tables)
    assert len(views) == len(TABLES) - 1  # the layers are drawn, not printed
    Output().write(measured, views)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "\N{HORIZONTAL ELLIPSIS}" not in text  # nothing is cut off
    for title, _ in views:
        assert title in text
    assert "stable rank slope" not in text  # it stands in the table of trends
    assert "what the trends can show: n = 3" in text
    assert "no change" in text


def test_means_over_pairs_and_the_k_that_is_compared():
    tables = found().tables
    both = pd.concat([tables["alignment"], tables["alignment"].assign(cosine=0.5)])
    more = pd.concat([tables["overlaps"], tables["overlaps"].assign(k=1)])
    views = dict(study_views(tables | {"alignment": both, "overlaps": more}))
    (row,) = next(v for t, v in views.items() if t.startswith("Two trainings")).to_dict("records")
    assert row["pairs"] == 2
    assert row["cosine"] == pytest.approx((0.0123456 + 0.5) / 2)
    (row,) = next(v for t, v in views.items() if t.startswith("Overlap with")).to_dict("records")
    assert row["k"] == 5


def test_what_is_not_there_is_not_printed():
    cells = pd.DataFrame([{"cell": "a"}])
    assert study_views({"cells": cells}) == []
    over_cells = found().tables["associations"].assign(unit="cells")
    assert study_views({"associations": over_cells}) == []
