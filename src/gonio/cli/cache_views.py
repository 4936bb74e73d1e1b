"""Tables of cache measurements for people: few columns, short names, 80 characters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["evaluation_views"]

_SCORES = {
    "method": "method",
    "key_bits": "K bits",
    "value_bits": "V bits",
    "perplexity": "perplexity",
    "perplexity_ratio": "x full",
    "logit_kl": "KL",
    "same_top1": "top1",
}
_LENGTHS = {
    "method": "method",
    "context_length": "context",
    "windows": "windows",
    "perplexity": "perplexity",
    "perplexity_ratio": "x full",
    "logit_kl": "KL",
}
_PAIRS = {
    "first": "first",
    "second": "second",
    "context_length": "context",
    "perplexity_ratio": "perpl. ratio",
    "perplexity_ratio_low": "low",
    "perplexity_ratio_high": "high",
    "logit_kl_difference": "KL diff.",
}
_RECALL = {
    "method": "method",
    "context_length": "context",
    "depth": "depth",
    "correct_top1": "recalled",
    "correct_top1_low": "low",
    "correct_top1_high": "high",
    "copied": "copied",
    "nll": "NLL",
}
_MEMORY_LENGTHS = (1024, 4096, 32768, 131072)  # of the eight that the record holds
_MIB = 2.0**20


def evaluation_views(tables: Mapping[str, pd.DataFrame]) -> list[tuple[str, pd.DataFrame]]:
    """Titles and tables of a ``cache-evaluation`` measurement."""
    views = []
    for protocol, group in tables["methods"].groupby("protocol", sort=False):
        views.append((f"Scores, {protocol}", _pick(group, _SCORES)))
    if tables["lengths"]["context_length"].nunique() > 1:
        for protocol, group in tables["lengths"].groupby("protocol", sort=False):
            views.append((f"Context lengths, {protocol}", _pick(group, _LENGTHS)))
    if "pairs" in tables:
        for protocol, group in tables["pairs"].groupby("protocol", sort=False):
            views.append((f"Pairs on the same windows, {protocol}", _pick(group, _PAIRS)))
    if "recall" in tables:
        recall = _pick(tables["recall"], _RECALL).astype({"depth": object})
        recall.loc[~tables["recall"]["is_present"], "depth"] = "absent"
        views.append(("Recall of a hidden passage; absent: chance", recall))
    views.append(("Memory in MiB, raw tokens in bfloat16", _memory(tables["memory"])))
    if "allocation" in tables:
        found = tables["allocation"].drop(columns="dtype")
        names = {"seq_len": "tokens", "allocated_over_reported": "ratio"}
        views.append(("Bytes allocated", found.rename(columns=names)))
    return views


def _pick(table: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    return table[list(names)].rename(columns=dict(names))


def _memory(memory: pd.DataFrame) -> pd.DataFrame:
    shown = memory[memory["seq_len"].isin(_MEMORY_LENGTHS)]
    view = shown[["method", "seq_len"]].rename(columns={"seq_len": "tokens"})
    for part in ("key", "value", "side", "total", "bf16"):
        view[part] = (shown[f"{part}_bytes"] / _MIB).round(3)
    return view.assign(ratio=shown["compression_ratio"].round(2))
