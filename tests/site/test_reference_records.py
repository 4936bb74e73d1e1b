"""The records that come with the package: they read, draw, and say how to repeat them."""

import re

import pytest

from gonio.models.bundled import bundled_models
from gonio.site.collection import collect
from gonio.site.pages import COMMANDS
from gonio.site.reference import reference_records
from gonio.site.study_figures import width_figure
from gonio.site.sweep_figures import sweep_figure


@pytest.mark.parametrize("path", reference_records(), ids=lambda path: path.stem)
def test_a_record_is_of_a_kind_the_site_shows_and_names_no_place(path):
    (entry,) = collect([path]).records
    assert entry.record.kind in COMMANDS
    assert entry.record.inputs
    assert entry.record.settings.get("model", "smollm2-135m") in bundled_models()
    text = path.read_text(encoding="utf-8")
    assert re.search(r'"/(tmp|home|root|work|Users)/', text) is None
    assert len(text) < 250_000


def test_the_sweep_of_the_bundled_model_is_among_them_and_is_drawn():
    sweeps = collect(reference_records()).of_kind("adapter-sweep")
    (trained,) = [entry for entry in sweeps if entry.record.settings["mode"] == "train"]
    figure = sweep_figure(trained)
    assert [row[0] for row in figure.table.rows] == ["1", "2", "4", "8", "16", "32", "64"]
    assert len(figure.legend) == 4  # measured, and three curves
    assert re.search(r"Recommended rank: \d+ \(\d+ to \d+\)", figure.caption)
    assert all(row["gain_low"] < row["gain"] < row["gain_high"] for row in rows(trained))


def test_the_study_is_drawn_beside_the_first_one():
    (study,) = collect(reference_records()).of_kind("study")
    figure = width_figure(study)
    assert "First study" in figure.caption
    assert {"smollm2-135m", "gpt-neox-tiny", "gpt2-tiny"} <= set(
        study.measurement.tables["cells"]["model"]
    )


def rows(entry):
    return entry.table("ranks", ["rank", "gain", "gain_low", "gain_high"]).to_dict("records")
