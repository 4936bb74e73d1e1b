"""A model on the bench: loaded once, with disjoint calibration and evaluation windows of a text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from gonio.models import load_model, load_text, open_weights, split_tokens, token_windows
from gonio.records import InputFile, file_input, text_input

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Bench", "TokenBudget", "open_bench"]


@dataclass(frozen=True)
class TokenBudget:
    """How much of a text is read.

    Attributes:
        calibration: Tokens from the front of the text.
        evaluation: Tokens from its back.
        window: Tokens per window.
    """

    calibration: int = 4096
    evaluation: int = 3072
    window: int = 512


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
    """

    source: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    text_name: str
    text_sha256: str
    calibration: Tensor
    evaluation: Tensor
    inputs: tuple[InputFile, ...]


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
    split = split_tokens(
        tokenizer, loaded_text, calibration=budget.calibration, evaluation=budget.evaluation
    )
    return Bench(
        source=str(source),
        model=model,
        tokenizer=tokenizer,
        text_name=loaded_text.name,
        text_sha256=loaded_text.sha256,
        calibration=_windows(split.calibration, budget.window),
        evaluation=_windows(split.evaluation, budget.window),
        inputs=(*inputs, text_input(loaded_text.name, loaded_text.text)),
    )


def _windows(tokens: Tensor, window: int) -> Tensor:
    if tokens.numel() == 0:
        return tokens.new_empty((0, window))
    return token_windows(tokens, window)
