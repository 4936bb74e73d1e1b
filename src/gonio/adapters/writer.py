"""Writing updates as a LoRA folder that PEFT loads, whole or absent.

Ranks and alphas that differ between modules go to ``rank_pattern`` and ``alpha_pattern`` under
the modules' full names, so that no pattern can match another module.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from gonio.adapters.folder import Adapter
from gonio.adapters.update import LoraUpdate
from gonio.errors import AdapterError, OutputError
from gonio.files import replace_folder

__all__ = ["AdapterStyle", "require_rewritable", "write_adapter"]

_PREFIX = "base_model.model."


@dataclass(frozen=True)
class AdapterStyle:
    """What a written folder says beside its factors.

    Attributes:
        base_model: Name of the base model, empty for none.
        fan_in_fan_out: Hint for ``Conv1D`` bases, as read from the source.
        use_rslora: Whether alpha is divided by sqrt(r) instead of r.
        alpha: lora_alpha of every module; None for alpha equal to the rank (its root for rsLoRA),
            which makes the scaling 1.
        dtype: Precision of the stored factors.
    """

    base_model: str = ""
    fan_in_fan_out: bool = False
    use_rslora: bool = False
    alpha: float | None = None
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, adapter: Adapter) -> AdapterStyle:
        """The style of an adapter that was read, with scaling 1."""
        settings = adapter.settings
        return cls(settings.base_model, settings.fan_in_fan_out, settings.use_rslora)


def require_rewritable(adapter: Adapter) -> None:
    """Refuse an adapter of which a rewritten folder would lose a part.

    Raises:
        AdapterError: The file holds tensors that are in no update.
    """
    if adapter.unused:
        shown = [f"  {key}  {reason}" for key, reason in adapter.unused[:5]]
        more = [f"  and {len(adapter.unused) - 5} more"] if len(adapter.unused) > 5 else []
        raise AdapterError(
            "\n".join(
                [
                    f"cannot rewrite {adapter.path}: it would lose tensors that are in no update",
                    *shown,
                    *more,
                ]
            )
        )


def write_adapter(
    updates: Sequence[LoraUpdate], out: Path, style: AdapterStyle, *, overwrite: bool = False
) -> Path:
    """Write updates as ``adapter_config.json`` and ``adapter_model.safetensors``.

    The factors are rescaled to the style's alpha; the update ``scaling * lora_b @ lora_a`` of
    each module stays the same up to the rounding of ``style.dtype``.

    Args:
        updates: At least one, with distinct modules.
        out: Folder to create.
        style: Base name, scaling convention, precision.
        overwrite: Replace a folder that is not empty.

    Returns:
        The folder.

    Raises:
        AdapterError: There is no update, or a module occurs twice.
        OutputError: The folder is not empty or cannot be written.
    """
    modules = [update.module for update in updates]
    repeated = [module for module, count in Counter(modules).items() if count > 1]
    if not updates or repeated:
        what = f"module {repeated[0]} occurs twice" if repeated else "there is no update to write"
        raise AdapterError(f"cannot write the adapter {out}: {what}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not overwrite:
        raise OutputError(f"{out} exists and is not replaced; give --force to replace it.")
    tensors: dict[str, Tensor] = {}
    for update in updates:
        factor = update.scaling / _scaling(style, update.rank)
        name = f"{_PREFIX}{update.module}"
        lora_b = update.lora_b.double() * factor
        tensors[f"{name}.lora_A.weight"] = update.lora_a.to(style.dtype).contiguous()
        tensors[f"{name}.lora_B.weight"] = lora_b.to(style.dtype).contiguous()
    config = _config(updates, style)
    with replace_folder(out) as staging:
        config.save_pretrained(staging)
        save_file(tensors, staging / "adapter_model.safetensors", metadata={"format": "pt"})
    return out


def _alpha(style: AdapterStyle, rank: int) -> float:
    if style.alpha is not None:
        return style.alpha
    return math.sqrt(rank) if style.use_rslora else float(rank)


def _scaling(style: AdapterStyle, rank: int) -> float:
    return _alpha(style, rank) / (math.sqrt(rank) if style.use_rslora else rank)


def _config(updates: Sequence[LoraUpdate], style: AdapterStyle):  # type: ignore[no-untyped-def]
    """PEFT's own configuration object: PEFT writes what PEFT will read."""
    from peft import LoraConfig

    ranks = Counter(update.rank for update in updates)
    rank = max(ranks, key=lambda value: (ranks[value], value))
    others = [update for update in updates if update.rank != rank]
    names = {update.module: re.escape(update.module) for update in others}
    alpha = _alpha(style, rank)
    alphas = {names[u.module]: _alpha(style, u.rank) for u in others}
    return LoraConfig(
        r=rank,
        lora_alpha=_whole(alpha),
        rank_pattern={names[update.module]: update.rank for update in others},
        alpha_pattern={k: _whole(v) for k, v in alphas.items() if v != alpha},
        use_rslora=style.use_rslora,
        fan_in_fan_out=style.fan_in_fan_out,
        target_modules=sorted(update.module for update in updates),
        base_model_name_or_path=style.base_model or None,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )


def _whole(alpha: float) -> float | int:
    """An alpha without fraction as the integer that configuration files usually hold."""
    return int(alpha) if alpha == int(alpha) else alpha
