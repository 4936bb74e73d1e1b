"""One LoRA update, kept as its two factors."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from torch import Tensor

from gonio.linalg.lowrank import factored_singular_values, factored_svd

__all__ = ["LoraUpdate", "split_module_name"]

_INDEX = re.compile(r"\d+")


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
