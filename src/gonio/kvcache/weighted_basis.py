"""The basis in which the error that matters is plain squared error and coordinates are apart.

An error e of a key changes the score of a query q by ``q . e``, so its mean square over queries is
``e^T M e`` with M the queries' second moment. In the coordinates ``y = U^T M^(1/2) (x - mean)``,
U the eigenvectors of ``M^(1/2) S M^(1/2)`` and S the covariance of the vectors, that is ``|dy|^2``
and the coordinates are uncorrelated: the Karhunen-Loeve transform in the metric M. A score is
unchanged by a constant key, so the mean costs nothing per token.

A basis spans one head, or all heads of a layer: heads are computed from the same hidden states,
and what they have in common need not be stored once for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from gonio.errors import SettingError, ShapeError

__all__ = ["Span", "WeightedBasis", "fit_basis", "fit_span", "head_moments"]

Span = Literal["head", "layer"]


@dataclass(frozen=True, eq=False)
class WeightedBasis:
    """Change of coordinates of the vectors of each head, the quantizer's step the unit.

    Attributes:
        analysis: ``y = analysis @ (x - mean)``, ``(num_kv_heads, dim, dim)``.
        synthesis: Its inverse, same shape.
        mean: Mean vector of each head, ``(num_kv_heads, dim)``.
        turn: Orthogonal ``(num_kv_heads * dim, num_kv_heads * dim)``, applied after that to all
            heads side by side as ``y @ turn``; None where each head stays by itself.
    """

    analysis: Tensor
    synthesis: Tensor
    mean: Tensor
    turn: Tensor | None = None

    def __post_init__(self) -> None:
        heads, dim = self.mean.shape if self.mean.ndim == 2 else (-1, -1)
        for name in ("analysis", "synthesis"):
            found = tuple(getattr(self, name).shape)
            if found != (heads, dim, dim):
                raise ShapeError(
                    f"{name} has shape {found} and the mean {tuple(self.mean.shape)}, expected "
                    "(num_kv_heads, dim, dim) and (num_kv_heads, dim)"
                )
        if self.turn is not None and self.turn.shape != (heads * dim, heads * dim):
            raise ShapeError(
                f"the turn of {heads} heads of {dim} has shape {tuple(self.turn.shape)}, expected "
                "(num_kv_heads * dim, num_kv_heads * dim)"
            )

    @property
    def heads(self) -> int:
        """Key-value heads."""
        return int(self.mean.shape[0])

    @property
    def dim(self) -> int:
        """Coordinates of one head."""
        return int(self.mean.shape[1])

    @property
    def span(self) -> Span:
        """What a coordinate is made of: one head, or all heads of the layer."""
        return "head" if self.turn is None else "layer"

    def apply(self, x: Tensor) -> Tensor:
        """Coordinates of ``(batch, num_kv_heads, tokens, dim)``, one row each.

        Returns:
            Float32 ``(num_kv_heads * dim, batch * tokens)``, tokens of a sequence side by side;
            of a basis of the layer the heads' share of rows is by number only.

        Raises:
            ShapeError: The vectors do not fit.
        """
        if x.ndim != 4 or (x.shape[1], x.shape[3]) != (self.heads, self.dim):
            raise ShapeError(
                f"the codec was made for {self.heads} heads of {self.dim}, found "
                f"{tuple(x.shape)}, expected (batch, num_kv_heads, tokens, dim)"
            )
        centered = x.float() - self.mean.to(x.device).float()[:, None]
        y = centered @ self.analysis.to(x.device).float().mT
        if self.turn is not None:
            y = _side_by_side(y) @ self.turn.to(x.device).float()
        return y.permute(1, 3, 0, 2).reshape(self.heads * self.dim, -1)

    def undo(self, rows: Tensor, batch: int) -> Tensor:
        """Vectors ``(batch, num_kv_heads, tokens, dim)``, float32, from rows of coordinates."""
        if self.turn is not None:
            rows = self.turn.to(rows.device).float() @ rows
        y = rows.view(self.heads, self.dim, batch, -1).permute(2, 0, 3, 1)
        x = y @ self.synthesis.to(rows.device).float().mT
        return x + self.mean.to(rows.device).float()[:, None]

    def scaled(self, step: float) -> WeightedBasis:
        """The basis whose unit is ``step`` of the present units."""
        return replace(self, analysis=self.analysis / step, synthesis=self.synthesis * step)

    def stored(self) -> WeightedBasis:
        """The basis in float16 where its range allows, as codecs keep it."""
        return WeightedBasis(**{name: _narrow(tensor) for name, tensor in self.state().items()})

    def state(self) -> dict[str, Tensor]:
        """The tensors by name."""
        found = {"analysis": self.analysis, "synthesis": self.synthesis, "mean": self.mean}
        return found if self.turn is None else {**found, "turn": self.turn}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The basis with these tensors."""
        own = ("analysis", "synthesis", "mean", "turn")
        return cls(**{name: tensors[name] for name in own if name in tensors})


def head_moments(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the vectors of each head.

    Args:
        vectors: ``(windows, num_kv_heads, tokens, dim)``.

    Returns:
        Float64 ``(num_kv_heads, dim)`` and ``(num_kv_heads, dim, dim)``.
    """
    rows = vectors.transpose(0, 1).flatten(1, 2).double()
    mean = rows.mean(dim=1)
    centered = rows - mean[:, None]
    return mean, centered.mT @ centered / rows.shape[1]


def fit_basis(
    mean: Tensor, covariance: Tensor, metric: Tensor, *, floor: float = 1e-3
) -> tuple[WeightedBasis, Tensor]:
    """The Karhunen-Loeve basis in a metric.

    Args:
        mean: ``(num_kv_heads, dim)``.
        covariance: Symmetric, ``(num_kv_heads, dim, dim)``; may be singular.
        metric: Symmetric, same shape: the loss of an error e is ``e^T metric e``.
        floor: Least eigenvalue of the metric, as a share of their mean: a direction that no
            query was seen to read still has a finite inverse.

    Returns:
        The basis, float32, and the variances of its coordinates, descending, in squared units of
        the metric, float64 ``(num_kv_heads, dim)``.

    Raises:
        ShapeError: The shapes differ.
        SettingError: The floor is not in (0, 1], or a matrix is not finite.
    """
    if covariance.shape != metric.shape or covariance.ndim != 3:
        raise ShapeError(
            f"covariance and metric must be (num_kv_heads, dim, dim), found "
            f"{tuple(covariance.shape)} and {tuple(metric.shape)}"
        )
    if not 0 < floor <= 1:
        raise SettingError(f"floor of the metric must be in (0, 1], found {floor}")
    if not bool(torch.isfinite(covariance).all() & torch.isfinite(metric).all()):
        raise SettingError("covariance or metric of a head is not finite")
    root, inverse = _roots(metric, floor)
    variances, turn = _principal(root @ covariance.double() @ root)
    basis = WeightedBasis((turn.mT @ root).float(), (inverse @ turn).float(), mean.float())
    return basis, variances


def fit_span(
    vectors: Tensor, metric: Tensor, span: Span = "head", *, floor: float = 1e-3
) -> tuple[WeightedBasis, Tensor]:
    """The basis of samples, of each head or of the layer, and the variances of its coordinates.

    Args:
        vectors: ``(windows, num_kv_heads, tokens, dim)``.
        metric: ``(num_kv_heads, dim, dim)``; errors of different heads do not meet in it.
        span: ``head``, or ``layer`` for a turn of all heads together.
        floor: As in :func:`fit_basis`.

    Returns:
        The basis and float64 ``(num_kv_heads, dim)``, or ``(num_kv_heads * dim,)`` of a layer.
    """
    mean, covariance = head_moments(vectors)
    if span == "head" or vectors.shape[1] == 1:
        return fit_basis(mean, covariance, metric, floor=floor)
    root, inverse = _roots(metric, floor)
    apart = WeightedBasis(root.float(), inverse.float(), mean.float())
    weighed = (vectors.double() - mean[:, None]) @ root
    variances, turn = _principal(head_moments(_side_by_side(weighed))[1][0])
    return replace(apart, turn=turn.float()), variances


def _roots(metric: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """The symmetric root of each metric, and its inverse, float64."""
    values, vectors = torch.linalg.eigh(metric.double())
    scale = values.mean(dim=-1, keepdim=True)
    values = values.clamp(min=floor * scale.where(scale > 0, 1))
    root = (vectors * values.sqrt()[..., None, :]) @ vectors.mT
    return root, (vectors * values.rsqrt()[..., None, :]) @ vectors.mT


def _principal(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Variances, descending, and eigenvectors in columns."""
    variances, turn = torch.linalg.eigh(covariance)
    return variances.flip(-1).clamp(min=0), turn.flip(-1)


def _side_by_side(x: Tensor) -> Tensor:
    """``(batch, 1, tokens, heads * dim)`` of ``(batch, heads, tokens, dim)``."""
    return x.transpose(1, 2).flatten(2)[:, None]


def _narrow(x: Tensor) -> Tensor:
    """Float16 unless the largest entry overflows it or loses precision; errors are 2^-11 of it."""
    largest = x.abs().max().item()
    return x.to(torch.float16) if largest == 0 or 1e-2 < largest < 6e4 else x.float()
