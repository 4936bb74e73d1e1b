"""The weight changes of a model in training, found where they live and measured as they are.

A LoRA layer holds its change as two factors, which are never multiplied out. Of a weight that is
trained itself the change is ``W - W_start``, so a copy of the start is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gonio.errors import SettingError
from gonio.linalg.lowrank import factored_truncation
from gonio.linalg.subspaces import subspace_overlap

__all__ = ["TopDirections", "TrackedUpdate", "measure_updates", "overlaps", "tracked_updates"]


class TopDirections(NamedTuple):
    """Spectrum of a matrix and its leading singular directions.

    Attributes:
        sigma: Singular values, descending, float64.
        left: Orthonormal columns ``(out_features, k)``.
        right: Orthonormal columns ``(in_features, k)``.
    """

    sigma: Tensor
    left: Tensor
    right: Tensor


@dataclass(frozen=True, eq=False)
class TrackedUpdate:
    """One weight matrix that training changes.

    Attributes:
        module: Name of the module in the base model.
        base: The weight that is adapted, ``(out_features, in_features)``; of a weight that is
            trained itself, a copy of its start.
        factors: ``lora_b`` and ``lora_a`` as they are trained; None for a dense weight.
        scaling: alpha / r, or alpha / sqrt(r), of a LoRA layer.
        weight: The trained weight itself, in the orientation of ``base``; None for LoRA.
    """

    module: str
    base: Tensor = field(repr=False)
    factors: tuple[nn.Parameter, nn.Parameter] | None = None
    scaling: float = 1.0
    weight: Tensor | None = field(default=None, repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features)``."""
        return self.base.shape[0], self.base.shape[1]

    @property
    def rank(self) -> int | None:
        """Rank r of a LoRA layer."""
        return self.factors[1].shape[0] if self.factors else None


def tracked_updates(model: nn.Module) -> tuple[list[TrackedUpdate], dict[str, str]]:
    """Every weight matrix whose change can be followed, in the order of the model.

    Where the model has LoRA layers these are all there is; otherwise the linear layers whose
    weight is trained.

    Returns:
        The updates, and the modules left out with the reason.

    Raises:
        SettingError: Nothing is trained that can be followed, or weights are sharded.
    """
    layers = list(_lora_layers(model))
    left_out: dict[str, str] = {}
    found = []
    if layers:
        for name, layer in layers:
            reason = _refusal(layer)
            if reason:
                left_out[name] = reason
            else:
                found.append(_lora_update(name, layer))
    else:
        found = [
            _dense_update(name, module)
            for name, module in model.named_modules()
            if _has_matrix(module) and module.weight.requires_grad
        ]
    if not found:
        reasons = ", ".join(sorted(set(left_out.values()))) or "no linear weight is trained"
        raise SettingError(f"the callback finds no update to follow: {reasons}")
    for update in found:
        if update.base.ndim != 2 or update.base.numel() == 0:
            raise SettingError(
                f"{update.module} holds a weight of shape {tuple(update.base.shape)}: it is "
                "sharded over processes\nThe callback needs whole weights; train with DDP."
            )
    return found, left_out


def measure_updates(
    updates: Sequence[TrackedUpdate], k: int
) -> Iterator[tuple[int, TopDirections]]:
    """Singular values and k leading directions of every update, a batch for every shape.

    Args:
        updates: What to measure.
        k: Directions wanted; fewer where the rank is smaller.

    Yields:
        Position in ``updates`` and its directions.
    """
    groups: dict[object, list[int]] = {}
    for i, update in enumerate(updates):
        key = (update.shape, update.rank) if update.factors else i
        groups.setdefault(key, []).append(i)
    for members in groups.values():
        first = updates[members[0]]
        if first.factors is None:
            yield members[0], _dense_directions(first, k)
            continue
        lora_b = [updates[i].factors[0].detach() for i in members]  # type: ignore[index]
        lora_a = [updates[i].factors[1].detach() for i in members]  # type: ignore[index]
        scaling = torch.tensor([updates[i].scaling for i in members], dtype=torch.float64)
        found = factored_truncation(lora_b, lora_a, k, scaling.to(lora_b[0].device))
        left, right = found.lora_b, found.lora_a.mT
        for row, i in enumerate(members):
            yield i, TopDirections(found.spectrum.sigma[row], _unit(left[row]), _unit(right[row]))


def overlaps(one: TopDirections, other: TopDirections, k: int) -> tuple[float, float]:
    """Overlap of the left and of the right leading directions, NaN below k directions."""
    if min(one.left.shape[1], other.left.shape[1]) < k or not (one.sigma[0] and other.sigma[0]):
        return float("nan"), float("nan")
    left = subspace_overlap(one.left[:, :k], other.left[:, :k].to(one.left.device))
    right = subspace_overlap(one.right[:, :k], other.right[:, :k].to(one.right.device))
    return float(left), float(right)


def _lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name.removeprefix("base_model.model."), module


def _refusal(layer: Any) -> str | None:
    """Why a LoRA layer cannot be followed, or None."""
    if len(layer.active_adapters) != 1:
        return f"{len(layer.active_adapters)} adapters are active"
    name = layer.active_adapters[0]
    if name not in layer.lora_A:
        return "not a linear layer"
    if name in layer.lora_variant:  # DoRA and others
        return f"{type(layer.lora_variant[name]).__name__} changes more than B @ A"
    weight = layer.get_base_layer().weight
    return None if weight.ndim == 2 else "not a linear layer"


def _lora_update(name: str, layer: Any) -> TrackedUpdate:
    adapter = layer.active_adapters[0]
    factors = (layer.lora_B[adapter].weight, layer.lora_A[adapter].weight)
    weight = layer.get_base_layer().weight.detach()
    base = weight.mT if getattr(layer, "fan_in_fan_out", False) else weight
    return TrackedUpdate(name, base, factors, float(layer.scaling[adapter]))


def _has_matrix(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def _dense_update(name: str, module: Any) -> TrackedUpdate:
    weight = module.weight.detach()
    weight = weight if isinstance(module, nn.Linear) else weight.mT
    return TrackedUpdate(name, weight.clone(), weight=weight)


def _dense_directions(update: TrackedUpdate, k: int) -> TopDirections:
    assert update.weight is not None
    change = update.weight.double() - update.base.double()
    left, sigma, right = torch.linalg.svd(change, full_matrices=False)
    return TopDirections(sigma, left[:, :k], right[:k].mT)


def _unit(columns: Tensor) -> Tensor:
    """Columns of length one; zero columns stay."""
    lengths: Tensor = columns.norm(dim=0)
    return columns / lengths.clamp(min=torch.finfo(columns.dtype).tiny)
