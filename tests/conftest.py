"""Fixtures shared by every test."""

import os
import signal
import zlib
from pathlib import Path

# Triton reads this when it is first imported, which other packages may do.
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch
from hypothesis import settings

from gonio.kernels import native

__all__ = ["choose_kernels", "rng", "tiny_folder"]

# Shells start what runs in the background with Ctrl-C ignored; tests of it would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same cases on every machine and run, however loaded it is.
settings.register_profile("gonio", deadline=None, derandomize=True, database=None)
settings.load_profile("gonio")


@pytest.fixture
def choose_kernels(monkeypatch):
    """Sets $GONIO_KERNELS as a new process would find it; empty for the best level."""

    def choose(level: str) -> None:
        monkeypatch.setenv("GONIO_KERNELS", level)
        native.forget()

    yield choose
    monkeypatch.undo()
    native.forget()


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> torch.Generator:
    """A generator seeded from the test's own name: stable runs, independent tests."""
    generator = torch.Generator()
    generator.manual_seed(zlib.crc32(request.node.nodeid.encode()))
    return generator


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A tiny Llama with a byte-level tokenizer trained on the bundled text."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from gonio.models import load_text

    folder = tmp_path_factory.mktemp("model") / "tiny"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([load_text().text[:50_000]], trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=0,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder
