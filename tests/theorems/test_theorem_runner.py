"""The search: broken statements are found and shrunk, seeds decide everything, nothing is left."""

import dataclasses
import json
import os
import subprocess
import sys
import textwrap

import pytest
from hypothesis import strategies as st
from hypothesis.internal.conjecture.providers import HypothesisProvider

from gonio.errors import SettingError, ShapeError, TheoremError
from gonio.theorems import get_entry, runner
from gonio.theorems.checks import CHECKS, Check, Mutant
from gonio.theorems.runner import find_check, run_check


def _check(margin, cases=None, mutant=lambda case: -1.0) -> Check:
    return Check(
        name="example",
        arithmetic="exact",
        tried="integers",
        cases=st.integers(0, 1000) if cases is None else cases,
        margin=margin,
        mutant=Mutant("always wrong", mutant),
    )


def _without_time(result):
    return dataclasses.replace(result, seconds=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CHECKS))
def test_a_broken_statement_yields_a_counterexample(name):
    """The mutant in place of the statement: the run must fail and show a case."""
    check = CHECKS[name]
    result = run_check(dataclasses.replace(check, margin=check.mutant.margin), seed=3)
    assert not result.passed
    assert result.worst_margin < 0.0
    assert result.counterexample


@pytest.mark.parametrize(
    ("name", "smallest"),
    [
        ("sign_cosine_formula", "Key(entries=(0, 1), exponent=0)"),
        ("stable_rank_of_product", "numerator=1, denominator=2"),
        ("frobenius_nonnegative", "((0,),)"),
    ],
)
def test_the_counterexample_is_shrunk(name, smallest):
    check = CHECKS[name]
    result = run_check(dataclasses.replace(check, margin=check.mutant.margin), seed=3)
    assert smallest in (result.counterexample or "")


def test_shrinking_finds_the_boundary():
    result = run_check(_check(lambda case: 1.0 if case < 417 else -1.0))
    assert (result.passed, result.counterexample) == (False, "417")


def test_examples_are_counted_and_the_worst_margin_kept():
    seen = []

    def margin(case):
        seen.append(case)
        return 1.0 / (1 + case)

    result = run_check(_check(margin), examples=30)
    assert result.passed
    assert result.examples == len(seen) == 30
    assert result.worst_margin == min(1.0 / (1 + case) for case in seen)


def test_a_mutant_that_is_true_is_reported():
    result = run_check(_check(lambda case: 1.0, mutant=lambda case: 1.0))
    assert result.passed
    assert not result.mutant_rejected
    assert result.mutant_counterexample is None


@pytest.mark.parametrize(
    ("margin", "message"),
    [
        (lambda case: float("nan"), "0 gave NaN"),
        (lambda case: 1.0 / case, "0 raised ZeroDivisionError"),
    ],
)
def test_code_that_breaks_is_a_counterexample(margin, message):
    result = run_check(_check(margin, st.integers(0, 3)))
    assert not result.passed
    assert message in (result.counterexample or "")


def test_a_refusal_of_the_library_is_a_counterexample():
    def margin(case):
        raise ShapeError("no such shape")

    assert "raised ShapeError: no such shape" in (run_check(_check(margin)).counterexample or "")


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_the_seed_decides_everything(name, monkeypatch):
    monkeypatch.setattr(runner, "_MUTANT_EXAMPLES", 4)
    first = run_check(CHECKS[name], examples=4, seed=11)
    again = run_check(CHECKS[name], examples=4, seed=11)
    assert _without_time(first) == _without_time(again)


def test_another_seed_draws_other_cases():
    margins = {
        run_check("srht_achieves_isotropic_floor", examples=5, seed=seed).worst_margin
        for seed in range(3)
    }
    assert len(margins) == 3


def test_cases_do_not_depend_on_loaded_modules_and_no_folder_is_left(tmp_path):
    """A module full of constants outside site-packages would otherwise change what is drawn."""
    (tmp_path / "local_constants.py").write_text("VALUES = [-2, -1, 0, 1, 2, 3, 17, 399]\n")
    script = """
        import dataclasses, json
        import local_constants
        from gonio.theorems.runner import run_check
        results = [
            run_check(name, examples=60, seed=5)
            for name in ("srht_achieves_isotropic_floor", "stableRank_smul_invariant")
        ]
        results = [dataclasses.replace(result, seconds=0.0) for result in results]
        print(json.dumps([dataclasses.asdict(result) for result in results]))
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    output = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    here = [
        dataclasses.asdict(_without_time(run_check(name, examples=60, seed=5)))
        for name in ("srht_achieves_isotropic_floor", "stableRank_smul_invariant")
    ]
    assert json.loads(output) == here
    assert not (tmp_path / ".hypothesis").exists()


def test_hypothesis_is_left_as_it_was():
    before = HypothesisProvider.__dict__["_maybe_draw_constant"]
    during = []

    def margin(case):
        during.append(HypothesisProvider.__dict__["_maybe_draw_constant"])
        raise KeyError("not one of the errors a check may meet")

    with pytest.raises(KeyError):
        run_check(_check(margin))
    assert during[0] is not before
    assert HypothesisProvider.__dict__["_maybe_draw_constant"] is before


def test_targets():
    entry = get_entry("zero_init")
    assert find_check(entry) is find_check("zero_init") is CHECKS["one_zero_factor"]
    with pytest.raises(TheoremError, match="no executable check"):
        find_check(entry.model_copy(update={"check": None}))
    with pytest.raises(TheoremError, match="does not exist"):
        find_check(entry.model_copy(update={"check": "no_such_check"}))
    with pytest.raises(TheoremError, match="did you mean zero_init"):
        run_check("zero_int")
    with pytest.raises(SettingError, match="at least 1"):
        run_check("zero_init", examples=0)
