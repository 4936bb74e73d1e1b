"""Every figure of an observation of keys and values, in reading order."""

from __future__ import annotations

from gonio.site.cache_spectrum_figures import eigenvalue_figure, rank_heatmap
from gonio.site.collapse_figures import collapse_figure, tail_figure
from gonio.site.collection import SiteRecord
from gonio.site.figure import Figure
from gonio.site.key_figures import convergence_figure, cosine_heatmap, cosine_lines
from gonio.site.leading_figures import leading_figure
from gonio.site.sign_angle_figures import sign_angle_figure
from gonio.site.sink_figures import outlier_figure, sink_figure

__all__ = ["observation_figures"]


def observation_figures(entry: SiteRecord) -> list[Figure | None]:
    """Every figure of a ``key-geometry`` record; None where there is nothing to draw.

    A record with the tables ``heads`` and ``convergence`` alone has the figures of cosines only.

    Raises:
        RecordError: A table is missing or lacks a column.
    """
    cosines = [cosine_lines, cosine_heatmap, convergence_figure]
    geometry = [
        *(sign_angle_figure, collapse_figure, tail_figure),
        *(eigenvalue_figure, rank_heatmap, sink_figure, outlier_figure, leading_figure),
    ]
    makers = cosines + (geometry if "layers" in entry.measurement.tables else [])
    return [maker(entry) for maker in makers]
