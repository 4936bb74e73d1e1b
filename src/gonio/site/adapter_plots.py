"""Which charts a measurement of adapters is plotted as, and into which file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from gonio.errors import RecordError, SettingError
from gonio.records import Measurement
from gonio.site.adapter_figures import stable_rank_figure
from gonio.site.collection import SiteRecord, collect
from gonio.site.dependencies import require_site_packages
from gonio.site.distance_figures import cosine_figure, gain_figure
from gonio.site.figure import Figure
from gonio.site.fleet_figures import fleet_figure
from gonio.site.overlap_figures import base_overlap_figure, pair_overlap_figure
from gonio.site.publish import require_suffix, save_chart
from gonio.site.spectrum_figures import ratio_heatmap, spectrum_figure
from gonio.site.sweep_figures import sweep_figure

__all__ = ["PLOTS", "plot_figures", "plot_measurement"]

Draw = Callable[[Sequence[SiteRecord]], Figure | None]


def _fleet(records: Sequence[SiteRecord]) -> Figure | None:
    return fleet_figure(records[0])


def _sweep(records: Sequence[SiteRecord]) -> Figure | None:
    return sweep_figure(records[0])


# Kind of record to its plots by name.
PLOTS: dict[str, dict[str, Draw]] = {
    "adapter-spectrum": {
        "spectrum": spectrum_figure,
        "heatmap": ratio_heatmap,
        "stable-rank": stable_rank_figure,
    },
    "adapter-base-overlap": {"overlap": base_overlap_figure, "gain": gain_figure},
    "adapter-pair": {"overlap": pair_overlap_figure, "cosine": cosine_figure},
    "adapter-fleet": {"fleet": _fleet},
    "adapter-sweep": {"sweep": _sweep},
}
# What is drawn, top to bottom, unless a plot is named; the next one where a record lacks its table.
_DEFAULTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "adapter-spectrum": (("spectrum", "stable-rank"), ("heatmap",)),
    "adapter-base-overlap": (("overlap",),),
    "adapter-pair": (("overlap",),),
    "adapter-fleet": (("fleet",),),
    "adapter-sweep": (("sweep",),),
}


def plot_measurement(
    measurement: Measurement, path: str | Path, *, kind: str | None = None
) -> Path:
    """Draw a measurement into a file.

    Args:
        measurement: A record of a kind in :data:`PLOTS`.
        path: ``.html``, ``.png`` or ``.svg``.
        kind: One plot by name (a key of ``PLOTS[record kind]``); None: those that fit.

    Returns:
        The path.

    Raises:
        SettingError: Another suffix, an unknown plot, or a kind of record without plots.
        RecordError: The record holds nothing that can be drawn.
        MissingDependencyError: The ``site`` extra is not installed.
        OutputError: The file cannot be written.
    """
    require_suffix(path)
    require_site_packages()
    return save_chart(plot_figures(measurement, kind=kind), path)


def plot_figures(measurement: Measurement, *, kind: str | None = None) -> list[Figure]:
    """The figures :func:`plot_measurement` draws.

    Raises:
        SettingError: An unknown plot, or a kind of record without plots.
        RecordError: The record holds nothing that can be drawn.
    """
    found = measurement.record.kind
    if found not in PLOTS:
        raise SettingError(
            f"no plot shows a record of kind {found!r}; there are plots of {', '.join(PLOTS)}"
        )
    plots = PLOTS[found]
    if kind is not None and kind not in plots:
        raise SettingError(f"no plot {kind!r} of {found}, expected {' or '.join(plots)}")
    records = collect([measurement]).records
    figures = []
    for choices in ((kind,),) if kind is not None else _DEFAULTS[found]:
        drawn = (plots[name](records) for name in choices)
        figures += [next((figure for figure in drawn if figure is not None), None)]
    kept = [figure for figure in figures if figure is not None]
    if not kept:
        raise RecordError(
            f"nothing to plot in {measurement.record.title}: its tables are "
            f"{', '.join(measurement.tables)} and hold no numbered layers for this plot"
        )
    return kept
