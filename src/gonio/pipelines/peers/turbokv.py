"""turbokv: a random rotation and Lloyd-Max codes per token with its norm (arXiv:2504.19874)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gonio.pipelines.peers.driver import ModelFacts, Part, PeerDriver

__all__ = ["Driver"]


class Driver(PeerDriver):
    """One quantizer per layer, seeded as its cache seeds them."""

    def __init__(self, setting: Mapping[str, Any], facts: ModelFacts) -> None:
        super().__init__(setting, facts)
        from turboquant import TurboQuantizer

        self.quantizers = [
            TurboQuantizer(facts.head_dim, self.setting["bits"], "cpu", seed=42 + layer)
            for layer in range(facts.num_layers)
        ]

    def encode(self, x: Tensor, layer: int, part: Part) -> Any:
        """Packed codes and norms."""
        return self.quantizers[layer].quantize(x)

    def decode(self, stored: Any, layer: int, part: Part) -> Tensor:
        """Codes through the codebook, rotated back."""
        found: Tensor = self.quantizers[layer].dequantize(*stored)
        return found

    def side(self) -> Any:
        """Rotations and codebooks."""
        return self.quantizers

    def new_cache(self) -> Any:
        """Its cache as it comes: the first layer raw, 128 recent tokens raw."""
        from turboquant import TurboQuantCache

        config = self.facts.transformers_config()
        return TurboQuantCache(config, nbits=self.setting["bits"], device="cpu")
