"""Codecs scored end to end: predictions, memory and recall, beside the controls, in one record."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import pandas as pd
from torch import Tensor

from gonio.errors import ModelError, SettingError
from gonio.kvcache import CacheCodec, EvaluationSettings, control_codec, evaluate_codecs
from gonio.kvcache.evaluate import Protocol
from gonio.kvcache.filling import FULL
from gonio.kvcache.memory import (
    MEMORY_LENGTHS,
    allocation_table,
    coded_parts,
    memory_table,
    stored_parts,
)
from gonio.kvcache.positions import Reach, without_position_warnings
from gonio.kvcache.recall import (
    RecallSettings,
    random_passages,
    recall_probes,
    summarize_recall,
)
from gonio.kvcache.rotary import has_rotary
from gonio.kvcache.summaries import compare_methods, summarize_scores
from gonio.linalg.resampling import Interval, cluster_bootstrap_interval
from gonio.models import token_windows
from gonio.pipelines.bench import Bench
from gonio.records import Measurement, Value, make_measurement, make_value

__all__ = ["CacheEvaluation", "evaluate_cache"]

Progress = Callable[[str, int, int], None]

ZEROS = "zeros"  # the name of the control that keeps nothing
_BUCKETS = tuple(64 * 2**power for power in range(15))  # context tokens, doubling
_BUCKET_KEYS = ("context_from", "context_to")


@dataclass(frozen=True)
class CacheEvaluation:
    """What is measured of codecs.

    Attributes:
        protocols: Which of the two protocols of :mod:`gonio.kvcache.evaluate` to run.
        prefill: Tokens before the first chunk (``cache`` protocol).
        chunk: Tokens per chunk (``cache`` protocol).
        lengths: Context lengths the evaluation tokens are cut to, beside the bench's own.
        allocation: Tokens that fill a cache whose bytes are counted; 0 for none. Fewer where the
            model knows fewer positions.
        memory: Lengths of the table of memory.
        recall: The recall probe; None for none.
        seed: Seed of passages and of the bootstrap.
    """

    protocols: tuple[Protocol, ...] = get_args(Protocol)
    prefill: int = 256
    chunk: int = 32
    lengths: tuple[int, ...] = ()
    allocation: int = 4096
    memory: tuple[int, ...] = MEMORY_LENGTHS
    recall: RecallSettings | None = None
    seed: int = 0


def evaluate_cache(
    bench: Bench,
    codecs: Mapping[str, CacheCodec],
    plan: CacheEvaluation | None = None,
    *,
    progress: Progress | None = None,
) -> Measurement:
    """Scores, memory and recall of codecs beside full precision and a cache of zeros.

    The control zeroes what some codec codes: keys, values or both.

    Args:
        bench: The model; its evaluation windows are scored.
        codecs: Codecs by name; the ``zeros`` control is added.
        plan: What is measured.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        Kind ``cache-evaluation``; tables ``methods`` (at the bench's window), ``windows``,
        ``lengths``, ``positions`` (by tokens read before the scored one), ``pairs`` (of codecs),
        ``memory``, and where asked for ``allocation``, ``recall`` and ``probes``.

    Raises:
        SettingError: A codec is called ``full`` or ``zeros``, or the text or the model is too
            short for a length.
        CodecError: A codec does not fit the model, or keeps more than the bytes it reports.
        ModelError: The zeros score like full precision: the model reads past its cache.
    """
    plan = plan or CacheEvaluation()
    every = _with_control(bench, codecs)
    lengths = _checked_lengths(bench, plan)
    passages = _passages(bench, plan)
    _warn_of_positions(bench, codecs, plan, lengths)
    with without_position_warnings():
        scores = _score(bench, every, plan, lengths, progress)
    _require_cache_is_read(scores)
    by = ("protocol", "context_length")
    totals = summarize_scores(scores, by, seed=plan.seed)
    tables = {
        "methods": _methods(bench, every, totals),
        "windows": scores,
        "lengths": totals,
        "positions": summarize_scores(scores, (*by, *_BUCKET_KEYS), seed=plan.seed),
        "memory": memory_table(codecs, plan.memory),
    }
    pairs = compare_methods(scores, tuple(codecs), by, seed=plan.seed)
    if len(pairs):
        tables["pairs"] = pairs
    if plan.allocation:
        ids = bench.evaluation.flatten()
        count = min(plan.allocation, _positions(bench) or plan.allocation)
        ids = ids.repeat(-(-count // ids.numel()))[:count]
        with without_position_warnings():  # bytes do not depend on positions
            tables["allocation"] = allocation_table(bench.model, ids, every, progress=progress)
    if plan.recall is not None and passages is not None:
        text = bench.evaluation.flatten()
        with without_position_warnings():
            probes = recall_probes(
                bench.model, text, passages, every, plan.recall, progress=progress
            )
        tables |= {"recall": summarize_recall(probes, seed=plan.seed), "probes": probes}
    return make_measurement(
        "cache-evaluation",
        f"Caches of {bench.source}: predictions, memory and recall",
        settings=_settings(bench, every, plan),
        values=_values(tables, plan.seed),
        tables=tables,
        inputs=bench.inputs,
        seed=plan.seed,
        dtype=bench.model.dtype,
        device=bench.model.device.type,
    )


def _warn_of_positions(
    bench: Bench, codecs: Mapping[str, CacheCodec], plan: CacheEvaluation, lengths: list[int]
) -> None:
    """One warning per codec that is to hold positions it was not calibrated at."""
    longest = max([*lengths, *(plan.recall.lengths if plan.recall else ())])
    for name, codec in codecs.items():
        if codec.positions is not None and has_rotary(bench.model):
            Reach(f"{codec.method} ({name})", codec.positions).note(longest)


def _with_control(bench: Bench, codecs: Mapping[str, CacheCodec]) -> dict[str, CacheCodec]:
    """The codecs, and zeros for what some of them code."""
    reserved = sorted({FULL, ZEROS} & codecs.keys())
    if reserved:
        raise SettingError(f"a codec cannot be called {reserved[0]!r}: a control has that name")
    zeros = control_codec(bench.model, ZEROS)
    coded = {part for codec in codecs.values() for part in coded_parts(codec)}
    keys, values = zeros.keys, zeros.values
    if "values" in coded:
        zeros = replace(zeros, keys=keys if "keys" in coded else values, values=keys)
    return {**codecs, ZEROS: zeros}


def _positions(bench: Bench) -> int | None:
    """Positions the model was made for, where its configuration says so."""
    config: Any = bench.model.config.get_text_config(decoder=True)
    return getattr(config, "max_position_embeddings", None)


def _checked_lengths(bench: Bench, plan: CacheEvaluation) -> list[int]:
    """The bench's window and the plan's lengths, which the model and the text must hold."""
    lengths = list(dict.fromkeys((bench.evaluation.shape[1], *plan.lengths)))
    longest = max([*lengths, *(plan.recall.lengths if plan.recall else ())])
    positions = _positions(bench)
    if positions is not None and longest > positions:
        raise SettingError(
            f"{bench.source} knows {positions} positions, and a context of {longest} is asked for"
        )
    if "cache" in plan.protocols and min(lengths) <= plan.prefill + 1:
        raise SettingError(
            f"windows of {min(lengths)} tokens leave nothing to score after {plan.prefill} tokens "
            "of prefill\nAsk for longer windows or a shorter prefill."
        )
    available = bench.evaluation.numel()
    if longest > available:
        raise SettingError(
            f"a context of {longest} tokens is asked for, and the evaluation part of "
            f"{bench.text_name} has {available} tokens\nAsk for more evaluation tokens."
        )
    return lengths


def _score(
    bench: Bench,
    codecs: Mapping[str, CacheCodec],
    plan: CacheEvaluation,
    lengths: list[int],
    progress: Progress | None,
) -> pd.DataFrame:
    """Scores of every window, by protocol, length, method and bucket of positions."""
    frames = []
    for protocol in plan.protocols:
        for length in lengths:
            settings = EvaluationSettings(protocol, plan.prefill, plan.chunk, _BUCKETS)
            windows = token_windows(bench.evaluation.flatten(), length)
            scores = evaluate_codecs(bench.model, windows, codecs, settings, progress=progress)
            frames.append(scores.assign(protocol=protocol, context_length=length))
    return pd.concat(frames, ignore_index=True)


def _require_cache_is_read(scores: pd.DataFrame) -> None:
    """Refuse scores in which a cache of zeros changes nothing."""
    for protocol, group in scores[scores["method"] == ZEROS].groupby("protocol", sort=False):
        if group["logit_kl"].max() == 0:
            raise ModelError(
                f"a cache of zeros predicts exactly what full precision does ({protocol})\n"
                "The model does not read its cache, so codecs cannot be scored on it."
            )


def _methods(bench: Bench, codecs: Mapping[str, CacheCodec], totals: pd.DataFrame) -> pd.DataFrame:
    """Scores at the bench's window with the bits of each method: of the parts it codes, and apart.

    Raw tokens count in the model's dtype.
    """
    length, dtype = bench.evaluation.shape[1], bench.model.dtype
    plain = 8.0 * dtype.itemsize
    nothing = {"bits_per_element": plain, "side_bits_per_element": 0.0}
    bits = {FULL: {"key_bits": plain, "value_bits": plain, **nothing}}
    for name, codec in codecs.items():
        parts = stored_parts(codec, length, dtype)
        coded = [parts[part] for part in coded_parts(codec)]
        row = dict(nothing)
        if coded:
            whole = sum(coded[1:], coded[0])
            row = {column: getattr(whole, column) for column in nothing}
        apart = {f"{part.removesuffix('s')}_bits": x.bits_per_element for part, x in parts.items()}
        bits[name] = {**apart, **row}
    mine = totals[totals["context_length"] == length].reset_index(drop=True)
    columns = pd.DataFrame([bits[name] for name in mine["method"]])
    return pd.concat([mine, columns], axis=1)


def _passages(bench: Bench, plan: CacheEvaluation) -> Tensor | None:
    """What the recall probe hides: words of the evaluation text."""
    if plan.recall is None:
        return None
    words = str(bench.tokenizer.decode(bench.evaluation.flatten()))
    count, length = plan.recall.trials, plan.recall.passage
    return random_passages(bench.tokenizer, words, count=count, length=length, seed=plan.seed)


def _values(tables: Mapping[str, pd.DataFrame], seed: int) -> list[Value]:
    """The numbers of the record: perplexities and ratios, measured bytes, recall."""
    values = []
    for _, group in tables["methods"].groupby("protocol", sort=False):
        zeros = group.loc[group["method"] == ZEROS].iloc[0]
        for row in group.to_dict(orient="records"):
            values += [_interval_value(row, name, zeros[name]) for name in _shown(row["method"])]
    for row in tables.get("allocation", pd.DataFrame()).to_dict(orient="records"):
        if row["method"] != ZEROS:
            note = f"bytes behind a cache that holds {row['seq_len']} tokens, over those reported"
            name = f"allocated_over_reported_{row['method']}"
            values.append(make_value(name, row["allocated_over_reported"], note=note))
    return values + _recall_values(tables, seed)


def _shown(method: str) -> tuple[str, ...]:
    return ("perplexity",) if method == FULL else ("perplexity", "perplexity_ratio")


def _interval_value(row: Mapping[Any, Any], name: str, chance: float) -> Value:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    interval = None
    if not math.isnan(low):
        interval = Interval(low, high, 0.95, "bootstrap over windows")
    return make_value(
        f"{name}_{row['method']}_{row['protocol']}",
        float(row[name]),
        chance=float(chance),
        interval=interval,
        note=f"{row['scored_tokens']} tokens scored; chance is a cache of zeros",
    )


def _recall_values(tables: Mapping[str, pd.DataFrame], seed: int) -> list[Value]:
    """Share of a hidden passage predicted when it is read again, over all depths."""
    values = []
    probes = tables.get("probes", pd.DataFrame(columns=["context_length", "method"]))
    for (length, method), group in probes.groupby(["context_length", "method"], sort=False):
        found = group[group["is_present"]]
        shares, trials = found["correct_top1"].to_numpy(), found["trial"].tolist()
        interval = None
        if len(set(trials)) > 1:
            interval = cluster_bootstrap_interval(shares, trials, seed=seed)
        values.append(
            make_value(
                f"recall_{method}_{length}",
                float(shares.mean()),
                chance=float(group.loc[~group["is_present"], "correct_top1"].mean()),
                interval=interval,
                note="share of a hidden passage of random words predicted first when it is read "
                "again; interval over passages; chance is the same text without the passage",
            )
        )
    return values


def _settings(
    bench: Bench, codecs: Mapping[str, CacheCodec], plan: CacheEvaluation
) -> dict[str, Any]:
    chosen = json.loads(json.dumps(asdict(plan)))  # tuples as lists, as the record reads them back
    return {
        "model": bench.source,
        "text": bench.text_name,
        "calibration_tokens": bench.calibration.numel(),
        "evaluation_tokens": bench.evaluation.numel(),
        "window": bench.evaluation.shape[1],
        **{name: value for name, value in chosen.items() if name != "seed"},
        "codecs": {
            name: {
                **codec.provenance,
                "coded": list(coded_parts(codec)),
                "sinks": codec.sinks,
                "recent": codec.window,
            }
            for name, codec in codecs.items()
        },
    }
