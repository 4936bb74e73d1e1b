"""Resized, merged and rescaled folders: PEFT loads them, and they are what they say."""

import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from gonio.adapters import difference_norm, load_adapter, resize
from gonio.adapters.resize import truncate
from gonio.cli.main import cli
from gonio.errors import AdapterError, OutputError, SettingError
from gonio.pipelines.reshape import merge_adapters, rescale_adapter, resize_adapter

CASES = {
    "llama": {"target_modules": "all-linear", "r": 4, "lora_alpha": 6},
    "llama-rslora-patterns": {
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "r": 4,
        "lora_alpha": 5,
        "use_rslora": True,
        "rank_pattern": {"v_proj": 7, "layers.1.self_attn.q_proj": 2},
        "alpha_pattern": {"down_proj": 3},
    },
    "gpt2": {"target_modules": ["c_attn", "c_proj", "c_fc"], "r": 3, "fan_in_fan_out": True},
    "neox": {"target_modules": ["query_key_value", "dense"], "r": 30, "lora_alpha": 8},
}


@pytest.fixture(params=sorted(CASES))
def saved(request, save_with_peft):
    return save_with_peft(request.param.split("-")[0], **CASES[request.param])


def peft_changes(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """Weight changes of a folder as PEFT itself merges them, in float64."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = AutoModelForCausalLM.from_pretrained(base).double().state_dict()
        model = AutoModelForCausalLM.from_pretrained(base)
        loaded = PeftModel.from_pretrained(model, adapter).double()
        after = loaded.merge_and_unload().state_dict()
    return {k: after[k] - before[k] for k in before if not torch.equal(after[k], before[k])}


def assert_same(found: dict, expected: dict, tolerance: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name, change in expected.items():
        assert (found[name] - change).norm() <= tolerance * change.norm(), name


def test_a_full_rank_resize_changes_nothing(saved, tmp_path):
    resize_adapter(saved.adapter, tmp_path / "out", energy=1.0)
    assert_same(peft_changes(saved.base, tmp_path / "out"), saved.changes)


@pytest.mark.parametrize(("alpha", "rslora"), [(None, None), (3.5, True), (16, False)])
def test_rescaling_there_and_back_changes_nothing(saved, tmp_path, alpha, rslora):
    rescale_adapter(saved.adapter, tmp_path / "one", alpha=alpha, use_rslora=rslora)
    assert_same(peft_changes(saved.base, tmp_path / "one"), saved.changes)
    config = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    if alpha is not None:
        assert config["lora_alpha"] == alpha
        assert config["use_rslora"] is rslora
    rescale_adapter(tmp_path / "one", tmp_path / "two", use_rslora=not config["use_rslora"])
    assert_same(peft_changes(saved.base, tmp_path / "two"), saved.changes)


def test_an_identity_merge_changes_nothing(saved, tmp_path):
    merge_adapters([saved.adapter], tmp_path / "out")
    assert_same(peft_changes(saved.base, tmp_path / "out"), saved.changes)


def test_a_merge_is_the_weighted_sum_of_what_peft_merges(save_with_peft, tmp_path):
    """Ranks, scalings and targets differ; averaging factors (cross terms) would be far off."""
    one = save_with_peft("llama", name="one", r=4, lora_alpha=4, target_modules=["q_proj"])
    two = save_with_peft(
        "llama",
        name="two",
        factor_seed=1,
        r=2,
        lora_alpha=7,
        use_rslora=True,
        target_modules=["q_proj", "up_proj"],
    )
    found = merge_adapters([one.adapter, two.adapter], tmp_path / "out", weights=[0.5, -2.0])
    expected = {name: -2.0 * change for name, change in two.changes.items()}
    for name, change in one.changes.items():
        expected[name] = expected[name] + 0.5 * change
    assert_same(peft_changes(one.base, tmp_path / "out"), expected)
    assert found.record.value("discarded_energy_measured").value < 1e-12


def test_truncation_is_the_best_of_its_rank_and_loses_what_is_predicted(saved, tmp_path):
    found = resize_adapter(saved.adapter, tmp_path / "out", rank=2)
    changes = peft_changes(saved.base, tmp_path / "out")
    lost = energy = 0.0
    for name, change in saved.changes.items():
        sigma = torch.linalg.svdvals(change)
        error = (change - changes[name]).norm() ** 2
        best = sigma[2:].square().sum()
        assert abs(error - best) <= 1e-6 * sigma.square().sum()
        lost, energy = lost + float(best), energy + float(sigma.square().sum())
    for kind in ("predicted", "measured"):
        value = found.record.value(f"discarded_energy_{kind}").value
        assert value == pytest.approx(lost / energy, abs=1e-6)


def test_a_budget_loses_no_more_than_a_uniform_rank_of_its_size(saved, tmp_path):
    uniform = resize(load_adapter(saved.adapter), rank=2)
    budget = int(uniform.table["parameters_after"].sum())
    found = resize_adapter(saved.adapter, tmp_path / "out", parameters=budget)
    assert found.record.value("parameters_after").value <= budget
    assert found.record.value("discarded_energy_predicted").value <= uniform.discarded_share
    assert found.record.value("discarded_energy_measured").value == pytest.approx(
        found.record.value("discarded_energy_predicted").value, abs=1e-6
    )
    kept = set(load_adapter(tmp_path / "out").updates)
    changes = peft_changes(saved.base, tmp_path / "out")
    assert {f"{module}.weight" for module in kept} == set(changes)


def test_difference_norms_see_small_differences(saved):
    update = next(iter(load_adapter(saved.adapter).updates.values()))
    whole = truncate(update, update.rank)
    assert difference_norm(update, whole) <= 1e-12 * difference_norm(update, None)
    sigma = update.singular_values()
    near = truncate(update, len(sigma) - 1)
    assert difference_norm(update, near) == pytest.approx(float(sigma[-1]), rel=1e-6)


def test_what_lies_beside_the_factors_is_carried_over_or_refused(save_with_peft, tmp_path):
    saved = save_with_peft("llama", r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    with pytest.raises(AdapterError, match="it would lose tensors"):
        merge_adapters([saved.adapter, saved.adapter], tmp_path / "sum")
    assert not (tmp_path / "sum").exists()
    resize_adapter(saved.adapter, tmp_path / "resized", rank=1)
    rescale_adapter(saved.adapter, tmp_path / "rescaled", alpha=1)
    before = load_adapter(saved.adapter).beside
    assert before
    for name in ("resized", "rescaled"):
        after = load_adapter(tmp_path / name).beside
        assert after.keys() == before.keys()
        assert all(torch.equal(after[key], before[key]) for key in before)


def test_bad_settings_are_refused_before_anything_is_written(saved, tmp_path):
    out = tmp_path / "out"
    for settings in ({}, {"rank": 1, "energy": 0.5}, {"rank": 0}, {"energy": 0.0}):
        with pytest.raises(SettingError):
            resize_adapter(saved.adapter, out, **settings)
    with pytest.raises(SettingError, match="1 adapters need as many weights, found 2"):
        merge_adapters([saved.adapter], out, weights=[1, 2])
    with pytest.raises(SettingError, match="finite"):
        merge_adapters([saved.adapter], out, weights=[math.inf])
    with pytest.raises(SettingError, match="positive finite"):
        rescale_adapter(saved.adapter, out, alpha=-1)
    assert not out.exists()
    with pytest.raises(OutputError, match="--force"):
        resize_adapter(saved.adapter, saved.adapter, rank=1)
    resize_adapter(saved.adapter, saved.adapter, rank=1, overwrite=True)
    assert {u.rank for u in load_adapter(saved.adapter).updates.values()} == {1}


def test_adapters_of_different_bases_are_not_merged(save_with_peft, tmp_path):
    one = save_with_peft("llama", name="one", r=2, target_modules=["q_proj"])
    other = tmp_path / "two"
    other.mkdir()
    config = json.loads((one.adapter / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config))
    from safetensors.torch import load_file, save_file

    tensors = load_file(one.adapter / "adapter_model.safetensors")
    wider = {k: torch.cat([t, t], dim=1) if "lora_A" in k else t for k, t in tensors.items()}
    save_file(wider, other / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="different bases"):
        merge_adapters([one.adapter, other], tmp_path / "out")


def test_the_commands_write_and_report(saved, tmp_path):
    def run(*arguments: object):
        return CliRunner().invoke(cli, ["adapter", *map(str, arguments)], prog_name="gonio")

    out = tmp_path / "out"
    result = run("resize", saved.adapter, "--rank", 2, "--out", out)
    assert result.exit_code == 0, result.output
    assert "discarded energy measured" in result.stdout
    assert max(len(line) for line in result.stdout.splitlines()) <= 80
    assert run("resize", saved.adapter, "--rank", 2, "--out", out).exit_code == 2
    assert run("resize", saved.adapter, "--out", tmp_path / "x").exit_code == 2
    merged = run(
        "merge", saved.adapter, out, "--weight", 1, "--weight", -1, "--out", tmp_path / "m"
    )
    assert merged.exit_code == 0, merged.output
    rescaled = run("rescale", saved.adapter, "--alpha", 3, "--out", tmp_path / "r", "--json")
    assert json.loads(rescaled.stdout)["record"]["kind"] == "adapter-rescale"
    assert not (tmp_path / "x").exists()
