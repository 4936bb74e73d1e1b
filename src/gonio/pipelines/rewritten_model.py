"""A model written again after an exact change of its weights, and checked to compute the same.

The folder is read back and its logits compared with the original's before it takes its place.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gonio.errors import ModelError, OutputError, SettingError
from gonio.models import load_model
from gonio.records import Value, make_value

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["LARGEST_DIFFERENCE", "compared_logits", "logits_of", "probe_tokens", "refuse_target"]

# Of logits, relative to the largest. float32 rounding through 30 layers stays some ten times below;
# a gain folded wrongly lies above 0.01.
LARGEST_DIFFERENCE = 1e-4
_PROBE_SHAPE = (2, 64)  # windows and tokens whose logits are compared


def refuse_target(folder: Path, target: Path, overwrite: bool) -> None:
    """Refuse to write a model over its source, a file, or a folder that is not empty.

    Raises:
        SettingError: The target is the source.
        OutputError: It is a file, or not empty and not to be replaced.
    """
    if target.resolve() == folder.resolve():
        raise SettingError(f"{target} is the model itself; give another folder to write to")
    if target.is_file():
        raise OutputError(f"cannot write {target}: it is a file, expected a folder to create")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise OutputError(f"{target} is not empty and is not replaced; give --force to replace it.")


def probe_tokens(model: PreTrainedModel, seed: int) -> Tensor:
    """Random token ids whose logits are compared, ``(windows, tokens)``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(int(model.config.vocab_size), _PROBE_SHAPE, generator=generator)


@torch.no_grad()
def logits_of(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Logits in float32, ``(windows, tokens, vocabulary)``."""
    logits: Tensor = model(tokens, use_cache=False).logits.float()
    return logits


def compared_logits(folder: Path, tokens: Tensor, logits: Tensor, source: str) -> list[Value]:
    """How far the logits of a written model are from those wanted.

    Raises:
        ModelError: Farther than rounding explains.
    """
    model, _ = load_model(folder)
    found = logits_of(model, tokens)
    difference = float((found - logits).abs().max() / logits.abs().max())
    if not difference <= LARGEST_DIFFERENCE:
        raise ModelError(
            f"the rotated {source} computes something else: its logits differ by "
            f"{difference:.1e} of the largest\n"
            f"  expected at most {LARGEST_DIFFERENCE:.0e}; nothing was written"
        )
    same = float((found.argmax(dim=-1) == logits.argmax(dim=-1)).double().mean())
    note = "of the folder as read back, relative to the largest logit; random tokens"
    return [
        make_value("largest_logit_difference", difference, note=note),
        make_value("same_top1", same, note="share of positions with the same next token"),
    ]
