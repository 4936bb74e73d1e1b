"""Models and texts: sources, weights tensor by tensor, attention layout, token splits."""

from gonio.models.activations import Moments, input_second_moments
from gonio.models.attention import AttentionLayout, attention_layout
from gonio.models.bundled import bundled_models, fetch_bundled
from gonio.models.orientation import is_stored_transposed
from gonio.models.skeleton import load_skeleton
from gonio.models.sources import (
    ModelSource,
    load_model,
    load_tokenizer,
    open_weights,
    resolve_source,
)
from gonio.models.streaming import WeightReader
from gonio.models.texts import Text, TokenSplit, load_text, split_tokens, token_windows

__all__ = [
    "AttentionLayout",
    "ModelSource",
    "Moments",
    "Text",
    "TokenSplit",
    "WeightReader",
    "attention_layout",
    "bundled_models",
    "fetch_bundled",
    "input_second_moments",
    "is_stored_transposed",
    "load_model",
    "load_skeleton",
    "load_text",
    "load_tokenizer",
    "open_weights",
    "resolve_source",
    "split_tokens",
    "token_windows",
]
