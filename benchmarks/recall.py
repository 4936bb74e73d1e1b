"""Verbatim recall through compressed caches of the bundled model, by length and depth of context.

A passage of random words is hidden in text, and its first tokens come again at the end: the share
of the rest that is predicted first, teacher-forced through the cache, beside full precision, a
cache of zeros, and the same text without the passage (chance). Before anything is printed the
controls are checked: lossless equals full precision, zeros and absent passages recall nothing.
Codecs are calibrated on the front of the text; contexts are cut from its back.

Usage: python benchmarks/recall.py [--text bundled] [--lengths 512 1024 2048] [--trials 4]
"""

import argparse
import sys

import pandas as pd
import torch

from gonio.kvcache import CacheCodec, calibrate_from_samples, collect_cache, control_codec
from gonio.kvcache.memory import coded_parts, stored_parts
from gonio.kvcache.recall import RecallSettings, random_passages, recall_probes
from gonio.linalg.resampling import cluster_bootstrap_interval
from gonio.models import load_model, load_text, split_tokens, token_windows

__all__ = ["main"]

CALIBRATION, WINDOW, TEXT = 4096, 512, 8192
ROWS = {
    "keys 1 bit, learned": {"method": "sign"},
    "keys 3 stages of signs": {"method": "residual_sign", "bits": 3},
    "keys 2 bit affine": {"method": "affine", "bits": 2},
    "keys 4 bit affine": {"method": "affine", "bits": 4},
    "both 2 bit affine": {"method": "affine", "bits": 2, "value_bits": 2},
    "both 4 bit affine": {"method": "affine", "bits": 4, "value_bits": 4},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", default="bundled")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--trials", type=int, default=4)
    chosen = parser.parse_args()
    settings = RecallSettings(lengths=tuple(chosen.lengths), trials=chosen.trials)
    model, tokenizer = load_model("smollm2-135m")
    text = load_text(chosen.text)
    split = split_tokens(tokenizer, text, calibration=CALIBRATION, evaluation=TEXT)
    samples = collect_cache(model, token_windows(split.calibration, WINDOW))
    codecs = {name: calibrate_from_samples(samples, **row) for name, row in ROWS.items()}
    controls = {name: control_codec(model, name) for name in ("lossless", "zeros")}
    passages = random_passages(
        tokenizer, text.text, count=settings.trials, length=settings.passage, seed=0
    )
    probes = recall_probes(
        model, split.evaluation, passages, {**codecs, **controls}, settings, progress=_tell
    )
    print(file=sys.stderr)
    check(probes)
    print(f"{text.name}: {settings.trials} passages at depths {settings.depths}, 95 % intervals")
    for length, group in probes.groupby("context_length"):
        print(f"\ncontext of {length} tokens")
        print(f"{'':<24}{'K bits':>8}{'V bits':>8}{'recalled':>24}{'chance':>8}{'NLL':>8}")
        for name in ("full", *codecs, "zeros"):
            print(line(name, group[group["method"] == name], codecs.get(name), model.dtype))
    return 0


def check(probes: pd.DataFrame) -> None:
    """Refuse probes whose controls are not what they must be."""
    found = probes[probes["is_present"]].groupby("method")[["correct_top1", "nll"]].mean()
    if abs(found.loc["lossless", "nll"] - found.loc["full", "nll"]) > 1e-4:
        raise SystemExit("the lossless control differs from full precision: nothing is measured")
    absent = probes[~probes["is_present"]]["correct_top1"].mean()
    if max(absent, found.loc["zeros", "correct_top1"]) > 0.1:
        raise SystemExit("passages that cannot be read are recalled: the probe leaks")


def line(name: str, probes: pd.DataFrame, codec: CacheCodec | None, dtype: torch.dtype) -> str:
    """Bits at the context's length, and means over depths and passages."""
    bits = ["", ""]
    if codec is not None:
        parts = stored_parts(codec, int(probes["context_length"].iloc[0]), dtype)
        bits = [
            f"{each.bits_per_element:.4g}" if part in coded_parts(codec) else "raw"
            for part, each in parts.items()
        ]
    present, absent = (probes[probes["is_present"] == here] for here in (True, False))
    shares = present["correct_top1"].to_numpy()
    interval = ""
    if present["trial"].nunique() > 1:
        found = cluster_bootstrap_interval(shares, present["trial"].tolist())
        interval = f" [{found.low:.3f}, {found.high:.3f}]"
    chance, nll = absent["correct_top1"].mean(), present["nll"].mean()
    recalled = f"{shares.mean():.3f}{interval}"
    return f"{name:<24}{bits[0]:>8}{bits[1]:>8}{recalled:>24}{chance:>8.3f}{nll:>8.3f}"


def _tell(what: str, done: int, total: int) -> None:
    print(f"\r{what} {done}/{total}", end="", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
