"""From a model and some text to a codec for its cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gonio.errors import CodecError, SettingError
from gonio.kvcache.codec import CacheCodec
from gonio.kvcache.contract import KeyCodec
from gonio.kvcache.control_codecs import LosslessCodec, ZeroCodec
from gonio.kvcache.observe import KeySamples, collect_keys
from gonio.kvcache.sign_codec import ScaleKind, SignCodec
from gonio.kvcache.transforms import RotationKind, check_rotation_kind, key_rotations
from gonio.models.attention import attention_layout
from gonio.models.texts import token_windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["calibrate", "calibrate_from_samples", "codec_rotations", "control_codec"]

_METHODS = ("sign",)


def calibrate(
    model: PreTrainedModel,
    token_ids: Tensor,
    *,
    bits: float = 1.0,
    value_bits: float | None = None,
    method: str = "sign",
    rotation: RotationKind = "learned",
    scale_kind: ScaleKind = "least_squares",
    window: int = 512,
    iterations: int = 50,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> CacheCodec:
    """Calibrate a key codec on text the model reads.

    Args:
        model: A decoder with full attention.
        token_ids: Calibration tokens, ``(n,)``, cut into windows, or ``(windows, length)``.
        bits: Width of a code; the sign method has 1.
        value_bits: Width of value codes; None keeps values as they are, the only choice yet.
        method: ``sign``.
        rotation: ``none``, ``haar``, ``hadamard`` or ``learned``.
        scale_kind: How the scale of a key is chosen, see :class:`SignCodec`.
        window: Tokens per window when ``token_ids`` is one run.
        iterations: Steps of the learned rotation's fixed point.
        seed: Seed of random rotations and starts.
        progress: Called with (what, done, total).

    Returns:
        The codec, with where it was calibrated.

    Raises:
        SettingError: A setting is unknown or out of range.
        DataError: There are fewer tokens than one window needs.
        ModelError: The model's attention is not supported.

    Example:
        >>> codec = calibrate(model, token_ids)  # doctest: +SKIP
        >>> model.generate(**inputs, past_key_values=codec.new_cache(model))  # doctest: +SKIP
    """
    _check_settings(bits, value_bits, method, rotation)
    windows = token_ids if token_ids.ndim == 2 else token_windows(token_ids, window)
    samples = collect_keys(model, windows, seed=seed, progress=progress)
    return calibrate_from_samples(
        samples,
        rotation=rotation,
        scale_kind=scale_kind,
        iterations=iterations,
        seed=seed,
        provenance={"calibration_tokens": windows.numel(), "window": windows.shape[1]},
        progress=progress,
    )


def calibrate_from_samples(
    samples: KeySamples,
    *,
    rotation: RotationKind = "learned",
    scale_kind: ScaleKind = "least_squares",
    iterations: int = 50,
    seed: int = 0,
    provenance: dict[str, Any] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> CacheCodec:
    """As :func:`calibrate`, from keys already collected.

    Args:
        samples: Collected keys.
        rotation: ``none``, ``haar``, ``hadamard`` or ``learned``.
        scale_kind: How the scale of a key is chosen.
        iterations: Steps of the learned rotation's fixed point.
        seed: Seed of random rotations and starts.
        provenance: Facts to keep in the codec beside the settings.
        progress: Called with (what, layers done, layers).
    """
    rotations = key_rotations(
        rotation, samples, iterations=iterations, seed=seed, progress=progress
    )
    settings = {"rotation": rotation, "iterations": iterations, "seed": seed}
    layers = tuple(SignCodec(matrix, scale_kind) for matrix in rotations)
    return CacheCodec(samples.layout, layers, settings | (provenance or {}))


def codec_rotations(codec: CacheCodec) -> list[Tensor | None]:
    """The rotations of a sign codec, one per layer, as :func:`key_rotations` gives them.

    Raises:
        CodecError: The codec is of another method.
    """
    rotations: list[Tensor | None] = []
    for layer in codec.layers:
        if not isinstance(layer, SignCodec):
            raise CodecError(f"a codec of method {codec.method!r} has no sign rotations")
        rotations.append(layer.rotation)
    return rotations


def control_codec(model: PreTrainedModel, method: str) -> CacheCodec:
    """A control that needs no calibration: ``lossless`` or ``zeros``.

    Raises:
        SettingError: The name is neither.
    """
    controls: dict[str, KeyCodec] = {"lossless": LosslessCodec(), "zeros": ZeroCodec()}
    if method not in controls:
        raise SettingError(f"control must be one of {', '.join(controls)}, found {method!r}")
    layout = attention_layout(model.config)
    return CacheCodec(layout, (controls[method],) * layout.num_layers, {"control": method})


def _check_settings(bits: float, value_bits: float | None, method: str, rotation: str) -> None:
    if method not in _METHODS:
        raise SettingError(f"method must be one of {', '.join(_METHODS)}, found {method!r}")
    if bits != 1:
        raise SettingError(f"the sign method stores 1 bit per coordinate, not {bits}")
    if value_bits is not None:
        raise SettingError(
            f"values cannot be compressed yet: value_bits is {value_bits}, expected None"
        )
    check_rotation_kind(rotation)
