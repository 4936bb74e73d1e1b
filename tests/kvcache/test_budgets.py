"""Bits over the units of a tiny model: exact totals, real codecs, stand-ins, records, commands."""

import json
from dataclasses import replace
from functools import wraps

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
from gonio.kvcache.policies import POLICIES, SHARED, policy_quanta, sign_angles
from gonio.kvcache.positions import window_positions
from gonio.kvcache.pre_rope_codec import PreRopeCodec
from gonio.kvcache.quality_target import PerplexityMeter
from gonio.kvcache.sensitivity import collect_metrics
from gonio.kvcache.sharing import DivergenceMeter, Sharing, sharing_quanta
from gonio.kvcache.summaries import summarize_scores
from gonio.pipelines.allocation_search import AllocationSearch, Codecs, Points
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
        samples = collect_metrics(bench.model, bench.calibration, pre_rope=True)
        found[tier] = pose_problem(samples, tier)
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
    codec = problem.fit(quanta)
    stored = [codec.stored(68, part) for part in ("keys", "values")]
    elements = problem.elements.sum()
    code_bits = 8 * (sum(x.code_bytes + x.metadata_bytes for x in stored)) - 16 * 4 * elements
    places = 2 * 32 * 64 // codec.keys[0].block  # the position of each block of keys, two layers
    assert code_bits == 64 * total * problem.units[0].curve.quantum_bits + places
    assert problem.mean_bits(quanta) == pytest.approx(3.0, abs=2 / elements)


@pytest.mark.parametrize("tier", WINDOW)
def test_samples_after_rope_give_codecs_after_rope(bench, tier):
    """And what the positions of blocks do not take goes to the codes."""
    found = []
    for pre_rope in (True, False):
        samples = collect_metrics(bench.model, bench.calibration, pre_rope=pre_rope)
        problem = pose_problem(samples, tier)
        quanta = policy_quanta("uniform", problem, problem.total(3.0))
        codec = problem.fit(quanta)
        assert all(isinstance(key, PreRopeCodec) == pre_rope for key in codec.keys)
        assert codec.provenance["stage"] == ("pre_rope" if pre_rope else "post_rope")
        assert all(
            isinstance(key, PreRopeCodec) == pre_rope for key in problem.stand_in(quanta).keys
        )
        found.append(quanta.sum() * problem.units[0].curve.quantum_bits + problem.place_bits)
    assert problem.place_bits == 0
    assert abs(found[0] - found[1]) < 1


@pytest.mark.parametrize("tier", WINDOW)
def test_predicted_damage_is_least_under_the_metric_policy(problems, tier):
    problem = problems[tier]
    total = problem.total(2.5)
    sums = {}
    for policy in ("uniform", "collapse-angle", "shared", "metric"):
        quanta = policy_quanta(policy, problem, total)
        sums[policy] = sum(u.damages[q] for u, q in zip(problem.units, quanta, strict=True))
    assert min(sums, key=sums.get) == "metric"
    assert sums["metric"] < sums["shared"] <= sums["uniform"]


def test_curves_fall_and_predict_the_errors_of_the_codecs(problems):
    problem = problems["fixed"]
    quanta = policy_quanta("metric", problem, problem.total(3.0))
    codec = problem.fit(quanta)
    assert codec.keys[0].base.states == 16
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
        fine, coarse = (
            sharing_quanta(sharing, problem, problem.total(bits)) for bits in (2.5, 2.0)
        )
        codecs = [
            problem.fit(fine),
            problem.stand_in(fine),
            problem.stand_in(coarse),
        ]
        for unit in problem.units:
            own, quick, worse = (metric_error(c.of(unit.part)[unit.layer], unit) for c in codecs)
            ratios.append(quick / own)
            assert worse > quick
    assert 0.75 < np.exp(np.mean(np.log(ratios))) < 1.33


def metric_error(codec, unit):
    """By another route than the fit: an einsum over whole blocks."""
    x = unit.vectors[:, :, : unit.vectors.shape[2] // 64 * 64]
    codec = getattr(codec, "base", codec)  # the samples are those before RoPE
    difference = (codec.decode(codec.encode(x)) - x).double()
    error = torch.einsum("whti,hij,whtj->", difference, unit.metric, difference)
    return error.item() / (x.shape[0] * x.shape[2])


def test_divergence_is_that_of_the_evaluation(bench, problems):
    """By another route: the evaluation's own table; and zero for codecs that keep everything."""
    problem = problems["fixed"]
    meter = DivergenceMeter(bench.model, bench.evaluation)
    quanta = policy_quanta("uniform", problem, problem.total(2.0))
    codec = problem.stand_in(quanta)
    table = evaluate_codecs(bench.model, bench.evaluation, {"quick": codec})
    expected = table.loc[table["method"] == "quick", "logit_kl"].mean()
    assert meter(codec) == pytest.approx(expected, rel=1e-6)
    assert meter(control_codec(bench.model, "lossless")) == pytest.approx(0, abs=1e-9)


def test_perplexity_is_that_of_the_evaluation_with_its_interval(bench, problems):
    problem = problems["fixed"]
    quanta = policy_quanta("uniform", problem, problem.total(1.0))
    codec = problem.stand_in(quanta)
    table = evaluate_codecs(bench.model, bench.evaluation, {"quick": codec})
    expected = summarize_scores(table, seed=3).set_index("method").loc["quick"]
    meter = PerplexityMeter(bench.model, bench.evaluation, seed=3)
    wanted = expected[["perplexity_ratio", "perplexity_ratio_high"]].tolist()
    assert meter(codec) == pytest.approx(wanted, rel=1e-9)
    assert meter(control_codec(bench.model, "lossless")) == pytest.approx((1, 1), abs=1e-9)


@pytest.mark.parametrize("kind", [DivergenceMeter, PerplexityMeter])
def test_meters_read_windows_at_the_positions_of_a_context(bench, kind, monkeypatch):
    seen = []
    lossless = control_codec(bench.model, "lossless")
    forward = bench.model.forward

    @wraps(forward)
    def watched(*args, **kwargs):
        seen.append(kwargs.get("position_ids"))
        return forward(*args, **kwargs)

    monkeypatch.setattr(bench.model, "forward", watched)
    kind(bench.model, bench.evaluation, context=200)(lossless)
    places = window_positions(3, 68, 200)
    assert len(seen) == 6
    for found, place in zip(seen, places * 2, strict=True):
        assert found is None if place is None else (found == place).all()
    assert places[-1].max() == 199


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


def test_a_sharing_that_only_stand_ins_like_is_given_up(bench, monkeypatch):
    """And the bits of a target are searched again for equal ones."""
    asked = []
    monkeypatch.setattr(
        AllocationSearch, "better", lambda self, total, found: asked.append(found) or Sharing()
    )
    codec, found = allocate_cache(bench, AllocationPlan(target=1.01, search_trials=4))
    assert len(asked) == 1
    assert asked[0] != Sharing()
    assert codec.provenance["sharing"] == vars(Sharing())
    assert found.tables["search"]["is_reached"].any()


def test_equal_bits_stay_where_their_fitted_codec_is_better(bench, problems):
    problem = problems["fixed"]
    windows = bench.calibration[-2:]
    codecs = Codecs(problem, {})
    search = AllocationSearch(bench, codecs, windows, windows, Points(None, "x"))
    total = problem.total(2.0)
    meter = DivergenceMeter(bench.model, windows)
    found = []
    for other in (Sharing(tilt=-1.5), Sharing(tilt=1.5)):
        equal, moved = (
            meter(problem.fit(sharing_quanta(each, problem, total))) for each in (Sharing(), other)
        )
        found.append(search.better(total, other))
        assert found[-1] == (other if moved < equal else Sharing())
    assert Sharing() in found


def test_wrong_plans_are_refused(bench):
    numbers = ({"bits": 0}, {"bits": -1}, {"bits": float("nan")}, {"target": float("inf")})
    others = ({}, {"bits": 2.0, "target": 1.1}, {"target": 0.9}, {"bits": 2, "tier": "x"})
    for wrong in (*numbers, *others):
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


def test_a_context_reaches_the_codec_and_the_record(tiny_folder, tmp_path):
    """Windows at other positions have other keys, so the bases are others; values have none."""
    found = {}
    start = [str(tiny_folder), "--bits", "3", "--policy", "metric", *SIZES, "--json"]
    for context in ("0", "200"):
        out = tmp_path / context
        done = run("allocate", *start, "--context", context, "--out", str(out))
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["record"]["settings"]["context"] == int(context)
        found[context] = load_codec(out)
    near, far = found.values()
    assert (near.provenance["positions"], far.provenance["positions"]) == (68, 200)
    assert not torch.equal(near.keys[0].base.basis.analysis, far.keys[0].base.basis.analysis)
    mean = near.values[0].basis.mean
    assert torch.allclose(mean.float(), far.values[0].basis.mean.float(), atol=1e-3)
    assert run("allocate", *start, "--context", "100000").exit_code == 2


def test_points_of_another_context_are_another_series(bench, tmp_path):
    points = tmp_path / "codec.points.json"
    plan = AllocationPlan(bits=2.5, search_trials=2)
    for context in (0, 200):
        allocate_cache(replace(bench, context=context), plan, points=points)
    near, far = json.loads(points.read_text()).values()
    equal = next(iter(near))
    assert near[equal] != far[equal]


def test_bad_input_is_one_message(tiny_folder, tmp_path):
    (tmp_path / "file").touch()
    for arguments, words in (
        ([], "either --bits or --target-ppl-ratio"),
        (["--bits", "2", "--target-ppl-ratio", "1.1"], "either --bits or --target-ppl-ratio"),
        (["--target-ppl-ratio", "1"], "1"),
        (["--bits", "40"], "out of the range"),
        (["--bits", "3", "--out", str(tmp_path / "file" / "c.safetensors")], "cannot write"),
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
    others = (["--method", "affine"], ["--recent", "4"], ["--stage", "pre_rope"])
    for wrong in (["--bits", "2"], *others):
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
    assert len(series) == 4 + 2  # and two fitted codecs
    _, again = allocate_cache(bench, plan, points=points)
    assert points.read_text() == kept
    assert again.tables["sharings"].equals(first.tables["sharings"])
    allocate_cache(bench, replace(plan, bits=3.0), points=points)
    assert len(json.loads(points.read_text())) == 2


def test_a_target_goes_on_where_it_was_ended(bench, tmp_path, monkeypatch):
    """Every finished trial is in the file after an interrupt, and is not run again."""
    points = tmp_path / "codec.points.json"
    plan = AllocationPlan(target=1.05, policy="metric")
    calls = []

    def measured(self, codec):
        """A curve that wants some trials; the tiny model itself takes any bits."""
        calls.append(codec.provenance["bits"])
        if len(calls) == stop:
            raise KeyboardInterrupt
        ratio = np.exp(2.0 ** (3 - 2 * calls[-1]))
        return ratio, 1.001 * ratio

    monkeypatch.setattr(PerplexityMeter, "__call__", measured)
    stop = 0
    whole = allocate_cache(bench, plan)[1]
    tried = list(calls)
    assert len(tried) == len(whole.tables["search"]) >= 3
    calls.clear()
    stop = 3
    with pytest.raises(KeyboardInterrupt):
        allocate_cache(bench, plan, points=points)
    (kept,) = json.loads(points.read_text()).values()
    assert sum(key.startswith("codec") for key in kept) == 2
    calls.clear()
    stop = 0
    again = allocate_cache(bench, plan, points=points)[1]
    assert calls == tried[2:]
    assert again.tables["search"].equals(whole.tables["search"])


@pytest.mark.parametrize("content", ["[1]", "{", '{"a": 1}'])
def test_a_file_that_holds_no_points_is_refused(tmp_path, content):
    path = tmp_path / "x.points.json"
    path.write_text(content)
    with pytest.raises(DataError, match="no trials"):
        Points(path, "x")
    assert path.read_text() == content


@pytest.mark.slow
def test_searched_bits_beat_equal_bits_on_the_bundled_model():
    """By fitted codecs, on windows that nothing was chosen on."""
    bench = open_bench("smollm2-135m", "bundled", TokenBudget(2560, 1536, 256))
    fitted, held = bench.calibration[:-2], bench.calibration[-2:]
    problem = pose_problem(collect_metrics(bench.model, fitted, pre_rope=True), "fixed")
    search = AllocationSearch(bench, Codecs(problem, {}), held, held, Points(None, "x"))
    total = problem.total(2.25)
    trials = search.sharings(total, 5)
    best = min(trials, key=lambda each: each.divergence).sharing
    assert best != Sharing()
    meter = DivergenceMeter(bench.model, bench.evaluation[:4])
    equal, found = (
        meter(problem.fit(sharing_quanta(each, problem, total))) for each in (Sharing(), best)
    )
    assert found < 0.95 * equal
