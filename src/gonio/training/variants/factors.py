"""The factors inside a PEFT model, and PEFT folders written from factors of any rank.

Every module keeps the scaling s it was trained with: a module of another rank gets the alpha that
makes alpha / r (or alpha / sqrt(r)) the same number, so that no factor is rescaled or rounded.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from gonio.errors import AdapterError

__all__ = ["Factors", "adapter_bytes", "factors_of", "linear_layers"]
__all__ += ["stacked_factors", "write_factors"]

_PREFIX = "base_model.model."


class Factors(NamedTuple):
    """One module's update ``scaling * lora_b @ lora_a``.

    Attributes:
        lora_b: Shape ``(out_features, rank)``.
        lora_a: Shape ``(rank, in_features)``.
        scaling: s.
    """

    lora_b: Tensor
    lora_a: Tensor
    scaling: float


def linear_layers(adapted: Any, adapter: str = "default") -> Iterator[tuple[str, Any]]:
    """Names in the base model, and PEFT layers, of the linear modules that have an adapter."""
    from peft.tuners.lora import LoraLayer

    for name, module in adapted.named_modules():
        if isinstance(module, LoraLayer) and adapter in module.lora_A:
            yield name.removeprefix(_PREFIX), module


def factors_of(adapted: Any, adapter: str = "default") -> dict[str, Factors]:
    """Factors by module, not copied."""
    return {
        name: Factors(
            layer.lora_B[adapter].weight.detach(),
            layer.lora_A[adapter].weight.detach(),
            float(layer.scaling[adapter]),
        )
        for name, layer in linear_layers(adapted, adapter)
    }


def write_factors(
    folder: Path, factors: Mapping[str, Factors], config: Any, base_name: str | None
) -> None:
    """Write a PEFT LoRA folder, ranks and alphas per module where they differ.

    Args:
        folder: An existing folder.
        factors: By module name in the base model; at least one.
        config: The PEFT configuration they were trained with: gives what is not rank or alpha.
        base_name: What the folder names as its base model; the configuration's unless given.

    Raises:
        AdapterError: There are no factors.
    """
    from peft import LoraConfig

    if not factors:
        raise AdapterError(f"cannot write the adapter {folder}: there is no update to write")
    use_rslora = bool(getattr(config, "use_rslora", False))
    shapes = {name: (f.lora_b.shape[1], _alpha(f, use_rslora)) for name, f in factors.items()}
    (rank, alpha), _ = Counter(shapes.values()).most_common(1)[0]
    patterns = {name: f"^{re.escape(name)}" for name in factors}
    written = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        rank_pattern={patterns[n]: r for n, (r, _) in shapes.items() if r != rank},
        alpha_pattern={patterns[n]: a for n, (_, a) in shapes.items() if a != alpha},
        use_rslora=use_rslora,
        fan_in_fan_out=config.fan_in_fan_out,
        target_modules=sorted(factors),
        base_model_name_or_path=base_name or config.base_model_name_or_path,
        bias="none",
        task_type=config.task_type,
        inference_mode=True,
    )
    tensors = {}
    for name, (lora_b, lora_a, _) in factors.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = lora_a.detach().cpu().contiguous()
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = lora_b.detach().cpu().contiguous()
    written.save_pretrained(folder)
    path = folder / "adapter_model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)  # written private by safetensors


def adapter_bytes(factors: Mapping[str, Factors]) -> int:
    """Bytes of the stored numbers, ``sum r (m + n)`` times their size; names are not counted."""
    return sum(t.numel() * t.element_size() for f in factors.values() for t in f[:2])


def stacked_factors(parts: list[Factors]) -> Factors:
    """``sum_k s B_k A_k`` as one pair of factors of rank ``sum_k r_k``, without rounding.

    Args:
        parts: At least one, all of one scaling.

    Theorem: ``composition_rank``.
    """
    lora_b = torch.cat([part.lora_b for part in parts], dim=1)
    lora_a = torch.cat([part.lora_a for part in parts], dim=0)
    return Factors(lora_b, lora_a, parts[0].scaling)


def _alpha(factors: Factors, use_rslora: bool) -> float | int:
    """The alpha that gives the factors' scaling at their rank; a whole number where it is one."""
    rank = factors.lora_b.shape[1]
    alpha = factors.scaling * (math.sqrt(rank) if use_rslora else rank)
    return round(alpha) if abs(alpha - round(alpha)) < 1e-12 * abs(alpha) else alpha
