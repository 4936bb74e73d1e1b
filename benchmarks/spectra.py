"""Factored against dense spectra, and many modules in one stack against one at a time.

Both pairs are compared before they are timed.

Run: python benchmarks/spectra.py [--size 1024] [--rank 16] [--modules 200] [--repeats 5]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from gonio.linalg.lowrank import factored_singular_values, factored_spectrum
from gonio.linalg.spectrum import effective_rank, energy_rank, frobenius_norm, stable_rank


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--modules", type=int, default=200)
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
    print(
        f"update {options.size} x {options.size}, rank {options.rank}, float64, "
        f"{torch.get_num_threads()} threads; equal to 1e-10 before timing"
    )
    _compare({"dense SVD": dense, "factored": factored}, options.repeats)
    _modules(options.modules, options.size, options.rank, options.repeats)


def _modules(count: int, size: int, rank: int, repeats: int) -> None:
    """Spectra and their summaries of many modules, alone and in a stack."""
    generator = torch.Generator().manual_seed(1)
    lefts = [torch.randn(size, rank, generator=generator) for _ in range(count)]
    rights = [torch.randn(rank, size, generator=generator) for _ in range(count)]

    def summaries(sigma: torch.Tensor) -> torch.Tensor:
        values = [frobenius_norm(sigma), stable_rank(sigma), effective_rank(sigma)]
        values += [energy_rank(sigma, share).double() for share in (0.9, 0.99)]
        return torch.stack(values, dim=-1)

    def alone() -> torch.Tensor:
        pairs = zip(lefts, rights, strict=True)
        return torch.stack([summaries(factored_spectrum(*pair).sigma) for pair in pairs])

    def stacked() -> torch.Tensor:
        return summaries(factored_spectrum(lefts, rights).sigma)

    torch.testing.assert_close(stacked(), alone(), rtol=1e-12, atol=0)
    print(f"{count} such updates, spectra and summaries; equal to 1e-12 before timing")
    _compare({"one by one": alone, "stacked": stacked}, repeats)


def _compare(functions: dict[str, Callable[[], torch.Tensor]], repeats: int) -> None:
    """Median, least and largest milliseconds of the slower and the faster, and their ratio."""
    medians = []
    for name, function in functions.items():
        times = _seconds(function, repeats)
        medians.append(statistics.median(times))
        low, high = min(times), max(times)
        print(f"{name:<10} {medians[-1] * 1e3:10.2f} ms   ({low * 1e3:.2f} .. {high * 1e3:.2f})")
    print(f"ratio      {medians[0] / medians[1]:10.1f} x")


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
