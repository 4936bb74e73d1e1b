"""Tiny models of many families saved by transformers, with weights far from their start."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

LLAMA_LIKE = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": 0,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
FAMILIES = {
    "llama": lambda: transformers.LlamaConfig(**LLAMA_LIKE, attention_bias=True, mlp_bias=True),
    "llama-tied": lambda: transformers.LlamaConfig(**LLAMA_LIKE, tie_word_embeddings=True),
    "mistral": lambda: transformers.MistralConfig(**LLAMA_LIKE),
    "qwen2": lambda: transformers.Qwen2Config(**LLAMA_LIKE),
    "qwen3": lambda: transformers.Qwen3Config(**LLAMA_LIKE, head_dim=16),
    "mixtral": lambda: transformers.MixtralConfig(**LLAMA_LIKE, **LOCAL),
    "olmoe": lambda: transformers.OlmoeConfig(**LLAMA_LIKE, **MOE),
    "qwen3-moe": lambda: transformers.Qwen3MoeConfig(
        **LLAMA_LIKE, **MOE, moe_intermediate_size=24, head_dim=8
    ),
    "gpt-oss": lambda: transformers.GptOssConfig(
        **LLAMA_LIKE | {"intermediate_size": 32}, **LOCAL, head_dim=8
    ),
    "gpt2": lambda: transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=400, bos_token_id=0, eos_token_id=0
    ),
    "gpt-neox": lambda: transformers.GPTNeoXConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=400,
        bos_token_id=0,
        eos_token_id=0,
    ),
}


@pytest.fixture(scope="session")
def weights_folder(tmp_path_factory, tiny_folder) -> Callable[[str], Path]:
    """The folder of a family: weights of uneven columns, norm gains away from 1, a tokenizer."""
    root = tmp_path_factory.mktemp("weights")

    def save(family: str) -> Path:
        folder = root / family
        if folder.exists():
            return folder
        torch.manual_seed(5)
        model = transformers.AutoModelForCausalLM.from_config(FAMILIES[family]())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1:
                    parameter.uniform_(0.5, 2.0)
                elif "embed" not in name:
                    parameter.normal_(std=0.1).mul_(torch.linspace(0.2, 2, parameter.shape[-1]))
        model.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tiny_folder / name, folder / name)
        return folder

    return save
