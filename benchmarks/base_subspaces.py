"""Leading subspaces of every projection weight of SmolLM2-135M, three k at once, against dense SVD.

Two certified routes, each for all k in one call: the Gram matrix with its leading eigenvectors
(``dense_subspaces``, what ``certified_subspaces`` takes at these sizes) and one Krylov search. The
overlap with a third subspace, half inside the true one, is compared with the overlap the dense
float64 SVD gives; times are printed only if every certified result is within its bound. Times are
means of one run per matrix, after a warm-up; every route gets the weight as stored.

With ``--sizes`` both routes are timed on square matrices of the given sides as well, to see where
one overtakes the other.

Run: python benchmarks/base_subspaces.py [--every 1] [--threads 1] [--sizes 1024 2048]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from gonio.linalg import TopSubspaces, subspace_overlap
from gonio.linalg.certified import dense_subspaces
from gonio.linalg.krylov import krylov_subspaces
from gonio.models import open_weights

KS = (5, 10, 20)
ROUTES = {"dense": dense_subspaces, "krylov": krylov_subspaces}
WITHIN = 1e-3  # largest error of an overlap that a certificate allows
Result = TypeVar("Result")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1, help="take every n-th matrix")
    parser.add_argument("--threads", type=int, default=1, help="threads of every route")
    parser.add_argument("--sizes", type=int, nargs="*", default=[], help="sides of square matrices")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    weights = open_weights("smollm2-135m")
    names = [name for name in weights.names if name.endswith("_proj.weight")][:: options.every]
    _warm_up()
    seconds: dict[str, list[float]] = {name: [] for name in ("svd", *ROUTES)}
    errors: dict[tuple[str, int], list[float]] = {}
    bounds: dict[tuple[str, int], list[float]] = {}
    left_out: list[str] = []
    for name in names:
        weight = weights.get(name)
        truth, spent = _timed(lambda w=weight: _svd(w))
        seconds["svd"].append(spent)
        for route, subspaces in ROUTES.items():
            found, spent = _timed(lambda f=subspaces, w=weight: f(w, KS))
            seconds[route].append(spent)
            for k, result in found.items():
                if not result.certified:
                    left_out.append(f"{route}, {name}, k = {k}: {result.reason}")
                    continue
                error = _overlap_error(result, truth, k)
                if error > min(WITHIN, result.sine_bound + 1e-12):
                    raise SystemExit(f"{route}, {name}, k = {k}: overlap off by {error:.1e}")
                errors.setdefault((route, k), []).append(error)
                bounds.setdefault((route, k), []).append(result.sine_bound)
    _print(options.threads, len(names), seconds, errors, bounds)
    for line in left_out:
        print(f"uncertified: {line}")
    for side in options.sizes:
        _time_size(side)


def _overlap_error(found: TopSubspaces, truth: tuple[Tensor, Tensor], k: int) -> float:
    """Largest error of the overlap with a third subspace, over both sides."""
    errors = []
    for mine, basis in zip((found.u, found.v), truth, strict=True):
        noise = torch.randn(
            basis.shape[0], k, generator=torch.Generator().manual_seed(k), dtype=torch.float64
        )
        third = torch.linalg.qr(basis[:, :k] + torch.linalg.qr(noise).Q).Q
        found_overlap, overlap = (subspace_overlap(b, third) for b in (mine, basis[:, :k]))
        errors.append(abs(float(found_overlap - overlap)))
    return max(errors)


def _print(threads, count, seconds, errors, bounds) -> None:
    print(
        f"{count} matrices, {threads} threads, k = {', '.join(map(str, KS))} at once; every "
        f"certified overlap is within its bound and {WITHIN:g} of the dense one (checked first)"
    )
    print("route     k   certified  worst error  worst bound  median bound")
    for route in ROUTES:
        for k in KS:
            error, bound = errors.get((route, k), []), bounds.get((route, k), [])
            if bound:
                print(
                    f"{route:8s} {k:2d}  {len(error):4d} /{count:4d}  {max(error):11.1e}  "
                    f"{max(bound):11.1e}  {statistics.median(bound):12.1e}"
                )
    dense = statistics.mean(seconds["svd"])
    for route in ("svd", *ROUTES):
        mean = statistics.mean(seconds[route])
        print(f"{route:8s} {mean * 1e3:7.1f} ms a matrix, {sum(seconds[route]):6.2f} s in all, "
              f"{dense / mean:5.2f} times the speed of the SVD")  # fmt: skip


def _time_size(side: int) -> None:
    """Both routes on a Gaussian matrix with sixty directions above the bulk."""
    generator = torch.Generator().manual_seed(0)
    noise, left, right = (torch.randn(side, n, generator=generator) for n in (side, 60, 60))
    left, right = torch.linalg.qr(left).Q, torch.linalg.qr(right).Q
    edge = 2 * side**0.5
    weight = noise + (left * edge * (1 + 1.5 * 0.95 ** torch.arange(60.0))) @ right.mT
    for route, subspaces in ROUTES.items():
        found, spent = _timed(lambda f=subspaces: f(weight, KS))
        kept = [k for k, result in found.items() if result.certified]
        blocks = max(result.iterations for result in found.values())
        print(f"{side:6d} {route:8s} {spent * 1e3:8.1f} ms, certified k = {kept}, {blocks} blocks")


def _warm_up() -> None:
    weight = torch.randn(200, 100, generator=torch.Generator().manual_seed(0))
    _svd(weight)
    for subspaces in ROUTES.values():
        subspaces(weight, KS)


def _svd(weight: Tensor) -> tuple[Tensor, Tensor]:
    u, _, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    return u, vh.mT


def _timed(function: Callable[[], Result]) -> tuple[Result, float]:
    started = time.perf_counter()
    result = function()
    return result, time.perf_counter() - started


if __name__ == "__main__":
    main()
