"""Signs of the signs' error: 1 bit and a scale per stage, each stage in its own frame.

Stage s codes what the stages before it left: ``x_0 = x``, ``x_{s+1} = x_s - decode(encode(x_s))``.
The energy left is the product of the stages' ``1 - beta`` (theorem ``residual_energy_formula``).
Two and three stages store 2.5 and 3.75 bits per element at head_dim 64.

Source: residual quantization, Chen, Guan & Wang 2010 (doi:10.3390/s101211259), with the sign
quantizer of moe-gauge in every stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from gonio.errors import SettingError
from gonio.kvcache.encoded import EncodedTensor
from gonio.kvcache.frame import tensors_under
from gonio.kvcache.sign_codec import SignCodec

__all__ = ["ResidualSignCodec"]

_STAGE = "stage"


@dataclass(frozen=True)
class ResidualSignCodec:
    """A chain of sign codecs, each on the residual of those before it.

    Attributes:
        stages: At least one; the least-squares scale makes every stage lower the error.
    """

    stages: tuple[SignCodec, ...]
    method: ClassVar[str] = "residual_sign"
    block: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not self.stages:
            raise SettingError("a residual sign codec needs at least one stage")

    def encode(self, x: Tensor) -> EncodedTensor:
        """Codes and scales of every stage.

        Args:
            x: ``(batch, num_kv_heads, tokens, head_dim)``.

        Returns:
            The tensors of stage s as :class:`SignCodec` names them, after ``stage{s}.``.

        Raises:
            ShapeError: The vectors do not fit the frames.
        """
        residual, tensors = x.float(), dict[str, Tensor]()
        for index, stage in enumerate(self.stages):
            run = stage.encode(residual)
            residual = residual - stage.decode(run)
            tensors |= {f"{_STAGE}{index}.{name}": found for name, found in run.tensors.items()}
        metadata = tuple(name for name in tensors if not name.endswith(".codes"))
        return EncodedTensor(tensors, x.shape[2], x.shape[3], x.dtype, metadata=metadata)

    def decode(self, encoded: EncodedTensor) -> Tensor:
        """The sum of what the stages decode, ``(batch, num_kv_heads, tokens, head_dim)``."""
        parts = [
            stage.decode(
                replace(
                    encoded,
                    tensors=tensors_under(encoded.tensors, f"{_STAGE}{index}."),
                    dtype=torch.float32,
                )
            )
            for index, stage in enumerate(self.stages)
        ]
        return torch.stack(parts).sum(dim=0).to(encoded.dtype)

    @property
    def side_bytes(self) -> int:
        """Bytes of the rotations and means of all stages."""
        return sum(stage.side_bytes for stage in self.stages)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Settings and tensors of this codec."""
        states = [stage.state() for stage in self.stages]
        tensors = {
            f"{_STAGE}{index}.{name}": tensor
            for index, (_, found) in enumerate(states)
            for name, tensor in found.items()
        }
        return {"stages": [settings for settings, _ in states]}, tensors

    @classmethod
    def from_state(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The codec with these settings and tensors."""
        return cls(
            tuple(
                SignCodec.from_state(stage, tensors_under(tensors, f"{_STAGE}{index}."))
                for index, stage in enumerate(settings["stages"])
            )
        )
