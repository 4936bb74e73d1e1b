"""Tiny decoders of many families, built from configurations, random weights; a blocked codec."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from gonio.kvcache import CacheCodec, EncodedTensor
from gonio.models import attention_layout

COMMON = {"vocab_size": 61, "bos_token_id": 0, "eos_token_id": None, "pad_token_id": 0}
LLAMA_LIKE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    **COMMON,
}
FOUR_LAYERS = LLAMA_LIKE | {"num_hidden_layers": 4}
HYBRID = ["sliding_attention", "full_attention"] * 2
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
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
ARCHITECTURES = FAMILIES | {
    "qwen2": lambda: transformers.Qwen2Config(**LLAMA_LIKE),
    "qwen2-sliding": lambda: transformers.Qwen2Config(
        **FOUR_LAYERS, use_sliding_window=True, sliding_window=6, max_window_layers=2
    ),
    "mistral-sliding": lambda: transformers.MistralConfig(**LLAMA_LIKE, sliding_window=6),
    "gemma2": lambda: transformers.Gemma2Config(
        **FOUR_LAYERS, head_dim=8, sliding_window=6, query_pre_attn_scalar=8
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **FOUR_LAYERS, head_dim=8, sliding_window=6, query_pre_attn_scalar=8, layer_types=HYBRID
    ),
    "phi": lambda: transformers.PhiConfig(**LLAMA_LIKE),
    "phi3": lambda: transformers.Phi3Config(**LLAMA_LIKE),
    "mixtral": lambda: transformers.MixtralConfig(
        **LLAMA_LIKE, num_local_experts=4, num_experts_per_tok=2
    ),
    "olmoe": lambda: transformers.OlmoeConfig(**LLAMA_LIKE, **EXPERTS),
    "qwen3-moe": lambda: transformers.Qwen3MoeConfig(
        **LLAMA_LIKE, **EXPERTS, head_dim=8, moe_intermediate_size=24
    ),
    "gpt-oss": lambda: transformers.GptOssConfig(
        **FOUR_LAYERS,
        head_dim=8,
        sliding_window=6,
        num_local_experts=4,
        num_experts_per_tok=2,
        layer_types=HYBRID,
    ),
    "stablelm": lambda: transformers.StableLmConfig(**LLAMA_LIKE),
    "opt": lambda: transformers.OPTConfig(
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        **COMMON,
    ),
    "falcon": lambda: transformers.FalconConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        multi_query=True,
        new_decoder_architecture=False,
        **COMMON,
    ),
    "llama4": lambda: transformers.Llama4TextConfig(
        **FOUR_LAYERS,
        head_dim=8,
        intermediate_size_mlp=48,
        num_local_experts=2,
        attention_chunk_size=6,
    ),
}


def build(family: str, seed: int = 11) -> PreTrainedModel:
    """A tiny model of a family; large weights, so that attention is far from uniform."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(ARCHITECTURES[family]())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.3)
    return model.eval()


@pytest.fixture
def make_model() -> Callable[[str], PreTrainedModel]:
    """Builds a tiny model of a named family."""
    return build


@pytest.fixture(params=sorted(FAMILIES))
def any_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """Every basic family in turn: full attention with and without RoPE, odd head size."""
    return build(request.param)


@pytest.fixture(params=sorted(ARCHITECTURES))
def any_architecture(request: pytest.FixtureRequest) -> PreTrainedModel:
    """Every architecture in turn, with sliding windows shorter than the test's sequences."""
    return build(request.param)


@pytest.fixture
def tokens(rng: torch.Generator) -> torch.Tensor:
    """Token ids, shape (4, 24): four windows."""
    return torch.randint(1, 61, (4, 24), generator=rng)


@dataclass(frozen=True)
class BlockedCodec:
    """Stores blocks of tokens raw, tokens innermost: one row per block, as a grouped codec does."""

    block: int = 4
    method = "blocked"
    side_bytes = 0

    def encode(self, x: torch.Tensor) -> EncodedTensor:
        batch, heads, tokens, dim = x.shape
        blocks = x.reshape(batch, heads, tokens // self.block, self.block, dim).mT.contiguous()
        return EncodedTensor({"codes": blocks.clone()}, tokens, dim, x.dtype, self.block)

    def decode(self, encoded: EncodedTensor) -> torch.Tensor:
        return encoded.tensors["codes"].mT.flatten(2, 3)

    def state(self) -> tuple[dict, dict]:
        return {"block": self.block}, {}

    @classmethod
    def from_state(cls, settings, tensors):
        return cls(**settings)


@pytest.fixture(scope="session")
def blocked() -> type[BlockedCodec]:
    """The class of a lossless codec with blocks."""
    return BlockedCodec


@pytest.fixture
def blocked_cache_codec() -> Callable[[PreTrainedModel], CacheCodec]:
    """A lossless codec whose streams hold all parts: sinks, blocks, window, incomplete block."""

    def make(model: PreTrainedModel) -> CacheCodec:
        layout = attention_layout(model.config)
        codecs = (BlockedCodec(),) * layout.num_layers
        return CacheCodec(layout, codecs, codecs, sinks=2, window=3)

    return make
