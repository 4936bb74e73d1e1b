"""Rotations of keys before sign quantisation: none, Haar, Hadamard, learned.

The data-oblivious ones are one matrix shared by all layers and heads; the learned one is fitted
per layer and head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from gonio.errors import SettingError
from gonio.kvcache.observe import KeySamples
from gonio.linalg.rotations import haar_rotation, learned_sign_rotation, randomized_hadamard

__all__ = ["RotationKind", "check_rotation_kind", "key_rotations"]

RotationKind = Literal["none", "haar", "hadamard", "learned"]


def key_rotations(
    kind: RotationKind,
    samples: KeySamples,
    *,
    iterations: int = 50,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Tensor | None]:
    """One rotation per layer, for keys after RoPE.

    Args:
        kind: ``none``, ``haar``, ``hadamard`` (with random signs) or ``learned``.
        samples: Keys to learn from; only their shape matters for the other kinds.
        iterations: Steps of the learned rotation's fixed point.
        seed: Seed of the random rotations and of the learned ones' start.
        progress: Called with (what, layers done, layers).

    Returns:
        Per layer None, or orthogonal matrices ``(1 or num_kv_heads, head_dim, head_dim)``; the
        same object in every layer for the data-oblivious kinds.

    Raises:
        SettingError: The kind is unknown.
        ShapeError: ``hadamard`` is asked for a head_dim without a known Hadamard matrix.
    """
    check_rotation_kind(kind)
    layout = samples.layout
    generator = torch.Generator().manual_seed(seed)
    if kind == "none":
        return [None] * layout.num_layers
    if kind == "haar":
        return [haar_rotation(layout.head_dim, generator)[None]] * layout.num_layers
    if kind == "hadamard":
        matrix = randomized_hadamard(layout.head_dim, generator).float()
        return [matrix[None]] * layout.num_layers
    rotations: list[Tensor | None] = []
    for layer in range(layout.num_layers):
        keys = samples.by_head(layer)
        rotation, _ = learned_sign_rotation(keys, iterations=iterations, generator=generator)
        rotations.append(rotation)
        if progress is not None:
            progress("learning rotations", layer + 1, layout.num_layers)
    return rotations


def check_rotation_kind(kind: str) -> None:
    """Refuse an unknown kind.

    Raises:
        SettingError: ``kind`` is not one of :data:`RotationKind`.
    """
    if kind not in get_args(RotationKind):
        raise SettingError(
            f"rotation must be one of {', '.join(get_args(RotationKind))}, found {kind!r}"
        )
