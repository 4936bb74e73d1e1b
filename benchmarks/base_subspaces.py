"""Leading subspaces of every projection weight of SmolLM2-135M: certified Krylov beside dense.

Every certificate is checked against a dense float64 SVD; times are printed only if no certified
bound is exceeded. Times are sums over the matrices of one run each, after a warm-up; every route
gets the float32 weight.

Run: python benchmarks/base_subspaces.py [--every 1] [--threads 1] [--tolerance 1e-3]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from gonio.linalg import certified_top_subspaces, top_singular_subspaces
from gonio.models import open_weights

KS = (5, 10, 20)
Result = TypeVar("Result")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="take every n-th matrix")
    parser.add_argument("--threads", type=int, default=1, help="threads of every route")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="largest sine certified")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    weights = open_weights("smollm2-135m")
    names = [name for name in weights.names if name.endswith("_proj.weight")][:: options.every]
    warm_up = torch.randn(200, 100, generator=torch.Generator().manual_seed(0))
    _dense(warm_up)
    top_singular_subspaces(warm_up, 5)
    certified_top_subspaces(warm_up, 5)

    seconds: dict[tuple[str, int], list[float]] = {}
    certified: dict[int, list[float]] = {k: [] for k in KS}
    bounds: dict[int, list[float]] = {k: [] for k in KS}
    left_out: list[str] = []
    for name in names:
        weight = weights.get(name).float()
        (full_u, _, full_vh), spent = _timed(lambda w=weight: _dense(w))
        seconds.setdefault(("dense", 0), []).append(spent)
        for k in KS:
            _, spent = _timed(lambda w=weight, k=k: top_singular_subspaces(w, k))
            seconds.setdefault(("gram", k), []).append(spent)
            found, spent = _timed(
                lambda w=weight, k=k: certified_top_subspaces(w, k, tolerance=options.tolerance)
            )
            seconds.setdefault(("krylov", k), []).append(spent)
            if not found.certified:
                left_out.append(f"{name}, k = {k}: {found.reason}, gap {found.gap:.1e}")
                continue
            error = max(_sine(found.u, full_u[:, :k]), _sine(found.v, full_vh[:k].mT))
            if error > found.sine_bound:
                raise SystemExit(f"{name}, k = {k}: sine {error:.2e} > {found.sine_bound:.2e}")
            certified[k].append(error)
            bounds[k].append(found.sine_bound)
    _print(options, len(names), seconds, certified, bounds, left_out)


def _print(options, count, seconds, certified, bounds, left_out) -> None:
    print(
        f"{count} matrices, {options.threads} threads, tolerance {options.tolerance:g}; "
        "no certified bound exceeded (checked before any time is printed)"
    )
    print("   k  certified  worst sine  median bound  krylov ms   gram ms    svd ms  gram/k  svd/k")
    dense = statistics.mean(seconds["dense", 0])
    for k in KS:
        krylov, gram = (statistics.mean(seconds[route, k]) for route in ("krylov", "gram"))
        worst = max(certified[k], default=float("nan"))
        bound = statistics.median(bounds[k]) if bounds[k] else float("nan")
        print(
            f"{k:4d} {len(certified[k]):5d} /{count:4d}  {worst:10.1e}  {bound:12.1e} "
            f"{krylov * 1e3:10.1f} {gram * 1e3:9.1f} {dense * 1e3:9.1f} "
            f"{gram / krylov:7.2f} {dense / krylov:6.2f}"
        )
    for line in left_out:
        print(f"not certified: {line}")


def _dense(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    u, sigma, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    return u, sigma, vh


def _sine(found: Tensor, true: Tensor) -> float:
    return float(torch.linalg.matrix_norm(found - true @ (true.mT @ found), 2))


def _timed(function: Callable[[], Result]) -> tuple[Result, float]:
    started = time.perf_counter()
    result = function()
    return result, time.perf_counter() - started


if __name__ == "__main__":
    main()
