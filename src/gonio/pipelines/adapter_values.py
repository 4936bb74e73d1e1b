"""Means over the modules of one adapter as values of a record, each with its interval.

Intervals are bootstrap intervals over the modules of the adapter at hand. Modules of one training
run are not independent draws: an interval says how much the modules vary, not how another run
would turn out. Where layers are known they are resampled whole, since the modules of one layer
resemble each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from gonio.linalg.resampling import Interval, bootstrap_interval, cluster_bootstrap_interval
from gonio.records import Value, make_value

__all__ = ["OVER_MODULES", "mean_value", "modules_interval", "optional_table", "z_value"]

OVER_MODULES = (
    "mean over modules; interval over the layers of this adapter (modules where they lie outside "
    "layers), not over runs"
)


def mean_value(
    name: str,
    table: pd.DataFrame,
    column: str,
    seed: int,
    *,
    chance: str | None = None,
    note: str = OVER_MODULES,
    unit: str = "",
) -> Value:
    """The mean of a column with the mean of its chance column and an interval.

    Args:
        name: Name of the value.
        table: One row per module, with a column ``layer``.
        column: What is averaged.
        seed: Seed of the bootstrap.
        chance: Column of the chance levels, None where there is none.
        note: What the value and its interval are.
        unit: Unit of the value.
    """
    return make_value(
        name,
        float(table[column].mean()),
        unit=unit,
        chance=None if chance is None else float(table[chance].mean()),
        interval=modules_interval(table, column, seed),
        note=note,
    )


def z_value(name: str, table: pd.DataFrame, column: str, seed: int) -> Value:
    """A mean z-score: 0 by chance; rows whose null cannot vary are left out."""
    defined = table[table[column].notna()]
    return make_value(
        name,
        float(defined[column].mean()),
        chance=0.0,
        interval=modules_interval(defined, column, seed),
        note=f"standard deviations of the null above chance; {OVER_MODULES}",
    )


def modules_interval(table: pd.DataFrame, column: str, seed: int) -> Interval | None:
    """Interval of a column's mean: over layers where at least two are known, else over modules.

    None for fewer than two rows.
    """
    values, layers = table[column].astype(float), table["layer"]
    if len(values) < 2:
        return None
    if not layers.isna().any() and layers.nunique() > 1:
        return cluster_bootstrap_interval(values.tolist(), layers.tolist(), seed=seed)
    return bootstrap_interval(values.tolist(), seed=seed)


def optional_table(
    name: str, rows: Sequence[tuple[str, str]], columns: list[str]
) -> dict[str, pd.DataFrame]:
    """A table under its name; nothing when it would be empty."""
    return {name: pd.DataFrame(list(rows), columns=columns)} if rows else {}
