"""Hadamard matrices by Sylvester doubling and Paley's two constructions over prime fields.

Orders covered: ``2^j * b`` where b is 1, ``q + 1`` for a prime q = 3 mod 4, or ``2 (q + 1)`` for a
prime q = 1 mod 4. That includes every multiple of 4 up to 48, and 80, 96, 112, 160, 192, 576.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from gonio.errors import ShapeError
from gonio.linalg.precision import upcast

__all__ = ["hadamard_matrix", "hadamard_transform", "has_hadamard", "randomized_hadamard"]

RADIX_BITS = 7  # widest power-of-two factor applied as one matrix product: 128


def has_hadamard(d: int) -> bool:
    """Whether this module can build a Hadamard matrix of order d.

    Args:
        d: Order; anything below 1 has none.

    Returns:
        True for the orders of the module's constructions. False does not prove that none exists.
    """
    return _paley_order(d) is not None


def hadamard_matrix(
    d: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> Tensor:
    """Orthonormal Hadamard matrix: entries ``+-1/sqrt(d)``, orthogonal rows.

    Args:
        d: Order.
        dtype: Floating dtype of the result.
        device: Device of the result.

    Returns:
        H with ``H H^T = I``, shape ``(d, d)``; symmetric when d is a power of two, not in general.

    Raises:
        ShapeError: No construction is known here for this order.

    Source: Sylvester 1867; Paley 1933 (doi:10.1002/sapm1933121311).
    """
    base = _required_paley_order(d)
    signs = torch.kron(_sylvester(d // base), _paley(base))
    return (signs.to(dtype=torch.float64, device=device) / math.sqrt(d)).to(dtype)


def hadamard_transform(x: Tensor) -> Tensor:
    """``H x`` for every vector along the last dimension, with H of :func:`hadamard_matrix`.

    The power-of-two part is applied in factors of at most 128, the Paley factor as one product:
    ``O(d log d)`` for fixed Paley order, and H itself is never formed.

    Args:
        x: Shape ``(..., d)``.

    Returns:
        Same shape and Euclidean norm, in the input dtype (float32 for narrower).

    Raises:
        ShapeError: No construction is known here for order d.
    """
    x = upcast(x, "x")
    d = x.shape[-1] if x.ndim else 0
    base = _required_paley_order(d)
    shape = x.shape
    if base > 1:
        paley = _paley(base).to(dtype=x.dtype, device=x.device) / math.sqrt(base)
        x = x.reshape(-1, base) @ paley.mT
    inner = base
    for factor in _radices(d // base):
        block = _sylvester(factor).to(dtype=x.dtype, device=x.device) / math.sqrt(factor)
        x = block @ x.reshape(-1, factor, inner) if inner > 1 else x.reshape(-1, factor) @ block
        inner *= factor
    return x.reshape(shape)


def randomized_hadamard(
    d: int, generator: torch.Generator, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Hadamard matrix after random sign flips of the coordinates, ``H diag(signs)``.

    Args:
        d: Order.
        generator: Source of the signs; the result lies on its device.
        dtype: Floating dtype of the result.

    Returns:
        Orthogonal matrix with entries ``+-1/sqrt(d)``, shape ``(d, d)``.

    Raises:
        ShapeError: No construction is known here for this order.

    Source: Ailon and Chazelle 2009 (doi:10.1137/060673096).
    """
    matrix = hadamard_matrix(d, dtype=dtype, device=generator.device)
    flips = torch.randint(2, (d,), generator=generator, device=generator.device)
    return matrix * (1 - 2 * flips).to(dtype)


def _radices(power: int) -> list[int]:
    """A power of two as the fewest factors of at most 128, as equal as they can be."""
    exponent = power.bit_length() - 1
    count = -(-exponent // RADIX_BITS)
    return [2 ** ((exponent + place) // count) for place in range(count)]


def _required_paley_order(d: int) -> int:
    """The Paley factor of d, or an error that names the cure."""
    base = _paley_order(d)
    if base is not None:
        return base
    known = "no construction is known here"
    if d < 1 or (d > 2 and d % 4):
        known = "none exists (the order must be 1, 2 or a multiple of 4)"
    below = next((order for order in range(d - 1, 0, -1) if has_hadamard(order)), None)
    above = next(order for order in range(max(d, 0) + 1, 2 * max(d, 1) + 1) if has_hadamard(order))
    nearest = f"{below} and {above}" if below is not None else f"{above}"
    raise ShapeError(
        f"no Hadamard matrix of order {d}: {known}; use haar_rotation({d}, ...), "
        f"or pad to one of the nearest orders {nearest}"
    )


@lru_cache(maxsize=1024)
def _paley_order(d: int) -> int | None:
    """Smallest b such that ``d = 2^j b`` and b is 1 or a Paley order; None when there is none."""
    if d < 1:
        return None
    odd = d // (d & -d)
    if odd == 1:
        return 1
    base = 4 * odd
    while base <= d:
        if d % base == 0 and _paley_prime(base) is not None:
            return base
        base *= 2
    return None


def _paley_prime(order: int) -> int | None:
    """The prime behind a Paley matrix of this order: q = order - 1 (I) or order/2 - 1 (II)."""
    if _is_prime(order - 1):
        return order - 1
    half = order // 2 - 1
    return half if half % 4 == 1 and _is_prime(half) else None


def _is_prime(q: int) -> bool:
    """Trial division; orders are small."""
    return q > 1 and all(q % p for p in range(2, math.isqrt(q) + 1))


@lru_cache(maxsize=16)
def _sylvester(order: int) -> Tensor:
    """Signs of the power-of-two Hadamard matrix, int8; callers must not write to it."""
    signs = torch.ones(1, 1, dtype=torch.int8)
    pair = torch.tensor([[1, 1], [1, -1]], dtype=torch.int8)
    while signs.shape[0] < order:
        signs = torch.kron(pair, signs)
    return signs


@lru_cache(maxsize=16)
def _paley(order: int) -> Tensor:
    """Signs of the Paley matrix of this order (1 for order 1), int8; callers must not write to it.

    With chi the quadratic character of the field of q elements and ``Q_ij = chi(i - j)``:
    I (q = 3 mod 4): ``I + [[0, 1], [-1, Q]]``. II (q = 1 mod 4): each entry c of
    ``C = [[0, 1], [1, Q]]`` becomes ``c [[1, 1], [1, -1]]``, a diagonal zero [[1, -1], [-1, -1]].
    """
    if order == 1:
        return torch.ones(1, 1, dtype=torch.int8)
    q = _paley_prime(order)
    if q is None:
        raise ShapeError(f"{order} is not a Paley order over a prime field")
    character = torch.full((q,), -1, dtype=torch.int8)
    character[torch.arange(1, q).square() % q] = 1
    character[0] = 0
    index = torch.arange(q)
    bordered = torch.zeros(q + 1, q + 1, dtype=torch.int8)
    bordered[0, 1:] = 1
    bordered[1:, 0] = -1 if q % 4 == 3 else 1
    bordered[1:, 1:] = character[(index[:, None] - index[None, :]) % q]
    identity = torch.eye(q + 1, dtype=torch.int8)
    if q % 4 == 3:
        return identity + bordered
    pair = torch.tensor([[1, 1], [1, -1]], dtype=torch.int8)
    corner = torch.tensor([[1, -1], [-1, -1]], dtype=torch.int8)
    return torch.kron(bordered, pair) + torch.kron(identity, corner)
