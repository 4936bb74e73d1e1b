"""One LoRA update, kept as its two factors."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gonio.linalg.lowrank import factored_singular_values, factored_svd

__all__ = ["LoraUpdate", "split_module_name"]

_INDEX = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, eq=False)
class LoraUpdate:
    """The change ``scaling * lora_b @ lora_a`` of one linear layer's weight.

    The product is never formed: spectra, angles and inner products come from the factors.

    Attributes:
        module: Name of the changed module in the base model, for example
            ``model.layers.0.self_attn.q_proj``.
        lora_a: Shape ``(rank, in_features)``, in the dtype it was stored in.
        lora_b: Shape ``(out_features, rank)``, same dtype.
        scaling: alpha / r, or alpha / sqrt(r) for rsLoRA, with r and alpha of this module.
        layer: Index of the transformer layer, None outside the layer stack.
        projection: What the module is within its layer, for example ``self_attn.q_proj``;
            further indices (experts) read ``*``.
    """

    module: str
    lora_a: Tensor = field(repr=False)
    lora_b: Tensor = field(repr=False)
    scaling: float
    layer: int | None
    projection: str

    @property
    def rank(self) -> int:
        """The configured rank r, the number of rows of ``lora_a``."""
        return self.lora_a.shape[0]

    @property
    def out_features(self) -> int:
        """Rows m of the update."""
        return self.lora_b.shape[0]

    @property
    def in_features(self) -> int:
        """Columns n of the update."""
        return self.lora_a.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features)``."""
        return self.out_features, self.in_features

    def singular_values(self) -> Tensor:
        """Singular values, descending, float64, shape ``(min(m, n, r),)``."""
        return factored_singular_values(self.lora_b, self.lora_a, self.scaling)

    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """``(u, sigma, vh)`` in float64 with q = min(m, n, r): ``(m, q)``, ``(q,)``, ``(q, n)``."""
        return factored_svd(self.lora_b, self.lora_a, self.scaling)

    def norm_bound(self) -> float:
        """Sum over rank directions of ``|scaling| |b_k| |a_k|``, in the unit of the update.

        At least the nuclear norm and at most ``|scaling| |B|_F |A|_F``; infinite where float64
        overflows. A direction that is zero in one factor adds nothing, however large the other.
        """
        columns, rows = _norms(self.lora_b.mT), _norms(self.lora_a)
        terms = torch.where((columns > 0) & (rows > 0), columns * abs(self.scaling) * rows, 0.0)
        return float(terms.sum())

    def noise_floor(self) -> float:
        """What rounding alone may give a singular value: ``max(m, n, r) * eps64 * norm_bound``.

        Where the rank directions cancel, singular values computed from the factors are noise of
        this size although the product is exactly zero. The smallest normal float64 is added,
        since below it no digit is certain.

        Source: Higham 2002 (doi:10.1137/1.9780898718027), theorem 19.4: the error of a
        Householder QR is relative to each column of its own, so the terms add up unscaled.
        """
        limits = torch.finfo(torch.float64)
        return max(*self.shape, self.rank) * limits.eps * self.norm_bound() + limits.tiny


def _norms(rows: Tensor) -> Tensor:
    """Euclidean norms of rows in float64, safe against overflow of the squares."""
    rows = rows.double()
    size = rows.abs().amax(dim=-1, keepdim=True)
    unit: Tensor = torch.linalg.vector_norm(rows / torch.where(size > 0, size, 1.0), dim=-1)
    return size.squeeze(-1) * unit


def split_module_name(module: str) -> tuple[int | None, str]:
    """Layer index and projection of a module name.

    The first component that is a number is the layer; what follows it is the projection, with
    further numbers (experts) written ``*``. A module outside the layer stack has no layer and
    keeps its whole name.

    Example:
        >>> split_module_name("model.layers.3.self_attn.q_proj")
        (3, 'self_attn.q_proj')
        >>> split_module_name("lm_head")
        (None, 'lm_head')
    """
    parts = module.split(".")
    for position, part in enumerate(parts):
        if _INDEX.fullmatch(part) and position + 1 < len(parts):
            rest = ("*" if _INDEX.fullmatch(p) else p for p in parts[position + 1 :])
            return int(part), ".".join(rest)
    return None, module
