"""Which charts a measurement is plotted as, and into which file: ``--plot`` of the commands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from gonio.errors import RecordError, SettingError
from gonio.records import Measurement
from gonio.site.adapter_figures import stable_rank_figure
from gonio.site.allocation_figures import allocated_bits_figure, allocation_quality_figure
from gonio.site.cache_figures import memory_figure, perplexity_figure, recall_figure
from gonio.site.certificate_figures import bounds_figure, slack_figure
from gonio.site.collapse_figures import collapse_figure
from gonio.site.collection import SiteRecord, collect
from gonio.site.dependencies import require_site_packages
from gonio.site.distance_figures import cosine_figure, gain_figure
from gonio.site.figure import Figure
from gonio.site.fleet_figures import fleet_figure
from gonio.site.key_figures import convergence_figure, cosine_heatmap, cosine_lines
from gonio.site.leading_figures import leading_figure
from gonio.site.length_figures import length_figure
from gonio.site.limit_figures import limit_figure
from gonio.site.overlap_figures import base_overlap_figure, pair_overlap_figure
from gonio.site.pareto_figures import frontier_figure
from gonio.site.publish import require_suffix, save_chart
from gonio.site.spectrum_figures import ratio_heatmap, spectrum_figure
from gonio.site.status_figures import status_figure
from gonio.site.study_figures import overlap_figure, step_figure, width_figure
from gonio.site.sweep_figures import sweep_figure
from gonio.site.training_figures import training_figure
from gonio.site.weight_figures import expert_gap_figure, weight_sign_figure

__all__ = ["PLOTS", "plot_figures", "plot_measurement", "require_plottable"]

Draw = Callable[[Sequence[SiteRecord]], Figure | None]


def _one(draw: Callable[[SiteRecord], Figure | None]) -> Draw:
    """A figure of one record as a figure of several."""
    return lambda records: draw(records[0])


_STUDY = {
    "width": _one(width_figure),
    "steps": _one(step_figure),
    "overlap": _one(overlap_figure),
}

# Kind of record to its plots by name.
PLOTS: dict[str, dict[str, Draw]] = {
    "adapter-spectrum": {
        "spectrum": spectrum_figure,
        "heatmap": ratio_heatmap,
        "stable-rank": stable_rank_figure,
    },
    "adapter-base-overlap": {"overlap": base_overlap_figure, "gain": gain_figure},
    "adapter-pair": {"overlap": pair_overlap_figure, "cosine": cosine_figure},
    "adapter-fleet": {"fleet": _one(fleet_figure)},
    "adapter-sweep": {"sweep": _one(sweep_figure)},
    "training": {"training": training_figure},
    "study": _STUDY,
    "study-status": _STUDY,
    "key-geometry": {
        "cosine": _one(cosine_lines),
        "heads": _one(cosine_heatmap),
        "convergence": _one(convergence_figure),
        "collapse": _one(collapse_figure),
        "leading": _one(leading_figure),
    },
    "cache-calibration": {"limit": limit_figure, "lengths": _one(length_figure)},
    "cache-evaluation": {
        "perplexity": _one(perplexity_figure),
        "memory": _one(memory_figure),
        "recall": _one(recall_figure),
    },
    "cache-certificate": {"bounds": _one(bounds_figure), "slack": _one(slack_figure)},
    "cache-allocation": {
        "quality": allocation_quality_figure,
        "bits": _one(allocated_bits_figure),
    },
    "cache-comparison": {"frontier": _one(frontier_figure)},
    "weight-signs": {"signs": _one(weight_sign_figure), "experts": _one(expert_gap_figure)},
    "theorem-check": {"status": _one(status_figure)},
}
# What is drawn, top to bottom, unless a plot is named: in each place the first that the record has
# the numbers for. Other kinds are drawn as their first plot.
_DEFAULTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "adapter-spectrum": (("spectrum", "stable-rank"), ("heatmap",)),
    "cache-calibration": (("limit", "lengths"),),
    "cache-evaluation": (("perplexity",), ("memory",)),
    "cache-allocation": (("quality",), ("bits",)),
    "key-geometry": (("cosine",), ("collapse",), ("leading",)),
    "study": (("width",), ("steps",)),
    "study-status": (("width",), ("steps",)),
    "weight-signs": (("signs",), ("experts",)),
}


def require_plottable(path: str | Path) -> Path:
    """The path of a plot, checked before the work is done.

    Raises:
        SettingError: The suffix is not ``.html``, ``.png`` or ``.svg``.
        MissingDependencyError: The ``site`` extra is not installed.
    """
    target = require_suffix(path)
    require_site_packages()
    return target


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
    target = require_plottable(path)
    return save_chart(plot_figures(measurement, kind=kind), target)


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
    places = _DEFAULTS.get(found, ((next(iter(plots)),),)) if kind is None else ((kind,),)
    figures = []
    for choices in places:
        drawn = (plots[name](records) for name in choices)
        figures += [next((figure for figure in drawn if figure is not None), None)]
    kept = [figure for figure in figures if figure is not None]
    if not kept:
        raise RecordError(
            f"nothing to plot in {measurement.record.title}: its tables are "
            f"{', '.join(measurement.tables) or 'none'} and hold no numbers for this plot"
        )
    return kept
