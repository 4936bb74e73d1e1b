"""A model on the bench: loaded once, with disjoint calibration and evaluation windows of a text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gonio.models import load_model, load_text, open_weights, split_tokens, token_windows
from gonio.models.texts import spread_windows
from gonio.records import InputFile, file_input, text_input

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from gonio.kvcache import CacheCodec

__all__ = ["Bench", "TokenBudget", "open_bench", "reserved_tokens"]


@dataclass(frozen=True)
class TokenBudget:
    """How much of a text is read.

    Attributes:
        calibration: Tokens from the front of the text.
        evaluation: Tokens from its back.
        window: Tokens per window.
        spread: First tokens of the text that the calibration windows are spread over evenly; 0
            takes them one after another from the front. A few neighboring pages are narrower than
            a text, and what is calibrated on them fits other texts worse.
        context: Positions that the calibration windows are spread over; 0 leaves all at the start.
    """

    calibration: int = 4096
    evaluation: int = 3072
    window: int = 512
    spread: int = 0
    context: int = 0


@dataclass(frozen=True)
class Bench:
    """A loaded model and what it will read.

    Attributes:
        source: Model source as the user wrote it.
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        text_name: Name of the text.
        text_sha256: Its hash.
        calibration: Token ids ``(num_windows, window)``.
        evaluation: Token ids ``(num_windows, window)``, disjoint from ``calibration``.
        inputs: Name and hash of the weights and the text, for records.
        spread: First tokens of the text that ``calibration`` was picked from; 0 for all of them.
        context: Positions that the calibration windows are to be spread over.
    """

    source: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    text_name: str
    text_sha256: str
    calibration: Tensor
    evaluation: Tensor
    inputs: tuple[InputFile, ...]
    spread: int = 0
    context: int = 0

    @property
    def calibration_facts(self) -> dict[str, Any]:
        """Where a codec comes from, for its provenance.

        The first ``calibration_tokens`` of the text are not to be scored; of windows spread over
        them ``calibration_read`` says how many tokens were read, ``positions`` where they stood.
        """
        read = self.calibration.numel()
        facts = {
            "model": self.source,
            "text": self.text_name,
            "text_sha256": self.text_sha256,
            "calibration_tokens": max(read, self.spread),
            "window": self.calibration.shape[1],
            "positions": max(self.context, self.calibration.shape[1]),
        }
        return facts | ({"calibration_read": read} if self.spread else {})


def open_bench(source: str | Path, text: str | Path, budget: TokenBudget) -> Bench:
    """Load a model and cut a text into its calibration and evaluation windows.

    Args:
        source: Model source, see :func:`gonio.models.load_model`.
        text: Text source, see :func:`gonio.models.load_text`.
        budget: Tokens of each part; a part of 0 tokens becomes no window.

    Raises:
        DataError: The text cannot be read or is too short.
        ModelError: The model cannot be loaded.
    """
    loaded_text = load_text(text)  # before the model: a wrong path should fail at once
    with open_weights(source) as weights:
        inputs = [file_input(path, f"{source}/{path.name}") for path in weights.files]
    model, tokenizer = load_model(source)
    front = max(budget.calibration, budget.spread)
    split = split_tokens(tokenizer, loaded_text, calibration=front, evaluation=budget.evaluation)
    calibration = _windows(split.calibration, budget.window)
    if budget.spread:
        calibration = spread_windows(calibration, budget.calibration // budget.window)
    return Bench(
        source=str(source),
        model=model,
        tokenizer=tokenizer,
        text_name=loaded_text.name,
        text_sha256=loaded_text.sha256,
        calibration=calibration,
        evaluation=_windows(split.evaluation, budget.window),
        inputs=(*inputs, text_input(loaded_text.name, loaded_text.text)),
        spread=budget.spread,
        context=budget.context,
    )


def _windows(tokens: Tensor, window: int) -> Tensor:
    if tokens.numel() == 0:
        return tokens.new_empty((0, window))
    return token_windows(tokens, window)


def reserved_tokens(codecs: Iterable[CacheCodec], text: str) -> int:
    """Tokens at the front of a text that some codec was calibrated on."""
    sha256 = load_text(text).sha256
    facts = [codec.provenance for codec in codecs]
    return max(
        [int(f["calibration_tokens"]) for f in facts if f.get("text_sha256") == sha256], default=0
    )
