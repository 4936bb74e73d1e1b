"""Policies that share bits over a cache, at three budgets, beside each other at equal bits.

Keys and values of the bundled model, teacher-forced: every token but the 4 raw sinks is quantized,
an incomplete last block filled up and coded. Codecs are fitted to the first 4,096 tokens of a text;
the policy `searched` is found with stand-ins on four windows of 256 tokens from token 8,192 on, and
scores are of windows of 512 tokens from token 61,440 on. Stored bits are checked to agree before
anything is scored. Entropy-coded codecs skip the lossless part of their coding (rANS), which
changes no value: checked on one window first. Exit code 1: at some budget `searched` does not beat
`uniform` by paired bootstrap intervals over windows, of log perplexity and of the divergence from
full precision. (Near full precision, from 2.5 bits on, the first no longer tells policies apart.)

With --state every trial and every window's score is kept in a file, and a second call goes on where
the first was ended.

Usage: python benchmarks/allocation.py [--tier entropy] [--budgets 2.0 1.6 1.2] [--windows 6]
       [--points 18] [--state FILE.json]
"""

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from gonio.files import write_text
from gonio.kernels.cells import block_codes
from gonio.kvcache import CacheCodec, EncodedTensor, evaluate_codecs
from gonio.kvcache.budget_problem import BudgetProblem, pose_problem
from gonio.kvcache.entropy_codec import BLOCK, HIGHEST, OCTAVE, EntropyCodec
from gonio.kvcache.policies import POLICIES, policy_quanta
from gonio.kvcache.pre_rope_codec import PreRopeCodec
from gonio.kvcache.sensitivity import collect_metrics
from gonio.kvcache.sharing import DivergenceMeter, Sharing, search_sharing, sharing_quanta
from gonio.kvcache.stand_in import StandIn
from gonio.kvcache.summaries import compare_methods, summarize_scores
from gonio.linalg.resampling import bootstrap_interval
from gonio.models import load_model, load_text, token_windows

__all__ = ["main"]

FITTED, WINDOW = 4096, 512
SEARCHED, SEARCH_TOKENS, SEARCH_WINDOW = 8192, 1024, 256
SCORED = 61_440
ORDER = ("uniform", "searched", "shared", "collapse-angle", "metric")


class State:
    """Trials and scores on disk; those of other settings are refused."""

    def __init__(self, path: Path | None, settings: dict) -> None:
        self.path = path
        self.rows: dict = {"settings": settings, "trials": {}, "scores": {}, "stored": {}}
        if path and path.exists():
            self.rows = json.loads(path.read_text(encoding="utf-8"))
            if self.rows["settings"] != settings:
                raise SystemExit(f"{path} is of other settings: {self.rows['settings']}")

    def get(self, kind: str, key: str, make):
        if key not in self.rows[kind]:
            self.rows[kind][key] = make()
            if self.path:
                write_text(self.path, json.dumps(self.rows))
        return self.rows[kind][key]


@dataclass(frozen=True)
class Coded:
    """What a codec decodes to, an incomplete last block filled up and coded."""

    codec: object
    method = StandIn.method
    block = 1
    side_bytes = 0

    def encode(self, x: Tensor) -> EncodedTensor:
        short = -x.shape[2] % self.codec.block
        filled = torch.cat([x, x[:, :, -1:].expand(-1, -1, short, -1)], dim=2)
        decoded = decoded_values(self.codec, filled)[:, :, : x.shape[2]]
        return EncodedTensor({"decoded": decoded}, x.shape[2], x.shape[3], x.dtype)

    def decode(self, encoded: EncodedTensor) -> Tensor:
        return encoded.tensors["decoded"]

    def state(self) -> tuple[dict, dict]:
        return {}, {}


def coded(codec: object) -> object:
    """The codec with its last block filled up, behind the turns of keys where there are any."""
    if isinstance(codec, PreRopeCodec):
        return PreRopeCodec(Coded(codec.base), codec.rotary)
    return Coded(codec)


def decoded_values(codec, x: Tensor) -> Tensor:
    """What a codec makes of vectors; without rANS where it would be used."""
    if not isinstance(codec, EntropyCodec):
        return codec.decode(codec.encode(x))
    rows = codec.basis.apply(x).nan_to_num()
    blocks = rows.view(len(rows), -1, BLOCK)
    gain = codec._search(blocks)
    scale = torch.exp2(-gain / OCTAVE).where(gain < HIGHEST, 0.0)
    places = block_codes(blocks, codec._cells, scale).flatten(1).long()
    inside = codec._levels.gather(1, (places + codec._radius).clamp(0, 2 * codec._radius))
    values = torch.where(places.abs() > codec._radius, places.float(), inside)
    scale = torch.exp2(gain / OCTAVE).where(gain < HIGHEST, 0.0)
    rows = (values.view(blocks.shape) * scale[:, None]).flatten(1)
    return codec.basis.undo(rows, len(x)).to(x.dtype)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", default="bundled", help="bundled or docstrings")
    parser.add_argument("--tier", default="entropy", choices=["fixed", "entropy"])
    parser.add_argument("--budgets", type=float, nargs="+", default=[2.0, 1.6, 1.2])
    parser.add_argument("--policies", nargs="+", default=list(ORDER), choices=POLICIES)
    parser.add_argument("--windows", type=int, default=6)
    parser.add_argument("--points", type=int, default=18, help="trials, half for later budgets")
    parser.add_argument("--state", type=Path, help="JSON of every trial and score: to go on later")
    parser.add_argument("--output", type=Path, help="CSV of every window's scores")
    chosen = parser.parse_args()
    settings = {"text": chosen.text, "tier": chosen.tier, "points": chosen.points}
    state = State(chosen.state, settings)
    clock = time.perf_counter()
    model, tokenizer = load_model("smollm2-135m")
    ids = tokenizer(load_text(chosen.text).text, add_special_tokens=False, verbose=False)
    ids = torch.tensor(ids["input_ids"])
    samples = collect_metrics(model, token_windows(ids[:FITTED], WINDOW), pre_rope=True)
    problem = pose_problem(samples, chosen.tier)
    print(f"metrics and rates in {time.perf_counter() - clock:.0f} s", flush=True)
    meter = DivergenceMeter(model, token_windows(ids[SEARCHED:][:SEARCH_TOKENS], SEARCH_WINDOW))
    windows = token_windows(ids[SCORED:][: WINDOW * chosen.windows], WINDOW)
    found: dict[float, Sharing] = {}
    for policies in (ORDER[:2], ORDER[2:]):
        asked = [policy for policy in policies if policy in chosen.policies]
        for bits in chosen.budgets:
            if bits not in found:
                found[bits] = search(state, problem, meter, bits, list(found.values()), chosen)
            if asked:
                score(state, model, problem, windows, asked, bits, found[bits])
    scores = pd.DataFrame([row for rows in state.rows["scores"].values() for row in rows])
    scores = scores.drop_duplicates(["window", "method", "budget"])
    if chosen.output:
        scores.assign(text=chosen.text, tier=chosen.tier).to_csv(chosen.output, index=False)
    won = [report(state, scores, bits) for bits in chosen.budgets]
    return 0 if all(won) else 1


def search(
    state: State,
    problem: BudgetProblem,
    meter: DivergenceMeter,
    bits: float,
    before: list[Sharing],
    chosen: argparse.Namespace,
) -> Sharing:
    """The best sharing of a budget; later budgets start from what was found before."""
    total = problem.total(bits)

    def measure(sharing: Sharing) -> float:
        def run() -> float:
            quanta = sharing_quanta(sharing, problem, total)
            return meter(problem.stand_in(quanta))

        value = state.get("trials", f"{bits} {json.dumps(asdict(sharing))}", run)
        print(f"{bits:g} bits, {sharing}: {value:.5f}", flush=True)
        return value

    trials = search_sharing(
        measure,
        starts=before[-1:],
        most=chosen.points // 2 if before else chosen.points,
    )
    return min(trials, key=lambda trial: trial.divergence).sharing


def score(
    state: State,
    model: object,
    problem: BudgetProblem,
    windows: Tensor,
    policies: list[str],
    bits: float,
    searched: Sharing,
) -> None:
    """Scores of the windows that have none yet, by codecs whose bits were checked."""
    key = f"{bits} {' '.join(policies)}"
    left = [i for i in range(len(windows)) if f"{key} {i}" not in state.rows["scores"]]
    if not left:
        return
    tried = {}
    for policy in policies:
        quanta = policy_quanta(policy, problem, problem.total(bits), searched)
        codec = problem.fit(quanta)
        stored = checked_bits(codec, policy, bits)
        state.get("stored", f"{bits} {policy}", lambda stored=stored: stored)
        check_values(codec, problem)
        parts = {part: tuple(map(coded, codec.of(part))) for part in ("keys", "values")}
        tried[policy] = replace(codec, **parts)
    for index in left:

        def run(index: int = index) -> list[dict]:
            table = evaluate_codecs(model, windows[index][None], tried)
            return table.assign(window=index, budget=bits).to_dict(orient="records")

        state.get("scores", f"{key} {index}", run)
        print(f"{bits:g} bits, {', '.join(policies)}: window {index} scored", flush=True)


def checked_bits(codec: CacheCodec, policy: str, bits: float) -> dict[str, float]:
    """Stored bits of keys and values; both make the budget at 4,096 tokens of it 4 raw."""
    length = BLOCK + codec.sinks
    stored = {part: codec.stored(length, part) for part in ("keys", "values")}
    raw = 16.0 * codec.sinks

    def mean(counted) -> float:
        coded = (counted.bits_per_element * length - raw) / BLOCK
        return (coded * (4096 - codec.sinks) + raw) / 4096

    found = mean(stored["keys"] + stored["values"])
    if not abs(found / bits - 1) < 1e-3:
        raise SystemExit(f"{policy} stores {found:.4f} bits, not {bits}")
    return {part: mean(counted) for part, counted in stored.items()}


def check_values(codec: CacheCodec, problem: BudgetProblem) -> None:
    """Without rANS a codec makes the same values, but for a block whose ideal bits did not fit."""
    for unit in problem.units[:: len(problem.units) // 3]:
        x = unit.vectors[:1, :, : 4 * BLOCK]
        own = codec.of(unit.part)[unit.layer]
        own = getattr(own, "base", own)  # the samples are those before RoPE
        exact = own.decode(own.encode(x))
        far = (decoded_values(own, x) - exact).norm() / (exact - x).norm()
        if not far < 0.1:
            raise SystemExit(f"{unit.name}: values without rANS differ by {far:.2g} of the error")


def report(state: State, scores: pd.DataFrame, bits: float) -> bool:
    """Print the policies of one budget; whether searched beats uniform beyond its interval."""
    mine = scores[scores["budget"] == bits]
    totals = summarize_scores(mine).set_index("method")
    policies = [name for name in ORDER if name in totals.index]
    print(f"{bits:g} bits per element of keys and values")
    for name in policies:
        row, stored = totals.loc[name], state.rows["stored"][f"{bits} {name}"]
        print(
            f"  {name:<15}K {stored['keys']:.2f} V {stored['values']:.2f}  x full "
            f"{row['perplexity_ratio']:.4f} [{row['perplexity_ratio_low']:.4f}, "
            f"{row['perplexity_ratio_high']:.4f}]  KL {row['logit_kl']:.4f}"
        )
    won = False
    pairs = compare_methods(mine, policies)
    for _, row in pairs.iterrows():
        if "uniform" not in (row["first"], row["second"]):
            continue
        turn = row["first"] == "uniform"
        name = row["second"] if turn else row["first"]
        low, middle, high = (
            math.log(row[f"perplexity_ratio{end}"]) for end in ("_low", "", "_high")
        )
        if turn:
            low, middle, high = -high, -middle, -low
        apart = mine.pivot(index="window", columns="method", values="logit_kl")
        apart = (apart[name] - apart["uniform"]).to_numpy()
        within = bootstrap_interval(apart, seed=0)
        print(
            f"  {name} - uniform: log perplexity {middle:+.4f} [{low:+.4f}, {high:+.4f}], "
            f"KL {apart.mean():+.4f} [{within.low:+.4f}, {within.high:+.4f}]"
        )
        if name == "searched":
            won = high < 0 and within.high < 0
    return won


if __name__ == "__main__":
    sys.exit(main())
