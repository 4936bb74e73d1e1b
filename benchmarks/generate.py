"""Tokens per second of `generate` through a cache of codes against transformers' default cache.

One bfloat16 model on the CPU reads the same tokens into transformers' dynamic cache and into one of
2-bit keys and values, read as codes. First results are compared, in float32 and in bfloat16: the
same cache read as codes and decoded must give the same logits for eight next tokens, but for the
error of 8-bit tables and what the model's own rounding makes of it (measured by two ways to read
the decoded cache, eager attention and SDPA). From 2,048 tokens on the codes must take at most a
fifth of the bytes (sinks and up to 63 last tokens are raw). Then both generate in turn, some tokens
at a time, each continuing its own cache; the median of the ratios is printed with their quartiles.
One thread is timed in processor seconds, which other work on the machine disturbs less. Exit code 1
when a result is wrong.

Run: python benchmarks/generate.py [--context 256 1024 4096] [--new 16] [--rounds 5] [--threads 1]
"""

import argparse
import statistics
import sys
import time

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from gonio.kernels import kernel_status
from gonio.kvcache import CacheCodec, CompressedCache, calibrate, use_packed_attention
from gonio.models import load_model, load_text

CALIBRATED = 2048  # tokens of calibration, others than those that are read
WINDOW = 256  # of them at a time, spread over all positions
CHUNK = 1024  # tokens of the prompt read at once
CHECKED = 8  # last tokens of the context whose logits are compared
LIMIT = 0.02  # mean relative difference of logits that 8-bit tables may make
LARGEST_ROUNDING = 0.05  # what the model's own rounding may add to it, however large it is found
LARGEST_SHARE, JUDGED = 0.2, 2048  # of the bytes of a 16-bit cache, from so many tokens on
CODES, DEFAULT, OTHER = "gonio", "sdpa", "eager"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--context", type=int, nargs="+", default=[4096], help="tokens, ascending")
    parser.add_argument("--new", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    model, tokenizer = load_model(chosen.model)
    text = load_text("docstrings").text
    ids = torch.tensor(tokenizer(text)["input_ids"][: CALIBRATED + max(chosen.context) + 1])[None]
    longest = max(chosen.context) + chosen.new * (chosen.rounds + 1)
    codec = make_codec(model, ids[:, :CALIBRATED], longest)
    model = use_packed_attention(model)
    prompts = [ids[:, CALIBRATED : CALIBRATED + context + 1] for context in chosen.context]
    for prompt in prompts:
        checked_caches(model, codec, prompt)
    model = model.to(torch.bfloat16)
    print(f"{chosen.model}, bfloat16, {chosen.threads} thread(s), kernels {kernel_status().level}")
    for prompt in prompts:
        time_generation(model, checked_caches(model, codec, prompt), prompt, chosen)


def checked_caches(model: PreTrainedModel, codec: CacheCodec, prompt: Tensor) -> dict[str, Cache]:
    """Both caches after the same tokens but for the last, which is read anew."""
    first = prompt[:, :-CHECKED]
    model.set_attn_implementation(DEFAULT)
    caches: dict[str, Cache] = {DEFAULT: fill(model, DynamicCache(config=model.config), first)}
    model.set_attn_implementation(CODES)
    caches[CODES] = fill(model, codec.new_cache(model), first)
    print(f"{prompt.shape[1] - 1} tokens of context, {str(model.dtype).removeprefix('torch.')}")
    check_logits(model, caches, prompt[:, -CHECKED:])
    return caches


def time_generation(
    model: PreTrainedModel, caches: dict[str, Cache], prompt: Tensor, chosen: argparse.Namespace
) -> None:
    check_bytes(caches)
    times = alternate(model, caches, prompt, chosen)
    ratios = [d / c for d, c in zip(times[DEFAULT], times[CODES], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    for name, seconds in times.items():
        print(f"{name}: {chosen.new / statistics.median(seconds):.1f} tokens per second")
    print(f"codes {middle:.2f} x ({low:.2f} .. {high:.2f}) of the default cache's speed")


def make_codec(model: PreTrainedModel, ids: Tensor, context: int) -> CacheCodec:
    """Two bits for keys and for values, without a trellis, for so many positions; four sinks."""
    plain = {"states": 1}
    return calibrate(
        model,
        ids.view(-1, WINDOW),
        bits=2.0,
        context=context,
        method="transform",
        value_bits=2.0,
        value_method="transform",
        value_options=plain,
        sinks=4,
        **plain,
    )


@torch.no_grad()
def fill(model: PreTrainedModel, cache: Cache, ids: Tensor) -> Cache:
    """The cache after the model has read these tokens."""
    for part in ids.split(CHUNK, dim=1):
        model(part, past_key_values=cache, logits_to_keep=1)
    return cache


@torch.no_grad()
def next_logits(model: PreTrainedModel, cache: Cache, token: Tensor, how: str) -> Tensor:
    """Logits after one more token, which the cache forgets again."""
    model.set_attn_implementation(how)
    logits = model(token, past_key_values=cache, logits_to_keep=1).logits[0, -1].double()
    cache.crop(-1)
    return logits


def check_logits(model: PreTrainedModel, caches: dict[str, Cache], tokens: Tensor) -> None:
    """Compare the logits after each token; then both caches keep it, except for the last one."""
    ways = [(CODES, CODES), (CODES, DEFAULT), (CODES, OTHER), (DEFAULT, DEFAULT)]
    errors, roundings, losses = [], [], []
    for at, token in enumerate(tokens.split(1, dim=1)):
        found, decoded, other, raw = (
            next_logits(model, caches[name], token, how) for name, how in ways
        )
        scale = (decoded - decoded.mean()).norm()
        errors.append(float((found - decoded).norm() / scale))
        roundings.append(float((other - decoded).norm() / scale))
        losses.append(
            [
                float((raw.softmax(0) * (raw.log_softmax(0) - logits.log_softmax(0))).sum())
                for logits in (found, decoded)
            ]
        )
        if at + 1 < tokens.shape[1]:
            for name, cache in caches.items():
                model.set_attn_implementation(name)
                fill(model, cache, token)
    error, rounding = statistics.mean(errors), statistics.mean(roundings)
    kl, decoded_kl = (statistics.mean(each) for each in zip(*losses, strict=True))
    print(
        f"check: codes and decoded differ by {error:.2%} of the logits, own rounding {rounding:.2%}"
    )
    print(f"check: KL to raw keys and values {kl:.3f} nats by codes, {decoded_kl:.3f} decoded")
    limit = LIMIT + min(rounding, LARGEST_ROUNDING)
    if not error <= limit:
        sys.exit(f"attention on codes is off by {error:.2%}, limit {limit:.2%}")


def check_bytes(caches: dict[str, Cache]) -> None:
    codes, default = caches[CODES], caches[DEFAULT]
    if not isinstance(codes, CompressedCache):
        sys.exit("the codec made no compressed cache")
    before = sum(2 * (layer.keys.numel() + layer.values.numel()) for layer in default.layers)
    after = codes.key_bytes + codes.value_bytes
    print(f"check: {after / 1e6:.1f} MB, 1/{before / after:.2f} of {before / 1e6:.1f} MB")
    if codes.get_seq_length() >= JUDGED and not after <= LARGEST_SHARE * before:
        sys.exit(f"the codes take {after / before:.0%} of the default cache's bytes")


def alternate(
    model: PreTrainedModel, caches: dict[str, Cache], prompt: Tensor, chosen: argparse.Namespace
) -> dict[str, list[float]]:
    """Seconds of generating in every round, after one that warms up."""
    clock = time.process_time if chosen.threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in caches}
    texts = dict.fromkeys(caches, prompt)
    for turn in range(chosen.rounds + 1):
        for name, cache in caches.items():
            model.set_attn_implementation(name)
            started = clock()
            texts[name] = model.generate(
                texts[name],
                attention_mask=torch.ones_like(texts[name]),
                past_key_values=cache,
                max_new_tokens=chosen.new,
                min_new_tokens=chosen.new,
                do_sample=False,
                pad_token_id=0,
            )
            if turn:
                times[name].append(clock() - started)
    return times


if __name__ == "__main__":
    main()
