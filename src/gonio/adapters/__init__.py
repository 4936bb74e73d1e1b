"""Adapters: what fine-tuning did to the weights, measured from the factors alone."""

from gonio.adapters.base import WeightSource
from gonio.adapters.compare import BaseComparison, compare_with_base
from gonio.adapters.config import LoraSettings
from gonio.adapters.folder import Adapter, UnusedKey, load_adapter
from gonio.adapters.gain import GainResidual, column_gain_residual, row_gain_residual
from gonio.adapters.measure import RandomLora, random_lora, spectrum_table
from gonio.adapters.pair import PairComparison, compare_adapters
from gonio.adapters.update import LoraUpdate

__all__ = [
    "Adapter",
    "BaseComparison",
    "GainResidual",
    "LoraSettings",
    "LoraUpdate",
    "PairComparison",
    "RandomLora",
    "UnusedKey",
    "WeightSource",
    "column_gain_residual",
    "compare_adapters",
    "compare_with_base",
    "load_adapter",
    "random_lora",
    "row_gain_residual",
    "spectrum_table",
]
