"""Tiny models with a real tokenizer, and a text with many sentences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from gonio.training import PreferencePair

_WORDS = [
    "river",
    "stone",
    "winter",
    "lantern",
    "copper",
    "meadow",
    "harbor",
    "thunder",
    "velvet",
    "orchard",
    "compass",
    "ember",
    "granite",
    "willow",
    "falcon",
    "mirror",
    "saddle",
    "timber",
    "violet",
    "anchor",
]

ModelMaker = Callable[[str], PreTrainedModel]


def _sentences(count: int, seed: int) -> str:
    generator = torch.Generator().manual_seed(seed)
    lines = []
    for index in range(count):
        picks = torch.randint(len(_WORDS), (8,), generator=generator).tolist()
        sentence = " ".join(_WORDS[pick] for pick in picks).capitalize() + f" {index}."
        lines.append(sentence + ("\n" if index % 3 == 2 else " "))
    return "".join(lines)


@pytest.fixture(scope="session")
def long_text() -> str:
    """400 different sentences, a line break after every third."""
    return _sentences(400, seed=11)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory, long_text: str) -> Path:
    """A byte-level BPE tokenizer with 320 tokens, saved by transformers; no padding token."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(long_text.splitlines(), trainer)
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>").save_pretrained(folder)
    return folder


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> PreTrainedTokenizerFast:
    loaded = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    return loaded


@pytest.fixture
def make_model(tokenizer: PreTrainedTokenizerFast) -> ModelMaker:
    """Builds a tiny model of a family from its config, always with the same weights."""

    def make(family: str = "llama") -> PreTrainedModel:
        common = {
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.eos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "initializer_range": 0.2,  # logits of size 1: a frozen head that adapters can move
        }
        with torch.random.fork_rng():
            torch.manual_seed(3)
            if family == "gpt_neox":
                return GPTNeoXForCausalLM(
                    GPTNeoXConfig(
                        hidden_size=32,
                        intermediate_size=48,
                        num_hidden_layers=2,
                        num_attention_heads=4,
                        max_position_embeddings=128,
                        **common,
                    )
                ).eval()
            if family == "gpt2":
                return GPT2LMHeadModel(
                    GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, **common)
                ).eval()
            return LlamaForCausalLM(
                LlamaConfig(
                    hidden_size=32,
                    intermediate_size=48,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    num_key_value_heads=2,
                    max_position_embeddings=128,
                    tie_word_embeddings=True,
                    **common,
                )
            ).eval()

    return make


@pytest.fixture
def pairs() -> tuple[PreferencePair, ...]:
    """Four pairs with responses of different lengths."""
    return (
        PreferencePair("The river meets the", " harbor at dawn.", " copper."),
        PreferencePair("Winter lantern, velvet", " ember.", " thunder over the orchard."),
        PreferencePair("A compass of", " granite and timber.", " meadow willow violet."),
        PreferencePair("Falcon in the", "\nmirror saddle anchor.", "\nstone."),
    )
