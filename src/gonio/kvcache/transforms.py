"""Frames of keys and values before quantization: none, Haar, Hadamard or learned, centered or not.

The data-oblivious rotations are one matrix shared by all layers and heads; the learned one is
fitted per layer, and per head unless the heads share it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from gonio.errors import SettingError
from gonio.kvcache.frame import CenteringKind, Frame
from gonio.kvcache.samples import KeySamples
from gonio.linalg.rotations import haar_rotation, learned_sign_rotation, randomized_hadamard

__all__ = ["RotationKind", "check_rotation_kind", "fit_frames", "key_rotations"]

RotationKind = Literal["none", "haar", "hadamard", "learned"]

Progress = Callable[[str, int, int], None]


def fit_frames(
    rotation: RotationKind,
    vectors: Sequence[Tensor],
    *,
    centering: CenteringKind = "none",
    shared: bool = False,
    iterations: int = 50,
    generator: torch.Generator,
    progress: Progress | None = None,
) -> list[Frame]:
    """One frame per layer.

    Args:
        rotation: ``none``, ``haar``, ``hadamard`` (with random signs) or ``learned``.
        vectors: Per layer ``(num_kv_heads, n, head_dim)`` to learn from, keys after RoPE.
        centering: ``none``, ``channel`` (each head's mean vector, fixed) or ``token`` (each
            token's mean coordinate, stored with it).
        shared: Whether the heads of a layer share one learned rotation.
        iterations: Steps of the learned rotation's fixed point.
        generator: Source of random rotations and of the learned ones' start.
        progress: Called with (what, layers done, layers).

    Returns:
        Frames; those of the data-oblivious kinds share one rotation.

    Raises:
        SettingError: The rotation or centering is unknown.
        ShapeError: ``hadamard`` is asked for a head_dim without a known Hadamard matrix.
    """
    check_rotation_kind(rotation)
    if centering not in get_args(CenteringKind):
        raise SettingError(
            f"centering must be one of {', '.join(get_args(CenteringKind))}, found {centering!r}"
        )
    fixed = _oblivious_rotation(rotation, vectors[0].shape[-1], generator)
    frames = []
    for layer, found in enumerate(vectors):
        mean = found.mean(dim=1) if centering == "channel" else None
        matrix = fixed
        if rotation == "learned":
            centered, _ = Frame(None, mean, centering == "token").apply(found[None])
            rows = centered[0].flatten(0, 1)[None] if shared else centered[0]
            matrix, _ = learned_sign_rotation(rows, iterations=iterations, generator=generator)
            if progress is not None:
                progress("learning rotations", layer + 1, len(vectors))
        frames.append(Frame(matrix, mean, centering == "token"))
    return frames


def key_rotations(
    kind: RotationKind,
    samples: KeySamples,
    *,
    iterations: int = 50,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Tensor | None]:
    """One rotation per layer, for keys after RoPE, learned from all the samples.

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
    frames = fit_frames(
        kind,
        [samples.by_head(layer) for layer in range(samples.layout.num_layers)],
        iterations=iterations,
        generator=torch.Generator().manual_seed(seed),
        progress=progress,
    )
    return [frame.rotation for frame in frames]


def check_rotation_kind(kind: str) -> None:
    """Refuse an unknown kind.

    Raises:
        SettingError: ``kind`` is not one of :data:`RotationKind`.
    """
    if kind not in get_args(RotationKind):
        raise SettingError(
            f"rotation must be one of {', '.join(get_args(RotationKind))}, found {kind!r}"
        )


def _oblivious_rotation(
    kind: RotationKind, head_dim: int, generator: torch.Generator
) -> Tensor | None:
    """The rotation that looks at no data, ``(1, head_dim, head_dim)``, if that is the kind."""
    if kind == "haar":
        return haar_rotation(head_dim, generator)[None]
    if kind == "hadamard":
        return randomized_hadamard(head_dim, generator).float()[None]
    return None
