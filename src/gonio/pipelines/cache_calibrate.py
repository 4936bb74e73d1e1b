"""A codec calibrated for a model's cache, and what it stores at several lengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from gonio.kvcache import CacheCodec, KeySamples, calibrate_from_samples, collect_cache
from gonio.kvcache.options import TRANSFORMS
from gonio.kvcache.sensitivity import collect_metrics
from gonio.pipelines.bench import Bench
from gonio.records import Measurement, Value, make_measurement, make_value

__all__ = ["calibrate_cache"]

_LENGTHS = (512, 4096, 32768)


def calibrate_cache(
    bench: Bench,
    *,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    samples: KeySamples | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[CacheCodec, Measurement]:
    """A codec calibrated on the bench's calibration windows, and what it costs.

    Args:
        bench: The model and its windows.
        options: Arguments of :func:`gonio.kvcache.calibrate`: method, bits, value_method,
            value_bits, value_options, sinks, recent and the options of the key method.
        seed: Seed of random rotations and starts.
        samples: Keys and values of the calibration windows, when already collected.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        The codec, and a measurement of kind ``cache-calibration`` with tables ``lengths`` (bits
        per element and compression by context length, keys and values apart) and ``layers``.

    Raises:
        SettingError: A setting is unknown, out of range or not one of the method's.
        DataError: The windows are no longer than the sink tokens.
    """
    chosen = dict(options or {})
    if samples is None:
        needs_metrics = {chosen.get("method"), chosen.get("value_method")} & set(TRANSFORMS)
        collect = collect_metrics if needs_metrics else collect_cache
        samples = collect(bench.model, bench.calibration, progress=progress)
    codec = calibrate_from_samples(
        samples,
        seed=seed,
        provenance={
            "model": bench.source,
            "text": bench.text_name,
            "text_sha256": bench.text_sha256,
            "calibration_tokens": bench.calibration.numel(),
            "window": bench.calibration.shape[1],
        },
        progress=progress,
        **chosen,
    )
    lengths = pd.DataFrame([_length_row(codec, length) for length in _LENGTHS])
    measurement = make_measurement(
        "cache-calibration",
        f"Codec for the cache of {bench.source}: {codec.method}",
        settings={"model": bench.source, "text": bench.text_name, **dict(codec.provenance)},
        values=_values(codec),
        tables={"lengths": lengths, "layers": codec.describe_layers()},
        inputs=bench.inputs,
        seed=seed,
    )
    return codec, measurement


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
    ]
