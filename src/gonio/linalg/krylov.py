"""Leading singular subspaces by block Krylov iteration, each with a certificate of its error."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gonio.errors import SettingError, ShapeError, ZeroMatrixError
from gonio.linalg.precision import upcast
from gonio.linalg.spectrum import numerical_rank, spectral_tolerance

__all__ = ["TopSubspaces", "certified_top_subspaces"]

# Narrower blocks, fewer of them or larger sines say too little of the direction after the k-th: in
# random trials with blocks from k + 1 its bound failed in 1 of 2000 cases with up to three blocks,
# and at a sine of 0.2 a certificate was wrong.
_OVERSAMPLING = 4
_LEAST_BLOCKS = 5
_LARGEST_SINE = 0.1
_NO_GAP = "k in no gap"
_NOT_CONVERGED = "not converged"
_LOST = "gap lost in rounding"


@dataclass(frozen=True)
class TopSubspaces:
    """Approximate leading singular triplets of a weight, and what is known of their error.

    The overlap of ``u`` (or ``v``) with any third subspace differs from that of the true one by at
    most the sine of the largest angle between the two, so by at most ``sine_bound``.

    Attributes:
        u: Orthonormal columns, float64, shape ``(m, k)``.
        sigma: Ritz values, descending, in the unit of the weight, float64, shape ``(k,)``.
        v: Orthonormal columns, float64, shape ``(n, k)``.
        residual: The larger of ``|W^T U - V S|_2`` and ``|W V - U S|_2``, in the unit of the
            weight. The smaller is rounding by construction and says nothing.
        gap: ``(sigma_k - bound on sigma_{k+1}) / sigma_k``, at most 1; 0 or below where the bound
            does not separate the two values.
        sine_bound: Largest sine of a principal angle to the true left or right subspace, bounded
            by ``residual / (sigma_k - bound on sigma_{k+1})`` with float64 rounding added; at most
            1, the value that says nothing.
        certified: Whether ``sine_bound`` is within the tolerance asked for.
        reason: Empty when certified, else ``k in no gap`` (the values on both sides of k cannot be
            told apart, so the subspace is arbitrary), ``gap lost in rounding`` (the space is
            exhausted and the products are too coarse for the gap: a float64 weight may do) or
            ``not converged``.
        iterations: Blocks in the Krylov space.
    """

    u: Tensor
    sigma: Tensor
    v: Tensor
    residual: float
    gap: float
    sine_bound: float
    certified: bool
    reason: str
    iterations: int


def certified_top_subspaces(
    weight: Tensor,
    k: int,
    *,
    generator: torch.Generator | None = None,
    block: int | None = None,
    max_iterations: int = 30,
    tolerance: float = 1e-3,
) -> TopSubspaces:
    """The k leading singular triplets from products with the weight, with a bound on their error.

    Randomised block Golub-Kahan with full reorthogonalisation, stopped as soon as the bound is
    within the tolerance. Products of a float32 weight are taken in float32; the small problems,
    the last Rayleigh-Ritz step and both residuals in float64.

    Wedin's bound divides the larger residual by ``sigma_k - sigma_{k+1}``. There ``sigma_{k+1}``
    is bounded by the next Ritz value plus the residual of all k + 1, which presumes that the
    random block, wider than k, missed no direction above it. That holds with high probability
    for a start drawn independently of the weight, and is not verified; so nothing is certified
    before the fifth block unless the space is exhausted.

    Args:
        weight: Shape ``(m, n)``; float32 or float64, narrower ones as float32.
        k: Number of directions, at most the numerical rank.
        generator: Source of the starting block; one seeded with 0 when omitted.
        block: Width of a block, at least ``k + 4`` (or ``min(m, n)``), which is also taken when
            omitted. One no wider than k would take a repeated value for a single one.
        max_iterations: Blocks at most, 1 or more; fewer than 5 certify only an exhausted space.
        tolerance: Sine at which the subspaces count as certified, in (0, 0.1].

    Returns:
        The triplets and their certificate, whether or not it is within the tolerance.

    Raises:
        ShapeError: The weight is not a matrix, k is below 1 or above ``min(m, n)``, or k is above
            the numerical rank: the directions past it are rounding noise.
        ZeroMatrixError: The weight is zero.
        SettingError: Block, iterations or tolerance out of range, or the weight is not finite.

    Source: Musco and Musco 2015 (arXiv:1504.05477), algorithm 2; Wedin 1972
    (doi:10.1007/BF01932678), the sin-theta theorem.
    """
    scaled, size = _scaled(upcast(weight, "weight"), k)
    m, n = scaled.shape
    width = _checked_block(block, k, min(m, n))
    if max_iterations < 1 or not 0 < tolerance <= _LARGEST_SINE:
        raise SettingError(
            f"max_iterations is {max_iterations} and tolerance {tolerance}; "
            f"expected at least 1 iteration and a sine in (0, {_LARGEST_SINE}]"
        )
    working = torch.float64 if weight.dtype == torch.float64 else torch.float32
    tall = scaled if m >= n else scaled.mT
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    start = torch.randn(
        (tall.shape[1], width), generator=generator, dtype=torch.float64, device=generator.device
    )
    search = _Search(tall.to(working), start.to(weight.device, working))
    while True:
        search.extend()
        finished = search.is_exhausted or search.iterations >= max_iterations
        if finished or _is_settled(search, k, tolerance):
            triplets = _refined(tall, search.leading_right(min(k + 1, search.dimension)))
            result = _certificate(tall, triplets, k, search, tolerance)
            if finished or result.certified or result.reason == _NO_GAP:
                break
    rank = int(numerical_rank(triplets[1], (m, n), dtype=working)) if search.is_exhausted else k
    if rank < k:
        raise ShapeError(
            f"{k} singular directions asked of a {m} x {n} weight of numerical rank {rank}; "
            f"ask for at most {rank}"
        )
    return _unscaled(result, size, is_swapped=m < n)


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


def _scaled(weight: Tensor, k: int) -> tuple[Tensor, float]:
    """The weight in float64 with largest entry 1, and that entry, after checking both."""
    if weight.ndim != 2 or not 1 <= k <= min(weight.shape):
        raise ShapeError(
            f"{k} singular directions asked of a weight of shape {tuple(weight.shape)}; "
            "expected a matrix (m, n) with 1 <= k <= min(m, n)"
        )
    size = float(weight.abs().max())
    if size == 0:
        raise ZeroMatrixError(f"a zero weight {tuple(weight.shape)} has no singular directions")
    if not math.isfinite(size):
        raise SettingError(
            f"the weight {tuple(weight.shape)} holds NaN or infinite entries; "
            "singular directions need finite ones"
        )
    return weight.double() / size, size


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


def _is_settled(search: _Search, k: int, tolerance: float) -> bool:
    """Whether the projected problem promises a certificate, or shows that there is no gap."""
    if search.iterations < _LEAST_BLOCKS or search.dimension <= k:
        return False
    if search.iterations > 5 and search.iterations % 2:
        return False  # the small problem is no longer small: look at every other block
    values, columns = search.ritz(k + 1)
    if len(values) <= k:
        return False
    residual = float(torch.linalg.matrix_norm(columns[:, :k], 2))
    next_residual = float(torch.linalg.matrix_norm(columns, 2))
    apart = float(values[k - 1] - values[k]) - next_residual
    if apart > 0:
        return residual <= tolerance * apart
    smallest = max(tolerance**2, 64 * torch.finfo(search.right.dtype).eps)
    return next_residual <= smallest * float(values[k - 1])


def _refined(tall: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A Rayleigh-Ritz step in float64: ``u (m, c)``, ``sigma (c,)``, ``v (n, c)``."""
    right = torch.linalg.qr(right).Q
    left, triangle = torch.linalg.qr(tall @ right)
    turn_left, sigma, turn_right = torch.linalg.svd(triangle)
    return left @ turn_left, sigma, right @ turn_right.mT


def _residuals(tall: Tensor, u: Tensor, sigma: Tensor, v: Tensor) -> tuple[float, float]:
    """``|W^T U - V S|_2`` and ``|W V - U S|_2``."""
    first = float(torch.linalg.matrix_norm(tall.mT @ u - v * sigma, 2))
    return first, float(torch.linalg.matrix_norm(tall @ v - u * sigma, 2))


def _certificate(
    tall: Tensor,
    triplets: tuple[Tensor, Tensor, Tensor],
    k: int,
    search: _Search,
    tolerance: float,
) -> TopSubspaces:
    """The certificate of the first k of up to k + 1 refined triplets, in scaled units."""
    u, sigma, v = triplets
    rounding = spectral_tolerance(sigma, sum(tall.shape), torch.float64)
    top = u[:, :k], sigma[:k], v[:, :k]
    residual = max(_residuals(tall, *top))
    if k == tall.shape[1]:
        following = 0.0  # there is no further singular value
    elif len(sigma) > k:
        following = float(sigma[k]) + max(_residuals(tall, u, sigma, v)) + rounding
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
    is_resolved = apart <= 0 and (
        search.is_exhausted or following - float(sigma[-1]) <= min(tolerance, 1e-3) * last
    )
    if certified:
        reason = ""
    elif is_resolved:
        reason = _NO_GAP
    else:
        reason = _LOST if search.is_exhausted else _NOT_CONVERGED
    gap = apart / last if last > 0 else 0.0
    return TopSubspaces(*top, residual, gap, sine_bound, certified, reason, search.iterations)


def _unscaled(result: TopSubspaces, size: float, *, is_swapped: bool) -> TopSubspaces:
    """The result in the unit of the weight, with left and right put back."""
    u, v = (result.v, result.u) if is_swapped else (result.u, result.v)
    return TopSubspaces(
        u,
        result.sigma * size,
        v,
        result.residual * size,
        result.gap,
        result.sine_bound,
        result.certified,
        result.reason,
        result.iterations,
    )
