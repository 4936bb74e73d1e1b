"""nexusquant-kv: rotary embedding undone, Hadamard, then points of a relaxed E8 lattice.

The package keeps the reconstruction in a dense cache; what packed lattice points would take is
worked out here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from gonio.pipelines.peers.driver import ModelFacts, Part, PeerDriver

__all__ = ["Driver"]


class Driver(PeerDriver):
    """Its cache's own encoders, without eviction."""

    def __init__(self, setting: Mapping[str, Any], facts: ModelFacts) -> None:
        super().__init__(setting, facts)
        self.codec = self.new_cache()

    def encode(self, x: Tensor, layer: int, part: Part) -> Any:
        """The dense reconstruction that the package keeps."""
        return self.codec._e8_keys(x) if part == "keys" else self.codec._e8_values(x)

    def decode(self, stored: Any, layer: int, part: Part) -> Tensor:
        """What is kept."""
        found: Tensor = stored
        return found

    def coded_bits(self, stored: Any, layer: int, part: Part) -> float:
        """Eight coordinates as one point, and a float16 scale per vector.

        With L levels a coordinate lies in [-L/2, L/2]: integers of even sum, or any half-integers.
        Points that clamping moves off the lattice are not charged, in the package's favor.
        """
        levels = 2 ** self.setting["key_bits" if part == "keys" else "value_bits"]
        points = (levels + 1) ** 8 / 2 + levels**8
        return math.log2(points) / 8 + 16 / int(stored.shape[-1])

    def new_cache(self) -> Any:
        """Its cache, with the model's rotary embedding."""
        from nexusquant import E8QuantizedCache

        model = SimpleNamespace(config=self.facts.transformers_config())
        return E8QuantizedCache.from_model(model, **self.setting)
