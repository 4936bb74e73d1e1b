"""Rotations that rotary embedding cannot tell: pair by pair, and freely where it does not act.

RoPE turns each of its coordinate pairs by an angle that grows with the position. An orthogonal
matrix commutes with all of these turns (for distinct frequencies) exactly when it turns every pair
by an angle of its own and mixes nothing else with it; coordinates that RoPE leaves alone, or all of
them in a model without it, may be rotated at will (theorem ``rope_commutant``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gonio.errors import CodecError, ShapeError
from gonio.linalg.rotations import learned_sign_rotation
from gonio.quant.sign import sign_cosine

__all__ = ["CommutingRotation", "RotaryLayout", "learn_commuting_rotation", "pair_rotation"]

TOLERANCE = 1e-5  # float32 rounding of a learned rotation; a leak of this size shows in no logit


@dataclass(frozen=True, eq=False)
class RotaryLayout:
    """Which coordinates of a head rotary embedding turns together.

    Attributes:
        head_dim: Coordinates of a key.
        pairs: Each turned pair ``(first, second)``, ``(num_pairs, 2)``, int64: RoPE by an angle t
            sends them to ``(first cos t - second sin t, second cos t + first sin t)``.
    """

    head_dim: int
    pairs: Tensor

    def __post_init__(self) -> None:
        used = self.pairs.flatten().tolist()
        if self.pairs.ndim != 2 or self.pairs.shape[-1] != 2 or len(set(used)) != len(used):
            raise ShapeError(
                f"pairs must be distinct coordinates (n, 2), found {tuple(self.pairs.shape)}"
            )
        if used and not 0 <= min(used) <= max(used) < self.head_dim:
            raise ShapeError(f"a pair lies outside the {self.head_dim} coordinates of a head")

    @property
    def free(self) -> Tensor:
        """Coordinates that RoPE leaves alone, ascending, int64."""
        mask = torch.ones(self.head_dim, dtype=torch.bool)
        mask[self.pairs.flatten()] = False
        return mask.nonzero()[:, 0]

    def check(self, rotation: Tensor) -> None:
        """Refuse a matrix that is not orthogonal or does not commute with RoPE.

        Args:
            rotation: ``(heads, head_dim, head_dim)``.

        Raises:
            ShapeError: It has another shape.
            CodecError: It is not orthogonal, or mixes what RoPE turns apart; the message names a
                pair of coordinates.
        """
        if rotation.ndim != 3 or rotation.shape[1:] != (self.head_dim, self.head_dim):
            raise ShapeError(
                f"a rotation must be (heads, {self.head_dim}, {self.head_dim}), "
                f"found {tuple(rotation.shape)}"
            )
        matrix = rotation.double().cpu()
        identity = torch.eye(self.head_dim, dtype=torch.float64)
        if not (matrix @ matrix.mT - identity).abs().max().item() < TOLERANCE:
            raise CodecError("a rotation to fold is not orthogonal")
        wrong = (matrix - self._nearest(matrix)).abs()
        if wrong.max().item() < TOLERANCE:
            return
        head, row, column = torch.unravel_index(wrong.argmax(), wrong.shape)
        raise CodecError(
            f"the rotation of head {int(head)} does not commute with rotary embedding: it mixes "
            f"coordinates {int(row)} and {int(column)}\nOnly a turn within each rotary pair, and "
            "any rotation of coordinates without RoPE, can be folded; apply others online."
        )

    def _nearest(self, matrix: Tensor) -> Tensor:
        """The part of a matrix that commutes with RoPE."""
        free, (first, second) = self.free, self.pairs.unbind(dim=1)
        kept = torch.zeros_like(matrix)
        kept[:, free[:, None], free] = matrix[:, free[:, None], free]
        cosine = (matrix[:, first, first] + matrix[:, second, second]) / 2
        sine = (matrix[:, second, first] - matrix[:, first, second]) / 2
        kept[:, first, first] = kept[:, second, second] = cosine
        kept[:, second, first], kept[:, first, second] = sine, -sine
        return kept


@dataclass(frozen=True, eq=False)
class CommutingRotation:
    """A learned rotation and what it does to the 1-bit cosine.

    Attributes:
        rotation: ``(num_kv_heads, head_dim, head_dim)``, float32.
        cosine_before: Mean 1-bit cosine of the keys as they are, ``(num_kv_heads,)``.
        cosine_after: The same of the rotated keys.
    """

    rotation: Tensor
    cosine_before: Tensor
    cosine_after: Tensor


def pair_rotation(layout: RotaryLayout, angles: Tensor) -> Tensor:
    """Matrices that turn every pair by its angle and leave the other coordinates.

    Args:
        layout: The pairs.
        angles: Radians, ``(heads, num_pairs)``.

    Returns:
        ``(heads, head_dim, head_dim)``, float64.
    """
    first, second = layout.pairs.unbind(dim=1)
    angles = angles.double()
    matrix = torch.eye(layout.head_dim, dtype=torch.float64).repeat(angles.shape[0], 1, 1)
    matrix[:, first, first] = matrix[:, second, second] = angles.cos()
    matrix[:, second, first], matrix[:, first, second] = angles.sin(), -angles.sin()
    return matrix


def learn_commuting_rotation(
    keys: Tensor,
    layout: RotaryLayout,
    *,
    iterations: int = 50,
    generator: torch.Generator | None = None,
) -> CommutingRotation:
    """The rotation commuting with RoPE that brings keys nearest to the corners of the cube.

    The mean 1-bit cosine is a sum over pairs, and each pair's best angle is found exactly
    (:func:`best_pair_angles`). Free coordinates get a learned sign rotation, a local optimum.

    Args:
        keys: ``(num_kv_heads, n, head_dim)``, after RoPE (before it the pairs stand elsewhere);
            zero keys are ignored.
        layout: The pairs that RoPE turns.
        iterations: Steps for the free coordinates.
        generator: Source of their first rotation; the identity without one.

    Raises:
        ShapeError: The keys do not fit the layout.
    """
    if keys.ndim != 3 or keys.shape[-1] != layout.head_dim:
        raise ShapeError(
            f"keys must be (num_kv_heads, n, {layout.head_dim}), found {tuple(keys.shape)}"
        )
    rows = keys.double()
    norm = rows.norm(dim=-1, keepdim=True)
    unit = rows / norm.where(norm > 0, 1)
    first, second = layout.pairs.unbind(dim=1)
    matrix = pair_rotation(layout, best_pair_angles(unit[..., first], unit[..., second]))
    free = layout.free
    if free.numel() > 1 and bool(unit[..., free].any(dim=-1).any(dim=-1).all()):
        found, _ = learned_sign_rotation(
            unit[..., free], iterations=iterations, generator=generator
        )
        matrix[:, free[:, None], free] = found
    before, after = (sign_cosine(x, zero_value=0.0).mean(dim=-1) for x in (unit, unit @ matrix.mT))
    return CommutingRotation(matrix.float(), before, after)


def best_pair_angles(first: Tensor, second: Tensor) -> Tensor:
    """Angles that maximize the L1 norm of turned pairs, summed over samples.

    A sample of length v at angle p, turned by t, has L1 norm ``sqrt(2) v cos(x)`` where x is the
    distance of ``p + t`` from the nearest diagonal: the maximum over m of
    ``cos(p + t - pi/4 - m pi/2)``. As t grows from 0 to pi/2 the samples change their m one by
    one, in the order of their angles, so that the best sum is the longest of n + 1 phasor sums.

    Args:
        first: First coordinates ``(heads, n, num_pairs)``.
        second: Second coordinates, same shape.

    Returns:
        Radians in [-pi/4, pi/4], ``(heads, num_pairs)``, float64.
    """
    length = torch.hypot(first.double(), second.double())
    angle = torch.atan2(second.double(), first.double()).remainder(math.pi / 2)
    order = angle.argsort(dim=1, descending=True)
    phasor = torch.polar(length, angle - math.pi / 4).gather(1, order)
    change = torch.cumsum(phasor * (-1j - 1), dim=1)  # the next sample turns by -pi/2
    total = phasor.sum(dim=1, keepdim=True)
    sums = torch.cat([total, total + change], dim=1)
    best = sums.gather(1, sums.abs().argmax(dim=1, keepdim=True))[:, 0]
    turn = -best.angle()
    return turn - (turn / (math.pi / 2)).round() * (math.pi / 2)
