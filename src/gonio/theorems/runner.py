"""Running an executable check: search for a counterexample, then make sure the search has teeth.

Hypothesis draws and shrinks the cases; it is used as a library, keeps no database, and everything
it draws follows from the seed. The same search is then turned on the check's mutant, and a check
that does not reject its mutant has shown nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis.internal.conjecture.providers import HypothesisProvider
from hypothesis.strategies import SearchStrategy

from gonio.errors import GonioError, SettingError, TheoremError
from gonio.theorems.catalogue import Entry, get_entry
from gonio.theorems.checks import CHECKS, Check

__all__ = ["CheckResult", "find_check", "run_check"]

T = TypeVar("T")

# A mutant gets at least this many cases, however few the statement itself is given.
_MUTANT_EXAMPLES = 100


@dataclass(frozen=True)
class CheckResult:
    """What one run of one check found.

    Attributes:
        name: Name of the check.
        passed: No counterexample was found.
        examples: Cases tried, without those of shrinking and of the mutant.
        worst_margin: Smallest margin met, dimensionless; negative means broken. Exact equalities
            give 1, tolerances the share left, inequalities the relative slack.
        counterexample: The smallest one found, as text; None if the check passed.
        mutant_rejected: The same search found a counterexample to the mutant.
        mutant: The mutant in plain English.
        mutant_counterexample: A case that breaks the mutant, as text.
        arithmetic: ``exact``, ``float64`` or ``simulation``.
        tried: What a case is, in a few words.
        seconds: Wall-clock time.
    """

    name: str
    passed: bool
    examples: int
    worst_margin: float
    counterexample: str | None
    mutant_rejected: bool
    mutant: str
    mutant_counterexample: str | None
    arithmetic: str
    tried: str
    seconds: float


@dataclass
class _Search:
    """What a search has met so far."""

    examples: int = 0
    worst_margin: float = math.inf
    counterexample: str | None = None


class _BrokenError(Exception):
    """A case has a negative margin."""


def find_check(target: Entry | str) -> Check[Any]:
    """The executable check of a catalogue entry, given itself or by name.

    Raises:
        TheoremError: The name is unknown, or the entry has no check.
    """
    entry = get_entry(target) if isinstance(target, str) else target
    if entry.check is None:
        raise TheoremError(f"{entry.name} has no executable check")
    if entry.check not in CHECKS:
        raise TheoremError(f"{entry.name} names the check {entry.check!r}, which does not exist")
    return CHECKS[entry.check]


def run_check(
    target: Entry | str | Check[Any], *, examples: int = 100, seed: int = 0
) -> CheckResult:
    """Look for a counterexample to a statement, and to its mutant.

    Args:
        target: A catalogue entry, its name, or a check.
        examples: Cases to try, at least 1; fewer are tried where fewer exist.
        seed: Seed of everything drawn; the same seed gives the same result, time apart.

    Returns:
        What was found. A failed check is a result, not an error.

    Raises:
        TheoremError: The name is unknown, or the entry has no check.
        SettingError: ``examples`` is below 1.
    """
    if examples < 1:
        raise SettingError(f"a check needs at least 1 example, got {examples}")
    check = target if isinstance(target, Check) else find_check(target)
    start = time.perf_counter()
    found = _search(check.cases, check.margin, examples, seed, shrink=True)
    mutant_examples = max(examples, _MUTANT_EXAMPLES)
    mutant = _search(check.cases, check.mutant.margin, mutant_examples, seed, shrink=False)
    return CheckResult(
        name=check.name,
        passed=found.counterexample is None,
        examples=found.examples,
        worst_margin=found.worst_margin,
        counterexample=found.counterexample,
        mutant_rejected=mutant.counterexample is not None,
        mutant=check.mutant.sentence,
        mutant_counterexample=mutant.counterexample,
        arithmetic=check.arithmetic,
        tried=check.tried,
        seconds=time.perf_counter() - start,
    )


def _search(
    cases: SearchStrategy[T],
    margin: Callable[[T], float],
    examples: int,
    seed_value: int,
    *,
    shrink: bool,
) -> _Search:
    """Try cases until one breaks the statement; then, if asked, the smallest that does.

    Hypothesis replays the smallest case last, so the last failure kept is the one to show.
    """
    met = _Search()

    @seed(seed_value)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=False,
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
        report_multiple_bugs=False,
        print_blob=False,
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
        backend="hypothesis",
    )
    @given(cases)
    def attempt(case: T) -> None:
        value, problem = _evaluate(margin, case)
        if met.counterexample is None:  # otherwise Hypothesis is shrinking
            met.examples += 1
            met.worst_margin = min(met.worst_margin, value)
        if value < 0.0:
            met.counterexample = f"{case}{problem}"
            met.worst_margin = value
            raise _BrokenError

    with _cases_from_seed_alone(), suppress(_BrokenError):
        attempt()
    return met


def _evaluate(margin: Callable[[T], float], case: T) -> tuple[float, str]:
    """Margin of a case; code that raises, or a NaN, breaks the statement and says how."""
    try:
        value = margin(case)
    except (GonioError, ArithmeticError, RuntimeError, ValueError) as error:
        return -math.inf, f" raised {type(error).__name__}: {error}"
    return (-math.inf, " gave NaN") if math.isnan(value) else (value, "")


@contextmanager
def _cases_from_seed_alone() -> Iterator[None]:
    """Keep Hypothesis from mixing constants of loaded source files into what it draws.

    It reads them from every module outside site-packages, so that a seed would give other cases
    in an editable install, and it writes a ``.hypothesis`` folder where the user stands. There is
    no setting against it; the method is replaced for the duration, and a test watches both.
    """
    name = "_maybe_draw_constant"
    original = HypothesisProvider.__dict__.get(name)
    if original is None:  # a version without the habit
        yield
        return
    setattr(HypothesisProvider, name, lambda self, *args, **kwargs: None)
    try:
        yield
    finally:
        setattr(HypothesisProvider, name, original)
