"""What an allocation tries: sharings by stand-ins, bits of a target, and codecs fitted once each.

Every score is kept in a file, under all that it depends on: a call that was ended goes on with the
next one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gonio.errors import DataError
from gonio.files import write_text
from gonio.kvcache import CacheCodec
from gonio.kvcache.budget_problem import BudgetProblem
from gonio.kvcache.policies import Policy, policy_quanta
from gonio.kvcache.quality_target import PerplexityMeter, Trial, find_least_bits
from gonio.kvcache.sharing import (
    DivergenceMeter,
    Sharing,
    SharingTrial,
    search_sharing,
    sharing_quanta,
)
from gonio.pipelines.bench import Bench

__all__ = ["AllocationSearch", "Codecs", "Points"]

Counts = NDArray[np.int64]
Progress = Callable[[str, int, int], None]

LARGEST_BITS = 6.0
# Tried second, after equal bits, where keys are those before RoPE: near what the bundled model
# came to from equal bits at 1.6 to 2.5 bits.
LIKELY = Sharing(tilt=-0.5, keys=0.5, values=0.5, ends=-0.15)


class Points:
    """Scores by what they are of, kept in a file where there is one.

    Args:
        path: JSON file, or None.
        facts: All that the scores depend on: a series of its own in the file.

    Raises:
        DataError: The file is not one of points.
    """

    def __init__(self, path: Path | None, facts: object) -> None:
        self._path = path
        self._all: dict[str, dict[str, Any]] = {}
        if path is not None and path.is_file():
            try:
                self._all = json.loads(path.read_text(encoding="utf-8"))
                is_known = all(isinstance(each, dict) for each in self._all.values())
            except (AttributeError, ValueError):
                is_known = False
            if not is_known:
                raise DataError(
                    f"{path} holds no trials of an earlier run, and those of this run would be "
                    "kept there\nMove it away, or give another --out."
                )
        series = hashlib.sha256(repr(facts).encode()).hexdigest()
        self._mine = self._all.setdefault(series, {})

    def get(self, key: str, make: Callable[[], Any]) -> Any:
        """What is kept under a key, made and kept where nothing is."""
        if key not in self._mine:
            self._mine[key] = make()
            if self._path is not None:
                write_text(self._path, json.dumps(self._all))
        return self._mine[key]


@dataclass(frozen=True)
class Codecs:
    """Codecs of a problem, each fitted once.

    Attributes:
        problem: The units.
        provenance: Facts that every codec keeps.
        progress: Called as ``progress(what, done, total)``.
    """

    problem: BudgetProblem
    provenance: dict[str, Any]
    progress: Progress | None = None
    _fitted: dict[tuple[Any, ...], CacheCodec] = field(default_factory=dict)

    def fit(self, quanta: Counts, **facts: Any) -> CacheCodec:
        """The codec in which every unit has its quanta; more facts are added to its provenance."""
        key = tuple(quanta.tolist())
        if key not in self._fitted:
            self._fitted[key] = self.problem.fit(
                quanta, provenance=self.provenance, progress=self.progress
            )
        codec = self._fitted[key]
        bits = {"bits": self.problem.mean_bits(quanta)}
        return replace(codec, provenance=codec.provenance | bits | facts)


@dataclass(frozen=True)
class AllocationSearch:
    """Searches on windows that no codec was fitted to.

    Attributes:
        bench: The model and its windows.
        codecs: Codecs for given quanta.
        probes: Windows that a sharing is searched on.
        held: Windows that the bits of a target are searched on.
        points: Scores that are kept.
        seed: Seed of the bootstrap.
        progress: Called as ``progress(what, done, total)``.
    """

    bench: Bench
    codecs: Codecs
    probes: Tensor
    held: Tensor
    points: Points
    seed: int = 0
    progress: Progress | None = None

    def sharings(self, total: int, most: int) -> list[SharingTrial]:
        """Trials of sharings by stand-ins.

        Args:
            total: Quanta to spend.
            most: Trials, at most.
        """
        problem, done = self.codecs.problem, 0

        def measure(sharing: Sharing) -> float:
            nonlocal done

            def run() -> float:
                quanta = sharing_quanta(sharing, problem, total)
                return self._divergence(problem.stand_in(quanta))

            found: float = self.points.get(json.dumps(asdict(sharing)), run)
            done += 1
            self._tell("searching where bits go", done, most)
            return found

        return search_sharing(measure, starts=(LIKELY,) if problem.rotary else (), most=most)

    def better(self, total: int, found: Sharing) -> Sharing:
        """What was found with stand-ins, unless the fitted codec of equal bits diverges less."""
        measured = {
            sharing: self._fitted_divergence(sharing, total)
            for sharing in dict.fromkeys((Sharing(), found))
        }
        return min(measured, key=measured.__getitem__)

    def bits(
        self, policy: Policy, searched: Sharing | None, target: float, start: float
    ) -> list[Trial]:
        """Trials of a policy up to the bits of a target; see :func:`find_least_bits`.

        Args:
            policy: How bits are shared.
            searched: The sharing of ``searched``.
            target: Perplexity over that of full precision.
            start: Bits of the first trial.
        """
        problem = self.codecs.problem
        named = json.dumps(
            [policy, asdict(searched) if policy == "searched" and searched else None]
        )

        def predict(bits: float) -> float:
            total = problem.total(bits)
            self._tell(f"trying {bits:.2f} bits", 0, 1)

            def run() -> float:
                quanta = policy_quanta(policy, problem, total, searched)
                return self._divergence(problem.stand_in(quanta))

            found: float = self.points.get(f"stand-in of {total} quanta by {named}", run)
            return found

        def measure(bits: float) -> Trial:
            total = problem.total(bits)

            def run() -> tuple[float, float]:
                quanta = policy_quanta(policy, problem, total, searched)
                return self._perplexity(self.codecs.fit(quanta))

            ratio, bound = self.points.get(f"codec of {total} quanta by {named}", run)
            self._tell(f"{bits:.2f} bits: {ratio:.4f}, at most {bound:.4f}", 1, 1)
            return Trial(bits, ratio, bound)

        return find_least_bits(
            measure,
            target,
            predict=predict,
            start=start,
            lowest=problem.mean_bits(problem.least) + 0.05,
            highest=LARGEST_BITS,
        )

    def _fitted_divergence(self, sharing: Sharing, total: int) -> float:
        def run() -> float:
            quanta = sharing_quanta(sharing, self.codecs.problem, total)
            return self._divergence(self.codecs.fit(quanta))

        key = f"divergence of the codec of {total} quanta by {json.dumps(asdict(sharing))}"
        found: float = self.points.get(key, run)
        self._tell("comparing with equal bits", 1, 1)
        return found

    def _tell(self, what: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(what, done, total)

    @cached_property
    def _divergence(self) -> DivergenceMeter:
        return DivergenceMeter(self.bench.model, self.probes, context=self.bench.context)

    @cached_property
    def _perplexity(self) -> PerplexityMeter:
        return PerplexityMeter(
            self.bench.model, self.held, context=self.bench.context, seed=self.seed
        )
