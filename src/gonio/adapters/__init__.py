"""Adapters: what fine-tuning did to the weights, measured from the factors alone."""

from gonio.adapters.base import WeightSource
from gonio.adapters.compare import BaseComparison, compare_with_base
from gonio.adapters.config import LoraSettings
from gonio.adapters.folder import Adapter, UnusedKey, load_adapter
from gonio.adapters.gain import GainResidual, column_gain_residual, row_gain_residual
from gonio.adapters.measure import RandomLora, random_lora, spectrum_table
from gonio.adapters.merge import merge
from gonio.adapters.pair import PairComparison, compare_adapters
from gonio.adapters.resize import Resized, difference_norm, resize
from gonio.adapters.update import LoraUpdate
from gonio.adapters.writer import AdapterStyle, require_rewritable, write_adapter

__all__ = [
    "Adapter",
    "AdapterStyle",
    "BaseComparison",
    "GainResidual",
    "LoraSettings",
    "LoraUpdate",
    "PairComparison",
    "RandomLora",
    "Resized",
    "UnusedKey",
    "WeightSource",
    "column_gain_residual",
    "compare_adapters",
    "compare_with_base",
    "difference_norm",
    "load_adapter",
    "merge",
    "random_lora",
    "require_rewritable",
    "resize",
    "row_gain_residual",
    "spectrum_table",
    "write_adapter",
]
