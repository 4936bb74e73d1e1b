"""Bounds on what a codec does to every head's output, beside the measured errors, in one record."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
from torch import Tensor

from gonio.kvcache import CacheCodec, CacheSamples, collect_cache
from gonio.kvcache.certify import LayerCertificate, certify_attention, collect_inputs
from gonio.kvcache.distortion_bound import RUNGS
from gonio.kvcache.guarantee import Budget, spend_until_bounded
from gonio.kvcache.memory import coded_parts
from gonio.kvcache.options import TRANSFORMS
from gonio.kvcache.sensitivity import collect_metrics
from gonio.pipelines.bench import Bench
from gonio.records import Measurement, Value, make_measurement, make_value

__all__ = ["certify_cache", "guarantee_cache"]

Progress = Callable[[str, int, int], None]

# Which codec on which text.
GIVEN = ("given", "evaluation")
PROMISED = ("guaranteed", "calibration")
UNSEEN = ("guaranteed", "evaluation")
_TRIVIAL = "chance is 1, the whole range: which no movement of the weights exceeds"


def certify_cache(
    bench: Bench,
    codec: CacheCodec,
    budget: Budget | None = None,
    *,
    progress: Progress | None = None,
) -> Measurement:
    """Bounds and errors of every head on the bench's evaluation windows.

    Args:
        bench: The model; its evaluation windows are read.
        codec: A codec for it.
        budget: What heads are compared with.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        Kind ``cache-certificate``; tables ``heads`` (one row per layer and head: error and bounds
        in units of the output and over the range of values, their quotients, which head breaks
        the budget) and ``rungs`` (one row per bound).

    Raises:
        CodecError: The codec does not fit the model, or decodes infinities or NaN.
        ModelError: The model's attention cannot be observed, or is not the kind that is bounded.
        SettingError: The windows are too short for a block of the codec.
    """
    budget = budget or Budget()
    found = certify_attention(bench.model, bench.evaluation, codec, progress=progress)
    parts = {GIVEN: found}
    return _measurement(bench, codec, budget, parts, {})


def guarantee_cache(
    bench: Bench,
    codec: CacheCodec,
    budget: Budget | None = None,
    *,
    progress: Progress | None = None,
) -> tuple[CacheCodec, Measurement]:
    """A codec that meets the budget on the bench's calibration windows, by spending bits.

    Args:
        bench: The model; the budget is met on its calibration windows, on which codecs are also
            fitted, and looked at again on its evaluation windows, where nothing is promised.
        codec: Where to start from.
        budget: What is allowed.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        The codec, and the measurement of :func:`certify_cache` with three sets of heads: the
        given codec and the new one on the calibration windows, the new one on the evaluation
        windows; and the table ``spending``, what each layer got.

    Raises:
        CodecError: As :func:`certify_cache`, as for the other errors.
    """
    budget = budget or Budget()
    model, windows = bench.model, bench.calibration
    before = certify_attention(model, windows, codec, progress=progress)
    methods = {codec.provenance.get("method"), codec.provenance.get("values", {}).get("method")}
    if methods & set(TRANSFORMS):
        turned = codec.provenance.get("stage") == "pre_rope"
        samples: CacheSamples = collect_metrics(model, windows, pre_rope=turned, progress=progress)
    else:
        samples = collect_cache(model, windows, progress=progress)
    inputs = collect_inputs(model, windows, progress=progress)
    made, after, spending = spend_until_bounded(codec, inputs, samples, budget, progress=progress)
    unseen = certify_attention(model, bench.evaluation, made, progress=progress)
    parts = {
        ("given", "calibration"): before,
        PROMISED: after,
        UNSEEN: unseen,
    }
    for part in ("key", "value"):
        for name, each in (("before", codec), ("after", made)):
            spending[f"{part}_bits_{name}"] = each.describe_layers()[f"{part}_bits"]
    measurement = _measurement(bench, made, budget, parts, {"spending": spending})
    return made, measurement


def _measurement(
    bench: Bench,
    codec: CacheCodec,
    budget: Budget,
    parts: Mapping[tuple[str, str], Sequence[LayerCertificate]],
    tables: dict[str, pd.DataFrame],
) -> Measurement:
    """The record; its values are of the codec on the text it is promised on, or was given."""
    heads, rungs = {}, {}
    for (name, text), found in parts.items():
        rows = pd.concat([_head_rows(each, budget, codec) for each in found], ignore_index=True)
        heads[name, text] = rows.assign(codec=name, text=text)
        rungs[name, text] = _rung_rows(rows, budget).assign(codec=name, text=text)
    shown = PROMISED if PROMISED in parts else GIVEN
    values = [_violations(parts), *_values(heads[shown], rungs[shown], budget)]
    if shown == PROMISED:
        values.append(_elsewhere(heads[UNSEEN]))
    return make_measurement(
        "cache-certificate",
        f"Bounds on attention outputs of {bench.source} through a codec",
        settings={
            "model": bench.source,
            "text": bench.text_name,
            "budget": budget.share,
            "rung": budget.rung,
            "calibration_tokens": bench.calibration.numel(),
            "evaluation_tokens": bench.evaluation.numel(),
            "window": bench.evaluation.shape[1],
            "arithmetic": "float64",
            "coded": list(coded_parts(codec)),
            "codec": dict(codec.provenance),
        },
        values=values,
        tables={
            "heads": pd.concat(heads.values(), ignore_index=True),
            "rungs": pd.concat(rungs.values(), ignore_index=True),
            **tables,
        },
        inputs=bench.inputs,
        dtype=bench.model.dtype,
        device=bench.model.device.type,
    )


def _head_rows(found: LayerCertificate, budget: Budget, codec: CacheCodec) -> pd.DataFrame:
    """One row per query head of a layer."""
    group = codec.layout.num_heads // codec.layout.num_kv_heads
    heads = range(len(found.error))
    error = _largest(found.error)
    table: dict[str, Any] = {
        "layer": found.layer,
        "head": list(heads),
        "kv_head": [head // group for head in heads],
        "queries": found.error.shape[1],
        "value_range": found.value_range.tolist(),
        "error": error,
        "mean_error": found.error.mean(dim=1).tolist(),
        "value_error": _largest(found.value_error),
    }
    for rung in RUNGS:
        bound = _largest(found.bounds[rung])
        table[f"bound_{rung}"] = bound
        table[f"slack_{rung}"] = [
            b / e if e > 0 else float("nan") for b, e in zip(bound, error, strict=True)
        ]
        table[f"mean_{rung}"] = found.relative(found.bounds[rung]).mean(dim=1).tolist()
    relative = found.relative(found.bounds[budget.rung])
    table["relative_error"] = _largest(found.relative(found.error))
    table["relative_bound"] = _largest(relative)
    table["queries_over_budget"] = (relative > budget.share).sum(dim=1).tolist()
    table["breaks_budget"] = (relative > budget.share).any(dim=1).tolist()
    return pd.DataFrame(table)


def _largest(x: Tensor) -> list[float]:
    found: list[float] = x.amax(dim=1).tolist()
    return found


def _rung_rows(heads: pd.DataFrame, budget: Budget) -> pd.DataFrame:
    """One row per bound: how large over the range, how much of it is slack, who breaks it."""
    rows = []
    for rung in RUNGS:
        relative = heads[f"bound_{rung}"] / heads["value_range"].where(heads["value_range"] > 0)
        slack = heads[f"slack_{rung}"]
        rows.append(
            {
                "rung": rung,
                "largest": relative.max(),
                "mean": heads[f"mean_{rung}"].mean(),
                "median_slack": slack.median(),
                "least_slack": slack.min(),
                "largest_slack": slack.max(),
                "heads_over_budget": int((relative > budget.share).sum()),
                "heads": len(heads),
            }
        )
    return pd.DataFrame(rows)


def _violations(parts: Mapping[Any, Sequence[LayerCertificate]]) -> Value:
    return make_value(
        "bound_violations",
        sum(each.violations for found in parts.values() for each in found),
        note="heads and queries at which an error exceeds a bound; anything but 0 is a mistake",
    )


def _values(heads: pd.DataFrame, rungs: pd.DataFrame, budget: Budget) -> list[Value]:
    where = f"largest over {len(heads)} heads and all queries of the {heads['text'][0]} tokens"
    note = f"output error over the range of the head's values, {where}; {_TRIVIAL}"
    largest = float(heads["relative_error"].max())
    values = [make_value("relative_error", largest, chance=1.0, note=note)]
    for row in rungs.to_dict(orient="records"):
        note = f"bound on it from {row['rung']}, {where}; {_TRIVIAL}"
        values.append(make_value(f"bound_{row['rung']}", row["largest"], chance=1.0, note=note))
    for row in rungs.to_dict(orient="records"):
        if not math.isnan(row["median_slack"]):  # where nothing is in error
            note = "largest bound of a head over its largest error, median over heads; 1 is tight"
            values.append(make_value(f"slack_{row['rung']}", row["median_slack"], note=note))
    note = f"of {len(heads)}: their bound from {budget.rung} exceeds {budget.share:g} of the range"
    broken = int(heads["breaks_budget"].sum())
    return [*values, make_value("heads_over_budget", broken, note=note)]


def _elsewhere(heads: pd.DataFrame) -> Value:
    return make_value(
        "heads_over_budget_elsewhere",
        int(heads["breaks_budget"].sum()),
        note="the same on the evaluation tokens, of which nothing was promised",
    )
