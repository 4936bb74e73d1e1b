"""Quantizers, bit packing, rate-distortion limits and the accounting of stored bits."""

from gonio.quant.accounting import StoredBits, tensor_bytes
from gonio.quant.code_tables import (
    CodeTables,
    count_codes,
    entropy_bits,
    fit_tables,
    tables_from_counts,
)
from gonio.quant.packing import pack_bits, unpack_bits
from gonio.quant.rans import EncodedBlocks, decode_blocks, encode_blocks
from gonio.quant.rate import (
    WaterFilling,
    gaussian_distortion,
    gaussian_rate,
    reverse_water_filling,
)
from gonio.quant.scalar import Codebook, decode, encode, gaussian_lloyd_max, sphere_lloyd_max
from gonio.quant.sign import (
    population_beta,
    sign_beta,
    sign_cosine,
    sign_decode,
    sign_encode,
)

__all__ = [
    "CodeTables",
    "Codebook",
    "EncodedBlocks",
    "StoredBits",
    "WaterFilling",
    "count_codes",
    "decode",
    "decode_blocks",
    "encode",
    "encode_blocks",
    "entropy_bits",
    "fit_tables",
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
    "sphere_lloyd_max",
    "tables_from_counts",
    "tensor_bytes",
    "unpack_bits",
]
