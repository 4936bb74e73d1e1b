"""Rows of different lengths decoded together: padded on the left, joined and left at any step.

Rotary and learned positions are stored in the keys, so a cached row may be moved to the right
behind more padding; the attention mask hides what lies before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from gonio.errors import ModelError, SettingError
from gonio.serving.mixture import AdapterMixture, RowWeights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["DecodingBatch"]


class DecodingBatch:
    """The caches of the rows that are being decoded.

    Args:
        model: A decoder with full attention, in evaluation mode, the one the mixture changes.
        mixture: Attached adapters of the model; None for the base alone.
    """

    def __init__(self, model: PreTrainedModel, mixture: AdapterMixture | None) -> None:
        self._model = model
        self._mixture = mixture
        self._cache: DynamicCache | None = None
        self._mask = torch.zeros(0, 0, dtype=torch.long)  # (rows, cached positions), 1 for a token
        self._weights: list[RowWeights] = []

    def __len__(self) -> int:
        return len(self._weights)

    def join(self, prompts: Sequence[Sequence[int]], weights: Sequence[RowWeights]) -> Tensor:
        """Read prompts and append them as rows.

        Args:
            prompts: Token ids, at least one each.
            weights: Adapters of each row.

        Returns:
            Logits of each new row's next token, shape ``(new rows, vocabulary)``.

        Raises:
            ModelError: The model keeps another cache than keys and values of every token.
        """
        width = max(map(len, prompts))
        device = self._model.device
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros(len(prompts), width, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
            mask[row, width - len(prompt) :] = 1
        cache = DynamicCache(config=self._model.config)
        logits = self._forward(ids.to(device), mask.to(device), cache, weights)
        _require_full_attention(cache)
        if self._cache is None or not self._weights:
            self._cache, self._mask = cache, mask.to(device)
        else:
            _append(self._cache, cache)
            length = max(self._mask.shape[1], width)
            self._mask = torch.cat(
                [_pad_left(self._mask, length, 1), _pad_left(mask.to(device), length, 1)]
            )
        self._weights += list(weights)
        return logits

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Read one more token of every row.

        Args:
            tokens: The last token of each row.

        Returns:
            Logits of each row's next token, shape ``(rows, vocabulary)``.
        """
        if self._cache is None or len(tokens) != len(self._weights):
            raise SettingError(f"{len(tokens)} tokens for a batch of {len(self._weights)} rows")
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        ids = torch.tensor(list(tokens), device=self._mask.device).unsqueeze(1)
        return self._forward(ids, self._mask, self._cache, self._weights)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows, and the padding that every row left has."""
        if not rows or self._cache is None:
            self._cache, self._weights = None, []
            return
        self._weights = [self._weights[row] for row in rows]
        at = torch.tensor(list(rows), device=self._mask.device)
        self._mask = self._mask[at]
        padding = int(self._mask.argmax(dim=1).min())  # the first token of the longest row
        self._mask = self._mask[:, padding:]
        for layer in self._cache.layers:
            for name in ("keys", "values"):  # (rows, key heads, positions, head_dim)
                setattr(layer, name, getattr(layer, name)[at, :, padding:])

    def _forward(
        self, ids: Tensor, mask: Tensor, cache: DynamicCache, weights: Sequence[RowWeights]
    ) -> Tensor:
        positions = (mask.cumsum(dim=1) - 1).clamp_(min=0)[:, -ids.shape[1] :]
        arguments = {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": positions,
            "past_key_values": cache,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        with torch.inference_mode():
            if self._mixture is None:
                logits = self._model(**arguments).logits
            else:
                with self._mixture.rows(weights):
                    logits = self._model(**arguments).logits
        last: Tensor = logits[:, -1]
        return last


def _require_full_attention(cache: DynamicCache) -> None:
    other = [type(layer).__name__ for layer in cache.layers if type(layer) is not DynamicLayer]
    if other:
        raise ModelError(
            f"cannot serve this model: its cache has layers {other[0]}\n"
            "Only decoders whose layers all keep the keys and values of every token are served "
            "(no sliding windows, no recurrent states)."
        )


def _append(cache: DynamicCache, new: DynamicCache) -> None:
    """Put the rows of ``new`` below those of ``cache``, the shorter padded on the left."""
    length = max(cache.get_seq_length(), new.get_seq_length())
    for layer, other in zip(cache.layers, new.layers, strict=True):
        for name in ("keys", "values"):
            both = [_pad_left(getattr(one, name), length, 2) for one in (layer, other)]
            setattr(layer, name, torch.cat(both))


def _pad_left(tensor: Tensor, length: int, axis: int) -> Tensor:
    missing = length - tensor.shape[axis]
    if missing == 0:
        return tensor
    shape = [*tensor.shape[:axis], missing, *tensor.shape[axis + 1 :]]
    return torch.cat([tensor.new_zeros(shape), tensor], dim=axis)
