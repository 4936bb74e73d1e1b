"""Training LoRA adapters: preference pairs, recipes, DPO and causal language modeling."""

from gonio.training.behavior import (
    PairLogProbs,
    PreferenceSummary,
    pair_log_probs,
    response_log_probs,
    summarize_preferences,
)
from gonio.training.bitfit import applied_biases, bias_names, load_biases, train_bitfit
from gonio.training.clm import train_clm
from gonio.training.data import (
    PreferencePair,
    PreferenceSplit,
    load_hub_pairs,
    pairs_sha256,
    read_pairs,
    split_pairs,
    write_pairs,
)
from gonio.training.divergence import ResponseDivergence, response_divergence
from gonio.training.dpo import train_dpo
from gonio.training.gradient_callback import GradientCallback
from gonio.training.passages import PassageShape, pairs_from_text
from gonio.training.recipes import (
    BitFitRecipe,
    ClmRecipe,
    DpoRecipe,
    LoraRecipe,
    Recipe,
    TrainingKind,
    make_recipe,
    preset_names,
    preset_recipe,
    read_recipe,
)
from gonio.training.spectrum_callback import SpectrumCallback
from gonio.training.tokens import TokenizedPair, keep_fitting, tokenize_pair
from gonio.training.train import TrainingRun, require_free_folder

__all__ = [
    "BitFitRecipe",
    "ClmRecipe",
    "DpoRecipe",
    "GradientCallback",
    "LoraRecipe",
    "PairLogProbs",
    "PassageShape",
    "PreferencePair",
    "PreferenceSplit",
    "PreferenceSummary",
    "Recipe",
    "ResponseDivergence",
    "SpectrumCallback",
    "TokenizedPair",
    "TrainingKind",
    "TrainingRun",
    "applied_biases",
    "bias_names",
    "keep_fitting",
    "load_biases",
    "load_hub_pairs",
    "make_recipe",
    "pair_log_probs",
    "pairs_from_text",
    "pairs_sha256",
    "preset_names",
    "preset_recipe",
    "read_pairs",
    "read_recipe",
    "require_free_folder",
    "response_divergence",
    "response_log_probs",
    "split_pairs",
    "summarize_preferences",
    "tokenize_pair",
    "train_bitfit",
    "train_clm",
    "train_dpo",
    "write_pairs",
]
