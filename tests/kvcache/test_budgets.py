"""Bits over the units of a tiny model: exact totals, real codecs, stand-ins, records, commands."""

import json
from dataclasses import replace

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from gonio.cli.cache_budget import accept_target
from gonio.cli.cache_codecs import calibrate
from gonio.cli.main import cli
from gonio.errors import DataError, SettingError
from gonio.kvcache import control_codec, evaluate_codecs, load_codec
from gonio.kvcache.budget_problem import pose_problem
from gonio.kvcache.policies import POLICIES, SHARED, has_equal_heads, policy_quanta, sign_angles
from gonio.kvcache.sensitivity import collect_metrics
from gonio.kvcache.sharing import DivergenceMeter, Sharing, sharing_quanta
from gonio.pipelines.bench import TokenBudget, open_bench
from gonio.pipelines.cache_allocate import AllocationPlan, allocate_cache

SEARCHED = Sharing(0.3, 0.5, 1.0, -0.2)
WINDOW = {"fixed": 68, "entropy": 132}  # the sinks and whole blocks


@pytest.fixture(scope="module")
def bench(tiny_folder):
    return open_bench(str(tiny_folder), "bundled", TokenBudget(6 * 68, 3 * 68, 68))


@pytest.fixture(scope="module")
def problems(tiny_folder):
    found = {}
    for tier, window in WINDOW.items():
        bench = open_bench(str(tiny_folder), "bundled", TokenBudget(4 * window, 0, window))
        found[tier] = pose_problem(collect_metrics(bench.model, bench.calibration), tier)
    return found


@pytest.fixture(scope="module")
def allocated(bench):
    return allocate_cache(bench, AllocationPlan(bits=2.5, compare=True, search_trials=6))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("tier", WINDOW)
def test_every_policy_stores_exactly_the_same(problems, tier, policy):
    """Counted on what a sequence of four sinks and one block of 64 tokens stores."""
    problem = problems[tier]
    total = problem.total(3.0)
    quanta = policy_quanta(policy, problem, total, SEARCHED)
    assert quanta.sum() == total
    codec = problem.fit(quanta, equal_heads=has_equal_heads(policy, SEARCHED))
    stored = [codec.stored(68, part) for part in ("keys", "values")]
    elements = problem.elements.sum()
    code_bits = 8 * (sum(x.code_bytes + x.metadata_bytes for x in stored)) - 16 * 4 * elements
    assert code_bits == 64 * total * problem.units[0].curve.quantum_bits
    assert problem.mean_bits(quanta) == pytest.approx(3.0, abs=2 / elements)


@pytest.mark.parametrize("tier", WINDOW)
def test_predicted_damage_is_least_under_the_metric_policy(problems, tier):
    problem = problems[tier]
    total = problem.total(2.5)
    sums = {}
    for policy in ("uniform", "collapse-angle", "shared", "metric"):
        quanta = policy_quanta(policy, problem, total)
        sums[policy] = sum(u.damages[q] for u, q in zip(problem.units, quanta, strict=True))
    assert min(sums, key=sums.get) == "metric"
    assert sums["shared"] < sums["uniform"]


def test_curves_fall_and_predict_the_errors_of_the_codecs(problems):
    problem = problems["fixed"]
    quanta = policy_quanta("metric", problem, problem.total(3.0))
    codec = problem.fit(quanta)
    assert codec.keys[0].states == 16
    for unit, count in zip(problem.units, quanta.tolist(), strict=True):
        assert (np.diff(unit.damages) <= 1e-12).all()
        error = metric_error(codec.of(unit.part)[unit.layer], unit)
        assert unit.curve.errors[count] == pytest.approx(error, rel=0.35)  # scalar codes: +60 %


def test_bits_out_of_range_are_refused(problems):
    for bits in (0.001, 9.0):
        with pytest.raises(SettingError, match="out of the range"):
            problems["entropy"].total(bits)
    with pytest.raises(SettingError, match="was found"):
        policy_quanta("searched", problems["fixed"], problems["fixed"].total(2.0))
    with pytest.raises(SettingError, match="tier"):
        pose_problem(None, "thick")


@pytest.mark.parametrize("tier", WINDOW)
def test_numbers_of_a_sharing_do_what_they_say(problems, tier):
    problem = problems[tier]
    total = problem.total(3.0)
    mean = total * problem.units[0].curve.quantum_bits / problem.elements.sum()

    def bits(**numbers):
        quanta = sharing_quanta(Sharing(**numbers), problem, total)
        assert quanta.sum() == total
        return np.array(problem.unit_bits(quanta))

    np.testing.assert_allclose(bits(), mean, atol=0.1)
    keys, values = np.split(bits(tilt=0.5) - mean, 2)
    np.testing.assert_allclose(keys, 0.5, atol=0.1)
    np.testing.assert_allclose(values, -0.5, atol=0.1)
    half, whole = bits(keys=0.5) - mean, bits(keys=1.0) - mean
    np.testing.assert_allclose(2 * half, whole, atol=0.2)
    np.testing.assert_allclose(whole[2:], 0, atol=0.1)
    assert (sharing_quanta(SHARED, problem, total) == policy_quanta("shared", problem, total)).all()


@pytest.mark.parametrize("tier", WINDOW)
def test_an_extreme_sharing_is_cut_to_what_units_can_hold(problems, tier):
    problem = problems[tier]
    total = problem.total(1.0)
    quanta = sharing_quanta(Sharing(tilt=1.5, keys=1, ends=-0.6), problem, total)
    assert quanta.sum() == total
    assert ((quanta >= problem.least) & (quanta <= problem.most)).all()


@pytest.mark.parametrize("tier", WINDOW)
def test_stand_ins_err_about_as_their_codecs_do(problems, tier):
    """By unit beside the fitted codec, where half a bit less is seen to err more."""
    problem = problems[tier]
    ratios = []
    for sharing in (Sharing(), SHARED):
        heads = {"equal_heads": sharing.has_equal_heads}
        fine, coarse = (
            sharing_quanta(sharing, problem, problem.total(bits)) for bits in (2.5, 2.0)
        )
        codecs = [
            problem.fit(fine, **heads),
            problem.stand_in(fine, **heads),
            problem.stand_in(coarse, **heads),
        ]
        for unit in problem.units:
            own, quick, worse = (metric_error(c.of(unit.part)[unit.layer], unit) for c in codecs)
            ratios.append(quick / own)
            assert worse > quick
    assert 0.75 < np.exp(np.mean(np.log(ratios))) < 1.33


def metric_error(codec, unit):
    """By another route than the fit: an einsum over whole blocks."""
    x = unit.vectors[:, :, : unit.vectors.shape[2] // 64 * 64]
    difference = (codec.decode(codec.encode(x)) - x).double()
    error = torch.einsum("whti,hij,whtj->", difference, unit.metric, difference)
    return error.item() / (x.shape[0] * x.shape[2])


def test_divergence_is_that_of_the_evaluation(bench, problems):
    """By another route: the evaluation's own table; and zero for codecs that keep everything."""
    problem = problems["fixed"]
    meter = DivergenceMeter(bench.model, bench.evaluation)
    quanta = policy_quanta("uniform", problem, problem.total(2.0))
    codec = problem.stand_in(quanta, equal_heads=True)
    table = evaluate_codecs(bench.model, bench.evaluation, {"quick": codec})
    expected = table.loc[table["method"] == "quick", "logit_kl"].mean()
    assert meter(codec) == pytest.approx(expected, rel=1e-6)
    assert meter(control_codec(bench.model, "lossless")) == pytest.approx(0, abs=1e-9)


def test_angles_are_those_between_vectors_and_their_signs(problems):
    problem = problems["fixed"]
    x = problem.units[1].vectors[:2].double()
    cosine = (x * x.sign()).sum(-1) / (x.norm(dim=-1) * x.sign().norm(dim=-1))
    expected = np.degrees(np.arccos(cosine.mean().item()))
    assert sign_angles(problem)[1] == pytest.approx(expected, abs=1e-3)


def test_the_record_compares_every_policy(allocated, bench):
    codec, found = allocated
    assert found.record.kind == "cache-allocation"
    assert set(found.tables) == {"policies", "units", "pairs", "windows", "sharings"}
    policies = found.tables["policies"].set_index("method")
    assert list(policies.index) == ["full", *POLICIES]
    bits = policies["bits_per_element"].drop("full")
    assert bits.max() - bits.min() < 0.01
    assert abs(bits - 2.5).max() < 0.05
    assert len(found.tables["units"]) == len(POLICIES) * 4
    assert len(found.tables["pairs"]) == 10
    assert codec.provenance["policy"] == "searched"
    assert len(found.tables["sharings"]) == 6
    assert codec.provenance["calibration_tokens"] == bench.calibration.numel()
    assert found.record.value("perplexity_uniform_over_searched").interval is not None


def test_a_target_is_met_on_held_out_windows(bench):
    plan = AllocationPlan(target=1.01, policy="metric")
    codec, found = allocate_cache(bench, plan)
    search = found.tables["search"]
    best = search[search["is_reached"]]["bits"].min()
    assert codec.provenance["bits"] == pytest.approx(best, abs=0.1)
    assert (search.loc[search["is_reached"], "bound"] <= 1.01).all()


def test_wrong_plans_are_refused(bench):
    for wrong in ({}, {"bits": 2.0, "target": 1.1}, {"target": 0.9}, {"bits": 2, "tier": "x"}):
        with pytest.raises(SettingError):
            AllocationPlan(**wrong)
    for short in ({"calibration": bench.calibration[:1]}, {"evaluation": bench.evaluation[:0]}):
        with pytest.raises(DataError, match="window"):
            allocate_cache(replace(bench, **short), AllocationPlan(bits=2.0))
    few = replace(bench, calibration=bench.calibration[:3])
    with pytest.raises(DataError, match="held out"):
        allocate_cache(few, AllocationPlan(target=1.1, policy="metric"))


def run(*arguments):
    return CliRunner().invoke(cli, ["cache", *arguments], prog_name="gonio")


SIZES = ["--calibration-tokens", "408", "--evaluation-tokens", "204", "--window", "68"]


def test_the_command_writes_an_ordinary_codec(tiny_folder, tmp_path):
    out = tmp_path / "codec.safetensors"
    arguments = [str(tiny_folder), "--bits", "3", "--policy", "metric", *SIZES]
    done = run("allocate", *arguments, "--out", str(out))
    assert done.exit_code == 0, done.output
    assert "Bits by layer" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert load_codec(out).provenance["tier"] == "fixed"
    assert run("allocate", *arguments, "--out", str(out)).exit_code == 2
    told = json.loads(run("allocate", *arguments, "--json").stdout)
    assert told["record"]["settings"]["bits"] == 3


def test_bad_input_is_one_message(tiny_folder):
    for arguments, words in (
        ([], "either --bits or --target-ppl-ratio"),
        (["--bits", "2", "--target-ppl-ratio", "1.1"], "either --bits or --target-ppl-ratio"),
        (["--target-ppl-ratio", "1"], "1"),
        (["--bits", "40"], "out of the range"),
    ):
        done = run("allocate", str(tiny_folder), *arguments, *SIZES)
        assert done.exit_code == 2
        assert words in done.stderr


@pytest.fixture
def calibrate_command():
    """``cache calibrate`` with the option, whether or not it is registered with it."""
    if any(parameter.name == "target_ppl_ratio" for parameter in calibrate.params):
        return calibrate
    callback = accept_target(calibrate.callback)
    options = [*calibrate.params, *callback.__click_params__]
    return click.Command("calibrate", params=options, callback=callback)


def test_calibrate_finds_the_bits_of_a_target(calibrate_command, tiny_folder, tmp_path):
    out = tmp_path / "codec.safetensors"
    start = [str(tiny_folder), "--out", str(out), "--target-ppl-ratio", "1.5"]
    sizes = ["--calibration-tokens", "408", "--window", "68"]
    invoke = CliRunner().invoke
    for wrong in (["--bits", "2"], ["--method", "affine"], ["--recent", "4"]):
        refused = invoke(calibrate_command, [*start, *sizes, *wrong])
        assert refused.exit_code == 2
        assert "--target-ppl-ratio" in refused.stderr
    done = invoke(calibrate_command, [*start, *sizes, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    codec = load_codec(out)
    assert codec.provenance["target_ppl_ratio"] == 1.5
    assert codec.provenance["policy"] == "searched"
    assert codec.sinks == 4
    assert json.loads(done.stdout)["record"]["kind"] == "cache-allocation"


def test_points_are_kept_and_a_second_search_is_the_same(bench, tmp_path):
    points = tmp_path / "codec.points.json"
    plan = AllocationPlan(bits=2.5, search_trials=4)
    _, first = allocate_cache(bench, plan, points=points)
    kept = points.read_text()
    (series,) = json.loads(kept).values()
    assert len(series) == 4
    _, again = allocate_cache(bench, plan, points=points)
    assert points.read_text() == kept
    assert again.tables["sharings"].equals(first.tables["sharings"])
    allocate_cache(bench, replace(plan, bits=3.0), points=points)
    assert len(json.loads(points.read_text())) == 2


@pytest.mark.slow
def test_searched_bits_beat_equal_bits_on_the_bundled_model():
    bench = open_bench("smollm2-135m", "bundled", TokenBudget(3072, 1536, 256))
    _, found = allocate_cache(bench, AllocationPlan(bits=2.0, compare=True, tier="entropy"))
    pairs = found.tables["pairs"].set_index(["first", "second"])
    assert pairs.loc[("uniform", "searched"), "perplexity_ratio"] > 1
