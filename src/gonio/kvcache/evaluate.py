"""What a compressed cache does to the model's predictions, by two honest protocols.

``teacher-forced``: one pass over each window in which attention reads every key and value through
the codec. ``cache``: a prefill on exact keys and values that are stored encoded, then chunks that
read the decoded ones; only chunk tokens are scored. In both a codec that stores zeros ruins the
score, because no scored token reads keys or values that bypass the codec. Sinks and the recent
window stay raw as the codec says: in the first protocol the recent tokens are the last of the
window, in the second those before the end of each chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, get_args

import pandas as pd
import torch
from torch import Tensor
from transformers import DynamicCache

from gonio.errors import CodecError, SettingError
from gonio.kvcache.codec import CacheCodec
from gonio.kvcache.filling import FULL, fill_caches, read_chunks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["EvaluationSettings", "Protocol", "evaluate_codecs", "score_tokens"]

Protocol = Literal["teacher-forced", "cache"]

_ROWS = 128  # positions scored at a time: bounds the memory beside the logits themselves


@dataclass(frozen=True)
class EvaluationSettings:
    """How predictions are scored.

    Attributes:
        protocol: ``teacher-forced`` or ``cache``.
        prefill: Tokens of each window read before the first chunk (``cache`` only).
        chunk: Tokens per chunk after it (``cache`` only).
        buckets: Numbers of context tokens, ascending, at which a new row of scores begins: with
            ``(64, 256)`` predictions from 1 to 63, from 64 to 255 and from more tokens are apart.
    """

    protocol: Protocol = "teacher-forced"
    prefill: int = 256
    chunk: int = 32
    buckets: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.protocol not in get_args(Protocol):
            raise SettingError(
                f"protocol must be one of {', '.join(get_args(Protocol))}, found {self.protocol!r}"
            )
        if self.prefill < 1 or self.chunk < 1:
            raise SettingError(
                f"prefill and chunk must be >= 1, found {self.prefill} and {self.chunk}"
            )
        if any(a >= b for a, b in pairwise((0, *self.buckets))):
            raise SettingError(f"buckets must be ascending and >= 1, found {self.buckets}")

    @property
    def first_context(self) -> int:
        """Tokens before the first scored one."""
        return 1 if self.protocol == "teacher-forced" else self.prefill + 1

    def ranges(self, length: int) -> list[tuple[int, int]]:
        """First and last number of context tokens of every bucket of a window, both inclusive."""
        starts = [edge for edge in self.buckets if self.first_context < edge < length]
        edges = [self.first_context, *starts, length]
        return [(low, high - 1) for low, high in pairwise(edges)]


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

    Memory holds the logits of two passes over one window, and in the ``cache`` protocol the
    caches of all codecs.

    Args:
        model: The model the codecs were made for.
        windows: Token ids ``(num_windows, length)``, disjoint from the calibration tokens.
        codecs: Codecs by name, none of them ``full``.
        settings: Protocol, chunking and buckets; teacher-forced unless given.
        progress: Called with (what, passes done, passes).

    Returns:
        One row per window, method (``full`` first) and bucket: ``window``, ``method``,
        ``context_from`` and ``context_to`` (tokens read before the scored one), ``scored_tokens``,
        ``nll`` (mean, nats per token), ``logit_kl`` (KL(full || compressed), nats per token) and
        ``same_top1`` (share of tokens with the same most likely next token).

    Raises:
        SettingError: A window is too short to score a token, or a codec is called ``full``.
        CodecError: A codec does not fit the model, or the logits it leads to are not finite.
    """
    settings = settings or EvaluationSettings()
    if FULL in codecs:
        raise SettingError(f"a codec cannot be called {FULL!r}: full precision has that name")
    length = windows.shape[1]
    if length <= settings.first_context:
        raise SettingError(
            f"windows of {length} tokens leave nothing to score after "
            f"{settings.first_context - 1} tokens of prefill"
        )
    rows, total, done = [], windows.shape[0] * (len(codecs) + 1), 0
    for index, window in enumerate(windows):
        targets = window[settings.first_context :].to(model.device)
        full: Tensor | None = None
        for name, logits in _logits_by_method(model, window, codecs, settings):
            full = logits if full is None else full
            tokens = score_tokens(logits, full, targets, what=f"{name}, window {index}")
            for low, high in settings.ranges(length):
                part = slice(low - settings.first_context, high + 1 - settings.first_context)
                scores = {column: each[part].mean().item() for column, each in tokens.items()}
                facts = {"window": index, "method": name, "context_from": low, "context_to": high}
                rows.append({**facts, "scored_tokens": high - low + 1, **scores})
            done += 1
            if progress is not None:
                progress(f"evaluating ({settings.protocol})", done, total)
    return pd.DataFrame(rows)


def score_tokens(
    logits: Tensor, full: Tensor, targets: Tensor, *, what: str = "a codec"
) -> dict[str, Tensor]:
    """Scores of every predicted token.

    Args:
        logits: Of the compressed cache, ``(tokens, vocabulary)``.
        full: Of the full-precision cache, same shape.
        targets: The tokens to predict, ``(tokens,)``.
        what: What the logits are of, for errors.

    Returns:
        ``nll`` and ``logit_kl`` in nats, and ``same_top1`` (0 or 1): float64 vectors.

    Raises:
        CodecError: A log-likelihood or divergence is not finite.
    """
    parts: dict[str, list[Tensor]] = {"nll": [], "logit_kl": [], "same_top1": []}
    for rows, exact, wanted in zip(
        logits.split(_ROWS), full.split(_ROWS), targets.split(_ROWS), strict=True
    ):
        mine = torch.log_softmax(rows.double(), dim=-1)
        reference = torch.log_softmax(exact.double(), dim=-1)
        divergence = (reference.exp() * (reference - mine)).sum(dim=-1)
        parts["nll"].append(-mine.gather(-1, wanted[:, None])[:, 0])
        parts["logit_kl"].append(divergence.clamp_min(0))  # rounding can leave it below zero
        parts["same_top1"].append((rows.argmax(dim=-1) == exact.argmax(dim=-1)).double())
    scores = {name: torch.cat(each) for name, each in parts.items()}
    if not all(bool(torch.isfinite(each).all()) for each in scores.values()):
        raise CodecError(
            f"{what}: log-likelihoods are not finite, so nothing can be scored\n"
            "The codec decodes, or the model computes, infinities or NaN."
        )
    return scores


def _logits_by_method(
    model: PreTrainedModel,
    window: Tensor,
    codecs: Mapping[str, CacheCodec],
    settings: EvaluationSettings,
) -> Iterator[tuple[str, Tensor]]:
    """Every method and its logits at the scored positions, full precision first."""
    ids = window[None].to(model.device)
    if settings.protocol == "teacher-forced":
        for name, codec in {FULL: None, **codecs}.items():
            cache = (
                DynamicCache(config=model.config)
                if codec is None
                else codec.new_cache(model, prefill="decoded")
            )
            yield name, model(input_ids=ids, past_key_values=cache, use_cache=True).logits[0, :-1]
        return
    caches = fill_caches(model, ids[:, : settings.prefill], codecs)
    rest = ids[:, settings.prefill : -1]
    for name in list(caches):
        yield name, torch.cat(list(read_chunks(model, rest, caches.pop(name), settings.chunk)))
