"""The figures of the home page: smaller, with one sentence that says what they show."""

from __future__ import annotations

from dataclasses import replace

from gonio.site.cache_figures import perplexity_figure
from gonio.site.collection import SiteRecord
from gonio.site.figure import Figure
from gonio.site.method_names import method_name
from gonio.site.numbers import is_missing, rows_of, show

__all__ = ["perplexity_summary"]

_CAPTION = (
    "Perplexity, the number of tokens a model hesitates between (log scale; lower is better), with "
    "95% intervals over text windows. Dashed: full precision. Zeros, the chance level: a cache "
    "that keeps nothing."
)


def perplexity_summary(entry: SiteRecord) -> Figure | None:
    """Perplexity by method with the table folded away and a finding; None without numbers.

    Args:
        entry: A ``cache-evaluation`` record.

    Raises:
        RecordError: The record lacks the table or a column.
    """
    figure = perplexity_figure(entry)
    if figure is None:
        return None
    return replace(figure, caption=_CAPTION, is_table_open=False, finding=_finding(entry))


def _finding(entry: SiteRecord) -> str:
    """The best and the worst compressed cache over full precision, beside one that is empty.

    Of the protocol that really reads a cache, where it was run.
    """
    rows = rows_of(entry.table("methods", ("method", "protocol", "perplexity_ratio")))
    rows = [row for row in rows if not is_missing(row["perplexity_ratio"])]
    read = [row for row in rows if row["protocol"] == "cache"] or rows
    ratios = {str(row["method"]): float(row["perplexity_ratio"]) for row in read}
    empty = ratios.pop("zeros", None)
    ratios.pop("full", None)
    if not ratios:
        return ""
    best, worst = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
    told = [f"{show(ratios[best], 2)} ({method_name(best)})"]
    if worst != best:
        told = [f"at best {told[0]}", f"at worst {show(ratios[worst], 2)} ({method_name(worst)})"]
    if empty is not None:
        told.append(f"{show(empty, 2)} if the cache keeps nothing")
    return f"Perplexity as a multiple of full precision's: {', '.join(told)}."
