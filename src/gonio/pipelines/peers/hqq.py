"""HQQ behind transformers' quantized cache."""

from gonio.pipelines.peers.transformers_layers import TransformersDriver

__all__ = ["Driver"]


class Driver(TransformersDriver):
    """Affine codes in groups, their offsets refined by half-quadratic optimization."""

    backend = "hqq"
    layer_name = "HQQQuantizedLayer"
