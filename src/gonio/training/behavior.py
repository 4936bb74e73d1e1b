"""What training did to behavior: how strongly the model came to prefer one response to another.

With log p the sum of a response's token log-probabilities given its prompt, in nats, the log-ratio
of a response is log p(trained) - log p(base), and the margin of a pair is the log-ratio of the
chosen response minus that of the rejected one. DPO's reward margin is beta times it (Rafailov et
al. 2023, arXiv:2305.18290, section 4). Without any training every margin is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from scipy.stats import binomtest
from torch import Tensor

from gonio.errors import DataError, ShapeError
from gonio.linalg.resampling import Interval, bootstrap_interval
from gonio.training.data import PreferencePair
from gonio.training.scoring import TokenIds, check_responses, inference, score_responses
from gonio.training.tokens import TokenizedPair, tokenize_pair

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "PairLogProbs",
    "PreferenceSummary",
    "pair_log_probs",
    "response_log_probs",
    "summarize_preferences",
]


@dataclass(frozen=True)
class PairLogProbs:
    """Summed log-probabilities of both responses of every pair, in nats, float64.

    Attributes:
        chosen: Shape ``(pairs,)``.
        rejected: Shape ``(pairs,)``.
    """

    chosen: Tensor
    rejected: Tensor

    @property
    def difference(self) -> Tensor:
        """Difference log p(chosen) - log p(rejected), nats, shape ``(pairs,)``."""
        return self.chosen - self.rejected


@dataclass(frozen=True)
class PreferenceSummary:
    """Margins over held-out pairs, with intervals over pairs.

    Attributes:
        margins: Log-ratio margin of every pair, nats, shape ``(pairs,)``.
        mean_margin: Their mean; 0 without training.
        margin_interval: Bootstrap interval of the mean over pairs; None for a single pair.
        accuracy: Share of pairs with a positive margin (a tie counts half), in [0, 1]; 0.5 where
            training is unrelated to the preference.
        accuracy_interval: Exact binomial (Clopper-Pearson) interval: a bootstrap of pairs that
            all agree would have no width.
        base_accuracy: Share of pairs whose chosen response the base model finds more probable.
        trained_accuracy: The same for the trained model.
    """

    margins: Tensor
    mean_margin: float
    margin_interval: Interval | None
    accuracy: float
    accuracy_interval: Interval
    base_accuracy: float
    trained_accuracy: float


def response_log_probs(
    model: PreTrainedModel,
    sequences: Sequence[TokenIds],
    *,
    batch_size: int = 8,
    pad_token_id: int = 0,
) -> Tensor:
    """Sum of the log-probabilities of each response given its prompt.

    Args:
        model: A causal language model, or a PEFT model around one; used as it is, in inference
            mode, then put back into the mode it was in.
        sequences: Token ids of prompt and response, each response not empty; a prompt may be
            empty, and then the first token of the response is not scored.
        batch_size: Sequences per forward pass; they are padded on the right.
        pad_token_id: Any valid token id; padding is masked.

    Returns:
        Nats, shape ``(sequences,)``, float64 on the CPU. Log-softmax runs in float32.

    Raises:
        DataError: A response is empty.
        SettingError: ``batch_size`` is below 1.
    """
    check_responses(sequences, batch_size)
    with inference(model):
        totals = [
            _batch_log_probs(model, sequences[start : start + batch_size], pad_token_id)
            for start in range(0, len(sequences), batch_size)
        ]
    return torch.cat(totals) if totals else torch.zeros(0, dtype=torch.float64)


def _batch_log_probs(model: PreTrainedModel, sequences: Sequence[TokenIds], pad: int) -> Tensor:
    scored = score_responses(model, sequences, pad)
    log_probs = scored.logits.float().log_softmax(dim=-1)  # (scored tokens, vocabulary)
    picked = log_probs.gather(-1, scored.targets[:, None])[:, 0].double()
    totals = torch.zeros(len(sequences), dtype=torch.float64, device=picked.device)
    return totals.index_add_(0, scored.rows, picked).cpu()


def pair_log_probs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PreferencePair],
    *,
    max_length: int,
    batch_size: int = 8,
) -> PairLogProbs:
    """Log-probabilities of the chosen and rejected response of every pair.

    Args:
        model: See :func:`response_log_probs`.
        tokenizer: The model's tokenizer.
        pairs: At least one pair.
        max_length: Tokens per sequence, as in training.
        batch_size: Sequences per forward pass.

    Raises:
        DataError: There are no pairs, or a prompt leaves no room for its response.
        ModelError: The tokenizer has no end-of-sequence token.
    """
    if not pairs:
        raise DataError("no pairs to evaluate")
    tokens: list[TokenizedPair] = [tokenize_pair(tokenizer, pair, max_length) for pair in pairs]
    sequences = [(pair.prompt, pair.chosen) for pair in tokens]
    sequences += [(pair.prompt, pair.rejected) for pair in tokens]
    totals = response_log_probs(model, sequences, batch_size=batch_size)
    return PairLogProbs(chosen=totals[: len(tokens)], rejected=totals[len(tokens) :])


def summarize_preferences(
    trained: PairLogProbs, base: PairLogProbs, *, confidence: float = 0.95, seed: int = 0
) -> PreferenceSummary:
    """Margins, accuracy and their intervals over pairs.

    Args:
        trained: Log-probabilities under the trained model.
        base: Log-probabilities of the same pairs under the base model.
        confidence: Of both intervals.
        seed: Seed of the bootstrap.

    Raises:
        ShapeError: The two do not hold the same number of pairs.
    """
    if trained.chosen.shape != base.chosen.shape:
        raise ShapeError(
            f"trained has {trained.chosen.numel()} pairs, base has {base.chosen.numel()}"
        )
    margins = trained.difference - base.difference
    count = margins.numel()
    interval = bootstrap_interval(margins, confidence=confidence, seed=seed) if count > 1 else None
    positive = int((margins > 0).sum())
    exact = binomtest(positive, count).proportion_ci(confidence, method="exact")
    return PreferenceSummary(
        margins=margins,
        mean_margin=float(margins.mean()),
        margin_interval=interval,
        accuracy=_share_positive(margins),
        accuracy_interval=Interval(float(exact.low), float(exact.high), confidence, "exact"),
        base_accuracy=_share_positive(base.difference),
        trained_accuracy=_share_positive(trained.difference),
    )


def _share_positive(differences: Tensor) -> float:
    """Share above zero; a tie counts half, as a fair coin would decide it."""
    return float((differences > 0).double().mean() + 0.5 * (differences == 0).double().mean())
