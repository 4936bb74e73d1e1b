"""Training curves: what each step's batch gave, beside what an untrained policy would give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gonio.site.charts import chance_rule, color_by, data_of, finish, tooltips
from gonio.site.collection import SiteRecord
from gonio.site.figure import Figure, Panel, pivot_table
from gonio.site.numbers import chart_number, is_missing, show

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["training_figure"]


_WINDOW = 5  # steps of the running mean


@dataclass(frozen=True)
class _Curve:
    """One quantity of a training log: its columns by preference, its unit, what chance gives."""

    columns: tuple[str, ...]
    title: str
    chance: float | None
    chance_text: str


_PREFERENCE_LOSS = _Curve(("loss",), "loss (nats per pair)", math.log(2), "ln 2")
_TOKEN_LOSS = _Curve(("loss",), "loss (nats per token)", None, "")
_CURVES = (
    _Curve(("reward_margin", "margin"), "reward margin (nats)", 0.0, "0"),
    _Curve(("preference_accuracy", "accuracy"), "preference accuracy", 0.5, "0.5"),
)


def training_figure(records: Sequence[SiteRecord]) -> Figure | None:
    """Loss, margin and accuracy by step of every training record; None when there is none.

    Raises:
        RecordError: A record has no log, or its log no step or loss.
    """
    legend = tuple(entry.label for entry in records)
    panels, rows, said = [], [], []
    for entry in records:
        log = entry.table("log", ("step", "loss")).sort_values("step")
        for curve in _curves_of(log):
            column = _column(log, curve)
            points = _points(log, column, entry.label)
            if not points:
                continue
            title = f"{entry.label}: {curve.title}"
            words = _describe(title, points, curve)
            panels.append(Panel(title, _chart(points, curve, legend, words)))
            said.append(words)
            rows += [{**point, "panel": title} for point in points]
    if not panels:
        return None
    return Figure(
        name="training",
        title="Training, step by step",
        description=" ".join(said),
        caption=(
            "Points: the batch of each step, measured before the step. Line: running mean of "
            "five steps where there are ten or more. One run each, so the scatter of the points is "
            "all that is known of the spread. Dashed: what a policy equal to its "
            "reference gives (loss ln 2, margin 0, accuracy one half); the token loss has no such "
            "level. " + _natures(records)
        ),
        panels=tuple(panels),
        table=pivot_table(rows, index="step", series="panel", value="value", heading="step"),
        sources=tuple(records),
        legend=legend,
        chance="a policy equal to its reference",
    )


def _natures(records: Sequence[SiteRecord]) -> str:
    """What the training pairs are, in the records' own words."""
    found = [str(entry.record.settings.get("pairs", "")) for entry in records]
    return " ".join(dict.fromkeys(nature for nature in found if nature))


def _curves_of(log: pd.DataFrame) -> list[_Curve]:
    """The curves a log holds; margins tell a preference training from a language-model one."""
    found = [curve for curve in _CURVES if _column(log, curve)]
    return [_PREFERENCE_LOSS if found else _TOKEN_LOSS, *found]


def _column(log: pd.DataFrame, curve: _Curve) -> str:
    return next((name for name in curve.columns if name in log.columns), "")


def _points(log: pd.DataFrame, column: str, label: str) -> list[dict[str, Any]]:
    window = _WINDOW if len(log) >= 2 * _WINDOW else 1
    mean = log[column].astype("float64").rolling(window, center=True, min_periods=1).mean()
    return [
        {
            "step": chart_number(step),
            "value": chart_number(value),
            "mean": chart_number(smooth),
            "adapter": label,
        }
        for step, value, smooth in zip(log["step"], log[column], mean, strict=True)
        if not is_missing(value)
    ]


def _describe(title: str, points: Sequence[dict[str, Any]], curve: _Curve) -> str:
    first, last = points[0], points[-1]
    chance = f"; chance {curve.chance_text}" if curve.chance is not None else ""
    return (
        f"{title}, {len(points)} steps: running mean from {show(first['mean'], 3)} "
        f"to {show(last['mean'], 3)}{chance}."
    )


def _chart(
    points: Sequence[dict[str, Any]], curve: _Curve, legend: Sequence[str], description: str
) -> dict[str, Any]:
    import altair as alt

    base = alt.Chart(data_of(points)).encode(
        x=alt.X(
            "step",
            type="quantitative",
            scale=alt.Scale(zero=False, nice=False),
            axis=alt.Axis(tickMinStep=1, format="d", grid=False, labelFlush=False),
        ),
        color=color_by("adapter", legend),
        tooltip=tooltips(
            {"adapter": "adapter", "step": "step", "value": "batch", "mean": "running mean"},
            {"step": "d", "value": ".4~g", "mean": ".4~g"},
        ),
    )
    scale = alt.Scale(zero=False)
    dots = base.mark_point(size=14, filled=True, opacity=0.45).encode(
        y=alt.Y("value", type="quantitative", title=None, scale=scale)
    )
    line = base.mark_line(strokeWidth=2).encode(y=alt.Y("mean", type="quantitative"))
    layers = [dots, line] if curve.chance is None else [chance_rule(curve.chance), dots, line]
    return finish(alt.layer(*layers), height=170, description=description)
