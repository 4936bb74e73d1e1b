"""Tiny decoders of several families, built from configurations, random weights."""

from collections.abc import Callable

import pytest
import torch
import transformers
from transformers import PreTrainedModel

COMMON = {"vocab_size": 61, "bos_token_id": 0, "eos_token_id": None, "pad_token_id": 0}
LLAMA_LIKE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    **COMMON,
}
FAMILIES = {
    "llama": lambda: transformers.LlamaConfig(**LLAMA_LIKE),
    "llama-odd-head": lambda: transformers.LlamaConfig(**LLAMA_LIKE | {"head_dim": 10}),
    "qwen3": lambda: transformers.Qwen3Config(**LLAMA_LIKE | {"head_dim": 16}),
    "gpt2": lambda: transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, **COMMON),
    "gpt-neox": lambda: transformers.GPTNeoXConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        rotary_pct=0.25,
        **COMMON,
    ),
}


@pytest.fixture
def make_model() -> Callable[[str], PreTrainedModel]:
    """A tiny model of a family; large weights, so that attention is far from uniform."""

    def make(family: str) -> PreTrainedModel:
        torch.manual_seed(11)
        model = transformers.AutoModelForCausalLM.from_config(FAMILIES[family]())
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(std=0.3)
        return model.eval()

    return make


@pytest.fixture(params=sorted(FAMILIES))
def any_model(request: pytest.FixtureRequest, make_model) -> PreTrainedModel:
    """Every family in turn."""
    return make_model(request.param)


@pytest.fixture
def tokens(rng: torch.Generator) -> torch.Tensor:
    """Token ids, shape (4, 24): four windows."""
    return torch.randint(1, 61, (4, 24), generator=rng)
