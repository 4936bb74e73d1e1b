"""The site's charts as functions that return Altair charts, for notebooks and scripts.

Every function takes ``data``, what was measured, in any of these forms:

- a :class:`gonio.records.Measurement`, as pipelines return it;
- a path: a folder of records at any depth, or a JSON file that a command wrote with ``--json``;
- a mapping of table names to DataFrames, as ``measurement.tables`` holds them;
- a DataFrame, which stands for the table the chart is made of;
- a sequence of these, drawn beside each other.

It returns an ``altair.Chart`` (or a composition of several) with the theme for print, which shows
itself in a notebook and has ``save``. It raises

- :class:`gonio.errors.RecordError` where ``data`` holds nothing the chart can be made of, or a
  table lacks a column;
- :class:`gonio.errors.MissingDependencyError` without the ``site`` extra.

Example:
    >>> import pandas as pd
    >>> from gonio.site.plots import training_chart
    >>> log = pd.DataFrame({"step": [1, 2, 3], "loss": [3.1, 2.9, 2.8]})
    >>> chart = training_chart(log)
    >>> chart.save("training.svg")  # doctest: +SKIP
"""

from gonio.site.adapter_charts import (
    alignment_chart,
    base_overlap_chart,
    behavior_chart,
    bitfit_chart,
    cosine_chart,
    depth_chart,
    explorer_chart,
    fleet_chart,
    gain_chart,
    pair_overlap_chart,
    projection_overlap_chart,
    spectrum_chart,
    stable_rank_chart,
    stable_rank_heat_map,
    stable_rank_summary_chart,
    step_chart,
    study_depth_chart,
    study_gain_chart,
    study_overlap_chart,
    sweep_chart,
    training_chart,
    width_chart,
)
from gonio.site.cache_charts import (
    allocated_bits_chart,
    allocation_chart,
    allocation_check_chart,
    centering_chart,
    certificate_chart,
    convergence_chart,
    cross_model_chart,
    degradation_chart,
    effective_rank_heat_map,
    expert_gap_chart,
    frontier_chart,
    key_cosine_chart,
    key_cosine_heat_map,
    key_spectrum_chart,
    leading_token_chart,
    limit_chart,
    limit_layer_chart,
    memory_breakdown_chart,
    memory_chart,
    moment_reference_chart,
    norm_outlier_chart,
    pairs_chart,
    perplexity_chart,
    phase_collapse_chart,
    recall_chart,
    sign_angle_chart,
    sink_chart,
    slack_heat_map,
    tail_chart,
    weight_sign_chart,
)
from gonio.site.chart_data import Data, chart_of, records_of

__all__ = [
    "Data",
    "alignment_chart",
    "allocated_bits_chart",
    "allocation_chart",
    "allocation_check_chart",
    "base_overlap_chart",
    "behavior_chart",
    "bitfit_chart",
    "centering_chart",
    "certificate_chart",
    "chart_of",
    "convergence_chart",
    "cosine_chart",
    "cross_model_chart",
    "degradation_chart",
    "depth_chart",
    "effective_rank_heat_map",
    "expert_gap_chart",
    "explorer_chart",
    "fleet_chart",
    "frontier_chart",
    "gain_chart",
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
    "pair_overlap_chart",
    "pairs_chart",
    "perplexity_chart",
    "phase_collapse_chart",
    "projection_overlap_chart",
    "recall_chart",
    "records_of",
    "sign_angle_chart",
    "sink_chart",
    "slack_heat_map",
    "spectrum_chart",
    "stable_rank_chart",
    "stable_rank_heat_map",
    "stable_rank_summary_chart",
    "step_chart",
    "study_depth_chart",
    "study_gain_chart",
    "study_overlap_chart",
    "sweep_chart",
    "tail_chart",
    "training_chart",
    "weight_sign_chart",
    "width_chart",
]
