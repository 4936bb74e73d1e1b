"""Every action of ``gonio adapter`` as a user runs it: folders in, folders that PEFT loads out."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from transformers import AutoModelForCausalLM

from gonio.adapters import load_adapter
from gonio.cli.main import cli

TARGETS = ["q_proj", "k_proj", "up_proj", "down_proj"]


def gonio(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["adapter", *map(str, arguments)])


def run(*arguments: object) -> dict:
    """A command that succeeds, with its record as JSON."""
    result = gonio(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def value(found: dict, name: str) -> float:
    return next(v["value"] for v in found["record"]["values"] if v["name"] == name)


@pytest.fixture
def pair(save_with_peft):
    """Two adapters of one base that differ in rank and in target modules."""
    one = save_with_peft("llama", name="one", r=4, target_modules=TARGETS)
    two = save_with_peft("llama", name="two", factor_seed=1, r=3, target_modules=TARGETS[:3])
    return one, two


def merged_change(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """What PEFT's own merge of a folder changes, float64."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = AutoModelForCausalLM.from_pretrained(base).double().state_dict()
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
        after = model.double().merge_and_unload().state_dict()
    return {k: after[k] - before[k] for k in before if not torch.equal(after[k], before[k])}


@pytest.mark.parametrize("method", ["ties", "dare", "dare-ties"])
def test_entrywise_merges_predict_what_they_lose(pair, tmp_path, method):
    one, two = pair
    out = tmp_path / "merged"
    options = ("--method", method, "--density", 0.5, "--rank", 6, "--out", out)
    found = run("merge", one.adapter, two.adapter, *options)
    predicted = value(found, "discarded_energy_predicted")
    assert 0.01 < predicted < 1
    assert predicted == pytest.approx(value(found, "discarded_energy_measured"), abs=1e-6)
    assert all(update.rank == 6 for update in load_adapter(out).updates.values())
    merged_change(one.base, out)  # PEFT loads it


def test_svd_merge_is_the_best_approximation_of_the_exact_sum(pair, tmp_path):
    one, two = pair
    out = tmp_path / "svd"
    found = run(
        "merge", one.adapter, two.adapter, "--weight", 2, "--weight", -1, "--method", "svd",
        "--rank", 2, "--out", out,
    )  # fmt: skip
    lost = energy = 0.0
    change = merged_change(one.base, out)
    for name in set(one.changes) | set(two.changes):
        total = 2 * one.changes[name] - (two.changes.get(name, 0 * one.changes[name]))
        sigma = torch.linalg.svdvals(total)
        lost, energy = lost + float(sigma[2:].square().sum()), energy + float(sigma.square().sum())
        residual = float((total - change[name]).square().sum())
        assert residual == pytest.approx(float(sigma[2:].square().sum()), rel=1e-5)
    assert value(found, "discarded_energy_measured") == pytest.approx(lost / energy, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "ties"], "--density"),
        (["--method", "svd"], "--rank"),
        (["--density", "0.5"], "density belongs to"),
        (["--method", "dare", "--rank", "2", "--density", "2"], "(0, 1]"),
    ],
)
def test_merge_settings_that_do_not_fit_are_refused(pair, tmp_path, options, message):
    one, two = pair
    result = gonio("merge", one.adapter, two.adapter, "--out", tmp_path / "no", *options)
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "no").exists()


def test_a_bundle_gives_back_members_and_exact_sums(pair, tmp_path):
    one, two = pair
    bundle, out = tmp_path / "bundle", tmp_path / "selection"
    found = run("compose", one.adapter, two.adapter, "--out", bundle)
    assert {"members", "interference"} <= set(found["tables"])
    assert value(found, "factor_bytes") < value(found, "merged_bytes")
    assert merged_change(one.base, bundle / "one").keys() == one.changes.keys()
    selected = run("select", bundle, "one=0.5", "two=-2", "--out", out)
    assert value(selected, "rank") == 7
    change = merged_change(one.base, out)
    for name, update in change.items():
        expected = 0.5 * one.changes[name] - 2 * two.changes.get(name, 0 * update)
        torch.testing.assert_close(update, expected, rtol=1e-5, atol=1e-6)


def test_a_changed_member_and_an_unknown_name_are_refused(pair, tmp_path):
    one, two = pair
    bundle = tmp_path / "bundle"
    run("compose", one.adapter, two.adapter, "--out", bundle)
    result = gonio("select", bundle, "three", "--out", tmp_path / "no")
    assert result.exit_code == 2
    assert "three" in result.output
    assert "one, two" in result.output
    config = bundle / "one" / "adapter_config.json"
    config.write_text(config.read_text() + "\n")
    result = gonio("select", bundle, "one", "--out", tmp_path / "no")
    assert result.exit_code == 2
    assert "was changed" in result.output
    assert gonio("select", bundle, "one=x", "--out", tmp_path / "no").exit_code == 2


def test_advice_is_followed_and_keeps_its_energy(pair, tmp_path):
    one, _ = pair
    told = run("advise", one.adapter, "--energy", 0.8)
    assert "not the rank training would have needed" in value(told, "caveat")
    out = tmp_path / "small"
    written = run("advise", one.adapter, "--energy", 0.8, "--out", out)
    assert value(written, "discarded_energy_measured") <= 0.2
    ranks = {row["module"]: row["recommended_rank"] for row in told["tables"]["advice"]}
    assert {u.module: u.rank for u in load_adapter(out).updates.values()} == ranks


def test_weighing_by_inputs_lowers_the_error_of_the_outputs(tiny_folder, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    wrapped = get_peft_model(model, LoraConfig(r=6, target_modules=TARGETS))
    torch.manual_seed(0)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    wrapped.save_pretrained(tmp_path / "adapter")
    found = run(
        "resize", tmp_path / "adapter", "--rank", 2, "--base", tiny_folder, "--weigh-by-inputs",
        "bundled", "--tokens", 1024, "--out", tmp_path / "out",
    )  # fmt: skip
    assert value(found, "output_error") < value(found, "output_error_plain")
    assert value(found, "held_out_output_error") < value(found, "held_out_output_error_plain")
    predicted = value(found, "discarded_energy_predicted")
    assert predicted == pytest.approx(value(found, "discarded_energy_measured"), abs=1e-6)


def test_a_tuned_model_is_read_with_its_base_and_becomes_a_lora(save_with_peft, tmp_path):
    saved = save_with_peft("llama", r=2, target_modules=TARGETS)
    tuned = AutoModelForCausalLM.from_pretrained(saved.base)
    state = tuned.state_dict()
    for name, change in saved.changes.items():
        state[name] += change.to(state[name].dtype)
    tuned.save_pretrained(tmp_path / "tuned")
    result = gonio("inspect", tmp_path / "tuned")
    assert result.exit_code == 2
    assert "--base" in result.output
    found = run("inspect", tmp_path / "tuned", "--base", saved.base)
    assert value(found, "modules") == len(saved.changes)
    run("resize", tmp_path / "tuned", "--base", saved.base, "--rank", 2, "--out", tmp_path / "lora")
    change = merged_change(saved.base, tmp_path / "lora")
    for name, expected in saved.changes.items():
        torch.testing.assert_close(change[name], expected, rtol=1e-4, atol=1e-5)


def test_dora_is_measured_with_its_base_only(save_with_peft, tmp_path):
    saved = save_with_peft("llama", r=2, use_dora=True, target_modules=TARGETS)
    refused = gonio("inspect", saved.adapter)
    assert refused.exit_code == 2
    assert "DoRA" in refused.output
    found = run("inspect", saved.adapter, "--base", saved.base)
    norms = {row["module"]: row["frobenius_norm"] for row in found["tables"]["modules"]}
    for name, change in saved.changes.items():
        assert norms[name.removesuffix(".weight")] == pytest.approx(float(change.norm()), rel=1e-5)


def test_a_fleet_is_one_table_and_names_what_failed(pair, tmp_path):
    one, two = pair
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_text("{")
    found = json.loads(gonio("inspect", one.adapter, two.adapter, "--json").stdout)
    assert {row["adapter"] for row in found["tables"]["modules"]} == {"one", "two"}
    result = gonio("inspect", one.adapter, broken, "--fleet")
    assert result.exit_code == 1
    assert "broken" in result.output


@pytest.mark.parametrize("suffix", ["html", "png", "svg"])
def test_plots_are_written_once(pair, tmp_path, suffix):
    one, _ = pair
    plot = tmp_path / f"plot.{suffix}"
    assert gonio("inspect", one.adapter, "--plot", plot).exit_code == 0
    assert plot.stat().st_size > 1000
    again = gonio("inspect", one.adapter, "--plot", plot)
    assert again.exit_code == 2
    assert "--force" in again.output
    assert gonio("inspect", one.adapter, "--plot", tmp_path / "plot.pdf").exit_code == 2
