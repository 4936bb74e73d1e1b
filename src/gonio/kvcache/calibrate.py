"""From a model and some text to a codec for its cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Unpack, cast

import torch
from torch import Tensor

from gonio.errors import CodecError, DataError, SettingError
from gonio.kvcache.affine_codec import AffineCodec
from gonio.kvcache.codec import CacheCodec
from gonio.kvcache.contract import Part, TensorCodec
from gonio.kvcache.control_codecs import LosslessCodec, ZeroCodec
from gonio.kvcache.correction import RankCorrection, residual_basis
from gonio.kvcache.exceptions import ExactExceptions
from gonio.kvcache.options import (
    TRANSFORMS,
    CodecOptions,
    Method,
    check_bits,
    resolve_options,
    wants_pre_rope,
)
from gonio.kvcache.pre_rope_codec import PreRopeCodec, bits_without_place
from gonio.kvcache.refined_codec import RefinedCodec, Refinement
from gonio.kvcache.residual_sign_codec import ResidualSignCodec
from gonio.kvcache.rotary import can_turn
from gonio.kvcache.samples import CacheSamples, KeySamples, collect_cache
from gonio.kvcache.scalar_codec import ScalarCodec
from gonio.kvcache.sensitivity import MetricSamples, collect_metrics
from gonio.kvcache.sign_codec import SignCodec
from gonio.kvcache.transform_fit import fit_entropy_codecs, fit_transform_codecs
from gonio.kvcache.transforms import fit_frames
from gonio.models.attention import attention_layout
from gonio.models.texts import token_windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "SINK_TOKENS",
    "calibrate",
    "calibrate_from_samples",
    "codec_rotations",
    "control_codec",
    "fit_codecs",
]

# First tokens attract attention and have outlying keys (Xiao et al. 2023, arXiv:2309.17453).
SINK_TOKENS = 4

Progress = Callable[[str, int, int], None]


def calibrate(
    model: PreTrainedModel,
    token_ids: Tensor,
    *,
    bits: float = 1.0,
    method: Method = "sign",
    value_bits: float | None = None,
    value_method: Method | None = None,
    value_options: CodecOptions | None = None,
    sinks: int = 0,
    recent: int = 0,
    window: int = 512,
    context: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Unpack[CodecOptions],
) -> CacheCodec:
    """Calibrate a codec for keys and one for values on text the model reads.

    Args:
        model: A decoder whose layers keep keys and values.
        token_ids: Calibration tokens, ``(n,)``, cut into windows, or ``(windows, length)``.
        bits: Width of a key code (``sign`` has 1); the number of stages of ``residual_sign``; bits
            per element, also fractions, of ``transform`` and ``entropy``.
        method: ``sign``, ``residual_sign``, ``scalar``, ``affine``, ``transform``, ``entropy`` or
            ``lossless``.
        value_bits: The same for values; without it and ``value_method`` values stay as they are.
        value_method: Method for values; ``affine`` when only ``value_bits`` is given.
        value_options: Options of the value method.
        sinks: First tokens the cache keeps raw.
        recent: Most recent tokens the cache keeps raw.
        window: Tokens per calibration window when ``token_ids`` is one run.
        context: Positions the windows are spread over, up to the model's limit; 0 leaves all at
            the start. A codec of keys after RoPE serves the positions it was calibrated at.
        seed: Seed of random rotations and starts.
        progress: Called with (what, done, total).
        **options: Options of the key method, see :class:`CodecOptions`.

    Returns:
        The codec, with where it was calibrated.

    Raises:
        SettingError: A setting is unknown, out of range or not one of the method's.
        DataError: There are fewer tokens than one window needs.
        ModelError: The model's attention is not supported.

    Example:
        >>> codec = calibrate(model, token_ids)  # doctest: +SKIP
        >>> model.generate(**inputs, past_key_values=codec.new_cache(model))  # doctest: +SKIP
    """
    settings = {
        "bits": bits,
        "method": method,
        "value_bits": value_bits,
        "value_method": value_method,
        "value_options": value_options,
    }
    plan = _plan(settings, options)  # a wrong setting fails before the model runs
    windows = token_ids if token_ids.ndim == 2 else token_windows(token_ids, window)
    if any(name in TRANSFORMS for name, _, _ in plan.values()):
        reading = {"skip": max(SINK_TOKENS, sinks), "context": context, "seed": seed}
        turned = wants_pre_rope(method, options, can_turn=can_turn(model))
        samples: KeySamples = collect_metrics(
            model, windows, pre_rope=turned, progress=progress, **reading
        )
    else:
        samples = collect_cache(model, windows, context=context, progress=progress)
    return calibrate_from_samples(
        samples,
        sinks=sinks,
        recent=recent,
        seed=seed,
        provenance=_read(windows, context),
        progress=progress,
        **settings,  # type: ignore[arg-type]  # the arguments of the same names
        **options,
    )


def _read(windows: Tensor, context: int) -> dict[str, Any]:
    """What was read, for the codec's provenance."""
    length = windows.shape[1]
    return {
        "calibration_tokens": windows.numel(),
        "window": length,
        "positions": max(context, length),
    }


def calibrate_from_samples(
    samples: KeySamples,
    *,
    bits: float = 1.0,
    method: Method = "sign",
    value_bits: float | None = None,
    value_method: Method | None = None,
    value_options: CodecOptions | None = None,
    sinks: int = 0,
    recent: int = 0,
    seed: int = 0,
    provenance: dict[str, Any] | None = None,
    progress: Progress | None = None,
    **options: Unpack[CodecOptions],
) -> CacheCodec:
    """As :func:`calibrate`, from keys (and values) already collected.

    The first :data:`SINK_TOKENS` tokens of a window, and ``sinks`` if that is more, are left out
    of every statistic.

    Args:
        samples: Collected keys; :class:`CacheSamples` where values are coded, and
            :class:`MetricSamples` for ``transform`` and ``entropy``.
        bits: See :func:`calibrate`, as for all that is not explained here.
        method: Method for keys.
        value_bits: Width of a value code.
        value_method: Method for values.
        value_options: Options of the value method.
        sinks: First tokens the cache keeps raw.
        recent: Most recent tokens the cache keeps raw.
        seed: Seed of random rotations and starts.
        provenance: Facts to keep in the codec beside the settings.
        progress: Called with (what, layers done, layers).
        **options: Options of the key method.

    Raises:
        SettingError: A setting is wrong, or values are to be coded and were not collected.
        DataError: The windows are no longer than the sink tokens.
    """
    settings = {
        "bits": bits,
        "method": method,
        "value_bits": value_bits,
        "value_method": value_method,
        "value_options": value_options,
    }
    plan = _plan(settings, options)
    used = samples.positions >= max(SINK_TOKENS, sinks)
    if not bool(used.any()):
        raise DataError(
            f"calibration windows end at token {int(samples.positions.max())}, and the first "
            f"{max(SINK_TOKENS, sinks)} are left out as sinks\nUse longer windows."
        )
    is_turned = isinstance(samples, MetricSamples) and bool(samples.rotary)
    if plan["keys"][2].get("stage") == "auto":
        plan["keys"][2]["stage"] = "pre_rope" if is_turned else "post_rope"
    codecs: dict[Part, tuple[TensorCodec, ...]] = {"values": ()}
    for part, planned in plan.items():
        codecs[part] = _fit_part(samples, part, planned, used, seed, progress)
    facts: dict[str, Any] = {
        part: {"method": name, "bits": width, **chosen}
        for part, (name, width, chosen) in plan.items()
    }
    own = facts.pop("keys")
    return CacheCodec(
        samples.layout,
        codecs["keys"],
        codecs["values"],
        sinks=sinks,
        window=recent,
        provenance={**own, **facts, "seed": seed, **(provenance or {})},
    )


def _fit_part(
    samples: KeySamples,
    part: Part,
    planned: tuple[str, float, dict[str, Any]],
    used: Tensor,
    seed: int,
    progress: Progress | None,
) -> tuple[TensorCodec, ...]:
    """The codecs of keys or of values, one per layer, from the tokens that are used."""
    name, width, chosen = planned
    rotary = samples.rotary if isinstance(samples, MetricSamples) and part == "keys" else ()
    if bool(rotary) != (chosen.get("stage") == "pre_rope") and name != "lossless":
        raise SettingError(
            f"keys are to be coded {chosen.get('stage', 'post_rope')}, the samples are of the "
            "other side of RoPE\nCollect them with collect_metrics(pre_rope=...) likewise."
        )
    if part == "keys":
        vectors = samples.keys
    elif isinstance(samples, CacheSamples):
        vectors = samples.values
    else:
        raise SettingError("values cannot be calibrated: the samples hold keys only")
    kept = [x[:, :, used] for x in vectors]
    if name not in TRANSFORMS:
        return fit_codecs(name, int(width), kept, chosen, seed=seed, progress=progress)
    if not isinstance(samples, MetricSamples):
        raise SettingError(f"method {name!r} needs metrics: collect samples with collect_metrics")
    fit: Any = fit_transform_codecs if name == "transform" else fit_entropy_codecs
    if rotary:
        width = bits_without_place(name, width, vectors[0].shape[1] * vectors[0].shape[3])
    metrics = samples.metrics(part, chosen["metric"])
    fitted: tuple[TensorCodec, ...] = fit(width, kept, metrics, chosen, progress)
    if not rotary:
        return fitted
    return tuple(PreRopeCodec(base, turns) for base, turns in zip(fitted, rotary, strict=True))


def fit_codecs(
    method: str,
    bits: int,
    vectors: Sequence[Tensor],
    options: dict[str, Any],
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[TensorCodec, ...]:
    """One codec per layer for keys or for values.

    Args:
        method: ``sign``, ``residual_sign``, ``scalar``, ``affine`` or ``lossless``.
        bits: Code width, or stages.
        vectors: Per layer ``(windows, num_kv_heads, tokens, head_dim)``, without sink tokens.
        options: Every option of the method, as :func:`resolve_options` gives them.
        seed: Seed of random rotations and starts.
        progress: Called with (what, layers done, layers).
    """
    if method == "lossless":
        return (LosslessCodec(),) * len(vectors)
    bases = _fit_bases(method, bits, vectors, options, seed, progress)
    if not (options["correction_rank"] or options["exceptions"]):
        return bases
    return tuple(_refine(base, x, options) for base, x in zip(bases, vectors, strict=True))


def codec_rotations(codec: CacheCodec) -> list[Tensor | None]:
    """The rotations of the keys of a sign codec, one per layer.

    Raises:
        CodecError: The codec is of another method.
    """
    rotations: list[Tensor | None] = []
    for layer in codec.keys:
        if not isinstance(layer, SignCodec):
            raise CodecError(f"a codec of method {codec.method!r} has no sign rotations")
        rotations.append(layer.frame.rotation)
    return rotations


def control_codec(model: PreTrainedModel, method: str) -> CacheCodec:
    """A control that needs no calibration: ``lossless`` or ``zeros``.

    Raises:
        SettingError: The name is neither.
    """
    controls: dict[str, TensorCodec] = {"lossless": LosslessCodec(), "zeros": ZeroCodec()}
    if method not in controls:
        raise SettingError(f"control must be one of {', '.join(controls)}, found {method!r}")
    layout = attention_layout(model.config)
    keys = (controls[method],) * layout.num_layers
    return CacheCodec(layout, keys, provenance={"control": method})


def _plan(
    settings: dict[str, Any], options: CodecOptions
) -> dict[Part, tuple[str, float, dict[str, Any]]]:
    """Method, bits and resolved options of the parts to code."""
    method, bits = settings["method"], settings["bits"]
    resolved = resolve_options(method, "keys", options)
    plan: dict[Part, tuple[str, float, dict[str, Any]]] = {
        "keys": (method, check_bits(method, bits), resolved)
    }
    value_method, value_bits = settings["value_method"], settings["value_bits"]
    chosen = cast(CodecOptions, settings["value_options"] or {})
    if value_method is None and value_bits is None:
        if chosen:
            raise SettingError("value_options are given, and neither value_method nor value_bits")
        return plan
    name = value_method or "affine"
    resolved = resolve_options(name, "values", chosen)
    plan["values"] = (name, check_bits(name, value_bits), resolved)
    return plan


def _fit_bases(
    method: str,
    bits: int,
    vectors: Sequence[Tensor],
    options: dict[str, Any],
    seed: int,
    progress: Progress | None,
) -> tuple[TensorCodec, ...]:
    """The codecs before any refinement."""
    if method == "affine":
        return (AffineCodec(bits, options["axis"], options["group"]),) * len(vectors)
    by_head = [x.transpose(0, 1).flatten(1, 2) for x in vectors]
    choices = {"rotation", "centering", "shared_rotation", "iterations"} & options.keys()
    frame_options = {name.removesuffix("_rotation"): options[name] for name in choices}
    generator = torch.Generator().manual_seed(seed)
    frames = fit_frames(vectors=by_head, generator=generator, progress=progress, **frame_options)
    if method == "scalar":
        return tuple(ScalarCodec(bits, frame, options["law"]) for frame in frames)
    scale = {name: options[name] for name in ("scale_kind", "scale_dtype")}
    stages = [(SignCodec(frame, **scale),) for frame in frames]
    if method == "sign":
        return tuple(stage for (stage,) in stages)
    return _add_stages(stages, by_head, bits, frame_options, generator, progress)


def _add_stages(
    chains: Sequence[tuple[SignCodec, ...]],
    by_head: Sequence[Tensor],
    count: int,
    frame_options: dict[str, Any],
    generator: torch.Generator,
    progress: Progress | None,
) -> tuple[ResidualSignCodec, ...]:
    """Residual sign codecs of ``count`` stages, given the first."""
    options = frame_options | {"centering": "none"}  # the first stage has taken the mean away
    left = [x[None] for x in by_head]
    for _ in range(count - 1):
        left = [
            x - chain[-1].decode(chain[-1].encode(x)) for x, chain in zip(left, chains, strict=True)
        ]
        vectors = [x[0] for x in left]
        frames = fit_frames(vectors=vectors, generator=generator, progress=progress, **options)
        chains = [
            (*chain, replace(chain[0], frame=frame))
            for chain, frame in zip(chains, frames, strict=True)
        ]
    return tuple(ResidualSignCodec(chain) for chain in chains)


def _refine(base: TensorCodec, x: Tensor, options: dict[str, Any]) -> RefinedCodec:
    """The base with the refinements that the options ask for."""
    refinements: list[Refinement] = []
    if options["correction_rank"]:
        x = x[:, :, : x.shape[2] // base.block * base.block]
        if x.shape[2] == 0:
            raise DataError(
                f"calibration windows are shorter than the {base.block} tokens of one block, and "
                "the sinks are left out\nUse longer windows."
            )
        residual = x - base.decode(base.encode(x))
        basis, _ = residual_basis(
            residual.transpose(0, 1).flatten(1, 2), options["correction_rank"]
        )
        refinements.append(RankCorrection(basis, options["coefficients"]))
    if options["exceptions"]:
        refinements.append(ExactExceptions(options["exceptions"]))
    return RefinedCodec(base, tuple(refinements))
