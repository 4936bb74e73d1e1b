"""The coordinates in which vectors are coded: centering, then a rotation.

``y = R (x - mean - dc 1)``, with the mean fixed per head and channel (side data) and ``dc`` the
mean coordinate of each token (stored with it). A constant added to every key shifts all scores of
a query alike, so softmax does not see the mean (theorem ``softmax_shift_invariance``); decoding
adds it back all the same, so that a decoded key is comparable with the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor

from gonio.errors import CodecError, ShapeError

__all__ = ["CenteringKind", "Frame", "tensors_under", "to_float16"]

CenteringKind = Literal["none", "channel", "token"]

ORTHOGONALITY = 1e-3  # far above float32 rounding of a 512-dimensional product


@dataclass(frozen=True, eq=False)
class Frame:
    """Centering and rotation of the vectors of one layer.

    Attributes:
        rotation: Orthogonal matrices ``(num_kv_heads or 1, head_dim, head_dim)`` applied to each
            vector as ``R x``; None for none.
        mean: Subtracted from every token, ``(num_kv_heads or 1, head_dim)``; None for none.
        token_dc: Whether each token's mean coordinate is subtracted and stored in float16.
    """

    rotation: Tensor | None = None
    mean: Tensor | None = None
    token_dc: bool = False

    def __post_init__(self) -> None:
        rotation, mean = self.rotation, self.mean
        if mean is not None and mean.ndim != 2:
            raise ShapeError(f"mean must be (heads, head_dim), found {tuple(mean.shape)}")
        if rotation is None:
            return
        if rotation.ndim != 3 or rotation.shape[-1] != rotation.shape[-2]:
            raise ShapeError(
                f"rotation must be (heads, head_dim, head_dim), found {tuple(rotation.shape)}"
            )
        if mean is not None and mean.shape[-1] != rotation.shape[-1]:
            raise ShapeError(
                f"mean has {mean.shape[-1]} channels and the rotation {rotation.shape[-1]}"
            )
        defect = rotation @ rotation.mT - torch.eye(rotation.shape[-1], device=rotation.device)
        if not defect.abs().max().item() < ORTHOGONALITY:
            raise CodecError("a rotation of the codec is not orthogonal")

    def apply(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Vectors in the coordinates of the frame, and what must be stored to come back.

        Args:
            x: ``(batch, num_kv_heads, tokens, head_dim)``, any floating dtype.

        Returns:
            Float32 vectors of the same shape, and with ``token_dc`` the tensor ``dc``, float16
            ``(batch, num_kv_heads, tokens, 1)``.

        Raises:
            ShapeError: The vectors do not fit the frame.
        """
        self._check(x)
        y, stored = x.float(), {}
        if self.mean is not None:
            y = y - self.mean.to(y.device)[:, None]
        if self.token_dc:
            stored["dc"] = to_float16(y.mean(dim=-1, keepdim=True))
            y = y - stored["dc"].float()
        if self.rotation is not None:
            y = y @ self.rotation.to(y.device).mT
        return y, stored

    def undo(self, y: Tensor, stored: Mapping[str, Tensor]) -> Tensor:
        """Float32 vectors back from the coordinates of the frame."""
        if self.rotation is not None:
            y = y @ self.rotation.to(y.device)
        if self.token_dc:
            y = y + stored["dc"].float()
        if self.mean is not None:
            y = y + self.mean.to(y.device)[:, None]
        return y

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Settings and tensors of this frame."""
        found = {"rotation": self.rotation, "mean": self.mean}
        tensors = {name: tensor for name, tensor in found.items() if tensor is not None}
        return {"token_dc": self.token_dc}, tensors

    @classmethod
    def from_state(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The frame with these settings and tensors."""
        return cls(tensors.get("rotation"), tensors.get("mean"), **settings)

    def _check(self, x: Tensor) -> None:
        if x.ndim != 4:
            raise ShapeError(
                f"keys and values must be (batch, num_kv_heads, tokens, head_dim), "
                f"found {tuple(x.shape)}"
            )
        for name, tensor in (("rotates", self.rotation), ("centers", self.mean)):
            if tensor is None:
                continue
            heads, head_dim = tensor.shape[0], tensor.shape[-1]
            if heads not in (1, x.shape[1]) or head_dim != x.shape[-1]:
                raise ShapeError(
                    f"the codec {name} {heads} heads of {head_dim}, "
                    f"found {x.shape[1]} heads of {x.shape[-1]}"
                )


def to_float16(x: Tensor) -> Tensor:
    """Float16, with numbers beyond its range at its largest, so that decoding stays finite."""
    limit = torch.finfo(torch.float16).max
    return x.clamp(-limit, limit).to(torch.float16)


def tensors_under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, named without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
