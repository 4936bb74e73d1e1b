"""optimum-quanto behind transformers' quantized cache.

With ``axis_key=-1`` keys share a scale per channel, the axes of KIVI (arXiv:2402.02750); the
default shares one among the elements of a token.
"""

from gonio.pipelines.peers.transformers_layers import TransformersDriver

__all__ = ["Driver"]


class Driver(TransformersDriver):
    """Affine codes in groups; scale and offset in the dtype of the tensor."""

    backend = "quanto"
    layer_name = "QuantoQuantizedLayer"
