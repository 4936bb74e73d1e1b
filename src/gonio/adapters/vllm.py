"""Whether vLLM would load an adapter folder and apply the update that PEFT applies.

vLLM reads ``r``, ``lora_alpha`` and ``use_rslora`` of ``adapter_config.json`` and gives every
module the same scaling; patterns per module are not read. The rules follow its ``PEFTHelper`` and
its names of LoRA tensors; vLLM itself is not run.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from gonio.adapters.adapter import Adapter
from gonio.adapters.config import CONFIG_NAME
from gonio.adapters.stored import WEIGHTS_NAME
from gonio.adapters.update import LoraUpdate, with_factors
from gonio.errors import AdapterError

__all__ = ["DEFAULT_VLLM_RANK", "even_ranks", "vllm_problems"]

DEFAULT_VLLM_RANK = 16  # its --max-lora-rank unless given
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # values --max-lora-rank may have (0.14)

_HEAD_COPIES = (".lm_head.base_layer.weight", ".embed_tokens.base_layer.weight")  # skipped


def vllm_problems(adapter: Adapter, *, max_lora_rank: int = DEFAULT_VLLM_RANK) -> tuple[str, ...]:
    """Why vLLM would refuse an adapter, or apply another update than PEFT.

    Args:
        adapter: An adapter that was read from a folder.
        max_lora_rank: The server's ``--max-lora-rank``.

    Returns:
        One sentence per reason, with the cure; empty when none was found. Whether vLLM takes
        adapters for the base model's architecture at all is not among them.
    """
    settings = adapter.settings
    checks = [
        (settings.use_dora or adapter.kind == "dora", "DoRA is not supported"),
        (adapter.kind == "full", "it is a whole model, no adapter; serve it as a model"),
        (bool(settings.modules_to_save), "modules_to_save is not supported"),
        (settings.bias != "none", f"bias is {settings.bias!r}; adapter biases are not supported"),
        (settings.lora_bias, "lora_bias is not supported"),
        (bool(settings.token_indices), "trainable_token_indices is not supported"),
        (
            adapter.kind == "lora" and not all(path.is_file() for path in adapter.files),
            f"the folder must hold {CONFIG_NAME} and {WEIGHTS_NAME}",
        ),
    ]
    found = [problem for applies, problem in checks if applies]
    if adapter.kind == "full":
        return tuple(found)
    found += _factor_problems(adapter, max_lora_rank)
    beside = [u.key for u in adapter.unused if not u.key.endswith(_HEAD_COPIES)]
    if beside:
        found.append(f"{len(beside)} tensors are no LoRA factors, first {beside[0]}")
    return tuple(found)


def _factor_problems(adapter: Adapter, max_lora_rank: int) -> list[str]:
    """What ranks, scalings and kinds of modules vLLM would misread."""
    updates = list(adapter.updates.values())
    scaling = adapter.settings.resolve("")[1]
    found = []
    uneven = [u for u in updates if u.rank != adapter.settings.rank or u.scaling != scaling]
    if uneven:
        found.append(
            f"{len(uneven)} modules have a rank or scaling of their own (rank_pattern, "
            f"alpha_pattern), first {uneven[0].module}; these patterns are not read. Write it with "
            "equal ranks (even_ranks)"
        )
    largest = max((u.rank for u in updates), default=0)
    if largest > max_lora_rank:
        enough = next((rank for rank in _RANKS if rank >= largest), None)
        cure = f"give it {enough}, or resize the adapter" if enough else "resize the adapter"
        found.append(f"rank {largest} is above --max-lora-rank {max_lora_rank}; {cure}")
    others = [u for u in updates if u.module_kind != "linear"]
    if others:
        found.append(f"{others[0].module} is of kind {others[0].module_kind}; expected linear")
    return found


def even_ranks(updates: Sequence[LoraUpdate]) -> list[LoraUpdate]:
    """The same updates with equal ranks and scaling 1: factors filled up with zero directions.

    Args:
        updates: Factored updates, at least one.

    Raises:
        AdapterError: There is none, or one is dense.
    """
    if not updates or any(update.kind == "dense" for update in updates):
        raise AdapterError("equal ranks need at least one update, and factored ones only")
    rank = max(update.rank for update in updates)
    return [
        with_factors(
            update,
            nn.functional.pad(update.lora_b * update.scaling, (0, rank - update.rank)),
            nn.functional.pad(update.lora_a, (0, 0, 0, rank - update.rank)),
        )
        for update in updates
    ]
