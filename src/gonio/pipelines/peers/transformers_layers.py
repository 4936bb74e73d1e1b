"""Drivers on top of transformers' own quantized cache, whose layers call a package.

A layer returns the untouched tensors on its first call, so a window that is read in one pass would
score a perfect perplexity whatever is stored; here the stored tensors themselves are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gonio.pipelines.peers.driver import ModelFacts, Part, PeerDriver

__all__ = ["TransformersDriver"]


class TransformersDriver(PeerDriver):
    """A backend of ``QuantizedCache``; the settings are that class's arguments."""

    backend = ""
    layer_name = ""

    def __init__(self, setting: Mapping[str, Any], facts: ModelFacts) -> None:
        super().__init__(setting, facts)
        from transformers import cache_utils

        self.layer = getattr(cache_utils, self.layer_name)(**self.setting)

    def encode(self, x: Tensor, layer: int, part: Part) -> Any:
        """The tensors that the layer would keep."""
        if not self.layer.is_initialized:
            self._initialize(x)
        return self._quantize(x.contiguous(), part)

    def decode(self, stored: Any, layer: int, part: Part) -> Tensor:
        """What a later call would read."""
        found: Tensor = self.layer._dequantize(stored)
        return found

    def new_cache(self) -> Any:
        """The cache that ``generate(cache_implementation="quantized")`` makes."""
        from transformers import QuantizedCache

        return QuantizedCache(self.backend, self.facts.transformers_config(), **self.setting)

    def _initialize(self, x: Tensor) -> None:
        self.layer.lazy_initialization(x, x)

    def _quantize(self, x: Tensor, part: Part) -> Any:
        axis = self.layer.axis_key if part == "keys" else self.layer.axis_value
        return self.layer._quantize(x, axis=axis)
