"""Caches measured end to end: a model and a text in, one measurement out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from gonio.errors import SettingError
from gonio.kvcache import (
    CacheCodec,
    EvaluationSettings,
    KeySamples,
    RotationKind,
    calibrate_from_samples,
    codec_rotations,
    collect_keys,
    control_codec,
    evaluate_codecs,
    key_rotations,
    rotation_convergence,
    sign_cosine_table,
)
from gonio.kvcache.evaluate import Protocol
from gonio.linalg.resampling import Interval, bootstrap_interval
from gonio.pipelines.bench import Bench
from gonio.records import Measurement, Value, make_measurement, make_value

__all__ = ["calibrate_cache", "evaluate_cache", "observe_cache"]

Progress = Callable[[str, int, int], None]

_TRANSFORMS: tuple[RotationKind, ...] = ("none", "haar", "hadamard", "learned")


def observe_cache(
    bench: Bench,
    *,
    iterations: int = 50,
    convergence_layers: int = 4,
    seed: int = 0,
    codecs: Mapping[RotationKind, CacheCodec] | None = None,
    samples: KeySamples | None = None,
    progress: Progress | None = None,
) -> Measurement:
    """1-bit cosine of every head under no, Haar, Hadamard and learned rotation, beside c_d.

    Rotations are learned on the calibration windows and measured on the evaluation windows.

    Args:
        bench: The model and its windows.
        iterations: Steps of the learned rotation.
        convergence_layers: Layers whose convergence is followed, spread over the depth.
        seed: Seed of the random rotations, starts and bootstrap.
        codecs: Sign codecs calibrated on the same windows, whose rotations are measured; without
            them the rotations are made here.
        samples: Keys of the calibration windows, when already collected.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        Kind ``key-geometry``; tables ``heads`` and ``convergence``.
    """
    learn = samples or collect_keys(bench.model, bench.calibration, seed=seed, progress=progress)
    measure = collect_keys(bench.model, bench.evaluation, seed=seed, progress=progress)
    if codecs is None:
        rotations = {
            kind: key_rotations(kind, learn, iterations=iterations, seed=seed, progress=progress)
            for kind in _TRANSFORMS
        }
    else:
        rotations = {kind: codec_rotations(codec) for kind, codec in codecs.items()}
    heads = sign_cosine_table(measure, rotations, seed=seed)
    layers = np.linspace(0, learn.layout.num_layers - 1, convergence_layers).round().astype(int)
    convergence = rotation_convergence(
        learn, sorted(set(layers.tolist())), iterations=iterations, progress=progress
    )
    return make_measurement(
        "key-geometry",
        f"1-bit cosine of the keys of {bench.source}, after RoPE",
        settings={
            **_bench_settings(bench),
            "iterations": iterations,
            "stage": "post_rope",
            "convergence_layers": sorted(set(layers.tolist())),
        },
        values=_cosine_values(heads, seed),
        tables={"heads": heads, "convergence": convergence},
        inputs=bench.inputs,
        seed=seed,
    )


def calibrate_cache(
    bench: Bench,
    *,
    rotation: RotationKind = "learned",
    iterations: int = 50,
    seed: int = 0,
    samples: KeySamples | None = None,
    progress: Progress | None = None,
) -> tuple[CacheCodec, Measurement]:
    """A sign codec calibrated on the bench's calibration windows, and what it costs.

    Args:
        bench: The model and its windows.
        rotation: ``none``, ``haar``, ``hadamard`` or ``learned``.
        iterations: Steps of the learned rotation.
        seed: Seed of random rotations and starts.
        samples: Keys of the calibration windows, when already collected.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        The codec, and a measurement of kind ``cache-calibration`` with table ``lengths``: bits
        per key element and compression by context length.
    """
    samples = samples or collect_keys(bench.model, bench.calibration, seed=seed, progress=progress)
    provenance = {
        "model": bench.source,
        "text": bench.text_name,
        "text_sha256": bench.text_sha256,
        "calibration_tokens": bench.calibration.numel(),
        "window": bench.calibration.shape[1],
    }
    codec = calibrate_from_samples(
        samples,
        rotation=rotation,
        iterations=iterations,
        seed=seed,
        provenance=provenance,
        progress=progress,
    )
    lengths = pd.DataFrame([_length_row(codec, length) for length in (512, 4096, 32768)])
    bits = lengths.set_index("seq_len")["bits_per_element"]
    measurement = make_measurement(
        "cache-calibration",
        f"Key codec for {bench.source}: {codec.method}, rotation {rotation}",
        settings={**_bench_settings(bench), "rotation": rotation, "iterations": iterations},
        values=[
            make_value(
                "bits_per_key_element",
                float(bits[4096]),
                unit="bits",
                note="codes and scales at 4,096 tokens; values stay in full precision",
            ),
            make_value(
                "side_bytes", int(lengths["side_bytes"][0]), unit="bytes", note="rotations, fixed"
            ),
        ],
        tables={"lengths": lengths},
        inputs=bench.inputs,
        seed=seed,
    )
    return codec, measurement


def evaluate_cache(
    bench: Bench,
    codecs: Mapping[str, CacheCodec],
    *,
    protocols: tuple[Protocol, ...] = ("teacher-forced", "cache"),
    prefill: int = 256,
    chunk: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measurement:
    """Perplexity, KL and top-1 agreement of codecs beside full precision and a cache of zeros.

    Args:
        bench: The model; its evaluation windows are scored.
        codecs: Codecs by name; the ``zeros`` control is added.
        protocols: Which of the two protocols of :mod:`gonio.kvcache.evaluate` to run.
        prefill: Tokens before the first chunk (``cache`` protocol).
        chunk: Tokens per chunk (``cache`` protocol).
        seed: Seed of the bootstrap over windows.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        Kind ``cache-evaluation``; tables ``methods`` and ``windows``.

    Raises:
        SettingError: A codec is called ``full`` or ``zeros``, or a window is too short.
        CodecError: A codec does not fit the model.
    """
    reserved = sorted({"full", "zeros"} & codecs.keys())
    if reserved:
        raise SettingError(f"a codec cannot be called {reserved[0]!r}: a control has that name")
    every = {**codecs, "zeros": control_codec(bench.model, "zeros")}
    length = bench.evaluation.shape[1]
    stored = {name: codec.stored(length) for name, codec in every.items()}
    frames, rows = [], []
    for protocol in protocols:
        settings = EvaluationSettings(protocol, prefill, chunk)
        scores = evaluate_codecs(bench.model, bench.evaluation, every, settings, progress=progress)
        frames.append(scores.assign(protocol=protocol))
        for method, group in scores.groupby("method", sort=False):
            bits = stored.get(str(method))
            full = scores[scores["method"] == "full"]
            rows.append(
                {
                    "method": method,
                    "protocol": protocol,
                    "bits_per_element": bits.bits_per_element if bits else _full_bits(bench),
                    "side_bits_per_element": bits.side_bits_per_element if bits else 0.0,
                    **_method_row(group, full, seed),
                    "context_length": length,
                }
            )
    methods = pd.DataFrame(rows)
    return make_measurement(
        "cache-evaluation",
        f"Key caches of {bench.source} by perplexity; values in full precision",
        settings={
            **_bench_settings(bench),
            "prefill": prefill,
            "chunk": chunk,
            "codecs": {name: dict(codec.provenance) for name, codec in every.items()},
        },
        values=_perplexity_values(methods),
        tables={"methods": methods, "windows": pd.concat(frames, ignore_index=True)},
        inputs=bench.inputs,
        seed=seed,
    )


def _bench_settings(bench: Bench) -> dict[str, str | int]:
    return {
        "model": bench.source,
        "text": bench.text_name,
        "calibration_tokens": bench.calibration.numel(),
        "evaluation_tokens": bench.evaluation.numel(),
        "window": bench.evaluation.shape[1],
    }


def _cosine_values(heads: pd.DataFrame, seed: int) -> list[Value]:
    chance = float(heads["chance"].iloc[0])
    values = []
    for kind, group in heads.groupby("transform", sort=False):
        means = group["mean_cosine"].to_numpy()
        interval = bootstrap_interval(means, seed=seed) if means.size > 1 else None
        values.append(
            make_value(
                f"mean_cosine_{kind}",
                float(means.mean()),
                chance=chance,
                interval=interval,
                note="mean over heads of the 1-bit cosine on evaluation text; "
                "interval over heads; chance is c_d, a random rotation of any keys",
            )
        )
    return values


def _length_row(codec: CacheCodec, length: int) -> dict[str, float]:
    stored = codec.stored(length)
    return {
        "seq_len": length,
        "bits_per_element": stored.bits_per_element,
        "side_bits_per_element": stored.side_bits_per_element,
        "side_bytes": stored.side_bytes,
        "key_compression_ratio": stored.compression_ratio(),
    }


def _method_row(group: pd.DataFrame, full: pd.DataFrame, seed: int) -> dict[str, float]:
    """Scores of one method; every window has the same number of scored tokens."""
    nll = group["nll"].to_numpy()
    excess = nll - full["nll"].to_numpy()
    interval = _exp_interval(nll, seed)
    ratio = _exp_interval(excess, seed) if np.ptp(excess) > 0 else None
    undefined = float("nan")
    return {
        "perplexity": math.exp(nll.mean()),
        "perplexity_low": interval.low if interval else undefined,
        "perplexity_high": interval.high if interval else undefined,
        "perplexity_ratio": math.exp(excess.mean()),
        "perplexity_ratio_low": ratio.low if ratio else undefined,
        "perplexity_ratio_high": ratio.high if ratio else undefined,
        "logit_kl": float(group["logit_kl"].mean()),
        "same_top1": float(group["same_top1"].mean()),
        "scored_tokens": int(group["scored_tokens"].sum()),
    }


def _exp_interval(log_values: np.ndarray, seed: int) -> Interval | None:
    if log_values.size < 2:
        return None
    found = bootstrap_interval(log_values, seed=seed)
    return Interval(math.exp(found.low), math.exp(found.high), found.confidence, found.method)


def _full_bits(bench: Bench) -> float:
    return 8.0 * next(bench.model.parameters()).element_size()


def _perplexity_values(methods: pd.DataFrame) -> list[Value]:
    values = []
    for protocol, group in methods.groupby("protocol", sort=False):
        zeros = float(group.loc[group["method"] == "zeros", "perplexity"].iloc[0])
        for row in group.to_dict(orient="records"):
            interval = None
            if not math.isnan(row["perplexity_low"]):
                interval = Interval(
                    row["perplexity_low"], row["perplexity_high"], 0.95, "bootstrap over windows"
                )
            values.append(
                make_value(
                    f"perplexity_{row['method']}_{protocol}",
                    float(row["perplexity"]),
                    chance=zeros,
                    interval=interval,
                    note=f"{row['scored_tokens']} tokens scored; chance is a cache of zeros",
                )
            )
    return values
