"""Tiny adapters: real ones saved by PEFT, and hand-written folders for bad input."""

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gonio.adapters import Adapter, LoraSettings, LoraUpdate
from gonio.adapters.update import split_module_name

PREFIX = "base_model.model."
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}


@dataclass(frozen=True)
class Saved:
    """A base folder, an adapter folder and the weight change PEFT's own merge makes (float64)."""

    base: Path
    adapter: Path
    changes: dict[str, Tensor]


class Convolutions(torch.nn.Module):
    """Every kind of module PEFT gives factors to, with names that end in one another."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv1d(3, 6, 4)
        self.conv2 = torch.nn.Conv2d(6, 5, (3, 2))
        self.point = torch.nn.Conv2d(5, 4, 1, bias=False)
        self.conv3 = torch.nn.Conv3d(2, 3, (2, 1, 3))
        self.block = torch.nn.ModuleDict({"conv1": torch.nn.Conv1d(6, 6, 1)})
        self.table = torch.nn.Embedding(11, 7)
        self.linear = torch.nn.Linear(7, 5)
        self.head = torch.nn.Linear(5, 2)


def tiny_model(family: str) -> torch.nn.Module:
    """A model of a family built from its config, random weights, deterministic."""
    import transformers

    torch.manual_seed(7)
    common = {"vocab_size": 40, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    llama = {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        **common,
    }
    if family == "convolutions":
        return Convolutions()
    if family in ("llama", "tied llama"):
        tied = family == "tied llama"
        config = transformers.LlamaConfig(num_key_value_heads=2, tie_word_embeddings=tied, **llama)
        return transformers.LlamaForCausalLM(config)
    if family == "phi3":
        return transformers.Phi3ForCausalLM(transformers.Phi3Config(num_key_value_heads=2, **llama))
    if family == "gpt2":
        config = transformers.GPT2Config(n_embd=24, n_layer=2, n_head=4, n_positions=16, **common)
        return transformers.GPT2LMHeadModel(config)
    config = transformers.GPTNeoXConfig(max_position_embeddings=16, **llama)
    return transformers.GPTNeoXForCausalLM(config)


def merge_with_peft(family: str, folder: Path) -> dict[str, Tensor]:
    """The weights PEFT's own merge of a folder gives, float64, from a fresh base."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="Found missing adapter keys")
        loaded = PeftModel.from_pretrained(tiny_model(family), folder).double()
        return dict(loaded.merge_and_unload().state_dict())


@pytest.fixture
def peft_merge() -> Callable[[str, Path], dict[str, Tensor]]:
    return merge_with_peft


@pytest.fixture
def make_model() -> Callable[[str], torch.nn.Module]:
    return tiny_model


@pytest.fixture
def save_with_peft(tmp_path: Path) -> Callable[..., Saved]:
    """Wrap a tiny model, give all that is trained random values, save; merge again from disk."""
    from peft import LoraConfig, get_peft_model

    def save(family: str, *, name: str = "adapter", factor_seed: int = 0, **settings) -> Saved:
        base, folder = tmp_path / f"{family}-base", tmp_path / name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT explains Conv1D and tied weights at length
            model = tiny_model(family)
            if hasattr(model, "save_pretrained"):
                model.save_pretrained(base)
            else:
                base.mkdir(exist_ok=True)
                save_file(model.state_dict(), base / "model.safetensors")
            wrapped = get_peft_model(model, LoraConfig(**settings))
            torch.manual_seed(factor_seed)
            for key, parameter in wrapped.named_parameters():
                if "lora_" in key or parameter.requires_grad:
                    torch.nn.init.normal_(parameter)
            wrapped.save_pretrained(folder)
            before = {k: v.double() for k, v in tiny_model(family).state_dict().items()}
        after = merge_with_peft(family, folder)
        changes = {k: after[k] - before[k] for k in before if not torch.equal(after[k], before[k])}
        return Saved(base, folder, changes)

    return save


@pytest.fixture
def write_adapter(tmp_path: Path) -> Callable[..., Path]:
    """Write a folder from factors ``module -> (lora_b, lora_a)``, further tensors and settings."""

    def write(
        factors: Mapping[str, tuple[Tensor, Tensor]],
        extra: Mapping[str, Tensor] | None = None,
        name: str = "adapter",
        **settings: object,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        tensors = dict(extra or {})
        for module, (lora_b, lora_a) in factors.items():
            tensors[f"{PREFIX}{module}.lora_A.weight"] = lora_a.clone(
                memory_format=torch.contiguous_format
            )
            tensors[f"{PREFIX}{module}.lora_B.weight"] = lora_b.clone(
                memory_format=torch.contiguous_format
            )
        save_file(tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(CONFIG | settings))
        return folder

    return write


@pytest.fixture
def factors(rng: torch.Generator) -> Callable[..., tuple[Tensor, Tensor]]:
    """Random ``(lora_b, lora_a)`` of a shape ``(m, n, r)``."""

    def draw(m: int, n: int, r: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        lora_b = torch.randn(m, r, generator=rng, dtype=torch.float64)
        lora_a = torch.randn(r, n, generator=rng, dtype=torch.float64)
        return lora_b.to(dtype), lora_a.to(dtype)

    return draw


@pytest.fixture
def make_adapter() -> Callable[..., Adapter]:
    """An adapter in memory from factors ``module -> (lora_b, lora_a)``."""

    def make(
        factors: Mapping[str, tuple[Tensor, Tensor]],
        scaling: float = 2.0,
        fan_in_fan_out: bool = False,
    ) -> Adapter:
        updates = {
            module: LoraUpdate(module, lora_a, lora_b, scaling, *split_module_name(module))
            for module, (lora_b, lora_a) in factors.items()
        }
        settings = LoraSettings(rank=4, alpha=8.0, fan_in_fan_out=fan_in_fan_out)
        return Adapter(Path("in-memory"), settings, updates)

    return make


class TensorDict:
    """A weight source over tensors in memory."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._tensors)

    def get(self, name: str) -> Tensor:
        return self._tensors[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)


@pytest.fixture
def weight_source() -> type[TensorDict]:
    return TensorDict
