"""Published numbers of the first study, which figures of studies show beside their own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from gonio.site.charts import data_of
from gonio.site.numbers import chart_number

__all__ = ["FIRST_STUDY", "cited", "first_study", "mean_line"]

FIRST_STUDY = "first study"


@cache
def first_study() -> Mapping[str, Any]:
    """Published numbers of the first study, with their source."""
    text = (files("gonio.site") / "first_study.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def cited(part: str) -> str:
    """Where the first study's numbers of a figure come from, as a sentence."""
    found = first_study()
    return (
        f"{FIRST_STUDY.capitalize()}: {found['url']} ({', '.join(found[part]['files'])}); "
        f"{found['setting']}."
    )


def mean_line() -> Any:
    """A line at the mean stable rank of the first study."""
    import altair as alt

    found = [float(row["stable_rank"]) for row in first_study()["stable_rank"]["rows"]]
    mean = chart_number(sum(found) / len(found))
    line = alt.Chart(data_of([{"mean": mean}])).mark_rule(style="median", strokeWidth=0.75)
    return line.encode(y=alt.Y("mean", type="quantitative"))
