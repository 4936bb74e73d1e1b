"""Charts of caches and weights as functions, see :mod:`gonio.site.plots`."""

from __future__ import annotations

from gonio.site.allocation_figures import allocated_bits_figure, allocation_quality_figure
from gonio.site.cache_figures import memory_figure, perplexity_figure, recall_figure
from gonio.site.cache_spectrum_figures import eigenvalue_figure, rank_heatmap
from gonio.site.certificate_figures import bounds_figure, slack_figure
from gonio.site.chart_data import plot, plot_one
from gonio.site.collapse_figures import collapse_figure, tail_figure
from gonio.site.cross_model_figures import (
    centering_figure,
    cross_model_figure,
    moment_reference_figure,
)
from gonio.site.degradation_figures import context_figure, pairs_figure
from gonio.site.key_figures import convergence_figure, cosine_heatmap, cosine_lines
from gonio.site.leading_figures import leading_figure
from gonio.site.limit_figures import limit_excess_figure, limit_figure
from gonio.site.memory_figures import allocation_check_figure, memory_breakdown_figure
from gonio.site.pareto_figures import frontier_figure
from gonio.site.sign_angle_figures import sign_angle_figure
from gonio.site.sink_figures import outlier_figure, sink_figure
from gonio.site.weight_figures import expert_gap_figure, weight_sign_figure

__all__ = [
    "allocated_bits_chart",
    "allocation_chart",
    "allocation_check_chart",
    "centering_chart",
    "certificate_chart",
    "convergence_chart",
    "cross_model_chart",
    "degradation_chart",
    "effective_rank_heat_map",
    "expert_gap_chart",
    "frontier_chart",
    "key_cosine_chart",
    "key_cosine_heat_map",
    "key_spectrum_chart",
    "leading_token_chart",
    "limit_chart",
    "limit_layer_chart",
    "memory_breakdown_chart",
    "memory_chart",
    "moment_reference_chart",
    "norm_outlier_chart",
    "pairs_chart",
    "perplexity_chart",
    "phase_collapse_chart",
    "recall_chart",
    "sign_angle_chart",
    "sink_chart",
    "slack_heat_map",
    "tail_chart",
    "weight_sign_chart",
]

cross_model_chart = plot(
    "cross_model_chart",
    cross_model_figure,
    "key-geometry",
    "heads",
    "Lift of the 1-bit cosine over chance by model and rotation.",
)
centering_chart = plot(
    "centering_chart",
    centering_figure,
    "key-geometry",
    "heads",
    "Change of the 1-bit cosine by centering.",
)
moment_reference_chart = plot(
    "moment_reference_chart",
    moment_reference_figure,
    "key-geometry",
    "layers",
    "Moment ratios of known laws and of observed models.",
)
key_cosine_chart = plot_one(
    "key_cosine_chart",
    cosine_lines,
    "key-geometry",
    "heads",
    "1-bit cosine of keys by layer and rotation.",
)
key_cosine_heat_map = plot_one(
    "key_cosine_heat_map",
    cosine_heatmap,
    "key-geometry",
    "heads",
    "1-bit cosine of every head.",
)
convergence_chart = plot_one(
    "convergence_chart",
    convergence_figure,
    "key-geometry",
    "convergence",
    "Convergence of learned rotations (needs the table ``heads`` too).",
)
sign_angle_chart = plot_one(
    "sign_angle_chart",
    sign_angle_figure,
    "key-geometry",
    "heads",
    "Angle between keys and their signs by layer, colored by bits (needs ``spectra`` too).",
)
phase_collapse_chart = plot_one(
    "phase_collapse_chart",
    collapse_figure,
    "key-geometry",
    "layers",
    "Angles to a head's main line and its corner, by layer.",
)
tail_chart = plot_one(
    "tail_chart",
    tail_figure,
    "key-geometry",
    "layers",
    "Moment ratio, kurtosis and strongest channels by layer, beside known laws.",
)
key_spectrum_chart = plot_one(
    "key_spectrum_chart",
    eigenvalue_figure,
    "key-geometry",
    "eigenvalues",
    "Eigenvalues of the second moments of keys and values.",
)
effective_rank_heat_map = plot_one(
    "effective_rank_heat_map",
    rank_heatmap,
    "key-geometry",
    "spectra",
    "Effective rank of every head.",
)
sink_chart = plot_one(
    "sink_chart",
    sink_figure,
    "key-geometry",
    "sinks",
    "Attention that sinks hold (needs the table ``layers`` too).",
)
norm_outlier_chart = plot_one(
    "norm_outlier_chart",
    outlier_figure,
    "key-geometry",
    "sinks",
    "Tokens with unusual norms (needs the table ``layers`` too).",
)
leading_token_chart = plot_one(
    "leading_token_chart",
    leading_figure,
    "key-geometry",
    "leading_tokens",
    "Attention and norms of the first positions.",
)
perplexity_chart = plot_one(
    "perplexity_chart",
    perplexity_figure,
    "cache-evaluation",
    "methods",
    "Perplexity through compressed caches, beside full precision.",
)
degradation_chart = plot_one(
    "degradation_chart",
    context_figure,
    "cache-evaluation",
    "positions",
    "Perplexity over full precision by context.",
)
pairs_chart = plot_one(
    "pairs_chart",
    pairs_figure,
    "cache-evaluation",
    "pairs",
    "Codecs compared two by two.",
)
recall_chart = plot_one(
    "recall_chart",
    recall_figure,
    "cache-evaluation",
    "recall",
    "Recall of a hidden passage by depth.",
)
memory_chart = plot_one(
    "memory_chart",
    memory_figure,
    "cache-evaluation",
    "memory",
    "Memory by context length.",
)
memory_breakdown_chart = plot_one(
    "memory_breakdown_chart",
    memory_breakdown_figure,
    "cache-evaluation",
    "memory",
    "Keys, values and side data of every method.",
)
allocation_check_chart = plot_one(
    "allocation_check_chart",
    allocation_check_figure,
    "cache-evaluation",
    "allocation",
    "Bytes allocated over those reported.",
)
frontier_chart = plot_one(
    "frontier_chart",
    frontier_figure,
    "cache-comparison",
    "methods",
    "Bits against perplexity, with the frontier and other packages.",
)
limit_chart = plot(
    "limit_chart",
    limit_figure,
    "cache-calibration",
    "limits",
    "Error by bits beside the limits of rate-distortion theory.",
)
limit_layer_chart = plot(
    "limit_layer_chart",
    limit_excess_figure,
    "cache-calibration",
    "limits",
    "Error over the Shannon lower bound by layer.",
)
allocation_chart = plot(
    "allocation_chart",
    allocation_quality_figure,
    "cache-allocation",
    "policies",
    "Perplexity by stored bits and policy.",
)
allocated_bits_chart = plot_one(
    "allocated_bits_chart",
    allocated_bits_figure,
    "cache-allocation",
    "units",
    "Bits of every layer by policy.",
)
certificate_chart = plot_one(
    "certificate_chart",
    bounds_figure,
    "cache-certificate",
    "heads",
    "Bounds on attention outputs beside measured errors.",
)
slack_heat_map = plot_one(
    "slack_heat_map",
    slack_figure,
    "cache-certificate",
    "heads",
    "Slack of the bound by layer and head.",
)
weight_sign_chart = plot_one(
    "weight_sign_chart",
    weight_sign_figure,
    "weight-signs",
    "matrices",
    "1-bit cosine of weights over chance, attention and feed-forward.",
)
expert_gap_chart = plot_one(
    "expert_gap_chart",
    expert_gap_figure,
    "weight-signs",
    "experts",
    "What an expert's own rotation gains over a shared one.",
)
