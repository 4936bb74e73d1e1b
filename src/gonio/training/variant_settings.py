"""Settings of the LoRA variants that a recipe can ask for, and of how the factors start.

They are data alone; what they do is in :mod:`gonio.training.variants`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "BASE_CHANGING_INITS",
    "AdaLoraSettings",
    "DynamicSettings",
    "Init",
    "ScaledSettings",
    "SparseSettings",
    "StackedSettings",
    "VariantName",
    "VariantSettings",
]

Init = Literal[
    "kaiming", "gaussian", "zero-a", "orthogonal", "mica", "pissa", "pissa_niter_4", "olora"
]
BASE_CHANGING_INITS = ("pissa", "pissa_niter_4", "olora")
VariantName = Literal["stacked", "sparse", "dynamic", "adalora", "scaled"]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def check(self, steps: int, rank: int, use_rslora: bool) -> None:
        """Refuse what does not go with the rest of the recipe.

        Raises:
            ValueError: As said.
        """


class StackedSettings(_Settings):
    """``W + s B1 A1 + s B2 A2 + ...``, one fresh pair of factors after the other.

    Chain of LoRA (Xia et al. 2024, arXiv:2401.04151) merges each pair into the weight before the
    next one starts; here they stay apart, which is the same function without its rounding.

    Attributes:
        stages: Pairs of factors; the steps are shared out evenly, the earlier stages are frozen.
    """

    name: Literal["stacked"] = "stacked"
    stages: int = Field(default=2, ge=2)

    def check(self, steps: int, rank: int, use_rslora: bool) -> None:
        """Every stage needs a step."""
        if self.stages > steps:
            raise ValueError(f"{self.stages} stages leave some without one of {steps} steps")


class SparseSettings(_Settings):
    """Small entries of both factors become zero while they are trained.

    The share that is kept falls from 1 to ``density`` as a cubic between two steps (Zhu & Gupta
    2017, arXiv:1710.01878); an entry that was pruned stays zero.

    Attributes:
        density: Share of each factor's entries kept at the end, in (0, 1].
        begin: Share of the steps before the first pruning, in [0, 1].
        end: Share of the steps after which the density is reached, at least ``begin``.
        every: Steps between two prunings.
    """

    name: Literal["sparse"] = "sparse"
    density: float = Field(default=0.25, gt=0.0, le=1.0)
    begin: float = Field(default=0.25, ge=0.0, le=1.0)
    end: float = Field(default=0.75, ge=0.0, le=1.0)
    every: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _check_order(self) -> SparseSettings:
        if self.end < self.begin:
            raise ValueError(f"pruning ends at {self.end:g} before it begins at {self.begin:g}")
        return self


class DynamicSettings(_Settings):
    """Directions with small singular values are cut off while the factors are trained.

    Attributes:
        threshold: Singular values of at most this share of the largest go, in [0, 1).
        relative_to: The largest of the ``module`` itself, or of all modules of the ``model``.
        every: Steps between two truncations; a last one follows the training.
    """

    name: Literal["dynamic"] = "dynamic"
    threshold: float = Field(default=0.1, ge=0.0, lt=1.0)
    relative_to: Literal["module", "model"] = "module"
    every: int = Field(default=5, ge=1)


class AdaLoraSettings(_Settings):
    """AdaLoRA (Zhang et al. 2023, arXiv:2303.10512) by PEFT; r is the mean rank wanted at the end.

    Attributes:
        start_rank: Rank of every module at the start, at least r; half more than r unless given.
        begin: Share of the steps before ranks fall, in [0, 1).
        end: Share of the steps after which they no longer do, above ``begin``.
        orthogonality: Weight of the penalty that keeps the factors orthonormal; part of the logged
            loss. Only ``clm`` has it: PEFT adds it where the model computes the loss.
    """

    name: Literal["adalora"] = "adalora"
    start_rank: int | None = Field(default=None, ge=1)
    begin: float = Field(default=0.1, ge=0.0, lt=1.0)
    end: float = Field(default=0.8, gt=0.0, le=1.0)
    orthogonality: float = Field(default=0.5, ge=0.0)

    def first_rank(self, rank: int) -> int:
        """Rank at the start for a target of ``rank``."""
        return max(rank + 1, rank * 3 // 2) if self.start_rank is None else self.start_rank

    def schedule(self, steps: int) -> tuple[int, int]:
        """PEFT's ``tinit`` and ``tfinal``: steps before and after the ranks fall."""
        return int(self.begin * steps), steps - max(1, round(self.end * steps))

    def check(self, steps: int, rank: int, use_rslora: bool) -> None:
        """The ranks need steps to fall in, and AdaLoRA has its own scaling."""
        first, last = self.schedule(steps)
        if first >= steps - last:
            raise ValueError(
                f"AdaLoRA has no step to lower ranks in: it begins after step {first} and ends "
                f"with step {steps - last}"
            )
        if self.first_rank(rank) < rank:
            raise ValueError(f"start_rank {self.start_rank} is below the rank r {rank} aimed at")
        if use_rslora:
            raise ValueError("AdaLoRA divides alpha by its start rank; rsLoRA does not apply")


class ScaledSettings(_Settings):
    """``W + c s B A`` with one trained number c per module, 1 at the start.

    Attributes:
        scale_learning_rate: Learning rate of c, on the recipe's schedule.
    """

    name: Literal["scaled"] = "scaled"
    scale_learning_rate: float = Field(default=0.01, gt=0.0)


VariantSettings = Annotated[
    StackedSettings | SparseSettings | DynamicSettings | AdaLoraSettings | ScaledSettings,
    Field(discriminator="name"),
]
