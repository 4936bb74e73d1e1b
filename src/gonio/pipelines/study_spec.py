"""What a study is made of: models, recipes and seeds, read from one TOML file and checked at once.

Everything that can be wrong without reading a weight is refused before the first cell runs.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gonio.errors import ModelError, SettingError
from gonio.models import load_skeleton
from gonio.pipelines.study_models import BuiltModel, built_skeleton
from gonio.pipelines.training import check_trainable
from gonio.training import Recipe, TrainingKind, preset_recipe

__all__ = [
    "Cell",
    "StudyModel",
    "StudySpec",
    "check_study",
    "plan_cells",
    "preset_study",
    "read_study",
]

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=60)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StudyModel(_Strict):
    """One model of the grid.

    Attributes:
        name: What tables and figures call it.
        source: A model source; or
        built: a tiny model made from a configuration, with random weights.
        width: What stable rank is plotted against; the hidden size unless given.
        recipes: Names of the recipes it takes part in; all unless given.
    """

    name: _Name
    source: str | None = None
    built: BuiltModel | None = None
    width: Annotated[int, Field(ge=1)] | None = None
    recipes: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> StudyModel:
        if (self.source is None) == (self.built is None):
            raise ValueError(f"the model {self.name} needs either a source or built, not both")
        return self


class StudySpec(_Strict):
    """A study: every model with every recipe and seed.

    Attributes:
        title: One line for people.
        models: The models.
        recipes: By name, each with an ``objective`` (``dpo``, ``clm`` or ``bitfit``), perhaps a
            ``preset``, and settings of its own.
        seeds: Seeds of data order and initialization.
        data: As for `gonio train`; the same pairs for every seed.
        data_seed: Seed of the split into training and held-out pairs.
        held_out: Pairs kept for the evaluation.
        ks: Numbers of top directions that are compared with the base model's.
        spectrum_every: Steps between measurements of the update's geometry; 0 for none.
        device: Where cells run.
        threads: Threads of each cell: with their number the last bits of the results change.
    """

    title: str = Field(default="Geometry of fine-tuning", min_length=1)
    models: tuple[StudyModel, ...] = Field(min_length=1)
    recipes: dict[_Name, dict[str, Any]] = Field(min_length=1)
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field(min_length=1)
    data: str = "bundled"
    data_seed: int = Field(default=0, ge=0)
    held_out: int = Field(default=16, ge=2)
    ks: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 5, 10), min_length=1)
    spectrum_every: int = Field(default=0, ge=0)
    device: str = "cpu"
    threads: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _check_names(self) -> StudySpec:
        names = [model.name for model in self.models]
        if len(set(names)) < len(names) or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("models need different names, and seeds must differ")
        for model in self.models:
            unknown = set(model.recipes or ()) - set(self.recipes)
            if unknown:
                raise ValueError(
                    f"the model {model.name} names unknown recipes: {', '.join(sorted(unknown))}"
                )
        return self


@dataclass(frozen=True)
class Cell:
    """One training of the grid and all that is measured of it.

    Attributes:
        name: Name of its folder.
        model: The model.
        recipe_name: Name of the recipe.
        kind: ``dpo``, ``clm`` or ``bitfit``.
        recipe: The recipe with the cell's seed.
        seed: The seed.
    """

    name: str
    model: StudyModel
    recipe_name: str
    kind: TrainingKind
    recipe: Recipe
    seed: int


def read_study(path: Path) -> StudySpec:
    """Read a TOML file, or the ``study.json`` of a study's folder.

    Raises:
        SettingError: It cannot be read, is not TOML (JSON), or a setting is refused.
    """
    parse = json.loads if path.suffix == ".json" else tomllib.loads
    try:
        settings = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # both parsers raise a ValueError
        raise SettingError(f"cannot read the study {path}: {error}") from error
    return _validated(settings, str(path))


def preset_study(name: str) -> StudySpec:
    """A study that comes with gonio.

    Raises:
        SettingError: There is none of that name.
    """
    folder = files("gonio.pipelines").joinpath("studies")
    known = sorted(each.name.removesuffix(".toml") for each in folder.iterdir())
    if name not in known:
        raise SettingError(f"no study {name!r}: not a file, and the presets are {', '.join(known)}")
    text = folder.joinpath(f"{name}.toml").read_text(encoding="utf-8")
    return _validated(tomllib.loads(text), name)


def plan_cells(spec: StudySpec) -> list[Cell]:
    """Every cell of the grid, models first, then recipes, then seeds.

    Raises:
        SettingError: A recipe is refused.
    """
    cells = []
    for model in spec.models:
        for name in model.recipes if model.recipes is not None else spec.recipes:
            for seed in spec.seeds:
                kind, recipe = _recipe(name, spec.recipes[name], seed)
                cells.append(
                    Cell(f"{model.name}_{name}_seed{seed}", model, name, kind, recipe, seed)
                )
    return cells


def check_study(spec: StudySpec) -> list[Cell]:
    """Plan the cells and check each against its model's modules, without reading weights.

    Raises:
        SettingError: A recipe is refused, or a target module is not in a model.
        ModelError: A model cannot be found, or has no biases for a recipe that trains them.
    """
    cells = plan_cells(spec)
    for model in spec.models:
        skeleton = built_skeleton(model.built) if model.built else load_skeleton(str(model.source))
        for cell in cells:
            if cell.model == model and cell.seed == spec.seeds[0]:
                try:
                    check_trainable(skeleton, cell.recipe)
                except (SettingError, ModelError) as error:
                    where = f"the model {model.name} cannot take the recipe {cell.recipe_name}"
                    raise type(error)(f"{where}\n  {error}") from error
    return cells


def _recipe(name: str, settings: dict[str, Any], seed: int) -> tuple[TrainingKind, Recipe]:
    chosen = dict(settings)
    kind: Literal["dpo", "clm", "bitfit"] | None = chosen.pop("objective", None)
    preset = chosen.pop("preset", "small")
    if kind not in ("dpo", "clm", "bitfit"):
        raise SettingError(
            f"the recipe {name} needs an objective: dpo, clm or bitfit, found {kind!r}"
        )
    if "seed" in chosen:
        raise SettingError(f"the recipe {name} sets a seed; seeds belong to the study")
    try:
        return kind, preset_recipe(kind, preset, **chosen, seed=seed)
    except SettingError as error:
        raise SettingError(f"the recipe {name}: {error}") from error


def _validated(settings: dict[str, Any], where: str) -> StudySpec:
    try:
        spec = StudySpec.model_validate(settings)
        plan_cells(spec)
    except ValidationError as error:
        lines = [f"not a study: {where}"]
        for item in error.errors():
            place = ".".join(str(part) for part in item["loc"]) or "together"
            lines.append(f"  {place}: {item['msg'].removeprefix('Value error, ')}")
        raise SettingError("\n".join(lines)) from error
    except SettingError as error:
        raise SettingError(f"not a study: {where}\n  {error}") from error
    return spec
