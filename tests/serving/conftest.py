"""Tiny models of three families, adapters made by PEFT, and PEFT's own merges of every subset."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from gonio.adapters import Adapter, load_adapter

__all__ = ["family_model", "make_adapters", "merged_model"]

TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj", "lm_head"],
    "gpt2": ["c_attn", "c_fc", "c_proj"],
    "neox": ["query_key_value", "dense_4h_to_h"],
}


def family_model(family: str, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """A model built from its config, random weights large enough to matter, deterministic."""
    import transformers

    torch.manual_seed(11)
    common = {"vocab_size": 400, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": None}
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "max_position_embeddings": 64, "initializer_range": 0.3}
    if family == "llama":
        config = transformers.LlamaConfig(num_key_value_heads=2, **sizes, **heads, **common)
        model = transformers.LlamaForCausalLM(config)
    elif family == "gpt2":
        shape = {"n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 64}
        config = transformers.GPT2Config(initializer_range=0.3, **shape, **common)
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.GPTNeoXConfig(**sizes, **heads, **common)
        model = transformers.GPTNeoXForCausalLM(config)
    return model.to(dtype).eval()


@pytest.fixture(scope="session")
def make_adapters(tmp_path_factory) -> Callable[[str], dict[str, Path]]:
    """Three folders per family that PEFT saved: other ranks, scalings and target modules."""
    from peft import LoraConfig, get_peft_model

    made: dict[str, dict[str, Path]] = {}

    def make(family: str) -> dict[str, Path]:
        if family not in made:
            targets = TARGETS[family]
            settings = {
                "one": {"r": 4, "lora_alpha": 8, "target_modules": targets},
                "two": {"r": 2, "lora_alpha": 3, "target_modules": targets[:1]},
                "three": {"r": 30, "lora_alpha": 5, "use_rslora": True, "target_modules": targets},
            }
            made[family] = {}
            for seed, (name, chosen) in enumerate(settings.items()):
                folder = tmp_path_factory.mktemp(family) / name
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # PEFT explains Conv1D at length
                    config = LoraConfig(task_type="CAUSAL_LM", **chosen)
                    wrapped = get_peft_model(family_model(family), config)
                    torch.manual_seed(seed)
                    for key, parameter in wrapped.named_parameters():
                        if "lora_" in key:
                            torch.nn.init.normal_(parameter, std=0.2)
                    wrapped.save_pretrained(folder)
                made[family][name] = folder
        return made[family]

    return make


@pytest.fixture(scope="session")
def read_adapters(make_adapters) -> Callable[[str], dict[str, Adapter]]:
    def read(family: str) -> dict[str, Adapter]:
        return {name: load_adapter(folder) for name, folder in make_adapters(family).items()}

    return read


@pytest.fixture(scope="session")
def merged_model(make_adapters) -> Callable[..., torch.nn.Module]:
    """The base with a weighted subset written into its weights by PEFT, one adapter at a time."""
    from peft import PeftModel

    def merge(
        family: str, weights: Mapping[str, float], dtype: torch.dtype = torch.float64
    ) -> torch.nn.Module:
        base = family_model(family, dtype)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, weight in weights.items():
                fresh = PeftModel.from_pretrained(
                    family_model(family, dtype), make_adapters(family)[name]
                )
                after = fresh.merge_and_unload().state_dict()
                before = family_model(family, dtype).state_dict()
                for key, parameter in base.state_dict().items():
                    parameter += weight * (after[key] - before[key])
        return base.eval()

    return merge


@pytest.fixture(scope="session")
def tokenizer(tiny_folder):
    from gonio.models import load_tokenizer

    return load_tokenizer(tiny_folder)
