"""A codec for a total of bits or a quality target, its bits shared by a policy, in one record."""

from __future__ import annotations

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
from gonio.kvcache import CacheCodec, evaluate_codecs
from gonio.kvcache.budget_problem import BudgetProblem, pose_problem
from gonio.kvcache.calibrate import SINK_TOKENS
from gonio.kvcache.filling import FULL
from gonio.kvcache.policies import (
    POLICIES,
    Policy,
    policy_quanta,
    sign_angles,
)
from gonio.kvcache.quality_target import Trial
from gonio.kvcache.rate_curves import TIERS, Tier
from gonio.kvcache.rotary import can_turn
from gonio.kvcache.sensitivity import collect_metrics
from gonio.kvcache.sharing import Sharing, SharingTrial
from gonio.kvcache.summaries import compare_methods, summarize_scores
from gonio.linalg.resampling import Interval
from gonio.pipelines.allocation_search import AllocationSearch, Codecs, Points
from gonio.pipelines.bench import Bench
from gonio.records import Measurement, Value, make_measurement, make_value

__all__ = ["AllocationPlan", "allocate_cache"]

Counts = NDArray[np.int64]
Progress = Callable[[str, int, int], None]

START_BITS = 1.75  # where a search for a quality begins, and its sharing is found
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
        if self.bits is not None and not 0 < self.bits <= 16:
            raise SettingError(
                f"{self.bits:g} bits per element are out of the range: above 0, and at most the 16 "
                "of what is compressed"
            )
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
        bench.model,
        fitted,
        skip=max(SINK_TOKENS, plan.sinks),
        context=bench.context,
        pre_rope=can_turn(bench.model),
        seed=plan.seed,
        progress=progress,
    )
    problem = pose_problem(samples, plan.tier, sinks=plan.sinks, progress=progress)
    search = _new_search(bench, plan, problem, held, points, progress)
    found = _search(search, plan)
    total = found.total
    quanta: dict[Policy, Counts] = {
        policy: policy_quanta(policy, problem, total, found.sharing)
        for policy in (POLICIES if plan.compare else (plan.policy,))
    }
    codecs: dict[str, CacheCodec] = {
        policy: _codec(search.codecs, policy, counts, found.sharing)
        for policy, counts in quanta.items()
    }
    scores = evaluate_codecs(bench.model, bench.evaluation, codecs, progress=progress)
    tables = _tables(problem, plan, quanta, codecs, scores) | _trials(found, plan)
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


@dataclass(frozen=True)
class _Found:
    """What was searched: quanta to spend, the sharing of ``searched``, and the trials."""

    total: int
    sharing: Sharing | None
    sharings: list[SharingTrial]
    trials: list[Trial]


def _new_search(
    bench: Bench,
    plan: AllocationPlan,
    problem: BudgetProblem,
    held: Tensor,
    points: Path | None,
    progress: Progress | None,
) -> AllocationSearch:
    probes = held[: -(-plan.search_tokens // held.shape[1])]
    total = problem.total(START_BITS if plan.bits is None else plan.bits)
    facts = (bench.inputs, bench.text_sha256, bench.calibration.tolist(), probes.shape, total)
    place = (bench.context,) if bench.context else ()
    provenance = {
        "tier": plan.tier,
        "target_ppl_ratio": plan.target,
        **bench.calibration_facts,
        "seed": plan.seed,
    }
    return AllocationSearch(
        bench,
        Codecs(problem, provenance, progress),
        probes,
        held,
        Points(points, (*facts, problem.options, plan.sinks, plan.seed, *place)),
        plan.seed,
        progress,
    )


def _search(search: AllocationSearch, plan: AllocationPlan) -> _Found:
    """The sharing, where one is asked for, and the bits of a target.

    A sharing that was found with stand-ins is compared with equal bits by fitted codecs at the bits
    that it is used at, and what reaches the target is searched again where equal bits are better.
    """
    problem = search.codecs.problem
    total = problem.total(START_BITS if plan.bits is None else plan.bits)
    sharings: list[SharingTrial] = []
    sharing: Sharing | None = None
    if plan.compare or plan.policy == "searched":
        sharings = search.sharings(total, plan.search_trials)
        sharing = min(sharings, key=lambda each: each.divergence).sharing
    trials: list[Trial] = []
    while True:
        if plan.target is not None:
            trials = search.bits(plan.policy, sharing, plan.target, START_BITS)
            reached = [trial for trial in trials if _reaches(trial, plan.target)]
            total = problem.total(min(trial.bits for trial in reached))
        if sharing in (None, Sharing()):
            break
        better = search.better(total, sharing)
        if better == sharing:
            break
        sharing = better
    return _Found(total, sharing, sharings, trials)


def _reaches(trial: Trial, target: float) -> bool:
    return trial.bound <= target


def _codec(codecs: Codecs, policy: Policy, quanta: Counts, searched: Sharing | None) -> CacheCodec:
    """The codec of a policy, with where it comes from."""
    facts: dict[str, Any] = {"policy": policy}
    if policy == "searched" and searched is not None:
        facts["sharing"] = asdict(searched)
    return codecs.fit(quanta, **facts)


def _trials(found: _Found, plan: AllocationPlan) -> dict[str, pd.DataFrame]:
    """Tables of what was tried."""
    tables: dict[str, pd.DataFrame] = {}
    if plan.target is not None:
        table = pd.DataFrame([asdict(trial) for trial in found.trials])
        is_reached = [_reaches(trial, plan.target) for trial in found.trials]
        tables["search"] = table.assign(is_reached=is_reached)
    if found.sharings:
        rows = [{**asdict(each.sharing), "logit_kl": each.divergence} for each in found.sharings]
        tables["sharings"] = pd.DataFrame(rows)
    return tables


def _split(windows: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Windows that fit codecs, and the last third, held out: ``least`` of them or more."""
    held = len(windows) // 3
    if held < least:
        raise DataError(
            f"{len(windows)} calibration windows, of which a third is held out: {3 * least} are "
            "needed at least\nGive more calibration tokens or shorter windows."
        )
    return windows[:-held], windows[-held:]


def _tables(
    problem: BudgetProblem,
    plan: AllocationPlan,
    quanta: Mapping[Policy, Counts],
    codecs: Mapping[str, CacheCodec],
    scores: pd.DataFrame,
) -> dict[str, pd.DataFrame]:
    totals = summarize_scores(scores, seed=plan.seed)
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
    pairs = compare_methods(scores, tuple(codecs), seed=plan.seed)
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
        "context": bench.context,
        **{name: value for name, value in asdict(plan).items() if name != "seed"},
    }
