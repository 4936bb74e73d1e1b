"""qntz: RaBitQ (arXiv:2405.12497) with 1 to 8 bits, made for vector search.

The package answers distances, not vectors. Its estimate of an inner product is linear in the
query, so the vector that it stands for can be read off by asking for the unit vectors; the map
from codes to that vector is linear and the same for all vectors, and is found once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gonio.pipelines.peers.driver import ModelFacts, Part, PeerDriver

__all__ = ["Driver"]

_TOLERANCE = 1e-3  # of the largest coordinate; the package computes in float32

Floats = NDArray[np.float32]


class Driver(PeerDriver):
    """One quantizer for all heads: codes of a rotated vector, one factor per vector."""

    def __init__(self, setting: Mapping[str, Any], facts: ModelFacts) -> None:
        super().__init__(setting, facts)
        import qntz

        bits = int(self.setting["bits"])
        self.quantizer = qntz.RaBitQQuantizer(facts.head_dim, seed=facts.seed, total_bits=bits)
        self.middle = (2**bits - 1) / 2
        self.map = self._find_map()

    def encode(self, x: Tensor, layer: int, part: Part) -> Any:
        """The package's vectors, one per head and token."""
        vectors = x.float().reshape(-1, x.shape[-1]).numpy()
        return [self.quantizer.quantize(vector) for vector in vectors]

    def kept(self, stored: Any, part: Part) -> Any:
        """Both planes of codes and the six numbers beside them."""
        return [
            (v.binary_codes, v.extended_codes, np.array(_numbers(v), np.float32)) for v in stored
        ]

    def coded_bits(self, stored: Any, layer: int, part: Part) -> float:
        """The codes, and the one float32 factor that an inner product needs."""
        planes = len(stored[0].binary_codes) + len(stored[0].extended_codes)
        return (8 * planes + 32) / self.facts.head_dim

    def decode(self, stored: Any, layer: int, part: Part) -> Tensor:
        """The vectors whose inner products the package estimates."""
        found = torch.from_numpy(self._read(stored))
        return found.view(1, self.facts.num_kv_heads, -1, self.facts.head_dim)

    def side(self) -> Any:
        """The rotation, as a matrix."""
        return self.map

    def _read(self, stored: Sequence[Any]) -> Floats:
        codes = np.array([vector.codes for vector in stored], np.float32) - self.middle
        factors = np.array([vector.f_rescale for vector in stored], np.float32)
        read: Floats = factors[:, None] * (codes @ self.map)
        return read

    def _find_map(self) -> Floats:
        """Codes to vectors, from random vectors, checked on others."""
        dim = self.facts.head_dim
        made = np.random.default_rng(self.facts.seed).standard_normal((4 * dim, dim))
        stored = [self.quantizer.quantize(vector) for vector in made.astype(np.float32)]
        asked = np.array([self._ask(vector) for vector in stored])
        codes = np.array([vector.codes for vector in stored]) - self.middle
        factors = np.array([vector.f_rescale for vector in stored])
        half = 2 * dim
        found, *_ = np.linalg.lstsq(codes[:half], asked[:half] / factors[:half, None], rcond=None)
        error = np.abs(factors[half:, None] * (codes[half:] @ found) - asked[half:]).max()
        if error > _TOLERANCE * np.abs(asked).max():
            raise ValueError("its estimates are not linear in the codes")
        return np.asarray(found, np.float32)

    def _ask(self, stored: Any) -> Floats:
        """The inner products with the unit vectors: |e|^2 + |v|^2 - |e - v|^2, halved."""
        dim = self.facts.head_dim
        distance = self.quantizer.approximate_l2_sqr
        zero = distance(np.zeros(dim, np.float32), stored)
        units = np.eye(dim, dtype=np.float32)
        return np.array([(1 + zero - distance(unit, stored)) / 2 for unit in units], np.float32)


def _numbers(vector: Any) -> tuple[float, ...]:
    names = ("delta", "vl", "f_add", "f_rescale", "f_error", "residual_norm")
    return tuple(getattr(vector, name) for name in names)
