"""What a compressed cache does to the model's predictions, by two honest protocols.

``teacher-forced``: one pass over each window in which attention reads every key through the
codec. ``cache``: a prefill on exact keys that are stored encoded, then chunks that read the
decoded ones; only chunk tokens are scored. In both a codec that stores zeros ruins the score,
because no scored token reads keys that bypass the codec.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import pandas as pd
import torch
from torch import Tensor

from gonio.errors import SettingError
from gonio.kvcache.codec import CacheCodec

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

__all__ = ["EvaluationSettings", "Protocol", "evaluate_codecs"]

Protocol = Literal["teacher-forced", "cache"]


@dataclass(frozen=True)
class EvaluationSettings:
    """How predictions are scored.

    Attributes:
        protocol: ``teacher-forced`` or ``cache``.
        prefill: Tokens of each window read before the first chunk (``cache`` only).
        chunk: Tokens per chunk after it (``cache`` only).
    """

    protocol: Protocol = "teacher-forced"
    prefill: int = 256
    chunk: int = 32

    def __post_init__(self) -> None:
        if self.protocol not in get_args(Protocol):
            raise SettingError(
                f"protocol must be one of {', '.join(get_args(Protocol))}, found {self.protocol!r}"
            )
        if self.prefill < 1 or self.chunk < 1:
            raise SettingError(
                f"prefill and chunk must be >= 1, found {self.prefill} and {self.chunk}"
            )


@torch.no_grad()
def evaluate_codecs(
    model: PreTrainedModel,
    windows: Tensor,
    codecs: Mapping[str, CacheCodec],
    settings: EvaluationSettings | None = None,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> pd.DataFrame:
    """Score every codec on every window beside the full-precision cache.

    Args:
        model: The model the codecs were made for.
        windows: Token ids ``(num_windows, length)``, disjoint from the calibration tokens.
        codecs: Codecs by name.
        settings: Protocol and chunking; teacher-forced unless given.
        progress: Called with (what, passes done, passes).

    Returns:
        One row per window and method (``full`` first): ``window``, ``method``,
        ``scored_tokens``, ``nll`` (mean, nats per token), ``logit_kl`` (KL(full || compressed),
        nats per token) and ``same_top1`` (share of tokens with the same most likely next token).

    Raises:
        SettingError: A window is too short to score a token.
        CodecError: A codec does not fit the model.
    """
    settings = settings or EvaluationSettings()
    first_scored = 0 if settings.protocol == "teacher-forced" else settings.prefill
    if windows.shape[1] < first_scored + 2:
        raise SettingError(
            f"windows of {windows.shape[1]} tokens leave nothing to score after "
            f"{first_scored} tokens of prefill"
        )
    rows, total, done = [], windows.shape[0] * (len(codecs) + 1), 0
    for index, window in enumerate(windows):
        targets = window[first_scored + 1 :].to(model.device)
        full: Tensor | None = None
        for name, codec in {"full": None, **codecs}.items():
            log_probs = _log_probs(model, window, codec, settings)
            full = log_probs if full is None else full
            scores = _score(log_probs, full, targets)
            rows.append({"window": index, "method": name, **scores})
            done += 1
            if progress is not None:
                progress(f"evaluating ({settings.protocol})", done, total)
    return pd.DataFrame(rows)


def _log_probs(
    model: PreTrainedModel, window: Tensor, codec: CacheCodec | None, settings: EvaluationSettings
) -> Tensor:
    """Log-probabilities of the next token at every scored position, ``(scored, vocabulary)``."""
    ids = window[None].to(model.device)
    if settings.protocol == "teacher-forced":
        cache = _new_cache(model, codec, "decoded")
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True).logits[0, :-1]
        return torch.log_softmax(logits.float(), dim=-1)
    cache = _new_cache(model, codec, "exact")
    model(
        input_ids=ids[:, : settings.prefill],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    parts = []
    for start in range(settings.prefill, ids.shape[1] - 1, settings.chunk):
        stop = min(start + settings.chunk, ids.shape[1] - 1)
        chunk = ids[:, start:stop]
        logits = model(input_ids=chunk, past_key_values=cache, use_cache=True).logits[0]
        parts.append(torch.log_softmax(logits.float(), dim=-1))
    return torch.cat(parts)


def _new_cache(
    model: PreTrainedModel, codec: CacheCodec | None, prefill: Literal["exact", "decoded"]
) -> Cache:
    from transformers import DynamicCache

    if codec is None:
        return DynamicCache(config=model.config)
    return codec.new_cache(model, prefill=prefill)


def _score(log_probs: Tensor, full: Tensor, targets: Tensor) -> dict[str, float]:
    nll = -log_probs.gather(-1, targets[:, None]).double().mean()
    divergence = (full.exp() * (full - log_probs)).sum(dim=-1).double().mean()
    same = (full.argmax(dim=-1) == log_probs.argmax(dim=-1)).double().mean()
    return {
        "scored_tokens": targets.numel(),
        "nll": nll.item(),
        "logit_kl": max(divergence.item(), 0.0),  # rounding can leave it below zero
        "same_top1": same.item(),
    }
