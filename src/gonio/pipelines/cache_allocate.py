"""A codec for a total of bits or a quality target, its bits shared by a policy, in one record."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from gonio.errors import DataError, SettingError
from gonio.files import write_text
from gonio.kvcache import CacheCodec, evaluate_codecs
from gonio.kvcache.budget_problem import BudgetProblem, pose_problem
from gonio.kvcache.calibrate import SINK_TOKENS
from gonio.kvcache.filling import FULL
from gonio.kvcache.policies import (
    POLICIES,
    Policy,
    has_equal_heads,
    policy_quanta,
    sign_angles,
)
from gonio.kvcache.quality_target import Trial, find_least_bits
from gonio.kvcache.rate_curves import TIERS, Tier
from gonio.kvcache.sensitivity import collect_metrics
from gonio.kvcache.sharing import (
    DivergenceMeter,
    Sharing,
    SharingTrial,
    search_sharing,
    sharing_quanta,
)
from gonio.kvcache.summaries import compare_methods, summarize_scores
from gonio.linalg.resampling import Interval
from gonio.pipelines.bench import Bench
from gonio.records import Measurement, Value, make_measurement, make_value

__all__ = ["AllocationPlan", "allocate_cache"]

Progress = Callable[[str, int, int], None]
Floats = NDArray[np.float64]

START_BITS = 2.25  # where a search for a quality begins, and its sharing is found
LARGEST_BITS = 6.0
_LENGTH = 4096  # tokens at which stored bits are stated


@dataclass(frozen=True)
class AllocationPlan:
    """What is asked of an allocation.

    Attributes:
        bits: Mean bits per element over keys and values at 4,096 tokens, or None.
        target: Perplexity over that of full precision to reach with the fewest bits, or None;
            exactly one of both is given.
        tier: ``fixed`` or ``entropy``.
        policy: How the bits are shared, see :mod:`gonio.kvcache.policies`.
        compare: Score every policy at the same bits.
        sinks: First tokens kept raw.
        search_tokens: Held-out tokens that a sharing is searched on, at most.
        search_trials: Sharings to try at most, see :func:`gonio.kvcache.sharing.search_sharing`.
        seed: Seed of drawn tokens and of the bootstrap.
    """

    bits: float | None = None
    target: float | None = None
    tier: Tier = "fixed"
    policy: Policy = "searched"
    compare: bool = False
    sinks: int = SINK_TOKENS
    search_tokens: int = 1024
    search_trials: int = 18
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.bits is None) == (self.target is None):
            raise SettingError("give either a total of bits or a target perplexity ratio")
        if self.target is not None and not 1 < self.target < math.inf:
            raise SettingError(f"a perplexity ratio is reached above 1, found {self.target}")
        for name, value, known in (
            ("tier", self.tier, tuple(TIERS)),
            ("policy", self.policy, POLICIES),
        ):
            if value not in known:
                raise SettingError(f"{name} must be one of {', '.join(known)}, found {value!r}")
        if self.sinks < 0 or self.search_tokens < 1 or self.search_trials < 1:
            raise SettingError(
                "sinks must be >= 0, search_tokens and search_trials >= 1, found "
                f"{self.sinks}, {self.search_tokens} and {self.search_trials}"
            )


def allocate_cache(
    bench: Bench,
    plan: AllocationPlan,
    *,
    points: Path | None = None,
    progress: Progress | None = None,
) -> tuple[CacheCodec, Measurement]:
    """A codec whose bits are shared by a policy, scored on windows that nothing was chosen on.

    Two thirds of the calibration windows fit codecs; the others are held out for the search of a
    sharing and of a quality. The evaluation windows give the reported scores only.

    Args:
        bench: The model and its windows.
        plan: What is asked.
        points: JSON file that keeps every trial of the sharing: a second call does not repeat them.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        The codec of the plan's policy, and a measurement of kind ``cache-allocation`` with tables
        ``policies`` (scores on the evaluation windows), ``pairs`` (of policies, where compared),
        ``units`` (bits of each layer, keys and values apart, by policy), ``windows``, ``sharings``
        (trials, where searched) and ``search`` (of a target).

    Raises:
        SettingError: The bits are out of the tier's range, or the target is not reached.
        DataError: There are too few windows.
    """
    fitted, held = _split(bench.calibration, 1 if plan.target is None else 2)
    if not len(bench.evaluation):
        raise DataError("there is no evaluation window: give evaluation tokens")
    samples = collect_metrics(
        bench.model, fitted, skip=max(SINK_TOKENS, plan.sinks), seed=plan.seed, progress=progress
    )
    problem = pose_problem(samples, plan.tier, sinks=plan.sinks, progress=progress)
    total = problem.total(START_BITS if plan.bits is None else plan.bits)
    policies = POLICIES if plan.compare else (plan.policy,)
    sharings: list[SharingTrial] = []
    searched: Sharing | None = None
    if "searched" in policies:
        probes = held[: -(-plan.search_tokens // held.shape[1])]
        sharings = _search_sharing(bench, plan, problem, total, probes, points, progress)
        best_sharing = min(sharings, key=lambda each: each.divergence).sharing
        searched = _confirmed(bench, problem, total, probes, best_sharing)
    maker = _Maker(bench, plan, problem, searched)
    trials: list[Trial] = []
    if plan.target is not None:
        trials = _search(maker, held, progress)
        best = min((t for t in trials if t.bound <= plan.target), key=lambda t: t.bits)
        total = problem.total(best.bits)
    quanta = {policy: maker.quanta(policy, total) for policy in policies}
    codecs: dict[str, CacheCodec] = {
        policy: maker.codec(policy, quanta[policy], progress) for policy in policies
    }
    scores = evaluate_codecs(bench.model, bench.evaluation, codecs, progress=progress)
    tables = _tables(maker, quanta, codecs, scores)
    if trials:
        reached = [trial.bound <= (plan.target or 0) for trial in trials]
        search = pd.DataFrame([asdict(trial) for trial in trials])
        tables["search"] = search.assign(is_reached=reached)
    if sharings:
        rows = [{**asdict(each.sharing), "logit_kl": each.divergence} for each in sharings]
        tables["sharings"] = pd.DataFrame(rows)
    measurement = make_measurement(
        "cache-allocation",
        f"Bits of the cache of {bench.source}: {plan.policy}, {plan.tier} tier",
        settings=_settings(bench, plan),
        values=_values(plan, tables),
        tables=tables,
        inputs=bench.inputs,
        seed=plan.seed,
        dtype=bench.model.dtype,
        device=bench.model.device.type,
    )
    return codecs[plan.policy], measurement


def _search_sharing(
    bench: Bench,
    plan: AllocationPlan,
    problem: BudgetProblem,
    total: int,
    windows: Tensor,
    points: Path | None,
    progress: Progress | None,
) -> list[SharingTrial]:
    """Trials of sharings by stand-ins; those that a file has are not repeated."""
    facts = (bench.inputs, bench.text_sha256, bench.calibration.tolist(), windows.shape, total)
    asked = repr((*facts, plan.tier, plan.sinks, plan.seed))
    series = hashlib.sha256(asked.encode()).hexdigest()
    known = json.loads(points.read_text(encoding="utf-8")) if points and points.is_file() else {}
    mine: dict[str, float] = known.setdefault(series, {})
    meter: DivergenceMeter | None = None
    done = 0

    def measure(sharing: Sharing) -> float:
        nonlocal meter, done
        key = json.dumps(asdict(sharing))
        if key not in mine:
            meter = meter or DivergenceMeter(bench.model, windows)
            quanta = sharing_quanta(sharing, problem, total)
            mine[key] = meter(problem.stand_in(quanta, equal_heads=sharing.has_equal_heads))
            if points is not None:
                write_text(points, json.dumps(known))
        done += 1
        if progress is not None:
            progress("searching where bits go", done, plan.search_trials)
        return mine[key]

    return search_sharing(measure, has_heads=plan.tier == "fixed", most=plan.search_trials)


def _confirmed(
    bench: Bench, problem: BudgetProblem, total: int, windows: Tensor, found: Sharing
) -> Sharing:
    """What was found with stand-ins, unless real codecs of equal bits do better."""
    if found == Sharing():
        return found
    meter = DivergenceMeter(bench.model, windows)
    measured = {}
    for sharing in (Sharing(), found):
        quanta = sharing_quanta(sharing, problem, total)
        measured[sharing] = meter(problem.fit(quanta, equal_heads=sharing.has_equal_heads))
    return min(measured, key=measured.__getitem__)


@dataclass(frozen=True)
class _Maker:
    """Codecs for given totals."""

    bench: Bench
    plan: AllocationPlan
    problem: BudgetProblem
    searched: Sharing | None

    def quanta(self, policy: Policy, total: int) -> NDArray[np.int64]:
        """Quanta of each unit."""
        return policy_quanta(policy, self.problem, total, self.searched)

    def codec(
        self, policy: Policy, quanta: NDArray[np.int64], progress: Progress | None
    ) -> CacheCodec:
        """The codec of a policy, with where it comes from."""
        facts: dict[str, Any] = {
            "bits": self.problem.mean_bits(quanta),
            "policy": policy,
            "tier": self.plan.tier,
            "target_ppl_ratio": self.plan.target,
            "model": self.bench.source,
            "text": self.bench.text_name,
            "text_sha256": self.bench.text_sha256,
            "calibration_tokens": self.bench.calibration.numel(),
            "window": self.bench.calibration.shape[1],
            "seed": self.plan.seed,
        }
        if policy == "searched" and self.searched is not None:
            facts["sharing"] = asdict(self.searched)
        equal = has_equal_heads(policy, self.searched)
        return self.problem.fit(quanta, equal_heads=equal, provenance=facts, progress=progress)


def _split(windows: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Windows that fit codecs, and the last third, held out: ``least`` of them or more."""
    held = len(windows) // 3
    if held < least:
        raise DataError(
            f"{len(windows)} calibration windows, of which a third is held out: {3 * least} are "
            "needed at least\nGive more calibration tokens or shorter windows."
        )
    return windows[:-held], windows[-held:]


def _search(maker: _Maker, held: Tensor, progress: Progress | None) -> list[Trial]:
    """Trials of the plan's policy on the held-out windows."""
    plan, problem = maker.plan, maker.problem

    def measure(bits: float) -> Trial:
        codec = maker.codec(plan.policy, maker.quanta(plan.policy, problem.total(bits)), progress)
        scores = evaluate_codecs(maker.bench.model, held, {"trial": codec}, progress=progress)
        row = _rows(summarize_scores(scores, seed=plan.seed))["trial"]
        return Trial(bits, row["perplexity_ratio"], row["perplexity_ratio_high"])

    lowest = problem.mean_bits(problem.least) + 0.05
    target = plan.target or math.inf
    return find_least_bits(measure, target, start=START_BITS, lowest=lowest, highest=LARGEST_BITS)


def _tables(
    maker: _Maker,
    quanta: Mapping[Policy, NDArray[np.int64]],
    codecs: Mapping[str, CacheCodec],
    scores: pd.DataFrame,
) -> dict[str, pd.DataFrame]:
    problem = maker.problem
    totals = summarize_scores(scores, seed=maker.plan.seed)
    stored = pd.DataFrame(
        [{"method": policy, **_stored(codec)} for policy, codec in codecs.items()]
    )
    angles = sign_angles(problem)
    units = pd.concat(
        [
            pd.DataFrame(
                {
                    "policy": policy,
                    "layer": [unit.layer for unit in problem.units],
                    "part": [unit.part for unit in problem.units],
                    "bits": problem.unit_bits(counts),
                    "sign_angle": angles,
                    "predicted_damage": [
                        unit.damages[count]
                        for unit, count in zip(problem.units, counts.tolist(), strict=True)
                    ],
                }
            )
            for policy, counts in quanta.items()
        ],
        ignore_index=True,
    )
    tables = {"policies": totals.merge(stored, on="method", how="left"), "units": units}
    pairs = compare_methods(scores, tuple(codecs), seed=maker.plan.seed)
    if len(pairs):
        tables["pairs"] = pairs
    return tables | {"windows": scores}


def _stored(codec: CacheCodec) -> dict[str, float]:
    """Stored bits per element at 4,096 tokens, raw sinks counted, and the side data."""
    keys, values = codec.stored(_LENGTH), codec.stored(_LENGTH, "values")
    whole = keys + values
    return {
        "bits_per_element": whole.bits_per_element,
        "key_bits": keys.bits_per_element,
        "value_bits": values.bits_per_element,
        "side_bytes": keys.side_bytes + values.side_bytes,
    }


def _rows(table: pd.DataFrame) -> dict[str, dict[Any, Any]]:
    """Rows by method."""
    return {str(row["method"]): row for row in table.to_dict(orient="records")}


def _values(plan: AllocationPlan, tables: Mapping[str, pd.DataFrame]) -> list[Value]:
    rows = _rows(tables["policies"])
    mine = rows[plan.policy]
    note = f"stored at {_LENGTH:,} tokens, raw sinks counted"
    values = [
        make_value("bits_per_element", mine["bits_per_element"], unit="bits", note=note),
        make_value("bits_per_key_element", mine["key_bits"], unit="bits", note=note),
        make_value("bits_per_value_element", mine["value_bits"], unit="bits", note=note),
        make_value("side_bytes", int(mine["side_bytes"]), unit="bytes", note="fixed"),
    ]
    if plan.target is not None:
        note = "asked for; met by the upper end of the interval on held-out calibration windows"
        values.append(make_value("target_perplexity_ratio", plan.target, note=note))
        is_met = mine["perplexity_ratio"] <= plan.target
        note = "the ratio itself, on windows that nothing was chosen on"
        values.append(make_value("target_met_on_evaluation", "yes" if is_met else "no", note=note))
    values += [
        _ratio(f"perplexity_ratio_{policy}", row, row["windows"], "to full precision")
        for policy, row in rows.items()
        if policy != FULL
    ]
    pairs = tables.get("pairs", pd.DataFrame()).to_dict(orient="records")
    return values + [
        _ratio(f"perplexity_{row['first']}_over_searched", row, row["windows"], "above 1: worse")
        for row in pairs
        if row["second"] == "searched"
    ]


def _ratio(name: str, row: Mapping[Any, Any], windows: int, note: str) -> Value:
    low, high = row["perplexity_ratio_low"], row["perplexity_ratio_high"]
    interval = None if math.isnan(low) else Interval(low, high, 0.95, "bootstrap over windows")
    note = f"{note}, on {windows} windows that nothing was chosen on"
    return make_value(name, row["perplexity_ratio"], interval=interval, note=note)


def _settings(bench: Bench, plan: AllocationPlan) -> dict[str, Any]:
    return {
        "model": bench.source,
        "text": bench.text_name,
        "calibration_tokens": bench.calibration.numel(),
        "evaluation_tokens": bench.evaluation.numel(),
        "window": bench.evaluation.shape[1],
        **{name: value for name, value in asdict(plan).items() if name != "seed"},
    }
