"""The table of a comparison: one row per contender and protocol, and who is on the frontier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from gonio.kvcache.filling import FULL
from gonio.kvcache.summaries import summarize_scores
from gonio.linalg.resampling import Interval
from gonio.pipelines.compare_methods import Contender
from gonio.records import Value, make_value

__all__ = ["ZEROS", "applies", "comparison_table", "comparison_values", "frontier"]

ZEROS = "zeros"  # the name of the control that keeps nothing
_SCORES = ("scored_tokens", "nll", "logit_kl", "same_top1")
_STORED = (
    *("key_bits", "value_bits", "held_key_bits", "held_value_bits"),
    *("held_bits", "side_bytes", "version"),
)


def applies(contender: Contender, protocol: str) -> bool:
    """A package's cache holds both parts, so a row of its keys alone is teacher-forced only."""
    return protocol == "teacher-forced" or contender.peer is None or contender.parts == "both"


def comparison_table(
    windows: pd.DataFrame,
    contenders: Sequence[Contender],
    statuses: Mapping[tuple[str, str], tuple[str, str]],
    protocols: Sequence[str],
    seed: int = 0,
) -> pd.DataFrame:
    """One row per contender and protocol, also for those without scores.

    Args:
        windows: Scores and stored bits by ``method``, ``protocol`` and ``window``, full precision
            among them.
        contenders: Every row to be.
        statuses: Status and message by contender and protocol.
        protocols: Protocols, in order.
        seed: Seed of the bootstrap.
    """
    scores = summarize_scores(
        windows[["method", "protocol", "window", *_SCORES]], ("protocol",), seed=seed
    ).set_index(["method", "protocol"])
    stored = windows.reindex(columns=["method", "protocol", *_STORED])
    stored = stored.groupby(["method", "protocol"], sort=False).agg(_first_or_mean)
    rows = []
    for protocol in protocols:
        rows.append({"method": FULL, "origin": FULL, "protocol": protocol, "status": "ok"})
        for contender in contenders:
            if not applies(contender, protocol):
                continue
            status, message = statuses[contender.name, protocol]
            version = contender.peer.version if contender.peer is not None else ""
            rows.append(
                {
                    "method": contender.name,
                    "origin": contender.origin,
                    "parts": contender.parts,
                    "protocol": protocol,
                    "status": status,
                    "message": message,
                    "pinned": version,
                }
            )
    table = pd.DataFrame(rows).join(stored, on=["method", "protocol"])
    table = table.join(scores, on=["method", "protocol"])
    numbers = [name for name in _STORED if name != "version"]
    table[numbers] = table[numbers].astype(float)
    exact = table["method"] == FULL
    table.loc[exact, ["key_bits", "value_bits", "held_key_bits", "held_value_bits"]] = 16.0
    table["version"] = table["version"].fillna(table.pop("pinned")).fillna("")
    table["message"] = table["message"].fillna("")
    table["parts"] = table["parts"].fillna("")
    both = (table["key_bits"] + table["value_bits"]) / 2
    table["bits"] = table["key_bits"].where(table["parts"] == "keys", both)
    table["is_frontier"] = frontier(table)
    return table


def _first_or_mean(column: pd.Series) -> Any:
    present = column.dropna()
    if present.empty:
        return None
    return present.iloc[0] if isinstance(present.iloc[0], str) else present.astype(float).mean()


def frontier(table: pd.DataFrame) -> pd.Series:
    """Which teacher-forced rows no other row of the same parts beats in bits and in perplexity."""
    chosen: set[Any] = set()
    scored = table[(table["status"] == "ok") & (table["protocol"] == "teacher-forced")]
    for _, group in scored[scored["parts"] != ""].groupby("parts"):
        group = group[group["method"] != ZEROS].dropna(subset=["bits", "perplexity_ratio"])
        best = float("inf")
        for index, row in group.sort_values(["bits", "perplexity_ratio"]).iterrows():
            if row["perplexity_ratio"] < best:
                best = float(row["perplexity_ratio"])
                chosen.add(index)
    return pd.Series(table.index.isin(list(chosen)), index=table.index)


def comparison_values(methods: pd.DataFrame) -> list[Value]:
    """The ratios of the frontier, and how many rows came to nothing."""
    values = [
        make_value(
            f"{status.replace(' ', '_')}_rows", int((methods["status"] == status).sum()), unit=""
        )
        for status in ("failed", "not installed")
    ]
    chance = {
        row["protocol"]: row["perplexity_ratio"]
        for row in methods[methods["method"] == ZEROS].to_dict(orient="records")
    }
    for row in methods[methods["is_frontier"]].to_dict(orient="records"):
        interval = Interval(
            row["perplexity_ratio_low"],
            row["perplexity_ratio_high"],
            0.95,
            "bootstrap over windows",
        )
        values.append(
            make_value(
                f"frontier_{row['parts']}_{row['method']}",
                float(row["perplexity_ratio"]),
                chance=float(chance[row["protocol"]]),
                interval=interval,
                note=f"{row['bits']:.3f} bits per element of {row['parts']}; chance is zeros",
            )
        )
    return values
