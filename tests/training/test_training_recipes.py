"""Recipes: presets are data, settings are checked together, mistakes are named."""

import pydantic
import pytest

from gonio.errors import SettingError
from gonio.training.recipes import (
    BitFitRecipe,
    ClmRecipe,
    DpoRecipe,
    make_recipe,
    parse_targets,
    preset_names,
    preset_recipe,
    read_recipe,
)

_CLASSES = {"dpo": DpoRecipe, "clm": ClmRecipe, "bitfit": BitFitRecipe}
SETTINGS = {"steps": 4, "learning_rate": 1e-3, "batch_size": 2, "max_length": 32, "r": 4}
SETTINGS |= {"lora_alpha": 8}


@pytest.mark.parametrize("kind", ["dpo", "clm", "bitfit"])
def test_every_preset_is_a_valid_recipe_of_its_kind(kind):
    assert "small" in preset_names(kind)
    for name in preset_names(kind):
        assert type(preset_recipe(kind, name)) is _CLASSES[kind]


def test_the_published_recipe_is_reproduced():
    recipe = preset_recipe("dpo", "gpt-neox-hh")
    assert (recipe.r, recipe.lora_alpha, recipe.steps, recipe.batch_size) == (128, 256, 800, 8)
    assert (recipe.learning_rate, recipe.schedule, recipe.warmup_steps) == (5e-6, "cosine", 50)
    assert (recipe.num_examples, recipe.dropout) == (2000, 0.05)
    assert len(recipe.target_modules) == 4


def test_changes_replace_and_none_keeps():
    recipe = preset_recipe("dpo", "small", r=3, steps=None)
    assert recipe.r == 3
    assert recipe.steps == preset_recipe("dpo").steps


def test_examples_are_what_the_steps_consume():
    assert make_recipe("clm", **SETTINGS).num_examples == 8
    assert make_recipe("clm", **SETTINGS, samples=5).num_examples == 5


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rank": 4}, "rank"),
        ({"r": 0}, "r"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"steps": "many"}, "steps"),
        ({"beta": -1.0}, "beta"),
        ({"dropout": 1.0}, "dropout"),
        ({"schedule": "polynomial"}, "schedule"),
        ({"warmup_steps": 4}, "warmup_steps 4 leaves nothing of 4 steps"),
        ({"target_modules": ()}, "target_modules is empty"),
    ],
)
def test_a_bad_setting_is_named(changes, named):
    with pytest.raises(SettingError, match="not a dpo recipe") as caught:
        make_recipe("dpo", **{**SETTINGS, **changes})
    assert named in str(caught.value)


def test_beta_is_no_setting_of_causal_language_modeling():
    with pytest.raises(SettingError, match="beta"):
        make_recipe("clm", **SETTINGS, beta=0.1)


def test_unknown_kind_and_preset_list_what_there_is():
    with pytest.raises(SettingError, match="dpo, clm"):
        make_recipe("rlhf", **SETTINGS)
    with pytest.raises(SettingError, match="small"):
        preset_recipe("dpo", "large")


def test_recipes_are_frozen():
    recipe = preset_recipe("dpo")
    with pytest.raises(pydantic.ValidationError):
        recipe.steps = 5


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        ("all-linear", "all-linear"),
        ("q_proj", ("q_proj",)),
        (" q_proj, v_proj ,", ("q_proj", "v_proj")),
        ("", ()),
    ],
)
def test_targets_are_parsed(text, targets):
    assert parse_targets(text) == targets


def test_a_recipe_file_and_what_replaces_it(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('preset = "gpt-neox-hh"\nsteps = 60\ntarget_modules = ["dense"]\n')
    recipe = read_recipe("dpo", path, r=8, beta=None)
    assert (recipe.steps, recipe.r, recipe.target_modules) == (60, 8, ("dense",))
    assert recipe.lora_alpha == preset_recipe("dpo", "gpt-neox-hh").lora_alpha
    path.write_text("\n".join(f"{key} = {value}" for key, value in SETTINGS.items()))
    assert read_recipe("clm", path) == make_recipe("clm", **SETTINGS)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("steps = ", "cannot read the recipe"),
        ("stepz = 4", "stepz"),
        ('preset = "huge"', "no dpo preset 'huge'"),
        ("steps = 4", "r: Field required"),
    ],
)
def test_a_bad_recipe_file_is_named(tmp_path, text, named):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(SettingError, match=r"recipe\.toml") as caught:
        read_recipe("dpo", path)
    assert named in str(caught.value)


def test_a_missing_recipe_file(tmp_path):
    with pytest.raises(SettingError, match="cannot read the recipe"):
        read_recipe("dpo", tmp_path / "none.toml")


def test_accumulated_batches_count_as_examples():
    recipe = make_recipe("clm", **SETTINGS, gradient_accumulation=3)
    assert recipe.num_examples == 24
