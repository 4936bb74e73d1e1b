"""spectralquant: Lloyd-Max codes in the eigenbasis of keys, or of values, bits by water-filling.

The package keeps dense float16 tensors; the bits are those its own byte budget states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gonio.pipelines.peers.driver import ModelFacts, Part, PeerDriver

__all__ = ["Driver"]

_SKIPPED = 4  # first tokens of a window: outliers that the package's own texts would average away


class Driver(PeerDriver):
    """A preset of the package, calibrated on the keys and values that gonio's codecs see."""

    needs_calibration = True

    def __init__(self, setting: Mapping[str, Any], facts: ModelFacts) -> None:
        super().__init__(setting, facts)
        from spectralquant import SpectralQuantEngine, resolve_preset

        preset = resolve_preset(self.setting["preset"])
        self.engine = SpectralQuantEngine(
            head_dim=facts.head_dim,
            total_bits=preset.avg_bits,
            noise_bits=preset.noise_bits,
            value_noise_bits=preset.value_noise_bits,
            d_eff_variance=preset.d_eff_variance,
            device="cpu",
        )

    def calibrate(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Fill in what the package's calibrator computes from keys after RoPE and values."""
        for layer, pair in enumerate(zip(keys, values, strict=True)):
            for kind, x in zip(("key", "value"), pair, strict=True):
                for head, vectors in enumerate(x[:, :, _SKIPPED:].transpose(0, 1).flatten(1, 2)):
                    data = _statistics(layer, head, kind, vectors.float())
                    self.engine._calibrator._data[layer, head, kind] = data
        self.engine._build_head_engines()
        self.engine._calibrated = True

    def encode(self, x: Tensor, layer: int, part: Part) -> Any:
        """What the package makes of every head."""
        heads = [self._head(layer, head) for head in range(x.shape[1])]
        if part == "keys":
            return [head.compress_keys(v) for head, v in zip(heads, x[0], strict=True)]
        return [head.compress_values(v) for head, v in zip(heads, x[0], strict=True)]

    def decode(self, stored: Any, layer: int, part: Part) -> Tensor:
        """The dense tensors among it."""
        dense = [each["k_mse"] for each in stored] if part == "keys" else stored
        return torch.stack(dense)[None]

    def coded_bits(self, stored: Any, layer: int, part: Part) -> float:
        """The package's own count per token, mean over heads."""
        sizes = [
            self._head(layer, head).bytes_per_token(use_qjl=self.engine.use_qjl)
            for head in range(len(stored))
        ]
        mine = [pair[0 if part == "keys" else 1] for pair in sizes]
        return float(8 * sum(mine) / len(mine) / self.facts.head_dim)

    def side(self) -> Any:
        """Eigenbases and codebooks."""
        return self.engine._head_engines

    def _head(self, layer: int, head: int) -> Any:
        return self.engine._head_engines[layer, head]


def _statistics(layer: int, head: int, kind: str, vectors: Tensor) -> Any:
    from spectralquant.calibrate import HeadCalibrationData, _compute_stats

    dim = vectors.shape[-1]
    names = ("eigenvalues", "eigenvectors", "d_eff", "spectral_gap", "sigma_high", "sigma_low")
    found = dict(zip((*names, "var_90", "var_95"), _compute_stats(vectors, dim), strict=True))
    return HeadCalibrationData(
        layer_idx=layer,
        head_idx=head,
        head_type=kind,
        n_samples=vectors.shape[0],
        head_dim=dim,
        **found,
    )
