"""Adding adapters: a weighted sum of updates, exact in factored form.

``sum_i w_i s_i B_i A_i`` is the product of the stacked factors, of rank at most ``sum_i r_i``;
nothing is averaged factor by factor, which would add the cross terms ``B_i A_j``. Adapters may
differ in rank, scaling and target modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from gonio.adapters.adapter import Adapter
from gonio.adapters.update import LoraUpdate, with_factors
from gonio.errors import AdapterError, SettingError

__all__ = ["merge"]


def merge(adapters: Sequence[Adapter], weights: Sequence[float] | None = None) -> list[LoraUpdate]:
    """The weighted sum of adapters of one base model.

    Args:
        adapters: At least one.
        weights: One finite number per adapter; 1 for each unless given.

    Returns:
        One update per module that any adapter changes, of rank the sum of the adapters' ranks;
        :func:`gonio.adapters.resize.resize` makes it smaller. Weights and scalings are folded
        into float64 factors; where all are equal they are the scaling, and the factors as stored.

    Raises:
        SettingError: The numbers of adapters and weights differ, or a weight is not finite.
        AdapterError: No adapter is given, or two differ in the shape of a module.
    """
    if not adapters:
        raise AdapterError("no adapter to merge")
    chosen = [1.0] * len(adapters) if weights is None else [float(weight) for weight in weights]
    if len(chosen) != len(adapters):
        raise SettingError(f"{len(adapters)} adapters need as many weights, found {len(chosen)}")
    if not all(abs(weight) < float("inf") for weight in chosen):
        raise SettingError(f"weights must be finite numbers, found {chosen}")
    parts: dict[str, list[tuple[float, LoraUpdate, Adapter]]] = {}
    for weight, adapter in zip(chosen, adapters, strict=True):
        for module, update in adapter.updates.items():
            parts.setdefault(module, []).append((weight, update, adapter))
    return [_sum(module, terms) for module, terms in parts.items()]


def _sum(module: str, terms: Sequence[tuple[float, LoraUpdate, Adapter]]) -> LoraUpdate:
    _, first, owner = terms[0]
    for _, update, adapter in terms[1:]:
        if update.shape != first.shape:
            raise AdapterError(
                f"cannot merge {owner.path} and {adapter.path}: {module} has shape {first.shape} "
                f"in one and {update.shape} in the other\nThey were trained on different bases."
            )
    factors = [weight * update.scaling for weight, update, _ in terms]
    lora_b = torch.cat([update.lora_b for _, update, _ in terms], dim=1)
    lora_a = torch.cat([update.lora_a for _, update, _ in terms], dim=0)
    if len(set(factors)) == 1:
        return replace(with_factors(first, lora_b, lora_a), scaling=factors[0])
    ranks = torch.tensor([update.rank for _, update, _ in terms])
    columns = torch.tensor(factors, dtype=torch.float64).repeat_interleave(ranks)
    return with_factors(first, lora_b.double() * columns.to(lora_b.device), lora_a.double())
