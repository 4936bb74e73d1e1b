"""Charts of adapters, trainings and studies as functions, see :mod:`gonio.site.plots`."""

from __future__ import annotations

from gonio.site.adapter_figures import stable_rank_figure, stable_rank_summary
from gonio.site.chart_data import plot, plot_one
from gonio.site.depth_figures import depth_correlator_figure
from gonio.site.distance_figures import cosine_figure, gain_figure
from gonio.site.explorer import explorer_figure
from gonio.site.fleet_figures import fleet_figure
from gonio.site.overlap_figures import base_overlap_figure, pair_overlap_figure
from gonio.site.projection_figures import projection_overlap_figure
from gonio.site.spectrum_figures import ratio_heatmap, spectrum_figure
from gonio.site.study_behavior_figures import behavior_figure, bitfit_figure
from gonio.site.study_figures import overlap_figure, step_figure, width_figure
from gonio.site.study_null_figures import alignment_figure, depth_figure, study_gain_figure
from gonio.site.sweep_figures import sweep_figure
from gonio.site.training_figures import training_figure

__all__ = [
    "alignment_chart",
    "base_overlap_chart",
    "behavior_chart",
    "bitfit_chart",
    "cosine_chart",
    "depth_chart",
    "explorer_chart",
    "fleet_chart",
    "gain_chart",
    "pair_overlap_chart",
    "projection_overlap_chart",
    "spectrum_chart",
    "stable_rank_chart",
    "stable_rank_heat_map",
    "stable_rank_summary_chart",
    "step_chart",
    "study_depth_chart",
    "study_gain_chart",
    "study_overlap_chart",
    "sweep_chart",
    "training_chart",
    "width_chart",
]

training_chart = plot(
    "training_chart",
    training_figure,
    "training",
    "log",
    "Loss, margin and accuracy by step.",
)
stable_rank_chart = plot(
    "stable_rank_chart",
    stable_rank_figure,
    "adapter-spectrum",
    "modules",
    "Stable rank of every update by layer, beside random factors.",
)
stable_rank_summary_chart = plot(
    "stable_rank_summary_chart",
    stable_rank_summary,
    "adapter-spectrum",
    "modules",
    "Median stable rank by projection, beside random factors.",
)
stable_rank_heat_map = plot(
    "stable_rank_heat_map",
    ratio_heatmap,
    "adapter-spectrum",
    "modules",
    "Stable rank over chance by layer and projection.",
)
spectrum_chart = plot(
    "spectrum_chart",
    spectrum_figure,
    "adapter-spectrum",
    "singular_values",
    "Singular values of every update and their energy (needs the table ``modules`` too).",
)
depth_chart = plot(
    "depth_chart",
    depth_correlator_figure,
    "adapter-spectrum",
    "depth",
    "Shared directions by distance in depth (needs the table ``depth_decay`` too).",
)
base_overlap_chart = plot(
    "base_overlap_chart",
    base_overlap_figure,
    "adapter-base-overlap",
    "overlaps",
    "Overlap of updates with their base weights by layer, beside chance.",
)
projection_overlap_chart = plot(
    "projection_overlap_chart",
    projection_overlap_figure,
    "adapter-base-overlap",
    "overlaps",
    "Overlap with the base by projection type, beside chance.",
)
gain_chart = plot(
    "gain_chart",
    gain_figure,
    "adapter-base-overlap",
    "gains",
    "Gain residuals by layer in standard deviations of their nulls.",
)
pair_overlap_chart = plot(
    "pair_overlap_chart",
    pair_overlap_figure,
    "adapter-pair",
    "overlaps",
    "Overlap of two adapters' updates by layer, beside chance.",
)
cosine_chart = plot(
    "cosine_chart",
    cosine_figure,
    "adapter-pair",
    "cosines",
    "Cosine of two adapters' updates in standard deviations of its null.",
)
fleet_chart = plot_one(
    "fleet_chart",
    fleet_figure,
    "adapter-fleet",
    "adapters",
    "Stable rank of many adapters, by step where there are steps.",
)
sweep_chart = plot_one(
    "sweep_chart",
    sweep_figure,
    "adapter-sweep",
    "ranks",
    "Performance by rank.",
)
explorer_chart = plot(
    "explorer_chart",
    explorer_figure,
    "adapter-spectrum",
    "modules",
    "Runs over each other by layer, as the explorer first shows them.",
)
width_chart = plot_one(
    "width_chart",
    width_figure,
    "study",
    "stable_rank",
    "Stable rank by model width, with the first study and random factors.",
)
step_chart = plot_one(
    "step_chart",
    step_figure,
    "study",
    "steps",
    "Stable rank by training step.",
)
study_overlap_chart = plot_one(
    "study_overlap_chart",
    overlap_figure,
    "study",
    "layers",
    "Overlap with the base by layer, a trace per objective and seed, beside chance.",
)
alignment_chart = plot_one(
    "alignment_chart",
    alignment_figure,
    "study",
    "alignment",
    "Pairs of a study's adapters beside what turned updates give.",
)
study_gain_chart = plot_one(
    "study_gain_chart",
    study_gain_figure,
    "study",
    "gains",
    "Gain residuals of a study beside their nulls.",
)
study_depth_chart = plot_one(
    "study_depth_chart",
    depth_figure,
    "study",
    "depth",
    "Depth correlator of a study.",
)
behavior_chart = plot_one(
    "behavior_chart",
    behavior_figure,
    "study",
    "cells",
    "Geometry against behavior.",
)
bitfit_chart = plot_one(
    "bitfit_chart",
    bitfit_figure,
    "study",
    "bitfit",
    "Share of the loss reduction that biases reach.",
)
