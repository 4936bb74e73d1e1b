"""Attention on packed codes against torch in bf16, a C kernel in bf16, and the bandwidth of memory.

One decode step: 8 key-value heads, 4 query heads each, one thread. Every result is compared with
the torch reference before anything is timed. The runs of all contenders alternate, so that a
ratio is taken within seconds on the same machine in the same mood; the median of the ratios is
printed with their quartiles, and the ratio of the best times, which other work disturbs least.
Bandwidth is that of reading as many bytes as the kernel must, taken in the same rounds. Then
every compiled level is timed against the best and against reading, and two threads against one.
Exit code 1 when a result is wrong.

Run: python benchmarks/kernels.py [--tokens 131072] [--dims 128 64] [--rounds 9] [--threads 1]
     [--deviation 1] [--parts scores attention levels threads]
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from gonio.kernels import CodePlan, CodeRun, attend, encode, kernel_status, make_plan, scores
from gonio.kernels.native import LEVELS, available_levels, native_library
from gonio.kernels.ops import scores_into
from gonio.kernels.threads import run_together
from gonio.quant.scalar import gaussian_lloyd_max

HEADS, GROUP = 8, 4
PARTS = ["scores", "attention", "levels", "threads"]
CHECKED = 2048  # tokens whose results are compared with the reference
LIMITS = {False: 0.02, True: 0.001}  # error of int8 and int16 scores over the scores' deviation
ATTENTION_LIMIT = 0.02  # relative error of outputs: 8-bit tables, weights and levels

Job = Callable[[], object]


@dataclass(frozen=True)
class Packed:
    """Codes of unit normal coordinates."""

    plan: CodePlan
    data: Tensor

    @property
    def tensors(self) -> list[Tensor]:
        """What operators take."""
        return self.plan.tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=131072)
    parser.add_argument("--dims", type=int, nargs="+", default=[128, 64])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--deviation", type=float, default=1.0, help="of attention's scores")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--level", default=available_levels()[-1])
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    print(f"{kernel_status()}\n{chosen.tokens} tokens, {HEADS} heads x {GROUP} queries,")
    print(f"{chosen.threads} thread(s), kernels {chosen.level}; ratios: median (quartiles; best)")
    for dim in chosen.dims:
        rng = torch.Generator().manual_seed(dim)
        if "scores" in chosen.parts:
            run_scores(dim, chosen, rng)
        if "attention" in chosen.parts:
            run_attention(dim, chosen, rng)
    if "levels" in chosen.parts:
        run_levels(chosen, torch.Generator().manual_seed(0))
    if "threads" in chosen.parts:
        run_threads(chosen, torch.Generator().manual_seed(0))


def pack(kind: str, widths: list[int], dim: int, tokens: int, rng: torch.Generator) -> Packed:
    """Unit normal vectors, each coordinate with the widths in turn."""
    each = torch.tensor(widths).repeat(HEADS * dim // len(widths))
    levels = torch.cat([gaussian_lloyd_max(int(w)).levels.float() for w in each])
    plan = make_plan(kind, each, levels, HEADS)
    parts = []
    for first in range(0, tokens, 8192):
        count = min(8192, tokens - first)
        rows = torch.randn(HEADS * dim, count, generator=rng)
        parts.append(encode(rows, plan.tensors, kind == "keys", 1, 0, plan.block_bytes, "auto"))
    return Packed(plan, torch.cat(parts, dim=1))


def run_scores(dim: int, chosen: argparse.Namespace, rng: torch.Generator) -> None:
    tokens, level = chosen.tokens, chosen.level
    query = torch.randn(1, HEADS, GROUP, dim, generator=rng)
    keys = torch.randn(HEADS, tokens, dim, generator=rng, dtype=torch.float32)
    bf16, q16 = keys.bfloat16(), query[0].bfloat16()
    out16 = torch.empty(HEADS, GROUP, tokens, dtype=torch.bfloat16)
    out32 = torch.empty(1, HEADS, GROUP, tokens)
    for name, widths in (("1", [1]), ("2", [2]), ("2 mixed", [4, 2, 1, 1]), ("4", [4])):
        packed = pack("keys", widths, dim, tokens, rng)
        for precise in (False, True):
            check_scores(query, packed, precise, level, f"d={dim}, {name} bits")
        jobs = {
            "int8": lambda packed=packed: scores_into(
                out32, query, packed.data, packed.plan, level=level
            ),
            "int16": lambda packed=packed: scores_into(
                out32, query, packed.data, packed.plan, precise=True, level=level
            ),
            "torch bf16": lambda: torch.matmul(q16, bf16.mT, out=out16),
            "torch fp32": lambda: torch.matmul(query[0], keys.mT, out=out32[0]),
            "C bf16": lambda: c_bf16(bf16, query, out32),
            "reading": lambda packed=packed: read(packed.data),
        }
        times = alternate(jobs, chosen.rounds)
        print(f"scores d={dim}, {name} bits ({packed.data.numel() / 1e6:.1f} MB):")
        for other in ("torch bf16", "torch fp32", "C bf16"):
            print(f"  int8 {ratio(times[other], times['int8'])} of the speed of {other}")
        print(f"  int16 {ratio(times['torch bf16'], times['int16'])} of torch bf16")
        print(f"  int8 takes {ratio(times['int8'], times['reading'])} of reading its codes")


def check_scores(query: Tensor, packed: Packed, precise: bool, level: str, name: str) -> None:
    tokens = min(CHECKED, packed.data.shape[1] * 64)
    expected = scores(query, packed.data, packed.tensors, tokens, precise, "reference")
    found = scores(query, packed.data, packed.tensors, tokens, precise, level)
    error = float((found - expected).square().mean().sqrt() / expected.std())
    kind = "int16" if precise else "int8"
    print(f"check {name}, {kind}: error {error:.2e} of the scores' deviation")
    if not error <= LIMITS[precise]:
        sys.exit(f"{name}: {kind} scores are off by {error:.2%}, limit {LIMITS[precise]:.2%}")


def run_attention(dim: int, chosen: argparse.Namespace, rng: torch.Generator) -> None:
    tokens, level = chosen.tokens, chosen.level
    query = torch.randn(1, HEADS, GROUP, dim, generator=rng)
    scaled = query * (chosen.deviation * dim**-0.5)
    keys = pack("keys", [2], dim, tokens, rng)
    values = pack("values", [2], dim, tokens, rng)

    def fused(tokens: int, level: str) -> Tensor:
        run, plans = CodeRun(keys.data, values.data, tokens), (keys.plan, values.plan)
        return attend(scaled, [run], plans, level=level)[0]

    some = min(CHECKED, tokens)
    error = float(
        (fused(some, level) - fused(some, "reference")).norm() / fused(some, "reference").norm()
    )
    print(f"check d={dim}, attention: relative error {error:.2e}")
    limit = ATTENTION_LIMIT * max(1.0, chosen.deviation)
    if not error <= limit:
        sys.exit(f"attention is off by {error:.2%}, limit {limit:.2%}")
    k16, v16 = (torch.randn(1, HEADS, tokens, dim, generator=rng).bfloat16() for _ in range(2))
    q16 = query.view(1, HEADS * GROUP, 1, dim).bfloat16()
    q32, k32, v32 = q16.float(), k16.float(), v16.float()
    # Fused and reading each follow a run that sweeps the caches: neither finds codes there.
    times = alternate(
        {
            "SDPA bf16": lambda: scaled_dot_product_attention(q16, k16, v16, enable_gqa=True),
            "fused": lambda: fused(tokens, level),
            "SDPA fp32": lambda: scaled_dot_product_attention(q32, k32, v32, enable_gqa=True),
            "reading": lambda: (read(keys.data), read(values.data)),
        },
        chosen.rounds,
    )
    total = keys.data.numel() + values.data.numel()
    print(f"attention d={dim}, keys and values of 2 bits ({total / 1e6:.1f} MB):")
    for other in ("SDPA bf16", "SDPA fp32"):
        print(f"  fused {ratio(times[other], times['fused'])} of the speed of {other}")
    print(f"  fused takes {ratio(times['fused'], times['reading'])} of reading its codes")
    middle, best = statistics.median(times["reading"]), min(times["reading"])
    print(f"  reading: {total / middle / 1e9:.1f} GB/s, at best {total / best / 1e9:.1f}")


def run_levels(chosen: argparse.Namespace, rng: torch.Generator) -> None:
    """Scores and attention at 2 bits by every compiled level.

    Against the best level, against reading the codes, and against what reading a cache in bf16
    would take at that speed. Each run follows one that sweeps the caches.
    """
    levels = [level for level in available_levels() if level in LEVELS]
    jobs, codes = two_bit_jobs(chosen, rng)
    large = torch.ones(1 << 27, dtype=torch.uint8)
    for name, job in jobs.items():
        timed: dict[str, Job] = {"reading": lambda name=name: [read(data) for data in codes[name]]}
        timed.update({level: partial(job, level) for level in levels})
        swept = {}
        for each, run in timed.items():
            swept |= {f"before {each}": partial(read, large), each: run}
        times = alternate(swept, chosen.rounds)
        elements = len(codes[name]) * chosen.tokens * HEADS * chosen.dims[0]
        growth = 2 * elements / sum(data.numel() for data in codes[name])
        bf16 = [growth * seconds for seconds in times["reading"]]
        for level in levels:
            own = times[level]
            print(f"{name}, 2 bits: {level} takes {ratio(own, times[levels[-1]])} of the time of")
            print(f"  {levels[-1]}, {ratio(own, times['reading'])} of reading its codes,")
            print(f"  {ratio(own, bf16)} of reading as many tokens in bf16")


def run_threads(chosen: argparse.Namespace, rng: torch.Generator) -> None:
    """Two threads against one, by the clock on the wall and in seconds of all processors.

    What two threads gain of reading 256 MB says how much more memory gives to two processors than
    to one; what they spend in all says, on a busy machine too, what splitting the work costs.
    """
    before = torch.get_num_threads()
    large = torch.ones(1 << 28, dtype=torch.uint8)

    def reading(level: str) -> None:
        del level
        run_together([partial(read, part) for part in large.chunk(torch.get_num_threads())])

    def with_threads(count: int, job: Callable[[str], object]) -> None:
        torch.set_num_threads(count)
        job(chosen.level)

    kernels, _ = two_bit_jobs(chosen, rng)
    for name, job in {"reading 256 MB": reading, **kernels}.items():
        jobs = {str(count): partial(with_threads, count, job) for count in (1, 2)}
        wall = alternate(jobs, chosen.rounds, clock=time.perf_counter)
        spent = alternate(jobs, chosen.rounds, clock=time.process_time)
        print(f"{name}: two threads {ratio(wall['1'], wall['2'])} as fast as one,")
        print(f"  and spend {ratio(spent['2'], spent['1'])} of its processor time")
    torch.set_num_threads(before)


def two_bit_jobs(
    chosen: argparse.Namespace, rng: torch.Generator
) -> tuple[dict[str, Callable[[str], object]], dict[str, list[Tensor]]]:
    """Scores and fused attention, to be called with a level, and the codes that they read."""
    dim, tokens = chosen.dims[0], chosen.tokens
    query = torch.randn(1, HEADS, GROUP, dim, generator=rng)
    scaled = query * (chosen.deviation * dim**-0.5)
    keys, values = (pack(kind, [2], dim, tokens, rng) for kind in ("keys", "values"))
    out = torch.empty(1, HEADS, GROUP, tokens)
    run, plans = CodeRun(keys.data, values.data, tokens), (keys.plan, values.plan)

    def fused(level: str) -> object:
        return attend(scaled, [run], plans, level=level)

    jobs = {
        "scores": lambda level: scores_into(out, query, keys.data, keys.plan, level=level),
        "attention": fused,
    }
    return jobs, {"scores": [keys.data], "attention": [keys.data, values.data]}


def c_bf16(keys: Tensor, query: Tensor, out: Tensor) -> None:
    """Scores of bf16 keys by the C yardstick, one thread."""
    heads, tokens, dim = keys.shape
    library = native_library()
    level = LEVELS.index(available_levels()[-1]) if library else -1
    if library is None or library.gonio_bf16_scores(
        *(keys.data_ptr(), heads, tokens, dim, query.data_ptr(), GROUP, level, out.data_ptr())
    ):
        sys.exit("the C kernel in bf16 needs AVX-512-BF16, and a dim of 64 or 128")


def read(data: Tensor) -> None:
    """Every byte, by one core."""
    library = native_library()
    if library is None:
        data.view(torch.int64).sum()
    else:
        library.gonio_read(data.data_ptr(), data.numel(), LEVELS.index(available_levels()[-1]))


def alternate(
    jobs: dict[str, Job], rounds: int, clock: Callable[[], float] | None = None
) -> dict[str, list[float]]:
    """Seconds of each job in every round, after one that warms up.

    One thread is timed in processor seconds, which other work on the machine disturbs less.
    """
    if clock is None:
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name, job in jobs.items():
            started = clock()
            job()
            if turn:
                times[name].append(clock() - started)
    return times


def ratio(above: list[float], below: list[float]) -> str:
    """Median and quartiles of the ratio, round by round, and the ratio of the best times."""
    each = [a / b for a, b in zip(above, below, strict=True)]
    low, middle, high = statistics.quantiles(each, n=4)
    return f"{middle:.2f} x ({low:.2f} .. {high:.2f}; {min(above) / min(below):.2f})"


if __name__ == "__main__":
    main()
