"""Quantizers, bit packing, rate-distortion limits and the accounting of stored bits."""

from gonio.quant.accounting import StoredBits, tensor_bytes
from gonio.quant.packing import pack_bits, unpack_bits
from gonio.quant.rate import (
    WaterFilling,
    gaussian_distortion,
    gaussian_rate,
    reverse_water_filling,
)
from gonio.quant.scalar import Codebook, decode, encode, gaussian_lloyd_max
from gonio.quant.sign import (
    population_beta,
    sign_beta,
    sign_cosine,
    sign_decode,
    sign_encode,
)

__all__ = [
    "Codebook",
    "StoredBits",
    "WaterFilling",
    "decode",
    "encode",
    "gaussian_distortion",
    "gaussian_lloyd_max",
    "gaussian_rate",
    "pack_bits",
    "population_beta",
    "reverse_water_filling",
    "sign_beta",
    "sign_cosine",
    "sign_decode",
    "sign_encode",
    "tensor_bytes",
    "unpack_bits",
]
