"""A model written again with rotations folded into its attention: same logits, rotated cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from gonio.errors import ModelError
from gonio.files import replace_folder, require_writable
from gonio.kvcache import collect_cache
from gonio.kvcache.commuting import CommutingRotation, learn_commuting_rotation
from gonio.kvcache.fold import fold_rotations, rotary_layout
from gonio.linalg.chance import sign_cosine_of_random_direction
from gonio.linalg.resampling import bootstrap_interval
from gonio.linalg.rotations import haar_rotation
from gonio.models import resolve_source
from gonio.models.attention import attention_layout
from gonio.pipelines.bench import Bench
from gonio.pipelines.rewritten_model import (
    compared_logits,
    logits_of,
    probe_tokens,
    refuse_target,
)
from gonio.quant import sign_cosine
from gonio.records import Measurement, Value, make_measurement, make_value

__all__ = ["fold_cache"]

_SINKS = 4


def fold_cache(
    bench: Bench,
    out: str | Path,
    *,
    values: bool = True,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Measurement:
    """Fold the best commuting key rotation, and a random value rotation, into a model.

    Only rotations of RoPE's own coordinate pairs commute with it and can be folded on keys; any
    rotation can on values. Others are applied when a cache is written and read.

    Args:
        bench: The model (changed in place) and its windows; rotations are learned on the
            calibration windows and judged on the evaluation windows.
        out: Folder to create, a transformers model with its tokenizer.
        values: Rotate values too, by one Haar rotation for each head.
        seed: Seed of the value rotations and of the tokens whose logits are compared.
        overwrite: Replace a folder that is not empty.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        Kind ``cache-fold``; table ``heads``: 1-bit cosine of keys before and after, on both parts
        of the text, beside c_d.

    Raises:
        ModelError: The model is of no family that can be folded, or the folder read back gives
            other logits (nothing is written then).
        OutputError: ``out`` is not empty or cannot be written.
    """
    model, target = bench.model, Path(out)
    refuse_target(resolve_source(bench.source).folder(), target, overwrite)
    require_writable(target.absolute().parent)
    layout, shape = rotary_layout(model), attention_layout(model.config)
    tokens = probe_tokens(model, seed)
    logits = logits_of(model, tokens)
    learned = [
        learn_commuting_rotation(keys, layout)
        for keys in _keys_by_head(bench, bench.calibration, progress)
    ]
    heads = _heads(learned, _keys_by_head(bench, bench.evaluation, progress))
    generator = torch.Generator().manual_seed(seed)
    turns = None
    if values:
        size = (shape.num_kv_heads,)
        turns = [
            haar_rotation(shape.value_dim, generator, batch=size) for _ in range(shape.num_layers)
        ]
    fold_rotations(model, keys=[found.rotation for found in learned], values=turns)
    with replace_folder(target) as staging:
        model.save_pretrained(staging)
        bench.tokenizer.save_pretrained(staging)
        same_function = compared_logits(staging, tokens, logits, bench.source)
    return make_measurement(
        "cache-fold",
        f"{bench.source} with rotations folded into its attention",
        settings={
            "model": bench.source,
            "out": str(out),
            "text": bench.text_name,
            "values": values,
            "calibration_tokens": bench.calibration.numel(),
            "evaluation_tokens": bench.evaluation.numel(),
        },
        values=[*same_function, *_cosine_values(heads, seed)],
        tables={"heads": heads},
        inputs=bench.inputs,
        seed=seed,
    )


def _keys_by_head(
    bench: Bench, windows: torch.Tensor, progress: Callable[[str, int, int], None] | None
) -> list[torch.Tensor]:
    """Keys of every layer without sink tokens, ``(num_kv_heads, n, head_dim)``."""
    samples = collect_cache(bench.model, windows, progress=progress)
    return [keys[:, :, _SINKS:].transpose(0, 1).flatten(1, 2) for keys in samples.keys]


def _heads(learned: list[CommutingRotation], held_out: list[torch.Tensor]) -> pd.DataFrame:
    rows = []
    for layer, (found, keys) in enumerate(zip(learned, held_out, strict=True)):
        if not bool(keys.isfinite().all()):
            raise ModelError(f"layer {layer} makes keys that are NaN or infinite")
        turned = keys @ found.rotation.mT
        before, after = (sign_cosine(x, zero_value=0.0).mean(dim=-1) for x in (keys, turned))
        for head in range(keys.shape[0]):
            rows.append(
                {
                    "layer": layer,
                    "head": head,
                    "cosine_before": float(before[head]),
                    "cosine_after": float(after[head]),
                    "cosine_before_calibration": float(found.cosine_before[head]),
                    "cosine_after_calibration": float(found.cosine_after[head]),
                    "chance": sign_cosine_of_random_direction(keys.shape[-1]),
                }
            )
    return pd.DataFrame(rows)


def _cosine_values(heads: pd.DataFrame, seed: int) -> list[Value]:
    return [
        make_value(
            f"key_cosine_{when}",
            float(heads[f"cosine_{when}"].mean()),
            chance=float(heads["chance"].mean()),
            interval=bootstrap_interval(heads[f"cosine_{when}"].tolist(), seed=seed),
            note="1-bit cosine on held-out text, mean over heads and interval over them; chance: "
            "keys in random directions",
        )
        for when in ("before", "after")
    ]
