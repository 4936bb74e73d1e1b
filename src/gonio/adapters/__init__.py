"""Adapters: what fine-tuning did to the weights, measured from the factors where there are any."""

from gonio.adapters.adapter import Adapter, UnusedKey
from gonio.adapters.advise import advice_facts, advise, resize_to
from gonio.adapters.base import WeightSource
from gonio.adapters.bundle import Bundle, StoredBytes, open_bundle, stored_bytes, write_bundle
from gonio.adapters.checkpoints import (
    AdapterSearch,
    FoundAdapter,
    find_adapters,
    load_checkpoints,
)
from gonio.adapters.compare import BaseComparison, compare_with_base
from gonio.adapters.config import LoraSettings
from gonio.adapters.dense import DenseUpdate
from gonio.adapters.depth import DepthCorrelator, depth_correlator
from gonio.adapters.elementwise import dare_merge, ties_merge
from gonio.adapters.finetune import load_finetune
from gonio.adapters.folder import load_adapter
from gonio.adapters.gain import GainResidual, column_gain_residual, row_gain_residual
from gonio.adapters.interference import Interference, interference_table
from gonio.adapters.intruder import IntruderCount, intruder_table
from gonio.adapters.measure import (
    RandomLora,
    random_lora,
    singular_value_table,
    spectrum_table,
)
from gonio.adapters.merge import merge
from gonio.adapters.norm_gain import NormGain, norm_gain_table
from gonio.adapters.pair import PairComparison, compare_adapters
from gonio.adapters.rank_choice import (
    RankChoice,
    eckart_young_table,
    recommend_rank,
    resampled_means,
)
from gonio.adapters.resize import Resized, difference_norm, resize
from gonio.adapters.update import LoraUpdate, with_factors
from gonio.adapters.vllm import even_ranks, vllm_problems
from gonio.adapters.weighted import resize_weighted
from gonio.adapters.writer import AdapterStyle, require_rewritable, write_adapter

__all__ = [
    "Adapter",
    "AdapterSearch",
    "AdapterStyle",
    "BaseComparison",
    "Bundle",
    "DenseUpdate",
    "DepthCorrelator",
    "FoundAdapter",
    "GainResidual",
    "Interference",
    "IntruderCount",
    "LoraSettings",
    "LoraUpdate",
    "NormGain",
    "PairComparison",
    "RandomLora",
    "RankChoice",
    "Resized",
    "StoredBytes",
    "UnusedKey",
    "WeightSource",
    "advice_facts",
    "advise",
    "column_gain_residual",
    "compare_adapters",
    "compare_with_base",
    "dare_merge",
    "depth_correlator",
    "difference_norm",
    "eckart_young_table",
    "even_ranks",
    "find_adapters",
    "interference_table",
    "intruder_table",
    "load_adapter",
    "load_checkpoints",
    "load_finetune",
    "merge",
    "norm_gain_table",
    "open_bundle",
    "random_lora",
    "recommend_rank",
    "require_rewritable",
    "resampled_means",
    "resize",
    "resize_to",
    "resize_weighted",
    "row_gain_residual",
    "singular_value_table",
    "spectrum_table",
    "stored_bytes",
    "ties_merge",
    "vllm_problems",
    "with_factors",
    "write_adapter",
    "write_bundle",
]
