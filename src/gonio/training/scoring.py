"""Logits of the tokens of responses, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from gonio.errors import DataError, SettingError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["ScoredTokens", "TokenIds", "check_responses", "inference", "score_responses"]

TokenIds = tuple[Sequence[int], Sequence[int]]  # of a prompt, and of its response


class ScoredTokens(NamedTuple):
    """What a model predicts at every response token of a batch.

    Attributes:
        logits: Before the token, shape ``(scored, vocabulary)``, in the model's dtype.
        targets: The token, shape ``(scored,)``.
        rows: Which sequence of the batch it belongs to, shape ``(scored,)``.
    """

    logits: Tensor
    targets: Tensor
    rows: Tensor


def check_responses(sequences: Sequence[TokenIds], batch_size: int) -> None:
    """Refuse what cannot be scored.

    Raises:
        DataError: A response is empty.
        SettingError: ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise SettingError(f"batch_size must be at least 1, found {batch_size}")
    empty = [index for index, (_, response) in enumerate(sequences) if not response]
    if empty:
        raise DataError(f"response {empty[0]} has no tokens; raise max_length or drop the pair")


@contextmanager
def inference(*models: PreTrainedModel) -> Iterator[None]:
    """Models without dropout and gradients, then back in the mode they were in."""
    modes = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)


def score_responses(
    model: PreTrainedModel, sequences: Sequence[TokenIds], pad_token_id: int = 0
) -> ScoredTokens:
    """One forward pass over a batch, padded on the right.

    Args:
        model: A causal language model, or a PEFT model around one.
        sequences: Prompts and responses, no response empty; of an empty prompt the first token of
            the response is not scored.
        pad_token_id: Any valid token id; padding is masked.
    """
    longest = max(len(prompt) + len(response) for prompt, response in sequences)
    input_ids = torch.full((len(sequences), longest), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    scored = torch.zeros_like(input_ids, dtype=torch.bool)
    for row, (prompt, response) in enumerate(sequences):
        length = len(prompt) + len(response)
        input_ids[row, :length] = torch.tensor([*prompt, *response])
        attention_mask[row, :length] = 1
        scored[row, len(prompt) : length] = True
    input_ids, wanted = input_ids.to(model.device), scored[:, 1:].to(model.device)
    call: Any = model
    logits = call(
        input_ids=input_ids, attention_mask=attention_mask.to(model.device), use_cache=False
    ).logits[:, :-1]  # (sequences, longest - 1, vocabulary)
    return ScoredTokens(logits[wanted], input_ids[:, 1:][wanted], wanted.nonzero()[:, 0])
