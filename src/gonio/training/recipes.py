"""What a training run is made of: every setting that changes its numbers, checked and frozen.

Presets are data (``presets.json``): ``small`` trains offline on two cores in about a minute;
``gpt-neox-hh`` is the published study's r = 128 recipe for GPT-NeoX models, meant for
``Anthropic/hh-rlhf`` with the seeds 42 and 117.
"""

from __future__ import annotations

import json
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gonio.errors import SettingError
from gonio.training.variant_settings import Init, VariantSettings

__all__ = [
    "BitFitRecipe",
    "ClmRecipe",
    "DpoRecipe",
    "LoraRecipe",
    "Precision",
    "Recipe",
    "TrainingKind",
    "make_recipe",
    "parse_targets",
    "preset_names",
    "preset_recipe",
    "read_recipe",
]

TrainingKind = Literal["dpo", "clm", "bitfit"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


class Recipe(BaseModel):
    """Settings shared by every way of training.

    Attributes:
        steps: Optimizer steps.
        learning_rate: Peak learning rate of AdamW.
        warmup_steps: Steps of linear warm-up, fewer than ``steps``.
        schedule: Learning rate after the warm-up.
        batch_size: Examples per step and device, when gradients are not accumulated.
        gradient_accumulation: Batches per step.
        max_length: Tokens per sequence; longer ones lose their end.
        samples: Training examples drawn from the data; as many as the steps consume when null.
        seed: Seed of the data order, the initialization and the dropout.
        precision: Of the arithmetic, the weights being float32: ``auto`` is fp32 on the CPU, bf16
            on an accelerator that has it and fp16 on one that has not.
        gradient_checkpointing: Recompute activations instead of keeping them: less memory, slower.
        report_to: Trackers of ``transformers`` that get the log, for example ``tensorboard``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: int = Field(ge=1)
    learning_rate: float = Field(gt=0.0)
    warmup_steps: int = Field(default=0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    batch_size: int = Field(ge=1)
    gradient_accumulation: int = Field(default=1, ge=1)
    max_length: int = Field(ge=2)
    samples: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**32)
    precision: Precision = "auto"
    gradient_checkpointing: bool = False
    report_to: tuple[Annotated[str, Field(min_length=1)], ...] = ()

    @model_validator(mode="after")
    def _check_steps(self) -> Recipe:
        if self.warmup_steps >= self.steps and self.warmup_steps > 0:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} leaves nothing of {self.steps} steps"
            )
        return self

    @property
    def num_examples(self) -> int:
        """Training examples to draw: ``samples``, or as many as the steps consume once."""
        if self.samples is not None:
            return self.samples
        return self.steps * self.batch_size * self.gradient_accumulation


class LoraRecipe(Recipe):
    """What the trainings of a LoRA adapter share.

    Attributes:
        r: Rank of the update.
        lora_alpha: Alpha; the update is scaled by alpha / r, or alpha / sqrt(r) with rsLoRA.
        target_modules: Module names that get an adapter, or ``all-linear``: every linear layer
            but the output head.
        use_rslora: Rank-stabilized scaling (Kalajdzievski 2023, arXiv:2312.03732).
        dropout: Dropout on the input of the adapter, in [0, 1).
        init: How the factors start: ``kaiming`` and ``gaussian`` are laws of the entries of A, B
            being zero; the others are in :mod:`gonio.training.variants.starts`.
        variant: Another way of training the factors than LoRA's own; see
            :mod:`gonio.training.variants`.
    """

    r: int = Field(ge=1)
    lora_alpha: int | float = Field(gt=0.0)
    target_modules: Literal["all-linear"] | tuple[Annotated[str, Field(min_length=1)], ...] = (
        "all-linear"
    )
    use_rslora: bool = False
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    init: Init = "kaiming"
    variant: VariantSettings | None = Field(default=None, exclude_if=lambda value: value is None)

    @model_validator(mode="after")
    def _check_targets(self) -> LoraRecipe:
        if not self.target_modules:
            raise ValueError("target_modules is empty; name modules or use 'all-linear'")
        return self

    @model_validator(mode="after")
    def _check_variant(self) -> LoraRecipe:
        if self.variant is not None:
            self.variant.check(self.steps, self.r, self.use_rslora)
            if self.init not in ("kaiming", "gaussian"):
                raise ValueError(
                    f"variant {self.variant.name} starts as LoRA does, not from init {self.init}"
                )
        return self


class DpoRecipe(LoraRecipe):
    """Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290, equation 7).

    Attributes:
        beta: Strength of the pull towards the reference model; the reward is beta times the
            log-ratio of policy to reference.
    """

    beta: float = Field(default=0.1, gt=0.0)


class ClmRecipe(LoraRecipe):
    """Causal language modeling: cross-entropy on the chosen response, given its prompt."""


class BitFitRecipe(Recipe):
    """DPO of the biases alone, every weight frozen (Ben Zaken et al. 2021, arXiv:2106.10199).

    Attributes:
        beta: As for DPO.
    """

    beta: float = Field(default=0.1, gt=0.0)


_CLASSES: dict[TrainingKind, type[Recipe]] = {
    "dpo": DpoRecipe,
    "clm": ClmRecipe,
    "bitfit": BitFitRecipe,
}


def make_recipe(kind: TrainingKind, **settings: Any) -> Recipe:
    """A checked recipe of the given kind.

    Raises:
        SettingError: A setting is unknown, missing, of the wrong type or out of range.
    """
    if kind not in _CLASSES:
        raise SettingError(f"no training kind {kind!r}; there are {', '.join(_CLASSES)}")
    try:
        return _CLASSES[kind].model_validate(settings)
    except ValidationError as error:
        raise SettingError(_explain(kind, error)) from error


def preset_recipe(kind: TrainingKind, name: str = "small", **changes: Any) -> Recipe:
    """A preset with some settings changed; a change to None keeps the preset's value.

    Raises:
        SettingError: There is no such preset, or a changed setting is refused.
    """
    presets = _presets(kind)
    if name not in presets:
        raise SettingError(f"no {kind} preset {name!r}; there are {', '.join(presets)}")
    given = {key: value for key, value in changes.items() if value is not None}
    return make_recipe(kind, **{**presets[name], **given})


def read_recipe(kind: TrainingKind, path: Path, **changes: Any) -> Recipe:
    """A recipe from a TOML file whose keys are settings, and ``preset`` for what it does not say.

    Args:
        kind: What is trained.
        path: The file.
        **changes: Settings that replace those of the file; None keeps them.

    Raises:
        SettingError: The file cannot be read or is not TOML, or a setting is refused.
    """
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingError(f"cannot read the recipe {path}: {error}") from error
    given = {key: value for key, value in changes.items() if value is not None}
    name = settings.pop("preset", None)
    try:
        if name is None:
            return make_recipe(kind, **{**settings, **given})
        return preset_recipe(kind, name, **{**settings, **given})
    except SettingError as error:
        raise SettingError(f"{path}: {error}") from error


def parse_targets(text: str) -> str | tuple[str, ...]:
    """Target modules from ``all-linear`` or from names with commas between."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    return "all-linear" if names == ("all-linear",) else names


def preset_names(kind: TrainingKind) -> list[str]:
    """Names of the presets of one kind of training."""
    return list(_presets(kind))


def _presets(kind: str) -> dict[str, dict[str, Any]]:
    text = files("gonio.training").joinpath("presets.json").read_text(encoding="utf-8")
    presets: dict[str, dict[str, Any]] = json.loads(text).get(kind, {})
    return presets


def _explain(kind: str, error: ValidationError) -> str:
    lines = [f"not a {kind} recipe:"]
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"][:1]) or "together"
        found = f" (found {item['input']!r})" if item["loc"] and item["type"] != "missing" else ""
        lines.append(f"  {where}: {item['msg'].removeprefix('Value error, ')}{found}")
    return "\n".join(lines)
