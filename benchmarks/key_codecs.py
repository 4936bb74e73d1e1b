"""Perplexity of key codecs on the bundled model, every key of a window quantized.

Teacher-forced: each of 6 windows of 512 tokens is read in one pass in which attention sees every
key, after RoPE, through its codec (the rows with 4 sinks keep the first 4 raw); values are exact.
The windows begin at token 51,200 of the text; calibration uses the 4,096 tokens before them (with
``--calibrate front`` the first 4,096 of the text, with ``windows`` the windows themselves).
Rows of a rotation drawn at random, or learned from a drawn start, are means of log perplexity over
``--seeds`` draws; the range of the draws is printed beside.
Texts: ``bundled`` (Python's documentation topics, joined in name order by a blank line) and
``docstrings`` (the longer docstrings of the standard library's top-level modules, in name order).
Both vary with the Python version.

Usage: python benchmarks/key_codecs.py [--text bundled] [--rows sign affine] [--seeds 5]
       [--calibrate adjacent] [--output FILE.csv]
"""

import argparse
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from gonio.kvcache import (
    CacheCodec,
    SignCodec,
    calibrate_from_samples,
    control_codec,
    evaluate_codecs,
)
from gonio.kvcache.samples import CacheSamples, collect_cache
from gonio.linalg.resampling import Interval, bootstrap_interval, paired_bootstrap_interval
from gonio.models import load_model, load_text
from gonio.quant.sign import sign_cosine

__all__ = ["main"]

WINDOW, WINDOWS, CALIBRATION = 512, 6, 4096
START = 51_200  # first token of the windows
LEARN = {  # tokens that codecs are fitted to
    "adjacent": (START - CALIBRATION, START),
    "front": (0, CALIBRATION),
    "windows": (START, START + WINDOW * WINDOWS),
}
CENTERED = {"method": "scalar", "centering": "channel", "sinks": 4}
ROWS = {
    "sign none": {"method": "sign", "rotation": "none"},
    "sign none, float32 scales": {"method": "sign", "rotation": "none", "scale_dtype": "float32"},
    "sign haar": {"method": "sign", "rotation": "haar"},
    "sign hadamard": {"method": "sign", "rotation": "hadamard"},
    "sign learned": {"method": "sign"},
    "sign learned rank 4": {"method": "sign", "correction_rank": 4, "coefficients": "int8"},
    "sign learned top 4": {"method": "sign", "exceptions": 4},
    **{f"affine {b}": {"method": "affine", "bits": b} for b in (2, 3, 4)},
    **{f"scalar {b}": {"method": "scalar", "bits": b} for b in (2, 3, 4)},
    **{f"scalar {b} centered, 4 sinks": {**CENTERED, "bits": b} for b in (2, 3, 4)},
    **{f"residual sign {s}": {"method": "residual_sign", "bits": s} for s in (2, 3)},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", nargs="+", default=["bundled", "docstrings"])
    parser.add_argument("--rows", nargs="+", default=[""], help="beginnings of row names")
    parser.add_argument("--seeds", type=int, default=5, help="draws of a random rotation")
    parser.add_argument("--calibrate", choices=list(LEARN), default="adjacent")
    parser.add_argument("--output", type=Path, help="CSV of every window's scores")
    chosen = parser.parse_args()
    names = [name for name in ROWS if name.startswith(tuple(chosen.rows))]
    model, tokenizer = load_model("smollm2-135m")
    scores = []
    for source in chosen.text:
        ids = tokenizer(load_text(source).text, add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        tokens = torch.tensor(ids)
        windows = tokens[START : START + WINDOW * WINDOWS].view(WINDOWS, WINDOW)
        learn = collect_cache(model, tokens[slice(*LEARN[chosen.calibrate])].view(-1, WINDOW))
        codecs = {
            (name, seed): calibrate_from_samples(learn, seed=seed, **ROWS[name])
            for name in names
            for seed in draws(name, chosen.seeds)
        }
        table = measure(model, windows, codecs)
        print_table(source, table, codecs, collect_cache(model, windows))
        scores.append(table.assign(text=source))
    if chosen.output:
        pd.concat(scores).to_csv(chosen.output, index=False)
    return 0


def draws(name: str, seeds: int) -> range:
    """Seeds of a row: one where nothing is drawn; learned rotations start at a drawn one."""
    row = ROWS[name]
    is_fixed = row["method"] == "affine" or row.get("rotation") in ("none", "hadamard")
    return range(1 if is_fixed else seeds)


def measure(
    model: PreTrainedModel, windows: Tensor, codecs: dict[tuple[str, int], CacheCodec]
) -> pd.DataFrame:
    """Scores of every window under every row and draw, beside full precision and two controls."""
    controls = {(name, 0): control_codec(model, name) for name in ("lossless", "zeros")}
    keys = {f"{name}|{seed}": (name, seed) for name, seed in [*codecs, *controls]}
    start = time.perf_counter()
    every = {**codecs, **controls}
    table = evaluate_codecs(model, windows, {label: every[key] for label, key in keys.items()})
    print(f"{len(every) + 1} codecs in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    keys["full"] = ("full", 0)
    table["seed"] = [keys[label][1] for label in table["method"]]
    table["method"] = [keys[label][0] for label in table["method"]]
    nll = table.groupby("method")["nll"].mean()
    if abs(nll["lossless"] - nll["full"]) > 1e-4:
        raise SystemExit("the lossless control differs from full precision: nothing is measured")
    if nll["zeros"] < nll["full"] + 1:
        raise SystemExit("a cache of zeros scores well: keys bypass the codec")
    return table


def print_table(
    source: str,
    table: pd.DataFrame,
    codecs: dict[tuple[str, int], CacheCodec],
    samples: CacheSamples,
) -> None:
    """One line per row: bits per element of the codes, cosine of sign codecs, scores."""
    windows = table.groupby(["method", "window"]).mean(numeric_only=True)
    full = windows.loc["full", "nll"].to_numpy()
    print(f"\n{source}: {WINDOWS} windows of {WINDOW} tokens; intervals 95 % over windows")
    head = f"{'':<28}{'bits':>6}{'cosine':>8}{'perplexity':>26}{'over full':>24}"
    print(f"{head}{'KL':>9}{'top-1':>8}{'draws':>16}")
    for name in ["full", *dict.fromkeys(name for name, _ in codecs), "zeros"]:
        rows, codec = windows.loc[name], codecs.get((name, 0))
        nll = rows["nll"].to_numpy()
        low, high = exp_interval(bootstrap_interval(nll, seed=0))
        line = f"{name:<28}{bits(codec):>6}{cosine(codec, samples):>8}"
        line += f"{math.exp(nll.mean()):>10.2f} [{low:6.2f}, {high:6.2f}]"
        if name != "full":
            low, high = exp_interval(paired_bootstrap_interval(nll, full, seed=0))
            line += f"{math.exp((nll - full).mean()):>8.3f} [{low:.3f}, {high:.3f}]"
            line += f"{rows['logit_kl'].mean():>9.4f}{rows['same_top1'].mean():>8.3f}"
        drawn = table[table["method"] == name].groupby("seed")["nll"].mean()
        if len(drawn) > 1:
            line += f"  {math.exp(drawn.min()):.2f} to {math.exp(drawn.max()):.2f}"
        print(line)


def exp_interval(interval: Interval) -> tuple[float, float]:
    return math.exp(interval.low), math.exp(interval.high)


def bits(codec: CacheCodec | None) -> str:
    """Bits per element of encoded tokens; raw sinks are apart, 16 bits for 4 tokens."""
    if codec is None:
        return ""
    return f"{replace(codec, sinks=0).bits_per_element(WINDOW):.4g}"


def cosine(codec: CacheCodec | None, samples: CacheSamples) -> str:
    """Mean 1-bit cosine of the evaluated keys in the frames of a plain sign codec."""
    if codec is None or not all(isinstance(layer, SignCodec) for layer in codec.keys):
        return ""
    pairs = zip(codec.keys, samples.keys, strict=True)
    means = [sign_cosine(layer.frame.apply(x)[0]).mean() for layer, x in pairs]
    return f"{torch.stack(means).mean().item():.3f}"


if __name__ == "__main__":
    sys.exit(main())
