"""A text continued through a compressed cache, streamed, with what it took in one record."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, TextStreamer

from gonio.errors import DataError, SettingError
from gonio.kvcache import CacheCodec, CompressedCache, load_cache, save_cache
from gonio.kvcache.clocks import attention_clocks
from gonio.kvcache.packed_attention import fastest_attention
from gonio.kvcache.storage import cached_tokens
from gonio.models import load_model, open_weights
from gonio.models.quiet import quiet_transformers
from gonio.pipelines.generation_record import (
    Continuation,
    GenerationSettings,
    Loaded,
    Spent,
    end_tokens,
    generation_record,
)
from gonio.records import Measurement, file_input

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

__all__ = ["generate_text", "open_model"]

Progress = Callable[[str, int, int], None]


def open_model(source: str | Path) -> Loaded:
    """Load a model and note what was read.

    Raises:
        ModelError: The model cannot be loaded.
    """
    with open_weights(source) as weights:
        inputs = tuple(file_input(path, f"{source}/{path.name}") for path in weights.files)
    return Loaded(str(source), *load_model(source), inputs)


@torch.no_grad()
def generate_text(
    loaded: Loaded,
    prompt: str | None,
    codec: CacheCodec | None = None,
    settings: GenerationSettings | None = None,
    *,
    load: Path | None = None,
    save: Path | None = None,
    write: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> Measurement:
    """Continue a prompt, through a codec's cache or transformers' own.

    All of the prompt but its last token is read into the cache first; ``save`` keeps the cache as
    it is then, so that whoever loads it continues as this call does, to the token. An interruption
    from the keyboard ends generation, with what there is.

    Args:
        loaded: The model.
        prompt: Text to continue; None for the one the loaded cache was saved with.
        codec: How keys and values are stored; transformers' dynamic cache unless given.
        settings: How to generate.
        load: A cache file of an earlier call with the same codec. What it holds of the prompt's
            beginning is not read again.
        save: File to write the filled cache to, before the first token is generated.
        write: Called with each piece of text as it comes.
        progress: Called with (what, tokens of the prompt read, tokens).

    Returns:
        Kind ``cache-generation``: the text, tokens per second, bytes of the cache beside 16-bit
        elements, bits per key and value element, shares of the time; table ``tokens``.

    Raises:
        DataError: There is no prompt, it has no token, or the loaded cache holds another text.
        SettingError: Prompt and new tokens exceed the model's positions, there is no chat
            template, or a cache is to be loaded or saved without a codec.
        CodecError: The codec does not fit the model or the cache file.
    """
    settings = settings or GenerationSettings()
    if codec is None and (load or save):
        raise SettingError(
            "only caches of a codec are saved and loaded\nGive a codec; one of method lossless "
            "stores keys and values as they are."
        )
    ids = _prompt_tokens(loaded, prompt, settings, load)
    _require_positions(loaded, len(ids), settings)
    found = Continuation()
    codecs = () if codec is None else (*codec.keys, *codec.values)
    with fastest_attention(loaded.model, codecs) as reads_codes:
        cache, reused = _start(loaded.model, ids, codec, load, settings.scratch_bytes)
        began = time.perf_counter()
        _prefill(loaded.model, ids[reused:-1], cache, settings.prefill_chunk, progress)
        prefill = time.perf_counter() - began
        if save is not None and isinstance(cache, CompressedCache):
            save_cache(cache, save, tokens=ids, model=loaded.model)
        with attention_clocks(loaded.model, cache) as clocks:
            began = time.perf_counter()
            _continue(loaded, ids, cache, settings, found, write or (lambda text: None))
            elapsed = time.perf_counter() - began
    kind = "codes" if reads_codes else "decoded"
    spent = Spent(len(ids), reused, prefill, elapsed, clocks, kind)
    return generation_record(loaded, codec, settings, cache, found, spent, prompt)


def _prompt_tokens(
    loaded: Loaded, prompt: str | None, settings: GenerationSettings, load: Path | None
) -> Tensor:
    if prompt is None:
        if load is None:
            raise DataError("nothing to continue: give a prompt, or a cache to load")
        return cached_tokens(load)
    tokenizer: Any = loaded.tokenizer
    if settings.chat:
        if not tokenizer.chat_template:
            raise SettingError(f"{loaded.source} has no chat template\nPrompt it without one.")
        message = [{"role": "user", "content": prompt}]
        prompt = str(
            tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        )
    with quiet_transformers():  # texts longer than the model's positions are refused below
        ids = tokenizer(prompt, add_special_tokens=not settings.chat)["input_ids"]
    if not ids:
        raise DataError("the prompt has no token to continue from")
    return torch.tensor(ids)


def _require_positions(loaded: Loaded, tokens: int, settings: GenerationSettings) -> None:
    config: Any = loaded.model.config.get_text_config(decoder=True)
    positions = getattr(config, "max_position_embeddings", None)
    wanted = tokens + settings.max_new_tokens
    if positions is not None and wanted > positions:
        room = positions - tokens
        cure = f"Ask for at most {room} new tokens" if room > 0 else "Shorten the prompt"
        raise SettingError(
            f"a prompt of {tokens} tokens and {settings.max_new_tokens} new ones make {wanted}, "
            f"and {loaded.source} knows {positions} positions\n{cure}."
        )


def _start(
    model: PreTrainedModel,
    ids: Tensor,
    codec: CacheCodec | None,
    load: Path | None,
    scratch_bytes: int,
) -> tuple[Cache, int]:
    """An empty cache, or the loaded one cut to the beginning it shares with the prompt."""
    if codec is None:
        return DynamicCache(config=model.config), 0
    if load is None:
        return codec.new_cache(model, scratch_bytes=scratch_bytes), 0
    held = cached_tokens(load)
    cache = load_cache(load, model, codec, scratch_bytes=scratch_bytes)
    stored = cache.get_seq_length()
    compared = min(stored, len(ids) - 1)  # the last token is read anew: its logits are wanted
    differ = (held[:compared] != ids[:compared]).nonzero()
    shared = int(differ[0]) if len(differ) else compared
    if shared == 0 and stored:
        raise DataError(
            f"the prompt shares no beginning with the {stored} tokens the cache in {load} holds\n"
            "The prompt must begin with the text the cache was made of."
        )
    if shared < stored:
        cache.crop(shared - stored)
    return cache, shared


def _prefill(
    model: PreTrainedModel, ids: Tensor, cache: Cache, chunk: int, progress: Progress | None
) -> None:
    done = 0
    for part in ids.split(chunk) if len(ids) else ():
        model(
            input_ids=part[None].to(model.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        done += len(part)
        if progress is not None:
            progress("reading the prompt", done, len(ids))


class _Listener(TextStreamer):
    """Passes text on as it comes, and notes every token."""

    def __init__(self, tokenizer: Any, found: Continuation, write: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._found, self._write = found, write
        self._began = time.perf_counter()

    def put(self, value: Tensor) -> None:
        if not self.next_tokens_are_prompt:
            self._found.tokens += value.flatten().tolist()
            self._found.seconds.append(time.perf_counter() - self._began)
        super().put(value)  # type: ignore[no-untyped-call]

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._write(text)


def _continue(
    loaded: Loaded,
    ids: Tensor,
    cache: Cache,
    settings: GenerationSettings,
    found: Continuation,
    write: Callable[[str], None],
) -> None:
    model: Any = loaded.model
    listener = _Listener(loaded.tokenizer, found, write)
    prompt = ids[None].to(model.device)
    sampling = {"temperature": settings.temperature} if settings.temperature else {}
    ends = end_tokens(loaded)
    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        do_sample=bool(sampling),
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
        **sampling,
    )
    seeded = torch.random.fork_rng() if sampling else nullcontext()
    with quiet_transformers(), seeded:
        if sampling:
            torch.manual_seed(settings.seed)
        try:
            model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                past_key_values=cache,
                generation_config=config,
                streamer=listener,
            )
        except KeyboardInterrupt:
            found.is_interrupted = True
            listener.end()  # type: ignore[no-untyped-call]
