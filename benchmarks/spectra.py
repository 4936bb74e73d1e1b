"""Factored against dense spectra: the same singular values, then the time of each.

Run: python benchmarks/spectra.py [--size 1024] [--rank 16] [--repeats 5]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from gonio.linalg.lowrank import factored_singular_values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    lora_b = torch.randn(options.size, options.rank, generator=generator)
    lora_a = torch.randn(options.rank, options.size, generator=generator)

    def dense() -> torch.Tensor:
        return torch.linalg.svdvals(lora_b.double() @ lora_a.double())[: options.rank]

    def factored() -> torch.Tensor:
        return factored_singular_values(lora_b, lora_a)

    torch.testing.assert_close(factored(), dense(), rtol=1e-10, atol=0)
    slow, fast = _seconds(dense, options.repeats), _seconds(factored, options.repeats)
    print(
        f"update {options.size} x {options.size}, rank {options.rank}, float64, "
        f"{torch.get_num_threads()} threads; equal to 1e-10 before timing"
    )
    for name, times in (("dense SVD", slow), ("factored", fast)):
        low, middle, high = min(times), statistics.median(times), max(times)
        print(f"{name:<10} {middle * 1e3:10.2f} ms   ({low * 1e3:.2f} .. {high * 1e3:.2f})")
    print(f"ratio      {statistics.median(slow) / statistics.median(fast):10.0f} x")


def _seconds(function: Callable[[], torch.Tensor], repeats: int) -> list[float]:
    function()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return times


if __name__ == "__main__":
    main()
