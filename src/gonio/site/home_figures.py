"""The figures of the home page: smaller, with one sentence that says what they show.

They draw a few records and rows, however many there are: the page stays under its megabyte.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gonio.records import Measurement
from gonio.site.adapter_figures import stable_rank_summary
from gonio.site.cache_figures import perplexity_figure
from gonio.site.collection import SiteRecord
from gonio.site.figure import Figure
from gonio.site.method_names import method_name
from gonio.site.numbers import is_missing, rows_of, show

__all__ = ["MOST_NAMES", "adapter_summary", "perplexity_summary"]

MOST_NAMES = 2  # records named of each kind
_MOST_ADAPTERS = 3
_MOST_CACHES = 6

_CAPTION = (
    "Perplexity, the number of tokens a model hesitates between (log scale; lower is better), with "
    "95% intervals over text windows. Dashed: full precision. Zeros, the chance level: a cache "
    "that keeps nothing."
)


def adapter_summary(records: Sequence[SiteRecord]) -> Figure | None:
    """Stable rank by projection of the first adapters; None without numbers.

    Args:
        records: ``adapter-spectrum`` records.

    Raises:
        RecordError: A record lacks the table or a column.
    """
    figure = stable_rank_summary(records[:_MOST_ADAPTERS])
    if figure is None or len(records) <= _MOST_ADAPTERS:
        return figure
    more = f" The first {_MOST_ADAPTERS} of {show(len(records))} adapters; their page has all."
    return replace(figure, caption=figure.caption + more)


def perplexity_summary(entry: SiteRecord) -> Figure | None:
    """Perplexity by method with the table folded away and a finding; None without numbers.

    Of more than eight methods those nearest to full precision, and the farthest.

    Args:
        entry: A ``cache-evaluation`` record.

    Raises:
        RecordError: The record lacks the table or a column.
    """
    ratios = _ratios(entry)
    ranked = sorted(ratios.keys() - {"zeros"}, key=lambda method: (ratios[method], method))
    kept = {"full", "zeros", *ranked[: _MOST_CACHES - 1], *ranked[-1:]}
    frame = entry.table("methods", ("method",))
    left_out = set(frame["method"]) - kept
    caption, drawn = _CAPTION, entry
    if len(left_out) + len(kept) > _MOST_CACHES + 2:
        tables = entry.measurement.tables | {"methods": frame[frame["method"].isin(kept)]}
        drawn = replace(entry, measurement=Measurement(entry.record, tables))
        caption += f" {show(len(left_out))} other methods are on the page of caches."
    figure = perplexity_figure(drawn)
    if figure is None:
        return None
    return replace(
        figure, sources=(entry,), caption=caption, is_table_open=False, finding=_finding(entry)
    )


def _ratios(entry: SiteRecord) -> dict[str, float]:
    """Perplexity over full precision's of each compressed cache and of the empty one.

    Of the protocol that really reads a cache, where it was run.
    """
    rows = rows_of(entry.table("methods", ("method", "protocol", "perplexity_ratio")))
    rows = [row for row in rows if not is_missing(row["perplexity_ratio"])]
    read = [row for row in rows if row["protocol"] == "cache"] or rows
    ratios = {str(row["method"]): float(row["perplexity_ratio"]) for row in read}
    return {method: ratio for method, ratio in ratios.items() if method != "full"}


def _finding(entry: SiteRecord) -> str:
    """The best and the worst compressed cache over full precision, beside one that is empty."""
    ratios = _ratios(entry)
    empty = ratios.pop("zeros", None)
    if not ratios:
        return ""
    best, worst = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
    told = [f"{show(ratios[best], 2)} ({method_name(best)})"]
    if worst != best:
        told = [f"at best {told[0]}", f"at worst {show(ratios[worst], 2)} ({method_name(worst)})"]
    if empty is not None:
        told.append(f"{show(empty, 2)} if the cache keeps nothing")
    return f"Perplexity as a multiple of full precision's: {', '.join(told)}."
