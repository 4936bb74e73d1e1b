"""The choices of each coding method, their defaults, and what is refused."""

from __future__ import annotations

import difflib
from typing import Any, Literal, TypedDict, get_args

from gonio.errors import SettingError
from gonio.kvcache.affine_codec import Axis
from gonio.kvcache.correction import Coefficients
from gonio.kvcache.frame import CenteringKind
from gonio.kvcache.scalar_codec import Law
from gonio.kvcache.sensitivity import MetricKind
from gonio.kvcache.sign_codec import ScaleDtype, ScaleKind
from gonio.kvcache.transform_fit import Budget
from gonio.kvcache.transforms import RotationKind, check_rotation_kind
from gonio.kvcache.weighted_basis import Span
from gonio.quant.trellis import STATES

__all__ = [
    "TRANSFORMS",
    "CodecOptions",
    "Method",
    "Stage",
    "check_bits",
    "option_names",
    "resolve_options",
    "wants_pre_rope",
]

Stage = Literal["auto", "pre_rope", "post_rope"]
Method = Literal["sign", "residual_sign", "scalar", "affine", "transform", "entropy", "lossless"]
TRANSFORMS = ("transform", "entropy")  # methods that need metrics and take fractional bits


class CodecOptions(TypedDict, total=False):
    """Choices of a codec beside its method and bits; each method has its own.

    ``sign`` and ``residual_sign``: rotation (learned), shared_rotation (False: one per head),
    centering (none), scale_kind (least_squares), scale_dtype (float16), iterations (50).
    ``scalar``: rotation (haar), centering (none), law (sphere). ``affine``: axis (channel for
    keys, token for values), group (32). All of these: correction_rank (0: none), coefficients
    (float16), exceptions (0).
    ``transform`` and ``entropy``: metric (joined; see :mod:`gonio.kvcache.sensitivity`), budget
    (shared over layers and heads), floor (0.001, the least eigenvalue of a metric over their
    mean), span (layer: coordinates of all heads of a layer together; head, the default of scalar
    codes, which attention can read as they lie), and for keys stage (pre_rope turns
    keys back by their positions first, so that one codec serves all positions; post_rope; auto,
    the default, the first but for scalar codes and models whose turns are not known); ``transform``
    also states (16, of the trellis; 1 for none, 4 to 64), ``entropy`` also dead_zone (0.15 squared
    steps per bit).
    """

    rotation: RotationKind
    shared_rotation: bool
    centering: CenteringKind
    scale_kind: ScaleKind
    scale_dtype: ScaleDtype
    iterations: int
    law: Law
    axis: Axis
    group: int
    correction_rank: int
    coefficients: Coefficients
    exceptions: int
    metric: MetricKind
    budget: Budget
    floor: float
    span: Span
    states: int
    dead_zone: float
    stage: Stage


_REFINEMENTS = CodecOptions(correction_rank=0, coefficients="float16", exceptions=0)
_SIGN = CodecOptions(
    rotation="learned",
    shared_rotation=False,
    centering="none",
    scale_kind="least_squares",
    scale_dtype="float16",
    iterations=50,
    **_REFINEMENTS,
)
_WEIGHTED = CodecOptions(metric="joined", budget="shared", floor=1e-3, span="layer", stage="auto")
_DEFAULTS: dict[str, CodecOptions] = {
    "sign": _SIGN,
    "residual_sign": _SIGN,
    "scalar": CodecOptions(rotation="haar", centering="none", law="sphere", **_REFINEMENTS),
    "affine": CodecOptions(axis="channel", group=32, **_REFINEMENTS),
    "transform": CodecOptions(states=16, **_WEIGHTED),
    "entropy": CodecOptions(dead_zone=0.15, **_WEIGHTED),
    "lossless": CodecOptions(),
}
_CHOICES = (
    ("metric", MetricKind),
    ("budget", Budget),
    ("span", Span),
    ("stage", Stage),
    ("scale_kind", ScaleKind),
    ("scale_dtype", ScaleDtype),
)
_RANDOM: tuple[RotationKind, ...] = ("none", "haar", "hadamard")


def resolve_options(
    method: str, part: Literal["keys", "values"], options: CodecOptions
) -> dict[str, Any]:
    """Every option of a method, the defaults where none is given.

    Raises:
        SettingError: The method is unknown, it has no such option, or a choice is out of range.
    """
    if method not in _DEFAULTS:
        raise SettingError(f"method must be one of {', '.join(get_args(Method))}, found {method!r}")
    defaults: dict[str, Any] = dict(_DEFAULTS[method])
    if method == "affine" and part == "values":
        defaults["axis"] = "token"
    if part == "values":
        defaults.pop("stage", None)
    for name in options:
        if name not in defaults:
            near = difflib.get_close_matches(name, defaults, n=1)
            raise SettingError(
                f"method {method!r} has no option {name!r}"
                + (f"; did you mean {near[0]!r}?" if near else "")
                + f"\nIt has {', '.join(defaults) or 'none'}."
            )
    if options.get("states") == 1:
        defaults["span"] = "head"
    found: dict[str, Any] = {**defaults, **options}
    if "rotation" in found:
        check_rotation_kind(found["rotation"])
    if method == "scalar" and found["rotation"] not in _RANDOM:
        raise SettingError(
            f"rotation of the scalar method must be one of {', '.join(_RANDOM)}, found "
            f"{found['rotation']!r}: a learned rotation turns towards signs, which its codebook "
            "does not fit"
        )
    for name in ("correction_rank", "exceptions", "iterations"):
        if found.get(name, 0) < 0:
            raise SettingError(f"{name} must be >= 0, found {found[name]}")
    if found.get("states", 1) not in STATES:
        raise SettingError(
            f"states must be one of {', '.join(map(str, STATES))}, found {found['states']}"
        )
    for name, kind in _CHOICES:
        if name in found and found[name] not in get_args(kind):
            raise SettingError(
                f"{name} must be one of {', '.join(get_args(kind))}, found {found[name]!r}"
            )
    return found


def option_names(method: str | None, part: Literal["keys", "values"] = "keys") -> tuple[str, ...]:
    """Names of the options of a method; none for no method or an unknown one."""
    names = _DEFAULTS.get(method or "", CodecOptions())
    return tuple(name for name in names if part == "keys" or name != "stage")


def wants_pre_rope(method: str, options: CodecOptions, *, can_turn: bool) -> bool:
    """Whether keys are to be collected before RoPE.

    Args:
        method: Of the keys.
        options: Theirs; ``stage`` decides where it is given.
        can_turn: The turns of the model are known.
    """
    stage = options.get("stage", "auto")
    if method not in TRANSFORMS or stage != "auto":
        return stage == "pre_rope"
    return can_turn and options.get("states") != 1


def check_bits(method: str, bits: float | None) -> float:
    """Bits of a method, 1 for ``sign`` unless given; only the transform codecs take fractions.

    For ``residual_sign`` they are the number of stages; ``lossless`` ignores them.

    Raises:
        SettingError: They are missing or out of the method's range.
    """
    if method == "lossless":
        return 0
    if bits is None and method == "sign":
        return 1
    if method in TRANSFORMS:
        if bits is None or not 0 < bits <= 8:
            raise SettingError(f"method {method!r} stores more than 0 to 8 bits, not {bits}")
        return bits
    highest = 1 if method == "sign" else 8
    if bits is None or bits != int(bits) or not 1 <= bits <= highest:
        wanted = "1 bit" if highest == 1 else "a whole number of bits from 1 to 8"
        raise SettingError(f"method {method!r} stores {wanted} per coordinate, not {bits}")
    return int(bits)
