"""Learning a rotation for one bit: ``learned_sign_rotation`` against gradient descent.

Both raise the same figure, the mean 1-bit cosine of the same vectors, from the same Haar start. The
gradient methods are torch's own orthogonal parametrizations (Cayley and matrix exponential) under
Adam. Targets are the cosines that the learned rotation reaches in 1, 5, 10 and 30 iterations;
per target the gradient method is timed at torch's default rate, at the rate of a small grid that
gets there first, known only in hindsight, and with the search for it (all runs of the grid). The
learned rotation has no rate to search for. Beside it stands the plain alternation, without
acceleration, after 30 and 200 iterations.
Vectors: keys of the bundled model, and Gaussian vectors with anisotropic covariance. Results are
checked (orthogonal, cosine recomputed by NumPy) before anything is timed; times are of the
processor, not of the wall; a target that is never reached counts as the last step, marked ">=".

Run: python benchmarks/learned_rotation.py [--vectors 2048] [--steps 1000] [--data keys Gaussian]
"""

import argparse
import statistics
import time

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from gonio.kvcache import collect_keys
from gonio.linalg import haar_rotation, learned_sign_rotation
from gonio.models import load_model, load_text, split_tokens, token_windows

ITERATIONS = 30
LONG_RUN = 200  # iterations that show where the fixed point ends
TARGETS = (1, 5, 10, 30)
RATES = (0.001, 0.003, 0.01, 0.03, 0.1)
DEFAULT_RATE = 0.001  # of torch.optim.Adam
METHODS = ("cayley", "matrix_exp")
REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=1000, help="most steps of a gradient method")
    parser.add_argument("--data", nargs="+", default=[""], help="parts of the names of vectors")
    options = parser.parse_args()
    print(f"{options.vectors} vectors of R^64, float32, {torch.get_num_threads()} thread(s)")
    found = [
        compare(name, rows, options.steps)
        for name, rows in data(options.vectors).items()
        if any(part in name for part in options.data)
    ]
    print(f"\ntime to the cosine of {ITERATIONS} iterations, gradient over learned rotation:")
    names = ("best rate in hindsight", f"default rate {DEFAULT_RATE}", "with the rate search")
    for place, name in enumerate(names):
        ratios = [one[place] for one in found]
        print(f"  {name:<24}{min(ratios):.1f} to {max(ratios):.1f}")


def data(count: int) -> dict[str, Tensor]:
    """Keys of one head in three layers, and Gaussian vectors of falling variances."""
    model, tokenizer = load_model("smollm2-135m")
    tokens = split_tokens(tokenizer, load_text(), calibration=count, evaluation=0).calibration
    samples = collect_keys(model, token_windows(tokens, min(512, count)))
    keys = {f"keys of layer {at}, head 0": samples.by_head(at)[0] for at in (0, 15, 29)}
    generator = torch.Generator().manual_seed(0)
    variances = torch.logspace(0, -3, 64)
    gaussian = torch.randn((count, 64), generator=generator) * variances.sqrt()
    return {**keys, "anisotropic Gaussian": gaussian @ haar_rotation(64, generator).mT}


def compare(name: str, vectors: Tensor, most_steps: int) -> tuple[float, ...]:
    """Print both on one set of vectors; the smaller ratios over both parametrizations."""
    unit = vectors / vectors.norm(dim=1, keepdim=True)  # the cosine does not see lengths
    start = haar_rotation(64, torch.Generator().manual_seed(1))
    rotation, trace = learned_sign_rotation(unit, iterations=ITERATIONS, initial=start)
    check(unit, rotation, trace)
    _, long = learned_sign_rotation(unit, iterations=LONG_RUN, initial=start)
    share = float((trace.max() - trace[0]) / (long.max() - trace[0]))
    print(f"\n{name}")
    shown = "  ".join(f"{at}: {long[at]:.4f}" for at in (0, 1, 2, 5, 10, 20, 30, 100, LONG_RUN))
    print(f"  cosine by iteration  {shown}")
    print(f"  share of the gain of {LONG_RUN} iterations reached after {ITERATIONS}: {share:.3f}")
    plain = plain_alternation(unit, start, LONG_RUN)
    print(
        f"  plain alternation    {ITERATIONS}: {plain[ITERATIONS]:.4f}  {LONG_RUN}: {plain[-1]:.4f}"
    )
    seconds = [timed(unit, start) / ITERATIONS for _ in range(REPEATS)]
    step = statistics.median(seconds)
    spread = f"{1e3 * min(seconds):.2f} to {1e3 * max(seconds):.2f}"
    print(f"  learned rotation  {1e3 * step:.2f} ms an iteration ({spread})")
    last = [print_method(method, unit, start, trace, step, most_steps) for method in METHODS]
    return tuple(map(min, zip(*last, strict=True)))


def print_method(
    method: str, unit: Tensor, start: Tensor, trace: Tensor, step: float, most_steps: int
) -> tuple[float, ...]:
    """One line per target; the ratios at the last: best rate, default rate, all rates."""
    goal = trace.max().item()
    runs = {rate: gradient(unit, start, method, rate, goal, most_steps) for rate in RATES}
    ratios: tuple[float, ...] = ()
    for iteration in TARGETS:
        target, ours = trace[: iteration + 1].max().item(), iteration * step
        times = {rate: time_to(target, *run) for rate, run in runs.items()}
        rate = min(times, key=lambda one: (times[one][1], times[one][0]))
        seconds, missed, steps = times[rate]
        ratios = tuple(
            each / ours
            for each in (seconds, times[DEFAULT_RATE][0], sum(one[0] for one in times.values()))
        )
        print(
            f"  {method:<10} to {target:.4f} ({iteration:>2} iterations): rate {rate:<5} "
            f"{steps:>4} steps, ratio {'>=' if missed else ''}{ratios[0]:.1f}, "
            f"default rate {ratios[1]:.0f}, with search {ratios[2]:.0f}"
        )
    return ratios


def time_to(target: float, cosines: list[float], clock: list[float]) -> tuple[float, bool, int]:
    """Seconds and steps until the cosine is reached, and whether it never was."""
    place = next((at for at, cosine in enumerate(cosines) if cosine >= target), None)
    at = len(cosines) - 1 if place is None else place
    return clock[at], place is None, at


def check(unit: Tensor, rotation: Tensor, trace: Tensor) -> None:
    """The result is orthogonal, has the cosine it claims, and its last step did not fall."""
    r = rotation.double().numpy()
    turned = unit.double().numpy() @ r.T
    cosine = np.abs(turned).sum(axis=1) / np.sqrt(64) / np.linalg.norm(turned, axis=1)
    assert np.abs(r @ r.T - np.eye(64)).max() < 1e-6
    assert abs(cosine.mean() - trace.max().item()) < 1e-5
    assert trace[-1] > trace.max() - 1e-6


def plain_alternation(unit: Tensor, rotation: Tensor, iterations: int) -> list[float]:
    """Mean cosine after 0, 1, ... steps of ``R <- polar(sum_k sgn(R k) k^T)`` alone."""
    rows, rotation, cosines = unit.double(), rotation.double(), []
    for _ in range(iterations + 1):
        turned = rows @ rotation.mT
        cosines.append(turned.abs().sum(dim=1).mean().item() / 8.0)
        u, _, vh = torch.linalg.svd(turned.sign().mT @ rows)
        rotation = u @ vh
    return cosines


def timed(unit: Tensor, start: Tensor) -> float:
    started = time.process_time()
    learned_sign_rotation(unit, iterations=ITERATIONS, initial=start)
    return time.process_time() - started


def gradient(
    unit: Tensor, start: Tensor, method: str, rate: float, target: float, most_steps: int
) -> tuple[list[float], list[float]]:
    """Adam on a parametrized rotation until the target: cosine, and seconds, before each step."""
    layer = nn.Linear(64, 64, bias=False)
    parametrizations.orthogonal(layer, orthogonal_map=method)
    layer.weight = start
    optimizer = torch.optim.Adam(layer.parameters(), lr=rate)
    cosines, clock = [0.0], [0.0]
    started = time.process_time()
    while cosines[-1] < target and len(cosines) <= most_steps:
        optimizer.zero_grad()
        loss = -layer(unit).abs().sum(dim=1).mean() / 8.0
        cosines.append(-loss.item())
        clock.append(time.process_time() - started)
        loss.backward()
        optimizer.step()
    return cosines, clock


if __name__ == "__main__":
    main()
