"""kakeyalattice: Hadamard and nested E8 lattices per token.

The package keeps the reconstruction in a dense cache; the bits are those it states.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gonio.pipelines.peers.driver import ModelFacts, Part, PeerDriver

__all__ = ["Driver"]


class Driver(PeerDriver):
    """Its codec with a range of the lattice's coordinates."""

    def __init__(self, setting: Mapping[str, Any], facts: ModelFacts) -> None:
        super().__init__(setting, facts)
        from kakeyalattice import V15KakeyaZamirE8GPU

        self.codec = V15KakeyaZamirE8GPU(facts.head_dim, self.setting["q_range"], device="cpu")

    def encode(self, x: Tensor, layer: int, part: Part) -> Any:
        """The dense reconstruction that the package keeps."""
        return self.codec.roundtrip(x).to(x.dtype)

    def decode(self, stored: Any, layer: int, part: Part) -> Tensor:
        """What is kept."""
        found: Tensor = stored
        return found

    def coded_bits(self, stored: Any, layer: int, part: Part) -> float:
        """Lattice points and two float16 numbers per vector, as the package counts."""
        return float(self.codec.bits_per_token_per_head) / self.facts.head_dim

    def new_cache(self) -> Any:
        """Its cache, every layer coded."""
        from kakeyalattice.hf import KakeyaLatticeCache

        return KakeyaLatticeCache(
            q_range=self.setting["q_range"],
            num_hidden_layers=self.facts.num_layers,
            head_dim=self.facts.head_dim,
            device="cpu",
        )
