"""Leading singular subspaces by block Krylov iteration, each with a certificate of its error."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gonio.errors import SettingError
from gonio.linalg.certificate import (
    LOST,
    NO_GAP,
    NOT_CONVERGED,
    TopSubspaces,
    check_rank,
    check_tolerance,
    residual_columns,
    scaled_weight,
    unscaled,
    worst_residual,
)
from gonio.linalg.precision import upcast
from gonio.linalg.spectrum import spectral_tolerance

__all__ = ["TopSubspaces", "certified_top_subspaces", "krylov_subspaces"]

# Narrower blocks or fewer of them say too little of the direction after the k-th: in random trials
# with blocks from k + 1 its bound failed in 1 of 2000 cases with up to three blocks.
_OVERSAMPLING = 4
_LEAST_BLOCKS = 5


def certified_top_subspaces(
    weight: Tensor,
    k: int,
    *,
    generator: torch.Generator | None = None,
    block: int | None = None,
    max_iterations: int = 30,
    tolerance: float = 1e-3,
) -> TopSubspaces:
    """The k leading singular triplets: :func:`krylov_subspaces` for a single k."""
    return krylov_subspaces(
        weight,
        (k,),
        generator=generator,
        block=block,
        max_iterations=max_iterations,
        tolerance=tolerance,
    )[k]


def krylov_subspaces(
    weight: Tensor,
    ks: Sequence[int],
    *,
    generator: torch.Generator | None = None,
    block: int | None = None,
    max_iterations: int = 30,
    tolerance: float = 1e-3,
) -> dict[int, TopSubspaces]:
    """Leading singular triplets from products with the weight, one search for every k.

    Randomised block Golub-Kahan with full reorthogonalisation, stopped as soon as every bound is
    within the tolerance. Products of a float32 weight are taken in float32; the small problems,
    the last Rayleigh-Ritz step and both residuals in float64.

    Wedin's bound divides the larger residual by ``sigma_k - sigma_{k+1}``. There ``sigma_{k+1}``
    is bounded by the next Ritz value plus the residual of all k + 1, which presumes that the
    random block, wider than k, missed no direction above it. That holds with high probability
    for a start drawn independently of the weight, and is not verified; so nothing is certified
    before the fifth block unless the space is exhausted.

    Args:
        weight: Shape ``(m, n)``; float32 or float64, narrower ones as float32.
        ks: Numbers of directions, each at most the numerical rank.
        generator: Source of the starting block; one seeded with 0 when omitted.
        block: Width of a block, at least ``max(ks) + 4`` (or ``min(m, n)``), which is also taken
            when omitted. One no wider than k would take a repeated value for a single one.
        max_iterations: Blocks at most, 1 or more; fewer than 5 certify only an exhausted space.
        tolerance: Sine at which the subspaces count as certified, in (0, 0.1].

    Returns:
        For every k its triplets and their certificate, whether or not it is within the tolerance.

    Raises:
        ShapeError: The weight is not a matrix, a k is below 1 or above ``min(m, n)``, or a k is
            above the numerical rank: the directions past it are rounding noise.
        ZeroMatrixError: The weight is zero.
        SettingError: No k, block, iterations or tolerance out of range, or the weight is not
            finite.

    Source: Musco and Musco 2015 (arXiv:1504.05477), algorithm 2; Wedin 1972
    (doi:10.1007/BF01932678), the sin-theta theorem.
    """
    scaled, size = scaled_weight(upcast(weight, "weight"), ks)
    m, n = scaled.shape
    most = max(ks)
    width = _checked_block(block, most, min(m, n))
    check_tolerance(tolerance)
    if max_iterations < 1:
        raise SettingError(f"max_iterations is {max_iterations}, expected at least 1 iteration")
    working = torch.float64 if weight.dtype == torch.float64 else torch.float32
    tall = scaled if m >= n else scaled.mT
    search = _Search(tall.to(working), _start(tall, width, generator, working))
    open_ks = sorted(set(ks))
    found: dict[int, TopSubspaces] = {}
    while open_ks:
        search.extend()
        finished = search.is_exhausted or search.iterations >= max_iterations
        if not (finished or _is_settled(search, open_ks, tolerance)):
            continue
        triplets = _refined(tall, search.leading_right(min(most + 1, search.dimension)))
        columns = residual_columns(tall, *triplets)
        found |= {k: _certificate(tall, triplets, columns, k, search, tolerance) for k in open_ks}
        open_ks = [k for k in open_ks if not (finished or found[k].reason in ("", NO_GAP))]
    if search.is_exhausted:
        check_rank(triplets[1], (m, n), most, working)
    return {k: unscaled(found[k], size, is_swapped=m < n) for k in found}


class _Search:
    """A growing Krylov space of a tall matrix: ``W V = U B`` with orthonormal ``U`` and ``V``.

    ``W^T U = V B^T`` except in the columns of the last block, where ``next_right @ coupling`` is
    missing; so every Ritz residual is known without a further product.
    """

    def __init__(self, tall: Tensor, start: Tensor) -> None:
        """Take the matrix ``(m, n)``, ``m >= n``, and a start ``(n, b)`` of independent columns."""
        self._tall = tall
        # Where a remainder is no more than rounding, there is no further direction to be had.
        factor = min(4 * math.sqrt(sum(tall.shape)), max(tall.shape))
        self.floor = factor * torch.finfo(tall.dtype).eps
        self.left: Tensor = tall.new_empty(tall.shape[0], 0)
        self.right: Tensor = tall.new_empty(tall.shape[1], 0)
        self.core = torch.empty(0, 0, dtype=torch.float64, device=tall.device)
        self.next_right: Tensor = torch.linalg.qr(start).Q
        self.coupling = self.core
        self._norm = 0.0
        self.iterations = 0

    @property
    def dimension(self) -> int:
        return self.right.shape[1]

    @property
    def is_exhausted(self) -> bool:
        return self.next_right.numel() == 0

    def extend(self) -> None:
        """One more block on either side."""
        fresh_right = self.next_right
        image = self._tall @ fresh_right  # (m, b)
        self._norm = max(self._norm, float(torch.linalg.vector_norm(image, dim=0).max()))
        above, fresh_left, below = _split(image, self.left, self.floor * self._norm)
        rows, columns = self.core.shape
        core = self.core.new_zeros(rows + below.shape[0], columns + fresh_right.shape[1])
        core[:rows, :columns] = self.core
        core[:rows, columns:] = above
        core[rows:, columns:] = below
        self.core = core
        self.left = torch.cat([self.left, fresh_left], dim=1)
        self.right = torch.cat([self.right, fresh_right], dim=1)
        image = self._tall.mT @ fresh_left  # (n, b)
        _, self.next_right, self.coupling = _split(image, self.right, self.floor * self._norm)
        self.iterations += 1

    def ritz(self, count: int) -> tuple[Tensor, Tensor]:
        """Ritz values, and the residual columns of the first ``count``, ``(b, count)``.

        Through the Gram matrix of the small core, thrice as fast as its singular vectors; what it
        cannot resolve only moves the moment of the certificate, which does not use it.
        """
        squares, left = torch.linalg.eigh(self.core @ self.core.mT)
        values, left = squares.flip(0).clamp(min=0).sqrt(), left.flip(1)
        last = self.coupling.shape[1]
        if last == 0:
            return values, values.new_zeros(0, min(count, len(values)))
        return values, self.coupling @ left[-last:, :count]

    def leading_right(self, count: int) -> Tensor:
        """The leading right Ritz vectors, float64, shape ``(n, count)``."""
        turn: Tensor = torch.linalg.svd(self.core).Vh[:count].mT
        vectors: Tensor = self.right @ turn.to(self.right.dtype)
        return vectors.double()


def _start(
    tall: Tensor, width: int, generator: torch.Generator | None, dtype: torch.dtype
) -> Tensor:
    """The random block ``(n, width)`` that the search grows from."""
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    shape = (tall.shape[1], width)
    start = torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device)
    return start.to(tall.device, dtype)


def _checked_block(block: int | None, k: int, smaller: int) -> int:
    """The block width, at most ``min(m, n)``."""
    if block is None:
        block = k + _OVERSAMPLING
    if block < min(k + _OVERSAMPLING, smaller):
        raise SettingError(
            f"block is {block}, expected at least k + {_OVERSAMPLING} = {k + _OVERSAMPLING}: "
            "a narrower one can miss a direction, or take a repeated value for a single one"
        )
    return min(block, smaller)


def _split(image: Tensor, basis: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    """``image = basis @ inside + fresh @ outside`` up to ``floor``, with fresh orthonormal columns.

    Directions of the remainder no longer than ``floor`` are dropped: ``fresh`` may be narrower
    than ``image``, or empty.

    Returns:
        ``inside`` ``(p, b)`` in float64, ``fresh`` ``(d, c)``, ``outside`` ``(c, b)`` in float64.
    """
    inside = basis.mT @ image
    remainder = image - basis @ inside
    again = basis.mT @ remainder
    remainder = remainder - basis @ again
    inside = inside.double() + again.double()
    frame, triangle = torch.linalg.qr(remainder)
    turn, length, rows = torch.linalg.svd(triangle.double(), full_matrices=False)
    kept = int((length > floor).sum())
    fresh = frame @ turn[:, :kept].to(frame.dtype)
    if kept and float(length[kept - 1]) < 0.01 * float(torch.linalg.vector_norm(inside)):
        # A remainder much shorter than its image is no longer orthogonal to the basis: once more.
        fresh = torch.linalg.qr(fresh - basis @ (basis.mT @ fresh)).Q
    outside = fresh.double().mT @ (frame.double() @ (turn[:, :kept] * length[:kept]))
    return inside, fresh, outside @ rows[:kept]


def _is_settled(search: _Search, ks: Sequence[int], tolerance: float) -> bool:
    """Whether the projected problem promises a certificate for every k, or shows no gap there."""
    most = max(ks)
    if search.iterations < _LEAST_BLOCKS or search.dimension <= most:
        return False
    if search.iterations > 5 and search.iterations % 2:
        return False  # the small problem is no longer small: look at every other block
    values, columns = search.ritz(most + 1)
    if len(values) <= most:
        return False
    smallest = max(tolerance**2, 64 * torch.finfo(search.right.dtype).eps)
    for k in ks:
        residual, next_residual = worst_residual((columns,), k), worst_residual((columns,), k + 1)
        apart = float(values[k - 1] - values[k]) - next_residual
        limit = smallest * float(values[k - 1])
        if residual > tolerance * apart if apart > 0 else next_residual > limit:
            return False
    return True


def _refined(tall: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A Rayleigh-Ritz step in float64: ``u (m, c)``, ``sigma (c,)``, ``v (n, c)``."""
    right = torch.linalg.qr(right).Q
    left, triangle = torch.linalg.qr(tall @ right)
    turn_left, sigma, turn_right = torch.linalg.svd(triangle)
    return left @ turn_left, sigma, right @ turn_right.mT


def _certificate(
    tall: Tensor,
    triplets: tuple[Tensor, Tensor, Tensor],
    columns: tuple[Tensor, Tensor],
    k: int,
    search: _Search,
    tolerance: float,
) -> TopSubspaces:
    """The certificate of the first k of more refined triplets, in scaled units."""
    u, sigma, v = triplets
    rounding = spectral_tolerance(sigma, sum(tall.shape), torch.float64)
    residual = worst_residual(columns, k)
    if k == tall.shape[1]:
        following = 0.0  # there is no further singular value
    elif len(sigma) > k:
        following = float(sigma[k]) + worst_residual(columns, k + 1) + rounding
    else:  # an invariant space of no more than k dimensions
        following = 0.0
    # What a short space left out as rounding has columns below the floor.
    if search.is_exhausted and min(search.core.shape) < tall.shape[1]:
        following += search.floor * float(sigma[0]) * math.sqrt(tall.shape[1])
    last = float(sigma[min(k, len(sigma)) - 1])
    apart = last - following
    sine_bound = min(1.0, (residual + rounding) / apart) if apart > 0 else 1.0
    is_explored = search.is_exhausted or search.iterations >= _LEAST_BLOCKS
    certified = sine_bound <= tolerance and len(sigma) >= k and is_explored
    least = float(sigma[min(k, len(sigma) - 1)])
    is_resolved = apart <= 0 and (
        search.is_exhausted or following - least <= min(tolerance, 1e-3) * last
    )
    if certified:
        reason = ""
    elif is_resolved:
        reason = NO_GAP
    else:
        reason = LOST if search.is_exhausted else NOT_CONVERGED
    gap = apart / last if last > 0 else 0.0
    return TopSubspaces(
        u[:, :k],
        sigma[:k],
        v[:, :k],
        residual,
        gap,
        sine_bound,
        certified,
        reason,
        search.iterations,
    )
