"""Perplexity of key codecs by position: coded after RoPE, after it at many positions, before it.

Calibrated on 8 windows of 512 tokens from the front of the bundled text, scored teacher-forced on
3 windows of 512 other tokens that stand at several positions; scores of full precision do not
depend on where. Keys are coded, values and the 4 sinks are not. Bits are all that grows with the
sequence at 4,096 tokens. Each head is coded by itself, so that only the stage differs. First it is
checked that the angles used are the model's own.

Usage: python benchmarks/position_coding.py [--only "pre_rope transform"] [--positions 0 2000 7000]
"""

import argparse
import math

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gonio.kvcache import CacheCodec, calibrate_from_samples, collect_metrics
from gonio.kvcache.capture import captured_attention
from gonio.kvcache.rotary import model_rotary
from gonio.models import load_model, load_text, token_windows

__all__ = ["main"]

WINDOW, WINDOWS, SCORED, SINKS = 512, 8, 3, 4
CONTEXTS = {"post_rope": (0, 8192), "pre_rope": (0, 8192)}
CODECS = {
    "entropy 1.5": {"method": "entropy", "bits": 1.5},
    "entropy 2.1": {"method": "entropy", "bits": 2.1},
    "transform 1.75": {"method": "transform", "bits": 1.75},
    "transform 2.25": {"method": "transform", "bits": 2.25},
    "transform 2.25 states 1": {"method": "transform", "bits": 2.25, "states": 1},
}


def check_angles(model: PreTrainedModel, window: Tensor, start: int) -> None:
    """Refuse to go on unless keys turned back are those the model makes without RoPE."""
    places = torch.arange(start, start + len(window))[None]
    calls = []
    with captured_attention(model, calls.append, pre_rope=True):
        model(input_ids=window[None], position_ids=places, use_cache=False)
    for call, rotary in zip(calls, model_rotary(model), strict=True):
        found = rotary.turn(call.key, rotary.phases(places)[:, None].conj())
        worst = (found - call.key_pre).abs().max().item() / call.key_pre.abs().max().item()
        if worst > 1e-2:
            raise SystemExit(f"layer {call.layer}: keys turned back are off by {worst:.1e}")


def loss(model: PreTrainedModel, windows: Tensor, codec: CacheCodec | None, start: int) -> float:
    """Mean negative log-likelihood in nats per token of windows that begin at a position."""
    places, total = torch.arange(start, start + windows.shape[1])[None], 0.0
    for window in windows:
        given = (
            {} if codec is None else {"past_key_values": codec.new_cache(model, prefill="decoded")}
        )
        logits = model(input_ids=window[None], position_ids=places, **given).logits[0, :-1]
        chosen = logits.double().log_softmax(dim=-1).gather(-1, window[1:, None])
        total -= chosen.mean().item() / len(windows)
    return total


@torch.no_grad()
def main() -> None:
    """Print one line per codec: bits, and perplexity over full precision by position."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names of lines to run")
    parser.add_argument("--positions", type=int, nargs="+", default=[0, 2000, 7000])
    options = parser.parse_args()
    model, tokenizer = load_model("smollm2-135m")
    text = load_text("bundled").text
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    windows = token_windows(ids[: WINDOW * WINDOWS], WINDOW)
    scored = ids[-WINDOW * SCORED :].view(SCORED, WINDOW)
    check_angles(model, scored[0], 7000)
    full = loss(model, scored, None, 0)
    print(f"full precision: perplexity {math.exp(full):.3f}", flush=True)
    for stage, contexts in CONTEXTS.items():
        for context in contexts:
            names = {f"{stage} {name} context {context or WINDOW}": name for name in CODECS}
            names = {k: v for k, v in names.items() if any(part in k for part in options.only)}
            if not names:
                continue
            samples = collect_metrics(model, windows, context=context, pre_rope=stage == "pre_rope")
            for line, name in names.items():
                codec = calibrate_from_samples(
                    samples, sinks=SINKS, stage=stage, span="head", **CODECS[name]
                )
                ratios = (
                    f"{start}: {math.exp(loss(model, scored, codec, start) - full):.4f}"
                    for start in options.positions
                )
                print(f"{line}: {codec.bits_per_element(4096):.3f} bits", *ratios, flush=True)


if __name__ == "__main__":
    main()
