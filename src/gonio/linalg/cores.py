"""The small matrix that has the spectrum of a factored product, by the cheaper route that will do.

With ``B = Q_b R_b`` and ``A^T = Q_a R_a`` the product ``B A`` is ``Q_b (R_b R_a^T) Q_a^T``: its
spectrum is that of the core ``R_b R_a^T``, at most r by r. The triangles come from QR, or several
times faster from Gram matrices where the conditioning of the factors, measured on them, allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gonio.errors import SettingError, ShapeError
from gonio.linalg.balance import balanced, check_factors, check_scaling
from gonio.linalg.gram import GramTriangles, gram_triangles

__all__ = ["Cores", "FactorBatch", "Factors", "core_error", "product_cores"]

_EPS = torch.finfo(torch.float64).eps

Factors = Tensor | Sequence[Tensor]


@dataclass(frozen=True)
class FactorBatch:
    """A flat batch of N factor pairs of one shape.

    Attributes:
        lora_b: N matrices of shape ``(m, r)``.
        lora_a: N matrices of shape ``(r, n)``.
        scaling: Float64, shape ``(N,)``.
        dims: The batch dimensions that were flattened.
        shape: ``(m, n, r)``.
    """

    lora_b: Sequence[Tensor]
    lora_a: Sequence[Tensor]
    scaling: Tensor
    dims: tuple[int, ...]
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, lora_b: Factors, lora_a: Factors, scaling: float | Tensor) -> FactorBatch:
        """Check the factors, broadcast their batch dimensions and line them up.

        Raises:
            ShapeError: The factors do not multiply or differ in shape, or a dimension is zero.
            SettingError: A factor is not floating point, or a scaling not finite.
        """
        check_scaling(scaling)
        if isinstance(lora_b, Tensor) and isinstance(lora_a, Tensor):
            check_factors(lora_b, lora_a)
            (m, r), n = lora_b.shape[-2:], lora_a.shape[-1]
            dims = tuple(torch.broadcast_shapes(lora_b.shape[:-2], lora_a.shape[:-2]))
            lefts: Sequence[Tensor] = lora_b.expand(*dims, m, r).reshape(-1, m, r).unbind()
            rights: Sequence[Tensor] = lora_a.expand(*dims, r, n).reshape(-1, r, n).unbind()
            device = lora_b.device
        else:
            lefts, rights = list(lora_b), list(lora_a)
            _check_sequences(lefts, rights)
            (m, r), n, dims = lefts[0].shape, rights[0].shape[1], (len(lefts),)
            device = lefts[0].device
        scalings = torch.as_tensor(scaling, dtype=torch.float64, device=device)
        return cls(lefts, rights, scalings.expand(dims).reshape(-1), dims, (m, n, r))


@dataclass(frozen=True)
class Cores:
    """Cores of N products, each without the scaling and a power of two.

    Attributes:
        core: Shape ``(N, min(m, r), min(n, r))``, float64.
        exponent: The binary exponent each core lacks, shape ``(N,)``.
        relative: Bound on a singular value's error as a share of itself, shape ``(N,)``.
        absolute: Bound on the rest of that error, in the unit of the core, shape ``(N,)``; it
            includes the rounding of an SVD of the core.
        by_gram: Whether Gram matrices were used, shape ``(N,)``.
        gram: Triangles of ``B^T`` and of A; meaningful only where ``by_gram`` says so.
    """

    core: Tensor
    exponent: Tensor
    relative: Tensor
    absolute: Tensor
    by_gram: Tensor
    gram: tuple[GramTriangles, GramTriangles] | None

    def mixing(self, u: Tensor, vh: Tensor) -> tuple[Tensor, Tensor]:
        """What B and A are multiplied with to give singular vectors, given those of the cores.

        ``B D^-1 R^-1`` has orthonormal columns up to ``relative``. Meaningful where ``by_gram``.
        """
        if self.gram is None:
            return u, vh
        left, right = self.gram
        return (
            left.inverses @ u / left.lengths.unsqueeze(-1),
            vh @ right.inverses.mT / right.lengths.unsqueeze(-2),
        )


def product_cores(batch: FactorBatch, relative_error: float) -> Cores:
    """The core of every product, by Gram matrices where they are accurate enough, else by QR.

    Args:
        batch: The factors.
        relative_error: Error of each singular value, as a share of itself, up to which Gram
            matrices are used, in [0, 1); 0 for only where their bound is below that of QR.

    Raises:
        SettingError: The factors hold NaN or infinite entries, or the error is out of range.
    """
    if not 0.0 <= relative_error < 1.0:
        raise SettingError(f"relative error {relative_error}, expected a share in [0, 1)")
    m, n, r = batch.shape
    count, device = len(batch.lora_b), batch.scaling.device
    core = torch.empty(count, min(m, r), min(n, r), dtype=torch.float64, device=device)
    relative, bound = torch.zeros((2, count), dtype=torch.float64, device=device)
    by_gram, gram = torch.zeros(count, dtype=torch.bool, device=device), None
    if r <= min(m, n) and count:
        left = gram_triangles([b.mT for b in batch.lora_b])
        right = gram_triangles(batch.lora_a)
        weights = left.lengths * right.lengths
        core = (left.triangles * weights.unsqueeze(-2)) @ right.triangles.mT
        bound = weights.sum(dim=-1)
        relative = torch.maximum(left.deviation, right.deviation)
        is_accurate = relative <= relative_error
        if relative_error == 0.0:
            moved = relative * torch.linalg.matrix_norm(core)  # at least relative * sigma_1
            is_accurate = moved <= max(m, n) * _EPS * bound  # as what QR adds to the core's error
        by_gram = is_accurate & (relative < 1)
        gram = (left, right)
    absolute = core_error(r) * bound
    exponent = torch.zeros(count, dtype=torch.int32, device=device)
    for i in (~by_gram).nonzero().flatten().tolist():
        core[i], exponent[i], size = _qr_core(batch.lora_b[i], batch.lora_a[i])
        relative[i], absolute[i] = 0.0, (max(m, n, r) + 4 * r + 8) * _EPS * size
    return Cores(core, exponent, relative, absolute, by_gram, gram)


def core_error(rank: int) -> float:
    """What rounding the core and its SVD adds to a value's error, in units of its sum of sizes."""
    return (4 * rank + 8) * _EPS


def _qr_core(lora_b: Tensor, lora_a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The core by QR, the binary exponent it lacks and ``sum_k |b_k| |a_k|`` in its unit."""
    left, right, exponent = balanced(lora_b, lora_a)
    core_b = torch.linalg.qr(left, mode="r").R
    core_a = torch.linalg.qr(right.mT, mode="r").R
    size = (left.norm(dim=-2) * right.norm(dim=-1)).sum()
    return core_b @ core_a.mT, exponent, size


def _check_sequences(lefts: Sequence[Tensor], rights: Sequence[Tensor]) -> None:
    """Refuse sequences that are empty, of unequal length or not all of one shape."""
    if len(lefts) != len(rights) or not lefts:
        raise ShapeError(f"{len(lefts)} left factors for {len(rights)} right ones; expected pairs")
    kinds: dict[object, tuple[Tensor, Tensor]] = {}  # few where there are hundreds of pairs
    for b, a in zip(lefts, rights, strict=True):
        kinds.setdefault((b.shape, b.dtype, a.shape, a.dtype), (b, a))
    for lora_b, lora_a in kinds.values():
        check_factors(lora_b, lora_a)
        if lora_b.ndim > 2 or (lora_b.shape, lora_a.shape) != (lefts[0].shape, rights[0].shape):
            raise ShapeError(
                f"a sequence of factors holds {tuple(lora_b.shape)} and {tuple(lora_a.shape)}; "
                f"expected matrices, all {tuple(lefts[0].shape)} and {tuple(rights[0].shape)}"
            )
