"""A codec calibrated for a model's cache, and what it stores at several lengths."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast, get_args

import pandas as pd
from torch import Tensor

from gonio.kvcache import (
    CacheCodec,
    KeySamples,
    calibrate_from_samples,
    collect_cache,
    collect_metrics,
    excess_over_limit,
)
from gonio.kvcache.calibrate import SINK_TOKENS
from gonio.kvcache.contract import Part
from gonio.kvcache.options import TRANSFORMS, CodecOptions, wants_pre_rope
from gonio.kvcache.pre_rope_codec import PreRopeCodec
from gonio.kvcache.rotary import can_turn
from gonio.pipelines.bench import Bench
from gonio.records import Measurement, Value, make_measurement, make_value

__all__ = ["calibrate_cache"]

_LENGTHS = (512, 4096, 32768)
_LIMITS = {"gaussian": "Gaussian rate-distortion function", "shannon": "Shannon lower bound"}


def calibrate_cache(
    bench: Bench,
    *,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    samples: KeySamples | None = None,
    held_out: Tensor | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[CacheCodec, Measurement]:
    """A codec calibrated on the bench's calibration windows, and what it costs.

    Args:
        bench: The model and its windows.
        options: Arguments of :func:`gonio.kvcache.calibrate`: method, bits, value_method,
            value_bits, value_options, sinks, recent and the options of the key method.
        seed: Seed of random rotations and starts.
        samples: Keys and values of the calibration windows, when already collected.
        held_out: Windows ``(num_windows, length)``, disjoint from those of calibration, on which
            ``transform`` and ``entropy`` codecs are set beside two limits.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        The codec, and a measurement of kind ``cache-calibration`` with tables ``lengths`` (bits
        per element and compression by context length, keys and values apart), ``layers``, and
        with held-out windows ``limits`` (:func:`gonio.kvcache.excess_over_limit` by part and
        layer).

    Raises:
        SettingError: A setting is unknown, out of range or not one of the method's.
        DataError: The windows are no longer than the sink tokens.
    """
    chosen = dict(options or {})
    if samples is None:
        needs_metrics = {chosen.get("method"), chosen.get("value_method")} & set(TRANSFORMS)
        reading: dict[str, Any] = {"context": bench.context, "progress": progress}
        if needs_metrics:
            turned = wants_pre_rope(
                chosen.get("method", "sign"),
                cast(CodecOptions, chosen),
                can_turn=can_turn(bench.model),
            )
            samples = collect_metrics(bench.model, bench.calibration, pre_rope=turned, **reading)
        else:
            samples = collect_cache(bench.model, bench.calibration, **reading)
    codec = calibrate_from_samples(
        samples,
        seed=seed,
        provenance=bench.calibration_facts,
        progress=progress,
        **chosen,
    )
    lengths = pd.DataFrame([_length_row(codec, length) for length in _LENGTHS])
    tables = {"lengths": lengths, "layers": codec.describe_layers()}
    if held_out is not None and len(held_out) and _weighted_parts(codec):
        tables["limits"] = _limits(bench, codec, held_out, seed, progress)
    measurement = make_measurement(
        "cache-calibration",
        f"Codec for the cache of {bench.source}: {codec.method}",
        settings={"model": bench.source, "text": bench.text_name, **dict(codec.provenance)},
        values=_values(codec) + _limit_values(tables.get("limits")),
        tables=tables,
        inputs=bench.inputs,
        seed=seed,
    )
    return codec, measurement


def _weighted_parts(codec: CacheCodec) -> list[Part]:
    """The parts that are coded in a weighted basis in every layer."""
    return [
        part
        for part in get_args(Part)
        if all(each.method in (*TRANSFORMS, PreRopeCodec.method) for each in codec.of(part))
    ]


def _limits(
    bench: Bench,
    codec: CacheCodec,
    held_out: Tensor,
    seed: int,
    progress: Callable[[str, int, int], None] | None,
) -> pd.DataFrame:
    """Excess over the limits by part and layer, on text that calibration did not read."""
    skip = max(SINK_TOKENS, codec.sinks)
    seen = collect_metrics(
        bench.model,
        held_out,
        skip=skip,
        context=bench.context,
        pre_rope=any(isinstance(each, PreRopeCodec) for each in codec.keys),
        seed=seed,
        progress=progress,
    )
    found = {
        part: excess_over_limit(codec.of(part), seen, part, skip) for part in _weighted_parts(codec)
    }
    table = pd.concat(found, names=["part"]).reset_index(level="part")
    return table.assign(tokens=held_out.numel()).reset_index(drop=True)


def _limit_values(limits: pd.DataFrame | None) -> list[Value]:
    if limits is None:
        return []
    values = []
    for name, limit in _LIMITS.items():
        for part, rows in limits.dropna(subset=[name]).groupby("part", sort=False):
            excess = 10 * math.log10(rows["error"].sum() / rows[name].sum())
            left_out = int((limits["part"] == part).sum()) - len(rows)
            note = f"error of {'all' if not left_out else len(rows)} layers over the {limit}, "
            note += f"{rows['tokens'].iloc[0]} held-out tokens"
            if left_out:
                note += f"; {left_out} of repeated values have none"
            values.append(make_value(f"{part}_over_{name}", excess, unit="dB", note=note))
    return values


def _length_row(codec: CacheCodec, length: int) -> dict[str, float]:
    keys, values = codec.stored(length), codec.stored(length, part="values")
    return {
        "seq_len": length,
        "bits_per_element": keys.bits_per_element,
        "side_bits_per_element": keys.side_bits_per_element,
        "side_bytes": keys.side_bytes,
        "key_compression_ratio": keys.compression_ratio(),
        "value_bits_per_element": values.bits_per_element,
        "value_side_bytes": values.side_bytes,
        "value_compression_ratio": values.compression_ratio(),
    }


def _values(codec: CacheCodec) -> list[Value]:
    keys, values = codec.stored(4096), codec.stored(4096, part="values")
    note = "every stored byte that grows with the sequence, at 4,096 tokens"
    return [
        make_value("bits_per_key_element", keys.bits_per_element, unit="bits", note=note),
        make_value("bits_per_value_element", values.bits_per_element, unit="bits", note=note),
        make_value(
            "side_bytes",
            keys.side_bytes + values.side_bytes,
            unit="bytes",
            note="rotations, means, tables: fixed, whatever the length",
        ),
        *_reach(codec),
    ]


def _reach(codec: CacheCodec) -> list[Value]:
    """How far the codec serves, where that is limited."""
    if codec.positions is None:
        return []
    note = "keys at later positions are decoded badly; --stage pre_rope or --context N cures it"
    return [make_value("positions_served", codec.positions, unit="positions", note=note)]
