"""Long-context recall: does a passage read long ago come back verbatim from the cache?

A probe hides a passage of random words at some depth of ordinary text and ends with the passage's
first tokens, the cue. The rest of the passage is scored: random words cannot be guessed, so only
attention to the first copy predicts them. The context is prefilled exactly and stored encoded;
the cue and the scored tokens read what is stored. The same probe without the passage gives the
chance level.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor

from gonio.errors import DataError, SettingError
from gonio.kvcache.codec import CacheCodec
from gonio.kvcache.evaluate import score_tokens
from gonio.kvcache.filling import fill_caches, read_chunks
from gonio.kvcache.summaries import bounds

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["RecallSettings", "random_passages", "recall_probes", "summarize_recall"]

_SCORES = ("copied", "correct_top1", "nll")
_WORD = re.compile(r"[A-Za-z]{3,}")


@dataclass(frozen=True)
class RecallSettings:
    """What is hidden where.

    Attributes:
        lengths: Tokens of context: text, passage and cue.
        depths: Where the passage begins in the text: 0 at its start, 1 right before the cue.
        trials: Passages, each hidden at every depth.
        passage: Tokens of a passage.
        cue: First tokens of the passage that the context ends with.
        chunk: Tokens the model reads at a time once the context is stored; 1 is what decoding does.
    """

    lengths: tuple[int, ...] = (1024,)
    depths: tuple[float, ...] = (0.1, 0.5, 0.9)
    trials: int = 4
    passage: int = 64
    cue: int = 16
    chunk: int = 16

    def __post_init__(self) -> None:
        if not self.lengths or not self.depths or min(self.trials, self.chunk, self.cue) < 1:
            raise SettingError(
                "recall needs a length, a depth, and at least 1 trial, cue token and chunk token"
            )
        if any(not 0 <= depth <= 1 for depth in self.depths):
            raise SettingError(f"depths must lie in [0, 1], found {self.depths}")
        if self.passage <= self.cue:
            raise SettingError(
                f"a passage of {self.passage} tokens has none to score after a cue of {self.cue}"
            )
        if min(self.lengths) <= self.passage + self.cue:
            raise SettingError(
                f"a context of {min(self.lengths)} tokens has no room for text beside a passage "
                f"of {self.passage} and a cue of {self.cue}"
            )


def random_passages(
    tokenizer: PreTrainedTokenizerBase, text: str, *, count: int, length: int, seed: int = 0
) -> Tensor:
    """Passages of words drawn at random from a text, each word once.

    Args:
        tokenizer: The model's tokenizer.
        text: Where the words (runs of at least three letters) come from.
        count: Passages.
        length: Tokens of each; the last word may be cut.
        seed: Seed of the draw.

    Returns:
        Token ids ``(count, length)``.

    Raises:
        DataError: The text has too few words.
    """
    words = sorted(set(_WORD.findall(text)))
    generator = torch.Generator().manual_seed(seed)
    passages = []
    for _ in range(count):
        order = torch.randperm(len(words), generator=generator)[:length].tolist()
        drawn = "".join(f" {words[at]}" for at in order)
        ids = tokenizer(drawn, add_special_tokens=False, verbose=False)["input_ids"][:length]
        if len(ids) < length:
            raise DataError(
                f"the text has only {len(words)} distinct words, too few for a passage of "
                f"{length} tokens\nGive a longer text or ask for shorter passages."
            )
        passages.append(torch.tensor(ids, dtype=torch.long))
    return torch.stack(passages)


@torch.no_grad()
def recall_probes(
    model: PreTrainedModel,
    text: Tensor,
    passages: Tensor,
    codecs: Mapping[str, CacheCodec],
    settings: RecallSettings,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> pd.DataFrame:
    """Score every codec on every probe beside full precision.

    Args:
        model: The model the codecs were made for.
        text: Token ids ``(tokens,)`` around the passages, at least the longest length. Trial
            ``i`` of ``n`` begins ``i / n`` of the way, and goes on at the front after the end.
        passages: Token ids ``(trials, passage)``.
        codecs: Codecs by name.
        settings: What is hidden where.
        progress: Called with (what, contexts read, contexts).

    Returns:
        One row per length, trial, depth (NaN where the passage is absent) and method (``full``
        first): ``context_length``, ``trial``, ``depth``, ``is_present``, ``method``,
        ``scored_tokens``; ``copied`` (share of the passage that greedy decoding repeats before
        its first error), ``correct_top1`` (share of tokens predicted first, given those before)
        and ``nll`` (nats per token).

    Raises:
        SettingError: The text is shorter than a context, or the passages are of another shape.
        CodecError: A codec does not fit the model.
    """
    wanted = (settings.trials, settings.passage)
    if tuple(passages.shape) != wanted:
        raise SettingError(f"expected passages {wanted}, found {tuple(passages.shape)}")
    if text.numel() < max(settings.lengths):
        raise SettingError(
            f"recall over {max(settings.lengths)} tokens needs as many tokens of text, found "
            f"{text.numel()}"
        )
    rows, done = [], 0
    depths = (*settings.depths, None)
    total = len(settings.lengths) * settings.trials * len(depths)
    for length in settings.lengths:
        for trial, passage in enumerate(passages):
            around = text.roll(-(trial * text.numel() // settings.trials))
            for depth in depths:
                context = _hide(around, passage, depth, length - settings.cue)
                facts = {
                    "context_length": length,
                    "trial": trial,
                    "depth": float("nan") if depth is None else depth,
                    "is_present": depth is not None,
                }
                scored = _score_probe(model, context, passage, codecs, settings)
                rows += [{**facts, "method": name, **scores} for name, scores in scored]
                done += 1
                if progress is not None:
                    progress("recalling passages", done, total)
    return pd.DataFrame(rows)


def summarize_recall(probes: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """One row per length, depth and method over all trials.

    Args:
        probes: As :func:`recall_probes` gives them.
        seed: Seed of the bootstrap over trials.

    Returns:
        ``context_length``, ``depth`` (NaN where the passage is absent: chance), ``is_present``,
        ``method``, ``trials``, and the means of ``copied``, ``correct_top1`` and ``nll`` with
        ``_low`` and ``_high``, NaN for a single trial.
    """
    keys = ["context_length", "is_present", "depth", "method"]
    rows = []
    for key, group in probes.groupby(keys, sort=False, dropna=False):
        row = {**dict(zip(keys, key, strict=True)), "trials": len(group)}
        for name in _SCORES:
            values = group[name].to_numpy(dtype=float)
            row |= {name: float(values.mean()), **bounds(name, values, seed)}
        rows.append(row)
    return pd.DataFrame(rows)


def _hide(text: Tensor, passage: Tensor, depth: float | None, length: int) -> Tensor:
    """``length`` tokens of text in which the passage replaces some; none where depth is None."""
    if depth is None:
        return text[:length]
    room = length - passage.numel()
    start = round(depth * room)
    return torch.cat([text[:start], passage.to(text.device), text[start:room]])


def _score_probe(
    model: PreTrainedModel,
    context: Tensor,
    passage: Tensor,
    codecs: Mapping[str, CacheCodec],
    settings: RecallSettings,
) -> list[tuple[str, dict[str, float]]]:
    """Scores of every method: the context stored, then the passage read again."""
    caches = fill_caches(model, context[None].to(model.device), codecs)
    again = passage.to(model.device)
    targets = again[settings.cue :]
    scored = []
    for name in list(caches):
        logits = torch.cat(
            list(read_chunks(model, again[None, :-1], caches.pop(name), settings.chunk))
        )[settings.cue - 1 :]
        tokens = score_tokens(logits, logits, targets, what=name)
        # Greedy decoding follows the passage until the first token that is not predicted first.
        is_correct = (logits.argmax(dim=-1) == targets).double()
        scores = {
            "scored_tokens": targets.numel(),
            "copied": is_correct.cumprod(dim=0).mean().item(),
            "correct_top1": is_correct.mean().item(),
            "nll": tokens["nll"].mean().item(),
        }
        scored.append((name, scores))
    return scored
