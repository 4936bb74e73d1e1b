"""How far keys stand from the corners of the cube: the 1-bit cosine under each rotation.

Chance is c_d, the mean 1-bit cosine of a uniformly random direction: what a random rotation gives
whatever the keys are (theorem ``srht_achieves_isotropic_floor``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from gonio.kvcache.observe import KeySamples
from gonio.kvcache.transforms import RotationKind
from gonio.linalg.chance import sign_cosine_of_random_direction
from gonio.linalg.rotations import (
    haar_rotation,
    has_hadamard,
    learned_sign_rotation,
    randomized_hadamard,
)
from gonio.quant.sign import population_beta, sign_cosine

__all__ = ["rotation_convergence", "sign_cosine_table"]


def sign_cosine_table(
    samples: KeySamples,
    rotations: Mapping[RotationKind, list[Tensor | None]],
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """1-bit cosine and beta of every head under every rotation.

    Args:
        samples: Keys to measure on; learned rotations must have been fitted on others.
        rotations: Per name, one rotation per layer as :func:`key_rotations` gives them.
        seed: Seed of the bootstrap.

    Returns:
        One row per layer, head and transform: ``layer``, ``head``, ``transform``,
        ``mean_cosine``, its 95% interval ``low``/``high`` (bootstrap over windows, NaN for a
        single window), ``beta`` (energy-weighted, in [1/d, 1]) and ``chance`` (c_d).
    """
    chance = float(sign_cosine_of_random_direction(samples.layout.head_dim))
    rows = []
    for layer, keys in enumerate(samples.keys):  # (windows, heads, samples, head_dim)
        for name, per_layer in rotations.items():
            rotation = per_layer[layer]
            turned = keys if rotation is None else keys @ rotation.mT
            by_window = sign_cosine(turned, zero_value=0.0).mean(dim=-1)  # (windows, heads)
            beta = population_beta(turned.transpose(0, 1).flatten(1, 2))  # (heads,)
            low, high = _interval_over_windows(by_window, seed)
            rows += [
                {
                    "layer": layer,
                    "head": head,
                    "transform": name,
                    "mean_cosine": by_window[:, head].mean().item(),
                    "low": low[head],
                    "high": high[head],
                    "beta": beta[head].item(),
                    "chance": chance,
                }
                for head in range(keys.shape[1])
            ]
    return pd.DataFrame(rows)


def rotation_convergence(
    samples: KeySamples,
    layers: list[int],
    *,
    iterations: int = 50,
    seeds: tuple[int, ...] = (0, 1, 2),
    progress: Callable[[str, int, int], None] | None = None,
) -> pd.DataFrame:
    """Mean 1-bit cosine of the learned rotation by iteration, from two kinds of start.

    Args:
        samples: Keys to learn from; the cosine is that of the same keys.
        layers: Layers to follow.
        iterations: Steps of the fixed point.
        seeds: One run per seed and start, to show the spread.
        progress: Called with (what, runs done, runs).

    Returns:
        One row per layer, start, seed and iteration: ``layer``, ``start`` (``random`` or
        ``hadamard``), ``seed``, ``iteration``, ``mean_cosine`` (mean over heads).
    """
    total = len(layers) * len(seeds) * 2
    frames: list[pd.DataFrame] = []
    for layer in layers:
        keys = samples.by_head(layer)
        for seed in seeds:
            for start, initial in _starts(samples.layout.head_dim, seed).items():
                first = initial.expand(keys.shape[0], -1, -1)
                _, trace = learned_sign_rotation(keys, iterations=iterations, initial=first)
                steps = range(iterations + 1)
                means = trace.mean(dim=-1).tolist()
                frame = pd.DataFrame({"iteration": steps, "mean_cosine": means})
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


def _interval_over_windows(by_window: Tensor, seed: int) -> tuple[list[float], list[float]]:
    """95% percentile bootstrap over windows, per head; tokens of one window are dependent."""
    if by_window.shape[0] < 2:
        undefined = [float("nan")] * by_window.shape[1]
        return undefined, undefined
    result = stats.bootstrap(
        (by_window.double().numpy(),),
        np.mean,
        axis=0,
        n_resamples=999,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    interval = result.confidence_interval
    return np.atleast_1d(interval.low).tolist(), np.atleast_1d(interval.high).tolist()
