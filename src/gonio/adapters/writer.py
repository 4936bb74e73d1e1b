"""Writing updates as a LoRA folder that PEFT loads, whole or absent.

Ranks and alphas that differ between modules go to ``rank_pattern`` and ``alpha_pattern`` under
the modules' full names, so that no pattern can match another module. What lies beside the factors
of the folder that was read (biases, modules saved whole, trained tokens) is carried over.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from gonio.adapters.adapter import Adapter
from gonio.adapters.config import LoraSettings
from gonio.adapters.keys import PREFIX
from gonio.adapters.stored import WEIGHTS_NAME
from gonio.adapters.update import LoraUpdate
from gonio.errors import AdapterError, OutputError
from gonio.files import replace_folder

__all__ = ["AdapterStyle", "require_rewritable", "write_adapter"]

_LORA_BIAS = ".lora_B.bias"
_BASE_LAYER = ".base_layer."


@dataclass(frozen=True)
class AdapterStyle:
    """What a written folder says and holds beside its factors.

    Attributes:
        base_model: Name of the base model, empty for none.
        fan_in_fan_out: Hint for ``Conv1D`` bases, as read from the source.
        use_rslora: Whether alpha is divided by sqrt(r) instead of r.
        alpha: lora_alpha of every module; None for alpha equal to the rank (its root for rsLoRA),
            which makes the scaling 1.
        dtype: Precision of the stored factors.
        task_type: PEFT's task, empty for none.
        source: Settings of the adapter that was read, for what ``carry`` needs: ``bias``,
            ``modules_to_save``, ``lora_bias``, trained tokens; None for none of them.
        carry: Key -> tensor, written as it is; a bias of lora_B is rescaled with its update.
    """

    base_model: str = ""
    fan_in_fan_out: bool = False
    use_rslora: bool = False
    alpha: float | None = None
    dtype: torch.dtype = torch.float32
    task_type: str = "CAUSAL_LM"
    source: LoraSettings | None = field(default=None, repr=False)
    carry: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, adapter: Adapter) -> AdapterStyle:
        """The style of an adapter that was read, with scaling 1 and all that lies beside it."""
        settings = adapter.settings
        return cls(
            settings.base_model,
            settings.fan_in_fan_out,
            settings.use_rslora,
            task_type=settings.task_type,
            source=settings,
            carry=adapter.beside,
        )


def require_rewritable(adapter: Adapter, *, carries: bool = False) -> None:
    """Refuse an adapter of which a rewritten folder would lose a part.

    Args:
        adapter: The adapter to be rewritten, or to be one term of a sum.
        carries: Whether the folder is written in ``AdapterStyle.of(adapter)``, which carries
            over what lies beside the factors. A sum of adapters cannot: biases and modules saved
            whole do not add up.

    Raises:
        AdapterError: The file holds tensors that are in no update and are not carried.
    """
    lost = [
        (key, reason)
        for key, reason in adapter.unused
        if not (carries and _is_carried(adapter, key))
    ]
    if lost:
        shown = [f"  {key}  {reason}" for key, reason in lost[:5]]
        more = [f"  and {len(lost) - 5} more"] if len(lost) > 5 else []
        first = f"cannot rewrite {adapter.path}: it would lose tensors that are in no update"
        raise AdapterError("\n".join([first, *shown, *more]))


def write_adapter(
    updates: Sequence[LoraUpdate], out: Path, style: AdapterStyle, *, overwrite: bool = False
) -> Path:
    """Write updates as ``adapter_config.json`` and ``adapter_model.safetensors``.

    The factors are rescaled to the style's alpha; the update ``scaling * lora_b @ lora_a`` of
    each module stays the same up to the rounding of ``style.dtype``.

    Args:
        updates: At least one, with distinct modules, none of them dense.
        out: Folder to create.
        style: Base name, scaling convention, precision, what to carry over.
        overwrite: Replace a folder that is not empty.

    Returns:
        The folder.

    Raises:
        AdapterError: There is no update, a module occurs twice, an update is dense, or a bias
            of lora_B belongs to a module that is not written.
        OutputError: The folder is not empty or cannot be written.
    """
    modules = {update.module: update for update in updates}
    _require_writable(updates, out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not overwrite:
        raise OutputError(f"{out} exists and is not replaced; give --force to replace it.")
    tensors: dict[str, Tensor] = {}
    for update in updates:
        tensors |= _factors(update, style)
    for key, tensor in style.carry.items():
        tensors |= _carried(key, tensor, modules, style, out)
    config = _config(updates, style)
    with replace_folder(out) as staging:
        config.save_pretrained(staging)
        save_file(tensors, staging / WEIGHTS_NAME, metadata={"format": "pt"})
    return out


def _require_writable(updates: Sequence[LoraUpdate], out: Path) -> None:
    counts = Counter(update.module for update in updates)
    repeated = [module for module, count in counts.items() if count > 1]
    dense = [update for update in updates if update.kind == "dense"]
    if dense:
        what = f"the update of {dense[0].module} is dense\nGive it a rank first (adapter resize)."
    elif repeated:
        what = f"module {repeated[0]} occurs twice"
    elif not updates:
        what = "there is no update to write"
    else:
        return
    raise AdapterError(f"cannot write the adapter {out}: {what}")


def _factors(update: LoraUpdate, style: AdapterStyle) -> dict[str, Tensor]:
    """The two factors under PEFT's keys, in PEFT's layout for the kind of module."""
    rescaled = update.lora_b.double() * (update.scaling / _scaling(style, update.rank))
    lora_a, lora_b = update.lora_a.to(style.dtype), rescaled.to(style.dtype)
    name = f"{PREFIX}{update.module}"
    if update.kind == "embedding":
        keys = f"{name}.lora_embedding_A", f"{name}.lora_embedding_B"
        lora_a, lora_b = lora_b.mT, lora_a.mT
    else:
        keys = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
        lora_a = lora_a.unflatten(1, (-1, *update.kernel)) if update.kernel else lora_a
        lora_b = lora_b.reshape(*lora_b.shape, *(1 for _ in update.kernel))
    return {keys[0]: lora_a.contiguous(), keys[1]: lora_b.contiguous()}


def _is_carried(adapter: Adapter, key: str) -> bool:
    if adapter.kind == "full":
        return f"{PREFIX}{key}" in adapter.beside
    return key.endswith(_LORA_BIAS) or ".lora_" not in key


def _carried(
    key: str,
    tensor: Tensor,
    written: Mapping[str, LoraUpdate],
    style: AdapterStyle,
    out: Path,
) -> dict[str, Tensor]:
    """A tensor beside the factors as the written folder must name and scale it."""
    name = key.removeprefix(PREFIX)
    if style.source and style.source.lora_bias and name.endswith(_LORA_BIAS):
        # PEFT adds scaling * bias to the base bias: the new scaling takes the old one's place.
        module = name.removesuffix(_LORA_BIAS)
        if module not in written:
            raise AdapterError(
                f"cannot write the adapter {out}: {module} has no rank left, but a bias of lora_B"
                "\nKeep at least rank 1 of it."
            )
        _, scaling = style.source.resolve(module)
        factor = scaling / _scaling(style, written[module].rank)
        return {key: (tensor.double() * factor).to(style.dtype)}
    if not key.startswith(PREFIX):
        return {key: tensor}
    module, _, parameter = name.replace(_BASE_LAYER, ".").rpartition(".")
    if module in written:  # PEFT wraps this layer, and its own parameters lie one level deeper
        return {f"{PREFIX}{module}{_BASE_LAYER}{parameter}": tensor}
    return {f"{PREFIX}{module}.{parameter}": tensor}


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
    modules = [update.module for update in updates]
    names = {update.module: _pattern(update.module, modules) for update in others}
    alpha = _alpha(style, rank)
    alphas = {names[u.module]: _alpha(style, u.rank) for u in others}
    source = style.source or LoraSettings(rank=rank, alpha=alpha)
    return LoraConfig(
        r=rank,
        lora_alpha=_whole(alpha),
        rank_pattern={names[update.module]: update.rank for update in others},
        alpha_pattern={k: _whole(v) for k, v in alphas.items() if v != alpha},
        use_rslora=style.use_rslora,
        fan_in_fan_out=style.fan_in_fan_out,
        target_modules=sorted(modules),
        base_model_name_or_path=style.base_model or None,
        task_type=style.task_type or None,
        inference_mode=True,
        bias=source.bias,
        lora_bias=source.lora_bias,
        modules_to_save=_saved_whole(modules, style) or None,
        trainable_token_indices=_token_indices(source),
        ensure_weight_tying=source.ties_weights,
    )


def _saved_whole(modules: Sequence[str], style: AdapterStyle) -> list[str]:
    """The ``modules_to_save`` of which something is carried; PEFT expects to find each of them.

    Read beside its base, a matrix saved whole becomes an update, which takes its place.
    """
    names = style.source.modules_to_save if style.source else ()
    owners = {key.removeprefix(PREFIX).rpartition(".")[0] for key in style.carry} - set(modules)
    return [name for name in names if any(f".{name}." in f".{owner}." for owner in owners)]


def _pattern(module: str, modules: Sequence[str]) -> str:
    """A pattern for one module, anchored where its name ends another's: PEFT matches endings."""
    is_ambiguous = any(other.endswith(f".{module}") for other in modules)
    return f"^{re.escape(module)}" if is_ambiguous else re.escape(module)


def _token_indices(source: LoraSettings) -> list[int] | dict[str, list[int]] | None:
    tokens = {name: list(indices) for name, indices in source.token_indices.items()}
    return tokens.get("", tokens or None)


def _whole(alpha: float) -> float | int:
    """An alpha without fraction as the integer that configuration files usually hold."""
    return int(alpha) if alpha == int(alpha) else alpha
