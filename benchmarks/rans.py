"""Entropy-coded blocks of a whole cache: bits over the ideal, encoding and decoding rates.

Codes are rounded Laplacian numbers of 64 coordinates with scales from 4.2 down to 0.05, about 1.5
bits each; the tables were fitted on other draws. Every result is decoded and compared before it is
timed. Rates are those of one thread, best and median of several runs, in processor seconds, which
other work on the machine disturbs less; wall seconds stand beside them. Megabytes are those of the
decoded keys in float16. General compressors see the same codes of one layer as bytes, coordinate
by coordinate, which suits them better than tokens do.

Run: python benchmarks/rans.py [--layers 30] [--heads 8] [--tokens 4096] [--block 64]
"""

import argparse
import bz2
import lzma
import os
import statistics
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from gonio.kernels import kernel_status
from gonio.kernels.entropy import BlockWords, decode_levels, encode_streams
from gonio.kernels.native import forget
from gonio.kvcache.options import resolve_options
from gonio.kvcache.transform_fit import fit_entropy_codecs
from gonio.quant.code_tables import CodeTables, count_codes, entropy_bits, fit_tables
from gonio.quant.rans import EncodedBlocks, decode_blocks, encode_blocks

DIM = 64
REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--block", type=int, default=64)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(0)
    shape = (chosen.layers * chosen.heads, chosen.tokens, DIM)
    codes = torch.cat([laplace((1, *shape[1:]), rng) for _ in range(shape[0])])
    other = laplace((chosen.heads, 8192, DIM), rng)
    shared, own = fit_tables(other.reshape(-1, DIM)), fit_tables(other)
    counts = count_codes(codes.reshape(-1, DIM))
    print(f"{codes.numel() / 1e6:.1f} million codes {shape}, blocks of {chosen.block} tokens")
    print(
        f"entropy {float(entropy_bits(counts).mean()):.4f} bits per code, "
        f"tables of other data {float(shared.expected_bits(counts).mean()):.4f}"
    )
    for lanes in (1, 2, 4, 8):
        rate(f"one call, {lanes} lanes", codes, shared, chosen.block, lanes)
    rate("one call, 4 lanes, tables by head", codes, own, chosen.block, 4)
    layer = codes[: chosen.heads]
    for lanes in (4, 16):
        rate(f"one layer a call, {lanes} lanes", layer, shared, chosen.block, lanes)
    compiled(layer, own, chosen.block)
    whole_codec()
    compressors(layer)


def laplace(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Rounded numbers of a two-sided exponential law, each coordinate with its own scale."""
    scale = torch.logspace(0.62, -1.3, DIM)
    size = -torch.rand(shape, generator=rng).clamp(min=1e-30).log() * scale
    sign = torch.randint(2, shape, generator=rng) * 2 - 1
    return (size * sign).round().to(torch.int16)


def rate(name: str, codes: Tensor, tables: CodeTables, block: int, lanes: int) -> None:
    """Print bits and rates after checking the round trip and one block read alone."""
    encoded = encode_blocks(codes, tables, block, lanes=lanes)
    if not torch.equal(decode_blocks(encoded, tables), codes):
        raise SystemExit(f"{name}: decoded codes differ")
    if not torch.equal(decode_blocks(encoded, tables, 3, 4), codes[:, 3 * block : 4 * block]):
        raise SystemExit(f"{name}: a block read alone differs")
    ideal = float(tables.ideal_bits(codes).sum())
    stored = 8 * encoded.stored_bytes
    encoding = timed(lambda: encode_blocks(codes, tables, block, lanes=lanes))
    decoding = timed(lambda: decode_blocks(encoded, tables))
    print(
        f"{name}: {stored / codes.numel():.4f} bits per code, {100 * (stored / ideal - 1):.2f}% "
        f"over the ideal {ideal / codes.numel():.4f}; {parts(encoded)}"
    )
    for verb, (best, median, wall) in (("encode", encoding), ("decode", decoding)):
        million = codes.numel() / 1e6
        print(
            f"  {verb} {million / best:.0f} Msym/s best, {million / median:.0f} median, "
            f"{2 * million / median:.0f} MB/s of float16 ({million / wall:.0f} Msym/s by the wall)"
        )


def compiled(layer: Tensor, tables: CodeTables, block: int) -> None:
    """The compiled coder of caches beside array operations: equal words, levels straight away."""
    encoded = encode_streams(layer, tables, block, lanes=2)
    plain = encode_blocks(layer, tables, block, lanes=2)
    if not torch.equal(encoded.words.view(torch.int16), plain.words.view(torch.int16)):
        raise SystemExit("compiled words differ")
    starts, ends = (torch.from_numpy(border)[:, None] for border in encoded.borders())
    coded = BlockWords(encoded.words, starts, ends - starts, block, 2)
    widest = int(tables.radius.max())
    levels = torch.arange(-widest, widest + 1).float().repeat(tables.index.numel(), 1)
    scale = torch.ones(1, len(starts))
    if not torch.equal(decode_levels(coded, tables, levels, scale), layer.mT.flatten(0, 1).float()):
        raise SystemExit("compiled levels differ")
    million = layer.numel() / 1e6
    runs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "encode": (
            lambda: encode_streams(layer, tables, block, lanes=2),
            lambda: encode_blocks(layer, tables, block, lanes=2),
        ),
        "decode": (
            lambda: decode_levels(coded, tables, levels, scale),
            lambda: decode_levels(coded, tables, levels, scale, level="reference"),
        ),
    }
    print(f"compiled, one layer a call, 2 lanes, tables by head ({kernel_status().level}):")
    for verb, (fast, slow) in runs.items():
        best, median, _ = timed(fast)
        other = timed(slow)[0]
        print(
            f"  {verb} {million / best:.0f} Msym/s best, {million / median:.0f} median, "
            f"{2 * million / median:.0f} MB/s of float16; array operations {million / other:.1f} "
            f"Msym/s, {other / best:.0f} times as long"
        )


def whole_codec() -> None:
    """The codec of one layer, vectors to stored words and back: 3 heads, 2 bits, 1,984 tokens."""
    draws = torch.Generator().manual_seed(0)
    size = torch.linspace(3, 0.05, DIM)
    vectors = [torch.randn((4, 3, tokens, DIM), generator=draws) * size for tokens in (512, 1984)]
    metric = torch.eye(DIM).double().repeat(3, 1, 1)
    options = resolve_options("entropy", "values", {})
    (codec,) = fit_entropy_codecs(2.0, [vectors[0]], [metric], options)
    x = vectors[1][:1]
    levels = {"compiled": "", "array operations": "reference"}
    stored = {}
    for name, level in levels.items():
        with forced(level):
            stored[name] = codec.encode(x)
            encoding, decoding = (
                1e3 * timed(run)[1]
                for run in (lambda: codec.encode(x), lambda: codec.decode(stored["compiled"]))
            )
        print(f"codec of one layer, {name}: encode {encoding:.1f} ms, decode {decoding:.1f} ms")
    first, second = stored.values()
    if not all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors):
        raise SystemExit("stored words differ")


@contextmanager
def forced(level: str) -> Iterator[None]:
    """Kernels of a level; the best ones for an empty name."""
    before = os.environ.pop("GONIO_KERNELS", None)
    if level:
        os.environ["GONIO_KERNELS"] = level
    forget()
    yield
    os.environ.pop("GONIO_KERNELS", None)
    if before is not None:
        os.environ["GONIO_KERNELS"] = before
    forget()


def parts(encoded: EncodedBlocks) -> str:
    """Share of the lengths and of the states in what is stored."""
    blocks = encoded.lengths.numel()
    lengths, states = 2 * blocks, 4 * encoded.lanes * blocks
    return (
        f"lengths {100 * lengths / encoded.stored_bytes:.2f}%, "
        f"states {100 * states / encoded.stored_bytes:.2f}% of it"
    )


def timed(run: Callable[[], object]) -> tuple[float, float, float]:
    """Best and median processor seconds and median wall seconds of several runs."""
    processor, wall = [], []
    for _ in range(REPEATS):
        started, clock = time.process_time(), time.perf_counter()
        run()
        processor.append(time.process_time() - started)
        wall.append(time.perf_counter() - clock)
    return min(processor), statistics.median(processor), statistics.median(wall)


def compressors(layer: Tensor) -> None:
    """Bits per code of general compressors on one layer as one stream, without random access."""
    raw = layer.clamp(-128, 127).to(torch.int8).mT.contiguous().numpy().tobytes()
    methods: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
        "zlib 6": (lambda data: zlib.compress(data, 6), zlib.decompress),
        "bz2 9": (bz2.compress, bz2.decompress),
        "lzma 1": (lambda data: lzma.compress(data, preset=1), lzma.decompress),
    }
    if find_spec("zstandard"):
        zstandard = import_module("zstandard")
        methods["zstd 19"] = (
            zstandard.ZstdCompressor(level=19).compress,
            zstandard.ZstdDecompressor().decompress,
        )
    for name, (compress, decompress) in methods.items():
        packed = compress(raw)
        if decompress(packed) != raw:
            raise SystemExit(f"{name}: decompressed bytes differ")
        started = time.process_time()
        decompress(packed)
        seconds = time.process_time() - started
        print(
            f"{name}: {8 * len(packed) / len(raw):.4f} bits per code, "
            f"decode {len(raw) / seconds / 1e6:.0f} Msym/s"
        )


if __name__ == "__main__":
    main()
