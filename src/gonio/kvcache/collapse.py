"""How far keys have collapsed: onto one direction, onto one corner of the cube, onto few channels.

The phase-collapse angle of a population is the angle in degrees, in [0, 90], between a key and the
dominant direction of its head (the line that holds most of the second moment, uncentered), as a
median over tokens and heads. At 0 all keys lie on a line and one sign vector serves them all; for
keys without a preferred direction it stays at its chance. The lattice angle is that to the signs
of the dominant direction, a corner of the cube; a key's own signs are its nearest corner, so its
1-bit cosine is at least the cosine of its lattice angle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from gonio.errors import ShapeError
from gonio.kvcache.moments import HeadMoments

__all__ = [
    "angle_of_random_direction",
    "channel_tail",
    "collapse_table",
    "dominant_directions",
    "line_angles",
    "moment_ratio",
]

GAUSSIAN_MOMENT_RATIO = 2 / math.pi  # theorem gaussian_moment_ratio_floor_eq


def dominant_directions(moments: HeadMoments) -> Tensor:
    """Unit vector of each head that holds most of its second moment.

    Returns:
        Leading eigenvectors, either sign, float64 ``(heads, dim)``.
    """
    vectors: Tensor = torch.linalg.eigh(moments.second)[1]
    return vectors[..., -1]


def line_angles(vectors: Tensor, directions: Tensor) -> Tensor:
    """Angle between each vector and the line along its head's direction.

    Args:
        vectors: ``(heads, n, dim)``.
        directions: Nonzero, ``(heads, dim)``.

    Returns:
        Degrees in [0, 90], float64 ``(heads, n)``; NaN for zero vectors.

    Raises:
        ShapeError: The shapes do not fit.
    """
    if vectors.ndim != 3 or directions.shape != vectors[:, 0].shape:
        raise ShapeError(
            f"directions {tuple(directions.shape)} do not fit vectors {tuple(vectors.shape)}"
        )
    unit = directions.double() / directions.double().norm(dim=-1, keepdim=True)
    along = (vectors.double() @ unit[..., None])[..., 0].abs()
    # From the leg across as well: near 0 degrees the arc cosine loses half of the digits.
    across = vectors.double() - (vectors.double() @ unit[..., None]) * unit[:, None]
    across_norm = across.norm(dim=-1)
    angles = torch.atan2(across_norm, along).rad2deg()
    return torch.where((along == 0) & (across_norm == 0), torch.nan, angles)


def angle_of_random_direction(d: int) -> float:
    """Median angle in degrees between a uniformly random line and a fixed one in R^d.

    The squared cosine has the law Beta(1/2, (d - 1)/2).

    Raises:
        ShapeError: d is below 1.
    """
    if d < 1:
        raise ShapeError(f"no direction in R^{d}; expected d >= 1")
    if d == 1:
        return 0.0
    return math.degrees(math.acos(math.sqrt(stats.beta.median(0.5, (d - 1) / 2))))


def moment_ratio(moments: HeadMoments) -> Tensor:
    """``(E|x|)^2 / E x^2`` of each channel.

    Returns:
        Ratios in [0, 1], 2/pi for a centered Gaussian and 1 for a constant magnitude, float64
        ``(heads, dim)``; NaN for a channel that is always zero.

    Theorem: ``moment_ratio_le_one``, ``gaussian_moment_ratio_floor_eq``.
    """
    energy = moments.powers[1]
    scaled = moments.absolute.square() / moments.count
    return torch.where(energy > 0, scaled / energy, torch.nan)


def channel_tail(moments: HeadMoments) -> tuple[Tensor, Tensor]:
    """Excess kurtosis of each channel, and the energy of the strongest 1 % of channels.

    Returns:
        Excess kurtosis about the channel's mean, at least -2, 0 for a Gaussian, float64
        ``(heads, dim)``, NaN for a constant channel; and the share of a head's energy in its
        ``max(1, dim // 100)`` strongest channels, in (0, 1], ``(heads,)``.
    """
    first, second, third, fourth = moments.powers / moments.count
    variance = second - first.square()
    central = fourth - 4 * first * third + 6 * first.square() * second - 3 * first**4
    spread = variance > 1e-10 * second  # below, the difference is rounding
    kurtosis = torch.where(spread, central / variance.square() - 3, torch.nan)
    energy = moments.powers[1]
    strongest = energy.topk(_one_percent(energy.shape[-1]), dim=-1).values.sum(dim=-1)
    return kurtosis, strongest / energy.sum(dim=-1)


def collapse_table(
    what: str,
    samples: Sequence[Tensor],
    moments: Sequence[HeadMoments],
    directions: Sequence[Tensor],
) -> pd.DataFrame:
    """Collapse of one kind of vector, a row per layer.

    Args:
        what: Its name.
        samples: Per layer ``(heads, n, dim)``.
        moments: Per layer, of the same text.
        directions: Per layer ``(heads, dim)``, best found on other text.

    Returns:
        Columns ``layer``, ``what``, ``phase_angle`` and ``lattice_angle`` (degrees, median) with
        the chance of both, ``angle_chance``; ``moment_ratio`` and ``excess_kurtosis`` (means over
        channels and heads) with ``moment_ratio_chance`` (Gaussian; 0 for the kurtosis);
        ``top_channel_energy`` (mean over heads) with ``top_channel_chance`` (equal energies).
    """
    rows = []
    for layer, (vectors, sums, lines) in enumerate(zip(samples, moments, directions, strict=True)):
        dim = vectors.shape[-1]
        kurtosis, strongest = channel_tail(sums)
        corners = torch.where(lines >= 0, 1.0, -1.0)
        rows.append(
            {
                "layer": layer,
                "what": what,
                "phase_angle": line_angles(vectors, lines).nanmedian().item(),
                "lattice_angle": line_angles(vectors, corners).nanmedian().item(),
                "angle_chance": angle_of_random_direction(dim),
                "moment_ratio": moment_ratio(sums).nanmean().item(),
                "moment_ratio_chance": GAUSSIAN_MOMENT_RATIO,
                "excess_kurtosis": kurtosis.nanmean().item(),
                "top_channel_energy": strongest.nanmean().item(),
                "top_channel_chance": _one_percent(dim) / dim,
            }
        )
    return pd.DataFrame(rows)


def _one_percent(dim: int) -> int:
    return max(1, dim // 100)
