"""The residual of a codec in a fixed r-dimensional basis: what the commonest errors look like.

The basis holds the top r eigenvectors of the residual's second moment per head, which capture the
share gamma_r of its energy; of the original energy ``(1 - beta)(1 - gamma_r)`` is left (theorems
``beta_eff_formula`` and ``svd_topk_maximizes_gammaR``). Each token stores r coefficients: 16 r
bits per token and head in float16, or 8 r + 16 in int8 with one float16 scale.

Source: moe-gauge, part F.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor

from gonio.errors import CodecError, SettingError, ShapeError
from gonio.kvcache.frame import ORTHOGONALITY, to_float16

__all__ = ["Coefficients", "RankCorrection", "residual_basis"]

Coefficients = Literal["float16", "int8"]

_LARGEST = 127


@dataclass(frozen=True, eq=False)
class RankCorrection:
    """Coefficients of the residual in an orthonormal basis per head.

    Attributes:
        basis: ``(num_kv_heads or 1, head_dim, rank)``, orthonormal columns.
        coefficients: How the coefficients are stored.
    """

    basis: Tensor
    coefficients: Coefficients = "float16"
    kind: ClassVar[str] = "rank_correction"
    metadata: ClassVar[tuple[str, ...]] = ("scale",)

    def __post_init__(self) -> None:
        if self.coefficients not in get_args(Coefficients):
            raise SettingError(
                f"coefficients must be one of {', '.join(get_args(Coefficients))}, "
                f"found {self.coefficients!r}"
            )
        basis = self.basis
        if basis.ndim != 3 or not 1 <= basis.shape[-1] <= basis.shape[-2]:
            raise ShapeError(
                f"basis must be (heads, head_dim, rank) with rank 1 to head_dim, "
                f"found {tuple(basis.shape)}"
            )
        defect = basis.mT @ basis - torch.eye(basis.shape[-1], device=basis.device)
        if not defect.abs().max().item() < ORTHOGONALITY:
            raise CodecError("the basis of a rank correction is not orthonormal")

    def encode(self, x: Tensor, approximation: Tensor) -> dict[str, Tensor]:
        """Coefficients of ``x - approximation``, both ``(batch, num_kv_heads, tokens, head_dim)``.

        Raises:
            ShapeError: The vectors do not fit the basis.
        """
        if self.basis.shape[0] not in (1, x.shape[1]) or self.basis.shape[1] != x.shape[3]:
            raise ShapeError(
                f"the basis has {self.basis.shape[0]} heads of {self.basis.shape[1]}, "
                f"found {x.shape[1]} heads of {x.shape[3]}"
            )
        found = (x.float() - approximation.float()) @ self.basis.to(x.device)
        if self.coefficients == "float16":
            return {"coefficients": to_float16(found)}
        scale = to_float16(found.abs().amax(dim=-1, keepdim=True) / _LARGEST)
        step = scale.float()
        codes = (found / step.where(step > 0, 1)).round().clamp(-_LARGEST, _LARGEST)
        return {"coefficients": codes.to(torch.int8), "scale": scale}

    def decode(self, stored: Mapping[str, Tensor], approximation: Tensor) -> Tensor:
        """The approximation, float32, with the stored part of its error added."""
        found = stored["coefficients"].float()
        if self.coefficients == "int8":
            found = found * stored["scale"].float()
        return approximation.float() + found @ self.basis.to(found.device).mT

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Settings and tensors."""
        return {"coefficients": self.coefficients}, {"basis": self.basis}

    @classmethod
    def from_state(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The correction with these settings and tensors."""
        return cls(tensors["basis"], **settings)


def residual_basis(residual: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The basis that captures most of a residual, per head.

    Args:
        residual: Calibration errors ``(num_kv_heads, n, head_dim)``.
        rank: Directions r, 1 to head_dim.

    Returns:
        Basis ``(num_kv_heads, head_dim, rank)`` float32, orthonormal, and the share gamma_r of
        the energy it captures, in [0, 1], shape ``(num_kv_heads,)`` float64; 1 for a residual
        of zeros, of which nothing is left.

    Raises:
        SettingError: The rank is out of range.

    Theorem: ``svd_topk_maximizes_gammaR``.
    """
    if not 1 <= rank <= residual.shape[-1]:
        raise SettingError(f"correction rank must be 1 to {residual.shape[-1]}, found {rank}")
    errors = residual.double()
    energies, directions = torch.linalg.eigh(errors.mT @ errors)  # ascending
    energies = energies.clamp(min=0)
    total = energies.sum(dim=-1)
    captured = energies[..., -rank:].sum(dim=-1)
    gamma = torch.where(total > 0, captured / total.where(total > 0, 1), 1.0)
    return directions[..., -rank:].flip(-1).float().contiguous(), gamma
