"""What a continued text took, as a record: tokens per second, bytes, bits, shares of the time."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from gonio.errors import SettingError
from gonio.kvcache import CacheCodec, CompressedCache
from gonio.kvcache.clocks import Clocks
from gonio.kvcache.side_data import side_bytes
from gonio.models.attention import attention_layout
from gonio.records import (
    InputFile,
    Measurement,
    Value,
    make_measurement,
    make_value,
    text_input,
)

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "Continuation",
    "GenerationSettings",
    "Loaded",
    "Spent",
    "end_tokens",
    "generation_record",
]


@dataclass(frozen=True)
class GenerationSettings:
    """How a text is continued.

    Attributes:
        max_new_tokens: Tokens to generate at most.
        temperature: 0 for the most likely token each time, above it for sampling.
        seed: Seed of sampling.
        prefill_chunk: Tokens of the prompt read at a time, which bounds memory. What is read at
            first is attended to exactly; later chunks read what the cache has stored before them.
        chat: Put the prompt into the model's chat template, as a user's message.
        scratch_bytes: Decoded tokens that the cache may keep beside what it stores, to save time.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0
    prefill_chunk: int = 1024
    chat: bool = False
    scratch_bytes: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.prefill_chunk < 1 or not self.temperature >= 0:
            raise SettingError(
                "max_new_tokens and prefill_chunk must be >= 1 and temperature >= 0, found "
                f"{self.max_new_tokens}, {self.prefill_chunk} and {self.temperature}"
            )


@dataclass(frozen=True)
class Loaded:
    """A model as the user named it, loaded."""

    source: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    inputs: tuple[InputFile, ...]


@dataclass
class Continuation:
    """What was generated so far; kept up to date while it is, so an interruption loses nothing.

    Attributes:
        tokens: Token ids.
        seconds: When each came, from the start of generation.
        is_interrupted: Generation was stopped by the user.
    """

    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    is_interrupted: bool = False


@dataclass(frozen=True)
class Spent:
    """Tokens read and seconds spent; ``attention`` reads ``codes`` or what is ``decoded``."""

    prompt_tokens: int
    reused_tokens: int
    prefill_seconds: float
    seconds: float
    clocks: Clocks
    attention: str


def generation_record(
    loaded: Loaded,
    codec: CacheCodec | None,
    settings: GenerationSettings,
    cache: Cache,
    found: Continuation,
    spent: Spent,
    prompt: str | None,
) -> Measurement:
    """The record of :func:`gonio.pipelines.cache_generate.generate_text`.

    Args:
        loaded: The model.
        codec: The cache's codec; None for transformers' dynamic cache.
        settings: How the text was continued.
        cache: As it is at the end.
        found: What was generated.
        spent: Tokens read and seconds.
        prompt: What the user gave; None when the loaded cache's own text was continued.
    """
    ends = end_tokens(loaded)
    is_ended = bool(found.tokens) and found.tokens[-1] in ends
    stopped = "interrupted" if found.is_interrupted else "end of text" if is_ended else "length"
    decode: Any = loaded.tokenizer.decode
    text = str(decode(found.tokens, skip_special_tokens=True))
    tokens = pd.DataFrame(
        {
            "token_id": found.tokens,
            "text": [str(decode([token])) for token in found.tokens],
            "seconds": found.seconds,
        }
    )
    told = () if prompt is None else (text_input("prompt", prompt),)
    method = "transformers' dynamic cache" if codec is None else codec.method
    return make_measurement(
        "cache-generation",
        f"Continued by {loaded.source} through {method}",
        settings={
            "model": loaded.source,
            "codec": None if codec is None else dict(codec.provenance),
            "prompt_tokens": spent.prompt_tokens,
            **{name: value for name, value in asdict(settings).items() if name != "seed"},
            "stopped": stopped,
            "attention": spent.attention,
        },
        values=[
            make_value("text", text, note=f"{stopped}"),
            make_value("prompt_tokens", spent.prompt_tokens),
            make_value("reused_tokens", spent.reused_tokens, note="read from a loaded cache"),
            make_value("new_tokens", len(found.tokens), note=stopped),
            *_times(found, spent),
            *_sizes(loaded.model, cache, codec),
        ],
        tables={"tokens": tokens},
        inputs=(*loaded.inputs, *told),
        seed=settings.seed if settings.temperature else None,
        dtype=loaded.model.dtype,
        device=loaded.model.device.type,
    )


def _times(found: Continuation, spent: Spent) -> list[Value]:
    rate = len(found.tokens) / spent.seconds if spent.seconds else None
    shares = (
        ("attention_share", spent.clocks.attention, "projections and the cache included"),
        ("cache_share", spent.clocks.cache, "storing new tokens, decoding or joining old ones"),
    )
    return [
        make_value("prefill_seconds", spent.prefill_seconds, unit="s"),
        make_value("tokens_per_second", rate, note="after the prefill"),
        *(
            make_value(name, seconds / spent.seconds, note=f"of the time after the prefill: {what}")
            for name, seconds, what in shares
        ),
    ]


def _sizes(model: PreTrainedModel, cache: Any, codec: CacheCodec | None) -> list[Value]:
    """Bytes of keys and values beside 16-bit elements."""
    layout = attention_layout(model.config)
    count = cache.get_seq_length()
    held = sum(layout.tokens_held(i, count) for i in range(layout.num_layers))
    elements = {"key": layout.head_dim, "value": layout.value_dim}
    elements = {part: held * layout.num_kv_heads * dim for part, dim in elements.items()}
    if isinstance(cache, CompressedCache):
        sizes = {"key": cache.key_bytes, "value": cache.value_bytes}
    else:
        filled = [layer for layer in cache.layers if layer.is_initialized]
        sizes = {
            "key": sum(layer.keys.nbytes for layer in filled),
            "value": sum(layer.values.nbytes for layer in filled),
        }
    total, plain = sum(sizes.values()), 2 * sum(elements.values())
    scratch = cache.scratch_bytes if isinstance(cache, CompressedCache) else 0
    values = [
        make_value("cached_tokens", count),
        make_value("cache_bytes", total, unit="bytes", note="all stored keys and values"),
        make_value(
            "scratch_bytes",
            scratch,
            unit="bytes",
            note="decoded tokens kept to save time, not part of cache_bytes",
        ),
        make_value(
            "side_bytes",
            0 if codec is None else side_bytes((*codec.keys, *codec.values)),
            unit="bytes",
            note="the codec's fixed data, not part of cache_bytes",
        ),
        make_value("raw_bytes", plain, unit="bytes", note="the same in 16 bits per element"),
        make_value("compression_ratio", plain / total if total else None, note="raw over cache"),
    ]
    return values + [
        make_value(
            f"{part}_bits",
            8 * sizes[part] / elements[part] if elements[part] else None,
            unit="bits",
            note="stored per element",
        )
        for part in sizes
    ]


def end_tokens(loaded: Loaded) -> list[int]:
    """Tokens that end a text, by the model's and the tokenizer's word."""
    own: Any = loaded.model.generation_config
    named = own.eos_token_id if own is not None else None
    listed = named if isinstance(named, list) else [named]
    ends = dict.fromkeys([*listed, loaded.tokenizer.eos_token_id])
    return [int(end) for end in ends if end is not None]
