"""Pairs as token ids, cut the way trl cuts them, so that training and evaluation see the same.

Prompt and response are tokenized together, an end-of-sequence token is added to the response,
and the prompt is the longest common start of the tokens with and without the response; tokens
beyond ``max_length`` are dropped from the end (trl 1.16, ``DPOTrainer._prepare_dataset`` and
``DataCollatorForPreference``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gonio.errors import DataError, ModelError
from gonio.training.data import PreferencePair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TokenizedPair", "keep_fitting", "tokenize_pair"]


@dataclass(frozen=True)
class TokenizedPair:
    """Token ids of one pair, already cut to the maximal length.

    Attributes:
        prompt: Ids of the prompt.
        chosen: Ids of the chosen response, its end-of-sequence token included unless cut off.
        rejected: Ids of the rejected response, likewise.
        is_cut: Whether ``max_length`` removed a token of either response.
    """

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    is_cut: bool

    @property
    def is_complete(self) -> bool:
        """Whether at least one token of each response is left to learn from."""
        return bool(self.chosen) and bool(self.rejected)


def tokenize_pair(
    tokenizer: PreTrainedTokenizerBase, pair: PreferencePair, max_length: int
) -> TokenizedPair:
    """Token ids of a pair.

    Args:
        tokenizer: Must know an end-of-sequence token.
        pair: The pair.
        max_length: Tokens of prompt and response together.

    Raises:
        ModelError: The tokenizer has no end-of-sequence token.
    """
    eos = tokenizer.eos_token
    if not isinstance(eos, str):
        raise ModelError(
            "the tokenizer has no end-of-sequence token, which marks the end of a response; "
            "set tokenizer.eos_token"
        )
    prompt = _ids(tokenizer, pair.prompt)
    chosen = _ids(tokenizer, pair.prompt + _ended(pair.chosen, eos))
    rejected = _ids(tokenizer, pair.prompt + _ended(pair.rejected, eos))
    start = min(_common_start(prompt, chosen), _common_start(prompt, rejected))
    return TokenizedPair(
        prompt=tuple(prompt[:start]),
        chosen=tuple(chosen[start:max_length]),
        rejected=tuple(rejected[start:max_length]),
        is_cut=max(len(chosen), len(rejected)) > max_length,
    )


def keep_fitting(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PreferencePair], max_length: int
) -> tuple[tuple[PreferencePair, ...], int]:
    """Pairs whose prompt leaves room for a response, and how many were left out.

    Raises:
        DataError: None of them fits.
        ModelError: The tokenizer has no end-of-sequence token.
    """
    kept = tuple(pair for pair in pairs if tokenize_pair(tokenizer, pair, max_length).is_complete)
    if pairs and not kept:
        raise DataError(
            f"none of {len(pairs)} prompts is shorter than max_length {max_length} tokens; "
            "raise max_length or give shorter prompts"
        )
    return kept, len(pairs) - len(kept)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    encoded: Any = tokenizer(text=text)
    ids: list[int] = encoded["input_ids"]
    return ids


def _ended(response: str, eos: str) -> str:
    return response if response.endswith(eos) else response + eos


def _common_start(ids: Sequence[int], other: Sequence[int]) -> int:
    for index, (left, right) in enumerate(zip(ids, other, strict=False)):
        if left != right:
            return index
    return min(len(ids), len(other))
