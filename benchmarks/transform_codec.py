"""Perplexity of transform codecs on the bundled model, every token but the 4 sinks quantized.

Teacher-forced, as in key_codecs.py: 6 windows of 512 tokens from token 51,200 of the text on,
calibration on its first 4,096 tokens. Bits count all that grows with the sequence at 4,096
tokens, the raw sinks in float16 among it; side data is stated apart. A cache keeps an incomplete
block raw; here such a block is filled up with its last token and coded, so that none is raw.
Keys are coded before RoPE, all heads of a layer together; with --stage post_rope after it, in the
rows "head" each head by itself (in the rows "states 1" as attention on packed codes reads them).
With --spread as many calibration tokens come from windows spread evenly over the text, those that
are scored left out; with --learn from another text.

Usage: python benchmarks/transform_codec.py [--text bundled] [--learn docstrings --spread]
    [--rows keys] [--stage post_rope] [--limits] [--output FILE.csv]
"""

import argparse
import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from gonio.kvcache import (
    CacheCodec,
    EncodedTensor,
    calibrate_from_samples,
    collect_metrics,
    evaluate_codecs,
    excess_over_limit,
)
from gonio.kvcache.contract import TensorCodec
from gonio.kvcache.pre_rope_codec import PreRopeCodec
from gonio.linalg.resampling import bootstrap_interval, paired_bootstrap_interval
from gonio.models import load_model, load_text, token_windows
from gonio.models.texts import spread_windows
from key_codecs import CALIBRATION, START, WINDOW, WINDOWS, exp_interval

__all__ = ["main"]

SINKS = 4
LOSSLESS = {"method": "lossless"}


def _row(key: tuple[str, float] | None, value: tuple[str, float] | None = None, **options) -> dict:
    found = {"method": key[0], "bits": key[1]} if key else dict(LOSSLESS)
    if value:
        found |= {"value_method": value[0], "value_bits": value[1]}
    return found | options


ROWS = {
    **{f"keys transform {b}": _row(("transform", b - 0.015)) for b in (1.25, 1.75, 2.25, 3.0)},
    **{f"keys entropy {b}": _row(("entropy", b - 0.015)) for b in (1.1, 1.5, 1.9, 2.4)},
    "values entropy 2.15": _row(None, ("entropy", 2.135)),
    "values transform 2.15": _row(None, ("transform", 2.135)),
    "both entropy 2.3": _row(("entropy", 2.085), ("entropy", 2.485)),
}
for _name, _made in tuple(ROWS.items()):
    _values = {"value_options": {"span": "head"}} if "value_method" in _made else {}
    _keys = {} if _made["method"] == "lossless" else {"span": "head"}
    ROWS[f"head {_name}"] = _made | _keys | _values
for _bits in (1.25, 1.75, 2.25, 3.0):
    ROWS[f"states 1 keys transform {_bits}"] = _row(("transform", _bits - 0.015), states=1)
for _name in ("local", "fisher", "plain"):
    ROWS[f"metric {_name} keys entropy 1.5"] = _row(("entropy", 1.485), metric=_name)
ROWS["equal keys entropy 1.5"] = _row(("entropy", 1.485), budget="equal")
ROWS["equal keys transform 1.75"] = _row(("transform", 1.735), budget="equal")
for _states in (1, 4, 8, 32, 64):
    ROWS[f"states {_states} values transform 2.15"] = _row(
        None, ("transform", 2.135), value_options={"states": _states}
    )
for _zone in (0.0, 0.1, 0.2, 0.3):
    ROWS[f"zone {_zone} keys entropy 1.5"] = _row(("entropy", 1.485), dead_zone=_zone)
for _floor in (1e-4, 1e-2, 1e-1):
    ROWS[f"floor {_floor} keys entropy 1.5"] = _row(("entropy", 1.485), floor=_floor)


@dataclass(frozen=True)
class WholeBlocks:
    """A codec whose incomplete last block is filled up with its last token, and coded."""

    codec: TensorCodec
    method = "whole"
    block = 1
    side_bytes = 0

    def encode(self, x: Tensor) -> EncodedTensor:
        short = -x.shape[2] % self.codec.block
        filled = torch.cat([x, x[:, :, -1:].expand(-1, -1, short, -1)], dim=2)
        if isinstance(self.codec, PreRopeCodec):  # a window is read at once, behind its sinks
            last = torch.full((len(x),), SINKS + filled.shape[2] - 1)
            encoded = self.codec.encode(filled, last)
        else:
            encoded = self.codec.encode(filled)
        decoded = self.codec.decode(encoded)[:, :, : x.shape[2]]
        return EncodedTensor({"decoded": decoded}, x.shape[2], x.shape[3], x.dtype)

    def decode(self, encoded: EncodedTensor) -> Tensor:
        return encoded.tensors["decoded"]

    def state(self) -> tuple[dict, dict]:
        return {}, {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", default="bundled", help="bundled or docstrings")
    parser.add_argument("--learn", help="text of calibration; the same unless given")
    parser.add_argument("--rows", nargs="+", default=["keys", "values", "both"])
    parser.add_argument("--spread", action="store_true", help="calibrate on all of the text")
    parser.add_argument("--tokens", type=int, default=CALIBRATION, help="of calibration")
    parser.add_argument("--stage", choices=["pre_rope", "post_rope"], default="pre_rope")
    parser.add_argument("--windows", type=int, default=WINDOWS)
    parser.add_argument("--limits", action="store_true", help="excess over the limits, by layer")
    parser.add_argument("--output", type=Path, help="CSV of every window's scores")
    chosen = parser.parse_args()
    names = [name for name in ROWS if name.startswith(tuple(chosen.rows))]
    model, tokenizer = load_model("smollm2-135m")
    start = time.perf_counter()
    learn = read(tokenizer, chosen.learn or chosen.text)
    learn = token_windows(torch.cat([learn[:START], learn[START + WINDOW * WINDOWS :]]), WINDOW)
    count = chosen.tokens // WINDOW
    learn = spread_windows(learn, count) if chosen.spread else learn[:count]
    windows = token_windows(read(tokenizer, chosen.text)[START:], WINDOW)[: chosen.windows]
    before = chosen.stage == "pre_rope"
    samples = collect_metrics(model, windows=learn, pre_rope=before)
    print(f"metrics of {learn.numel()} tokens in {time.perf_counter() - start:.0f} s")
    codecs = {}
    for name in names:
        start = time.perf_counter()
        codecs[name] = calibrate_from_samples(samples, sinks=SINKS, **ROWS[name])
        print(f"{name}: calibrated in {time.perf_counter() - start:.0f} s", flush=True)
    start = time.perf_counter()
    whole = {name: whole_blocks(codec) for name, codec in codecs.items()}
    table = evaluate_codecs(model, windows, whole)
    print(f"{len(codecs) + 1} rows in {time.perf_counter() - start:.0f} s")
    print_table(table, codecs)
    if chosen.limits:
        seen = collect_metrics(model, windows, pre_rope=before)
        for name, codec in codecs.items():
            part = "values" if name.startswith("values") else "keys"
            print(name, excess_over_limit(codec.of(part), seen, part).to_string(index=False))
    if chosen.output:
        table.assign(text=chosen.text).to_csv(chosen.output, index=False)
    return 0


def read(tokenizer, source: str) -> Tensor:
    text = load_text(source).text
    return torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def whole_blocks(codec: CacheCodec) -> CacheCodec:
    wrapped = {part: tuple(map(WholeBlocks, codec.of(part))) for part in ("keys", "values")}
    return replace(codec, **wrapped)


def print_table(table: pd.DataFrame, codecs: dict[str, CacheCodec]) -> None:
    """One line per row: bits, side data, perplexity and its ratio to full precision."""
    full = table.loc[table["method"] == "full", "nll"].to_numpy()
    print(f"{'':<34}{'K bits':>7}{'V bits':>7}{'side MB':>8}{'perplexity':>24}{'over full':>23}")
    for name in ["full", *codecs]:
        rows = table[table["method"] == name]
        nll = rows["nll"].to_numpy()
        line = f"{name:<34}"
        if name != "full":
            stored = [codecs[name].stored(4096 + SINKS, part) for part in ("keys", "values")]
            bits = "".join(f"{each.bits_per_element:>7.3f}" for each in stored)
            line += f"{bits}{sum(each.side_bytes for each in stored) / 1e6:>8.2f}"
        else:
            line += " " * 22
        low, high = exp_interval(bootstrap_interval(nll, seed=0))
        line += f"{math.exp(nll.mean()):>8.2f} [{low:5.2f}, {high:6.2f}]"
        if name != "full":
            low, high = exp_interval(paired_bootstrap_interval(nll, full, seed=0))
            line += f"{math.exp((nll - full).mean()):>7.3f} [{low:.3f}, {high:.3f}]"
            line += f"{rows['logit_kl'].mean():>8.4f}"
        print(line)


if __name__ == "__main__":
    sys.exit(main())
