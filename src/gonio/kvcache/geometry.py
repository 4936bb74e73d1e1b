"""How far vectors stand from the corners of the cube: 1-bit cosine and beta in each frame.

Chance is what a uniformly random direction gives: c_d for the mean cosine (theorem
``srht_achieves_isotropic_floor``), and its counterpart for beta. Vectors whose mean coordinate was
subtracted lie in a hyperplane, where a random direction does like one of R^(d-1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from gonio.errors import ShapeError
from gonio.kvcache.frame import Frame
from gonio.linalg.chance import sign_cosine_of_random_direction
from gonio.linalg.rotations import (
    haar_rotation,
    has_hadamard,
    learned_sign_rotation,
    randomized_hadamard,
)
from gonio.quant.sign import sign_cosine

__all__ = ["beta_of_random_direction", "rotation_convergence", "sign_cosine_table"]

RESAMPLES = 999


def sign_cosine_table(
    samples: Sequence[Tensor],
    windows: Tensor,
    frames: Mapping[str, Sequence[Frame]],
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """1-bit cosine and beta of every head in every frame.

    Args:
        samples: Per layer ``(heads, n, dim)`` to measure on; learned rotations and means must have
            been fitted on others.
        windows: Window of each token, ``(n,)``: the tokens of one window are dependent.
        frames: Per name, one frame per layer.
        seed: Seed of the bootstrap over windows.

    Returns:
        One row per layer, head and transform: ``layer``, ``head``, ``transform``, ``mean_cosine``
        with ``low`` and ``high``, ``beta`` (energy-weighted, in [1/dim, 1]; of what remains after
        centering) with ``beta_low`` and ``beta_high``, ``chance`` and ``beta_chance``. Intervals
        are 95% percentile bootstraps over windows, NaN for a single window; beta is NaN for zeros.

    Raises:
        ShapeError: A layer does not have as many tokens as ``windows``.
    """
    members = torch.unique(windows, return_inverse=True)[1]
    draws = _draws(int(members.max()) + 1, seed)
    heads = [len(vectors) for vectors in samples]
    place = {
        "layer": np.repeat(np.arange(len(heads)), heads),
        "head": np.concatenate([np.arange(each) for each in heads]),
    }
    tables = []
    for name, per_layer in frames.items():
        # Made before the loop: small blocks kept between its large ones would keep the allocator
        # from using the space of the latter again, a gigabyte in all.
        sums = torch.zeros((4, draws.shape[1], sum(heads)), dtype=torch.float64)
        chances = np.empty((2, len(heads)))
        for layer, (vectors, frame, parts) in enumerate(
            zip(samples, per_layer, sums.split(heads, dim=-1), strict=True)
        ):
            if vectors.shape[1:2] != windows.shape:
                raise ShapeError(
                    f"layer {layer} has {vectors.shape[1]} tokens, their windows are "
                    f"{tuple(windows.shape)}"
                )
            turned = frame.apply(vectors[None])[0][0]
            _add_by_window(parts, turned, members)
            dim = turned.shape[-1]
            free = dim - 1 if frame.token_dc and dim > 1 else dim
            chances[0, layer] = sign_cosine_of_random_direction(free)
            chances[1, layer] = beta_of_random_direction(dim, centered=frame.token_dc)
        cosine, count, kept, energy = sums.numpy()
        found = _ratios("mean_cosine", cosine, count, draws) | _ratios("beta", kept, energy, draws)
        chance, beta_chance = chances[:, place["layer"]]
        table = pd.DataFrame({**place, "transform": name, **found})
        tables.append(table.assign(chance=chance, beta_chance=beta_chance))
    columns = ["layer", "head", "transform", "mean_cosine", "low", "high"]
    columns += ["beta", "beta_low", "beta_high", "chance", "beta_chance"]
    return pd.concat(tables, ignore_index=True)[columns]


def beta_of_random_direction(d: int, *, centered: bool = False) -> float:
    """Mean share of the energy that signs keep of a uniformly random direction.

    ``2/pi + (1 - 2/pi)/d`` in R^d, from ``E|x_i x_j|`` of coordinates of the sphere.

    Args:
        d: Dimension, at least 1.
        centered: Whether the direction is drawn from the hyperplane of vectors of mean zero.

    Returns:
        Beta in (2/pi, 1] (of centered directions slightly below), dimensionless; 0 for the only
        centered vector of R^1.

    Raises:
        ShapeError: d is below 1.
    """
    if d < 1:
        raise ShapeError(f"no direction in R^{d}; expected d >= 1")
    if not centered:
        return 2 / math.pi + (1 - 2 / math.pi) / d
    if d == 1:
        return 0.0
    correlation = -1 / (d - 1)  # of two coordinates of a centered Gaussian vector
    product = math.sqrt(1 - correlation**2) + correlation * math.asin(correlation)
    return 1 / d + (1 - 1 / d) * 2 / math.pi * product


def rotation_convergence(
    samples: Sequence[Tensor],
    layers: Sequence[int],
    *,
    iterations: int = 50,
    seeds: tuple[int, ...] = (0, 1, 2),
    progress: Callable[[str, int, int], None] | None = None,
) -> pd.DataFrame:
    """Mean 1-bit cosine of the learned rotation by iteration, from two kinds of start.

    Args:
        samples: Per layer ``(heads, n, dim)`` to learn from; the cosine is that of the same
            vectors.
        layers: Layers to follow.
        iterations: Steps of the fixed point.
        seeds: One run per seed and start, to show the spread.
        progress: Called with (what, runs done, runs).

    Returns:
        One row per layer, start, seed and iteration: ``layer``, ``start`` (``random`` or
        ``hadamard``, the latter only where a Hadamard matrix is known), ``seed``, ``iteration``,
        ``mean_cosine`` (mean over heads).
    """
    starts = {seed: _starts(samples[0].shape[-1], seed) for seed in seeds}
    total = len(layers) * sum(len(each) for each in starts.values())
    frames: list[pd.DataFrame] = []
    for layer in layers:
        for seed in seeds:
            for start, initial in starts[seed].items():
                _, trace = learned_sign_rotation(
                    samples[layer], iterations=iterations, initial=initial
                )
                means = trace.mean(dim=-1).tolist()
                frame = pd.DataFrame({"iteration": range(len(means)), "mean_cosine": means})
                frames.append(frame.assign(layer=layer, start=start, seed=seed))
                if progress is not None:
                    progress("convergence of learned rotations", len(frames), total)
    columns = ["layer", "start", "seed", "iteration", "mean_cosine"]
    return pd.concat(frames, ignore_index=True)[columns]


def _starts(head_dim: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    starts = {"random": haar_rotation(head_dim, generator)}
    if has_hadamard(head_dim):
        starts["hadamard"] = randomized_hadamard(head_dim, generator).float()
    return starts


def _draws(windows: int, seed: int) -> NDArray[np.float64]:
    """How often each window is drawn, ``(resamples, windows)``; no resamples of one window."""
    rng = np.random.default_rng(seed)
    even = np.full(windows, 1 / windows)
    return rng.multinomial(windows, even, size=RESAMPLES if windows > 1 else 0).astype(np.float64)


def _ratios(
    name: str, above: NDArray[np.float64], below: NDArray[np.float64], draws: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """``sum above / sum below`` per head and its interval, from ``(windows, heads)`` each."""
    low, high = (f"{name.removeprefix('mean_cosine')}_{end}".strip("_") for end in ("low", "high"))
    with np.errstate(invalid="ignore"):  # 0 / 0 of a head of zeros is NaN, as documented
        mean = above.sum(axis=0) / below.sum(axis=0)
        resampled = (draws @ above) / (draws @ below)
        bounds = np.full((2, mean.size), np.nan)
        if len(resampled):
            bounds = np.quantile(resampled, [0.025, 0.975], axis=0)
    return {name: mean, low: bounds[0], high: bounds[1]}


def _add_by_window(sums: Tensor, turned: Tensor, members: Tensor) -> None:
    """Add the tokens of each window, ``(heads, n, dim)``, to ``sums``, ``(4, windows, heads)``.

    In this order: 1-bit cosines, tokens, energy that signs keep, energy.
    """
    cosine = sign_cosine(turned, zero_value=0.0).double()
    kept = turned.abs().sum(dim=-1, dtype=torch.float64).square() / turned.shape[-1]
    energy = turned.double().square_().sum(dim=-1)
    for total, each in zip(sums, (cosine, torch.ones_like(cosine), kept, energy), strict=True):
        total.index_add_(0, members, each.mT)
