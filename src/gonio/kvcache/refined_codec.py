"""A base codec and what is stored on top of it: rank-r corrections, exact exceptions.

Refinements apply in order, each to what those before it decode; the last word has the last one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from gonio.errors import CodecError, SettingError
from gonio.kvcache.affine_codec import AffineCodec
from gonio.kvcache.contract import TensorCodec
from gonio.kvcache.correction import RankCorrection
from gonio.kvcache.encoded import EncodedTensor
from gonio.kvcache.exceptions import ExactExceptions
from gonio.kvcache.frame import tensors_under
from gonio.kvcache.residual_sign_codec import ResidualSignCodec
from gonio.kvcache.scalar_codec import ScalarCodec
from gonio.kvcache.sign_codec import SignCodec
from gonio.quant.accounting import tensor_bytes

__all__ = ["RefinedCodec", "Refinement"]

_BASES: dict[str, type[TensorCodec]] = {
    AffineCodec.method: AffineCodec,
    ResidualSignCodec.method: ResidualSignCodec,
    ScalarCodec.method: ScalarCodec,
    SignCodec.method: SignCodec,
}


class Refinement(Protocol):
    """Something stored per token that improves an approximation."""

    kind: ClassVar[str]
    metadata: ClassVar[tuple[str, ...]]

    def encode(self, x: Tensor, approximation: Tensor) -> dict[str, Tensor]:
        """What is stored to come from ``approximation`` closer to ``x``."""
        ...

    def decode(self, stored: Mapping[str, Tensor], approximation: Tensor) -> Tensor:
        """The better approximation, float32."""
        ...

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Settings (JSON types) and tensors."""
        ...

    @classmethod
    def from_state(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The refinement with these settings and tensors."""
        ...


_REFINEMENTS: dict[str, type[Refinement]] = {
    ExactExceptions.kind: ExactExceptions,
    RankCorrection.kind: RankCorrection,
}


@dataclass(frozen=True)
class RefinedCodec:
    """A base codec followed by refinements.

    Attributes:
        base: Any codec of the family; not itself refined.
        refinements: At least one, in the order they apply.
    """

    base: TensorCodec
    refinements: tuple[Refinement, ...]
    method: ClassVar[str] = "refined"

    def __post_init__(self) -> None:
        if not self.refinements:
            raise SettingError("a refined codec needs a refinement; use its base codec instead")
        if self.base.method not in _BASES:
            raise CodecError(
                f"a codec of method {self.base.method!r} cannot be refined; "
                f"expected one of {', '.join(sorted(_BASES))}"
            )

    @property
    def block(self) -> int:
        """Tokens the base codec encodes together."""
        return self.base.block

    def encode(self, x: Tensor) -> EncodedTensor:
        """The base's tensors under ``base.``, those of refinement i under ``i.``.

        Args:
            x: ``(batch, num_kv_heads, tokens, head_dim)``, tokens a multiple of :attr:`block`.

        Raises:
            ShapeError: The vectors do not fit.
        """
        run = self.base.encode(x.float())
        tensors = {f"base.{name}": tensor for name, tensor in run.tensors.items()}
        metadata = [f"base.{name}" for name in run.metadata]
        approximation = self.base.decode(run)
        for index, refinement in enumerate(self.refinements):
            stored = refinement.encode(x, approximation)
            approximation = refinement.decode(stored, approximation)
            tensors |= {f"{index}.{name}": tensor for name, tensor in stored.items()}
            metadata += [f"{index}.{name}" for name in refinement.metadata]
        return replace(run, tensors=tensors, dtype=x.dtype, metadata=tuple(metadata))

    def decode(self, encoded: EncodedTensor) -> Tensor:
        """What the base decodes, refined; ``(batch, num_kv_heads, tokens, head_dim)``."""
        stored = encoded.tensors
        base = replace(encoded, tensors=tensors_under(stored, "base."), dtype=torch.float32)
        approximation = self.base.decode(base)
        for index, refinement in enumerate(self.refinements):
            own = tensors_under(stored, f"{index}.")
            approximation = refinement.decode(own, approximation)
        return approximation.to(encoded.dtype)

    @property
    def side_bytes(self) -> int:
        """Bytes of the base's side data and the refinements'."""
        return tensor_bytes(*self.state()[1].values())

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Settings and tensors of this codec."""
        settings, tensors = self.base.state()
        named = {f"base.{name}": tensor for name, tensor in tensors.items()}
        refinements = []
        for index, refinement in enumerate(self.refinements):
            own, found = refinement.state()
            refinements.append({"kind": refinement.kind, "settings": own})
            named |= {f"{index}.{name}": tensor for name, tensor in found.items()}
        base = {"method": self.base.method, "settings": settings}
        return {"base": base, "refinements": refinements}, named

    @classmethod
    def from_state(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The codec with these settings and tensors.

        Raises:
            CodecError: The base method or a refinement is unknown.
        """
        base, refinements = settings["base"], settings["refinements"]
        kinds = [refinement["kind"] for refinement in refinements]
        if base["method"] not in _BASES or not set(kinds) <= _REFINEMENTS.keys():
            raise CodecError(
                f"a refined codec of base {base['method']!r} with {', '.join(kinds)}; "
                f"this version reads {', '.join(sorted(_BASES.keys() | _REFINEMENTS.keys()))}"
            )
        return cls(
            _BASES[base["method"]].from_state(base["settings"], tensors_under(tensors, "base.")),
            tuple(
                _REFINEMENTS[kind].from_state(
                    refinements[index]["settings"], tensors_under(tensors, f"{index}.")
                )
                for index, kind in enumerate(kinds)
            ),
        )
