"""How far training moved the model's predictions: divergence from the base, token by token.

At every token of a response, given all before it, p is the trained and q the base model's law of
the next token. ``KL(p || q)`` and ``KL(q || p)`` sum over the whole vocabulary. The log-ratio
``log p(token) - log q(token)`` of the response's own tokens is another quantity: its mean estimates
``KL(p || q)`` only on text that the trained model wrote itself, and on any other text it may have
either sign.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from gonio.errors import SettingError
from gonio.training.scoring import TokenIds, check_responses, inference, score_responses

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["ResponseDivergence", "response_divergence"]

_ROWS = 128  # tokens whose laws are compared at a time: bounds memory


@dataclass(frozen=True)
class ResponseDivergence:
    """Sums over the tokens of each response, in nats, float64, shape ``(responses,)``.

    Attributes:
        tokens: Scored tokens, int64.
        trained: Log-probability of the response under the trained model.
        base: The same under the base model.
        kl_to_base: KL(trained || base), never negative but for rounding.
        kl_from_base: KL(base || trained).
    """

    tokens: Tensor
    trained: Tensor
    base: Tensor
    kl_to_base: Tensor
    kl_from_base: Tensor

    @property
    def log_ratio(self) -> Tensor:
        """Teacher-forced log-ratio: log p(response) under the trained minus the base model."""
        return self.trained - self.base


def response_divergence(
    trained: PreTrainedModel,
    sequences: Sequence[TokenIds],
    *,
    base: PreTrainedModel | None = None,
    base_context: Callable[[], AbstractContextManager[object]] | None = None,
    batch_size: int = 8,
    pad_token_id: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> ResponseDivergence:
    """Compare two models on every token of some responses, over the whole vocabulary.

    Args:
        trained: The trained model; a PEFT model unless one of the next two is given.
        sequences: Token ids of prompts and responses, no response empty.
        base: The base model; unless given, the PEFT model with its adapter switched off.
        base_context: Makes contexts in which ``trained`` predicts as the base model does.
        batch_size: Sequences per forward pass.
        pad_token_id: Any valid token id; padding is masked.
        progress: Called with (what, responses done, responses).

    Returns:
        Sums per response. Log-softmax and sums run in float64.

    Raises:
        DataError: A response is empty.
        SettingError: ``batch_size`` is below 1, or there is no base model to compare with.
    """
    check_responses(sequences, batch_size)
    switch = base_context or (nullcontext if base is not None else _without_adapter(trained))
    reference = trained if base is None else base
    parts = []
    with inference(trained, reference):
        for start in range(0, len(sequences), batch_size):
            batch = sequences[start : start + batch_size]
            ours = score_responses(trained, batch, pad_token_id)
            with switch():
                theirs = score_responses(reference, batch, pad_token_id)
            sums = torch.zeros(5, len(batch), dtype=torch.float64, device=ours.rows.device)
            for rows, p, q, targets in zip(
                ours.rows.split(_ROWS),
                ours.logits.split(_ROWS),
                theirs.logits.to(ours.logits.device).split(_ROWS),
                ours.targets.split(_ROWS),
                strict=True,
            ):
                sums.index_add_(1, rows, _compare(p, q, targets))
            parts.append(sums.cpu())
            if progress is not None:
                progress("comparing predictions", start + len(batch), len(sequences))
    total = torch.cat(parts, dim=1) if parts else torch.zeros(5, 0, dtype=torch.float64)
    named = dict(zip((field.name for field in fields(ResponseDivergence)), total, strict=True))
    return ResponseDivergence(**{**named, "tokens": total[0].long()})


def _without_adapter(model: PreTrainedModel) -> Callable[[], AbstractContextManager[object]]:
    switch = getattr(model, "disable_adapter", None)
    if switch is None:
        raise SettingError(
            f"{type(model).__name__} has no adapter to switch off; give the base model"
        )
    return cast("Callable[[], AbstractContextManager[object]]", switch)


def _compare(trained: Tensor, base: Tensor, targets: Tensor) -> Tensor:
    """Count, both log-probabilities and both divergences of every token, ``(5, scored)``."""
    p, q = trained.double().log_softmax(dim=-1), base.double().log_softmax(dim=-1)
    picked = [law.gather(-1, targets[:, None])[:, 0] for law in (p, q)]
    difference = p - q
    divergences = [(p.exp() * difference).sum(-1), -(q.exp() * difference).sum(-1)]
    return torch.stack([torch.ones_like(picked[0]), *picked, *divergences])
