"""One LoRA update of a matrix, an embedding or a convolution, kept as its two factors."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from gonio.errors import ShapeError
from gonio.linalg.lowrank import factored_singular_values, factored_svd

__all__ = ["LoraUpdate", "ModuleKind", "UpdateKind", "split_module_name", "with_factors"]

ModuleKind = Literal["linear", "embedding", "convolution"]
UpdateKind = ModuleKind | Literal["dense"]

_INDEX = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, eq=False)
class LoraUpdate:
    """The change ``scaling * lora_b @ lora_a`` of one module's weight.

    The product is never formed: spectra, angles and inner products come from the factors. The
    weight of an embedding is read as (num_embeddings, dim), that of a convolution as
    (out_channels, in_channels * kernel size).

    Attributes:
        module: Name of the changed module in the base model, for example
            ``model.layers.0.self_attn.q_proj``.
        lora_a: Shape ``(rank, in_features)``, in the dtype it was stored in.
        lora_b: Shape ``(out_features, rank)``, same dtype.
        scaling: alpha / r, or alpha / sqrt(r) for rsLoRA, with r and alpha of this module.
        layer: Index of the transformer layer, None outside the layer stack.
        projection: What the module is within its layer, for example ``self_attn.q_proj``;
            further indices (experts) read ``*``.
        kind: ``linear``, ``embedding`` or ``convolution``; ``dense`` for a
            :class:`gonio.adapters.dense.DenseUpdate`, which has no small factors.
        kernel: Kernel size of a convolution, empty otherwise.
    """

    module: str
    lora_a: Tensor = field(repr=False)
    lora_b: Tensor = field(repr=False)
    scaling: float
    layer: int | None
    projection: str
    kind: UpdateKind = "linear"
    kernel: tuple[int, ...] = ()

    @property
    def module_kind(self) -> ModuleKind:
        """What the module is: ``linear``, ``embedding`` or ``convolution``."""
        return "linear" if self.kind == "dense" else self.kind

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
        columns, rows = _norms(self.lora_b, 0), _norms(self.lora_a, 1)
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


def with_factors(update: LoraUpdate, lora_b: Tensor, lora_a: Tensor) -> LoraUpdate:
    """Another update of the same module, ``lora_b @ lora_a`` with scaling 1.

    Args:
        update: Gives the module and its kind; a dense update becomes a factored one.
        lora_b: Shape ``(out_features, rank)``.
        lora_a: Shape ``(rank, in_features)``.

    Raises:
        ShapeError: The factors do not multiply to the update's shape.
    """
    shapes = tuple(lora_b.shape), tuple(lora_a.shape)
    if len(shapes[0]) != 2 or len(shapes[1]) != 2 or shapes[0][1] != shapes[1][0]:
        raise ShapeError(f"{update.module}: factors {shapes[0]} and {shapes[1]} do not multiply")
    if (shapes[0][0], shapes[1][1]) != update.shape:
        raise ShapeError(
            f"{update.module}: factors {shapes[0]} and {shapes[1]} of an update {update.shape}"
        )
    return LoraUpdate(
        module=update.module,
        lora_a=lora_a,
        lora_b=lora_b,
        scaling=1.0,
        layer=update.layer,
        projection=update.projection,
        kind=update.module_kind,
        kernel=update.kernel,
    )


def _norms(factor: Tensor, dim: int) -> Tensor:
    """Euclidean norms along ``dim`` in float64, safe against overflow of the squares."""
    if factor.dtype != torch.float64:
        return factor.double().square_().sum(dim).sqrt_()  # squares of float32 fit into float64
    size = factor.abs().amax(dim=dim, keepdim=True)
    unit: Tensor = torch.linalg.vector_norm(factor / torch.where(size > 0, size, 1.0), dim=dim)
    return size.squeeze(dim) * unit


@lru_cache(maxsize=1 << 14)  # the modules of one adapter are those of the next
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
