"""The geometry of keys and values measured end to end: a model and a text in, a measurement out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gonio.kvcache.collapse import collapse_table, dominant_directions
from gonio.kvcache.frame import CenteringKind, Frame
from gonio.kvcache.geometry import rotation_convergence, sign_cosine_table
from gonio.kvcache.observation import (
    Observation,
    ObservationSettings,
    Stage,
    observe_attention,
)
from gonio.kvcache.sinks import SinkSettings
from gonio.kvcache.spectra import eigenvalue_table, spectra_table
from gonio.kvcache.transforms import RotationKind, fit_frames
from gonio.linalg.hadamard import has_hadamard
from gonio.linalg.resampling import bootstrap_interval
from gonio.pipelines.bench import Bench
from gonio.records import Measurement, Value, make_measurement, make_value

__all__ = ["TRANSFORMS", "observe_cache"]

Progress = Callable[[str, int, int], None]

TRANSFORMS: dict[str, tuple[RotationKind, CenteringKind]] = {
    "none": ("none", "none"),
    "token": ("none", "token"),
    "channel": ("none", "channel"),
    "haar": ("haar", "none"),
    "hadamard": ("hadamard", "none"),
    "learned": ("learned", "none"),
}
CONVERGENCE_SAMPLES = 2048  # vectors of a head that convergence is followed on
_CACHED: tuple[Stage, ...] = ("key_post", "key_pre", "value")


def observe_cache(
    bench: Bench,
    *,
    iterations: int = 50,
    convergence_layers: int = 4,
    learning_samples: int = 4096,
    samples: int = 4096,
    sinks: SinkSettings | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measurement:
    """Geometry of every head's keys, before and after RoPE, and values, beside chance.

    Rotations, channel means and dominant directions are found on the calibration windows, and
    everything is measured on the evaluation windows.

    Args:
        bench: The model and its windows.
        iterations: Steps of the learned rotations.
        convergence_layers: Layers whose convergence is followed, spread over the depth.
        learning_samples: Tokens of the calibration windows that rotations are learned from.
        samples: Tokens of the evaluation windows that cosines and angles are measured on; moments
            and sinks are those of all.
        sinks: What counts as an attention sink or an outlier.
        seed: Seed of samples, random rotations, starts and bootstrap.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        Kind ``key-geometry``; tables ``heads`` (1-bit cosine and beta by layer, head, ``what`` and
        transform), ``layers`` (collapse, tails, sinks), ``spectra``, ``eigenvalues``, ``sinks``,
        ``leading_tokens`` and ``convergence``. Without RoPE there is no ``key_pre``, without a
        Hadamard matrix of the head's size no ``hadamard``.
    """
    sinks = sinks or SinkSettings()
    to_learn = ObservationSettings(_CACHED, _CACHED, learning_samples, seed=seed)
    to_measure = ObservationSettings(sampled=_CACHED, samples=samples, sinks=sinks, seed=seed)
    learn = observe_attention(bench.model, bench.calibration, to_learn, progress=progress)
    found = observe_attention(bench.model, bench.evaluation, to_measure, progress=progress)
    heads, layers = _geometry(learn, found, iterations, seed, progress)
    spread = np.linspace(0, found.layout.num_layers - 1, convergence_layers).round().astype(int)
    followed = sorted(set(spread.tolist()))
    few = [vectors[:, :CONVERGENCE_SAMPLES] for vectors in learn.samples["key_post"]]
    convergence = rotation_convergence(few, followed, iterations=iterations, progress=progress)
    moments = {str(stage): sums for stage, sums in found.moments.items()}
    sink_table = pd.DataFrame() if found.sinks is None else found.sinks
    tables = {
        "heads": heads,
        "layers": _with_sinks(layers, sink_table),
        "spectra": spectra_table(moments),
        "eigenvalues": eigenvalue_table(moments),
        "sinks": _with_words(sink_table, bench),
        "leading_tokens": pd.DataFrame() if found.leading_tokens is None else found.leading_tokens,
        "convergence": convergence,
    }
    return make_measurement(
        "key-geometry",
        f"Geometry of the keys and values of {bench.source}",
        settings={
            **_settings(bench, found, sinks),
            "iterations": iterations,
            "learning_samples": min(learning_samples, bench.calibration.numel()),
            "samples": len(found.windows),
            "convergence_layers": followed,
        },
        values=[*_cosine_values(tables["heads"], seed), *_layer_values(tables["layers"], seed)],
        tables=tables,
        inputs=bench.inputs,
        seed=seed,
    )


def _geometry(
    learn: Observation, found: Observation, iterations: int, seed: int, progress: Progress | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables ``heads`` and ``layers``, the latter without sinks."""
    heads, layers = [], []
    for stage, measured in found.samples.items():
        frames = _frames(stage, learn.samples[stage], iterations, seed, progress)
        table = sign_cosine_table(measured, found.windows, frames, seed=seed)
        table.insert(2, "what", stage)
        heads.append(table)
        directions = [dominant_directions(sums) for sums in learn.moments[stage]]
        layers.append(collapse_table(stage, measured, found.moments[stage], directions))
    return pd.concat(heads, ignore_index=True), pd.concat(layers, ignore_index=True)


def _frames(
    stage: Stage,
    vectors: Sequence[Tensor],
    iterations: int,
    seed: int,
    progress: Progress | None,
) -> dict[str, list[Frame]]:
    """Frames of every transform, by its name."""

    def report(what: str, done: int, total: int) -> None:
        if progress is not None:
            progress(f"{what}, {stage}", done, total)

    known = has_hadamard(vectors[0].shape[-1])
    return {
        name: fit_frames(
            rotation,
            vectors,
            centering=centering,
            iterations=iterations,
            generator=torch.Generator().manual_seed(seed),
            progress=report,
        )
        for name, (rotation, centering) in TRANSFORMS.items()
        if known or rotation != "hadamard"
    }


def _settings(bench: Bench, found: Observation, sinks: SinkSettings) -> dict[str, Any]:
    head_dim = found.layout.head_dim
    left_out = {
        "key_pre": None if "key_pre" in found.stages else "the model has no rotary embedding",
        "hadamard": None if has_hadamard(head_dim) else f"no Hadamard matrix of order {head_dim}",
    }
    return {
        "model": bench.source,
        "text": bench.text_name,
        "calibration_tokens": bench.calibration.numel(),
        "evaluation_tokens": bench.evaluation.numel(),
        "window": bench.evaluation.shape[1],
        "stages": list(found.stages),
        "left_out": {name: why for name, why in left_out.items() if why},
        "sink_attention": sinks.attention,
        "sink_norm_ratio": sinks.norm_ratio,
        "sink_queries": sinks.queries,
    }


def _with_sinks(layers: pd.DataFrame, sinks: pd.DataFrame) -> pd.DataFrame:
    """Tokens per window that attention, and the norms of this kind of vector, single out."""
    counts = sinks.groupby(["layer", "criterion"])["per_window"].sum()
    norms = {"key_post": "key_norm", "key_pre": "key_norm", "value": "value_norm"}
    pairs = list(zip(layers["layer"], layers["what"], strict=True))
    return layers.assign(
        attention_sinks=[float(counts.get((layer, "attention"), 0.0)) for layer, _ in pairs],
        norm_outliers=[float(counts.get((layer, norms[what]), 0.0)) for layer, what in pairs],
    )


def _cosine_values(heads: pd.DataFrame, seed: int) -> list[Value]:
    """Means over heads; a name without a kind of vector is that of keys after RoPE."""
    notes = {"mean_cosine": "1-bit cosine", "beta": "energy that signs keep"}
    chances = {"mean_cosine": "chance", "beta": "beta_chance"}
    values = []
    for (what, transform), group in heads.groupby(["what", "transform"], sort=False):
        suffix = "" if what == "key_post" else f"_{what}"
        for column, note in notes.items():
            values.append(
                _mean_value(
                    f"{column}_{transform}{suffix}",
                    group[column],
                    seed,
                    chance=float(group[chances[column]].iloc[0]),
                    note=f"{note} on evaluation text, mean over heads; interval over heads; "
                    "chance is a random direction",
                )
            )
    return values


def _layer_values(layers: pd.DataFrame, seed: int) -> list[Value]:
    chances: Mapping[str, str | None] = {
        "phase_angle": "angle_chance",
        "lattice_angle": "angle_chance",
        "moment_ratio": "moment_ratio_chance",
        "excess_kurtosis": None,
        "top_channel_energy": "top_channel_chance",
    }
    values = []
    for what, group in layers.groupby("what", sort=False):
        for column, chance in chances.items():
            values.append(
                _mean_value(
                    f"{column}_{what}",
                    group[column],
                    seed,
                    unit="degrees" if column.endswith("angle") else "",
                    chance=0.0 if chance is None else float(group[chance].iloc[0]),
                    note="mean over layers; interval over layers",
                )
            )
    sinks = layers.drop_duplicates("layer")["attention_sinks"]
    note = "tokens per window that are attention sinks, mean over layers; interval over layers"
    return [*values, _mean_value("attention_sinks", sinks, seed, note=note)]


def _mean_value(name: str, column: pd.Series[float], seed: int, **more: Any) -> Value:
    sample = np.asarray(column, dtype=np.float64)
    enough = sample.size > 1 and bool(np.isfinite(sample).all())
    interval = bootstrap_interval(sample, seed=seed) if enough else None
    return make_value(name, float(sample.mean()), interval=interval, **more)


def _with_words(sinks: pd.DataFrame, bench: Bench) -> pd.DataFrame:
    """The sink table with each token as text; a leading position has none."""
    ids = [[] if pd.isna(token) else [int(token)] for token in sinks["token_id"]]
    return sinks.assign(token=[str(bench.tokenizer.decode(each)) for each in ids])
