"""transformers' own cache in 8-bit floating point, one scale per tensor; needs no package."""

from typing import Any

from torch import Tensor

from gonio.pipelines.peers.driver import Part
from gonio.pipelines.peers.transformers_layers import TransformersDriver

__all__ = ["Driver"]


class Driver(TransformersDriver):
    """Float8 e4m3 with a scale frozen by the first call."""

    backend = "fp8"
    layer_name = "Fp8QuantizedLayer"

    def _initialize(self, x: Tensor) -> None:
        self.layer.lazy_initialization(x, x)

    def _quantize(self, x: Tensor, part: Part) -> Any:
        return self.layer._quantize(x)
