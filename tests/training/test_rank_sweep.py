"""Sweeps over ranks: real trainings of tiny models, truncations, resuming, the command, bounds."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig, PeftModel, get_peft_model

from gonio.adapters import load_adapter
from gonio.cli.main import cli
from gonio.errors import AdapterError, SettingError
from gonio.linalg.complexity import sampled_complexity
from gonio.models import load_model, load_text, split_tokens, token_windows
from gonio.pipelines.adapter_bounds import adapter_bounds
from gonio.pipelines.adapter_sweep import truncate_sweep
from gonio.pipelines.sweep_training import recipe_at_rank, train_sweep
from gonio.pipelines.training import train_adapter
from gonio.records import read_measurement, write_measurement
from gonio.site.collection import collect
from gonio.site.sweep_figures import sweep_figure
from gonio.training import keep_fitting, make_recipe, pair_log_probs, pairs_from_text

pytest.importorskip("trl")

SETTINGS = {"steps": 3, "learning_rate": 2e-2, "batch_size": 2, "max_length": 120}
SETTINGS |= {"r": 4, "lora_alpha": 8, "seed": 1, "target_modules": ("q_proj", "down_proj")}


@pytest.fixture
def place(tmp_path, make_model, tokenizer, long_text):
    make_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(long_text, encoding="utf-8")
    return tmp_path


@pytest.fixture
def adapter(place):
    """Random factors and the recipe that a training would have left beside them."""
    model, _ = load_model(place / "model")
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "down_proj"],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(0)
    get_peft_model(model, config).save_pretrained(place / "run")
    facts = {"kind": "dpo", "recipe": make_recipe("dpo", **SETTINGS).model_dump(mode="json")}
    (place / "run" / "training.json").write_text(json.dumps(facts), encoding="utf-8")
    return place / "run"


def test_truncations_are_judged_on_the_pairs_that_were_held_out(place, adapter, long_text):
    out = place / "sweep"
    request = {"data": str(place / "text.txt"), "held_out": 6, "out": out}
    found = truncate_sweep(place / "model", adapter, [4, 1, 2], **request)
    record = found.record
    assert record.kind == "adapter-sweep"
    ranks = found.tables["ranks"].set_index("rank")
    assert list(ranks.index) == [1, 2, 4]
    model, tokenizer = load_model(place / "model")
    pairs = pairs_from_text(long_text, train=6, held_out=6, seed=1).held_out
    pairs, _ = keep_fitting(tokenizer, pairs, 120)
    base = pair_log_probs(model, tokenizer, pairs, max_length=120)
    trained = pair_log_probs(
        PeftModel.from_pretrained(model, adapter), tokenizer, pairs, max_length=120
    )
    wanted = (trained.difference - base.difference).tolist()
    mine = found.tables["units"].query("rank == 4")["gain"].to_numpy()
    assert mine == pytest.approx(wanted, abs=1e-4)  # float32; scaling 1 instead of 2
    assert max(map(abs, wanted)) > 0.1
    errors = ranks["relative_error"]
    assert errors[1] > errors[2] > errors[4] == 0
    assert record.value("recommended_rank").value in (1, 2, 4, None)
    assert "too few" in record.value("curve").value
    written = read_measurement(write_measurement(found, place / "record"))
    assert written.record == record
    kept = (out / "rank-2" / "pairs.parquet").stat().st_mtime_ns
    truncate_sweep(place / "model", adapter, [1, 2], **request)
    assert (out / "rank-2" / "pairs.parquet").stat().st_mtime_ns == kept
    figure = sweep_figure(collect([found]).records[0])
    assert len(figure.panels) == 2
    assert "no value at r = 1" in figure.caption
    with pytest.raises(SettingError, match="its rank is 4"):
        truncate_sweep(place / "model", adapter, [2, 8])
    with pytest.raises(SettingError, match="distinct ranks"):
        truncate_sweep(place / "model", adapter, [2, 2])


def test_text_loss_is_the_model_s_own(place, adapter):
    text = str(place / "text.txt")
    request = {"metric": "text-loss", "text": text, "tokens": 96, "window": 24}
    found = truncate_sweep(place / "model", adapter, [1, 4], **request)
    model, tokenizer = load_model(place / "model")
    tokens = split_tokens(tokenizer, load_text(text), calibration=0, evaluation=96).evaluation
    windows = token_windows(tokens, 24)
    with torch.no_grad():
        base = [float(model(input_ids=w[None], labels=w[None]).loss) for w in windows]
        tuned = PeftModel.from_pretrained(model, adapter)
        values = [float(tuned(input_ids=w[None], labels=w[None]).loss) for w in windows]
    mine = found.tables["units"].query("rank == 4")
    assert mine["value"].to_numpy() == pytest.approx(values, abs=1e-4)
    assert mine["gain"].to_numpy() == pytest.approx(np.subtract(base, values), abs=1e-4)


def test_trainings_are_not_repeated_unless_something_changed(place, monkeypatch):
    from gonio.pipelines import sweep_training

    runs = []

    def counted(*arguments, **options):
        runs.append(arguments[4].parent.name)
        return train_adapter(*arguments, **options)

    monkeypatch.setattr(sweep_training, "train_adapter", counted)
    recipe = make_recipe("clm", **(SETTINGS | {"steps": 1}))
    data = str(place / "text.txt")

    def sweep():
        return train_sweep(
            *("clm", place / "model", data, recipe, [1, 4], place / "runs"),
            seeds=(1, 2),
            metric="response-loss",
            held_out=4,
        )

    first = sweep()
    assert runs == ["rank-1-seed-1", "rank-4-seed-1", "rank-1-seed-2", "rank-4-seed-2"]
    table = first.tables["ranks"]
    assert list(table["seeds"]) == [2, 2]
    assert list(table["units"]) == [4, 4]
    runs.clear()
    (place / "runs" / "rank-4-seed-2" / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    second = sweep()
    assert runs == ["rank-4-seed-2"]
    assert second.tables["units"]["gain"].to_numpy() == pytest.approx(
        first.tables["units"]["gain"].to_numpy(), abs=1e-6
    )
    folder = place / "runs" / "rank-1-seed-1"
    record = read_measurement(folder / "record").record
    wanted = {name: record.settings[name] for name in ("model", "recipe", "data_seed")}
    finished = sweep_training._finished
    assert finished(folder, wanted, record.inputs) is not None
    other = {**wanted, "recipe": {**wanted["recipe"], "steps": 2}}
    assert finished(folder, other, record.inputs) is None
    changed = [item.model_copy(update={"sha256": "0" * 64}) for item in record.inputs]
    assert finished(folder, wanted, changed) is None


def test_alpha_stays_or_the_scaling_does():
    recipe = make_recipe("dpo", **SETTINGS)
    assert recipe_at_rank(recipe, 16, 7).lora_alpha == 8
    assert recipe_at_rank(recipe, 16, 7).seed == 7
    assert recipe_at_rank(recipe, 16, 7, keep_scaling=True).lora_alpha == 32
    stabilized = recipe.model_copy(update={"use_rslora": True})
    assert recipe_at_rank(stabilized, 16, 7, keep_scaling=True).lora_alpha == 16


def run_command(*arguments):
    return CliRunner().invoke(cli, ["adapter", *map(str, arguments)])


def test_the_command_prints_text_and_draws(place, adapter):
    pytest.importorskip("altair")
    request = ["sweep", place / "model", "--truncate", adapter, "--data", place / "text.txt"]
    request += ["--held-out", 4, "--rank", 1, "--rank", 2, "--rank", 4]
    result = run_command(*request, "--plot", place / "sweep.html")
    assert result.exit_code == 0, result.output
    assert "recommended rank" in result.stdout
    assert "a + c r^-b" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert (place / "sweep.html").is_file()
    both = run_command(*request, "--train", "dpo")
    assert both.exit_code == 2
    foreign = run_command(*request, "--keep-scaling")
    assert foreign.exit_code == 2
    assert "only with --train" in foreign.stderr
    homeless = run_command("sweep", place / "model", "--train", "dpo", "--rank", 1, "--rank", 2)
    assert "--train needs --out" in homeless.stderr


def test_bounds_on_a_text_hold_for_its_own_inputs(place, adapter):
    """Monte Carlo over signs on the true inputs stays below; norms are those of the update."""
    found = adapter_bounds(
        adapter, place / "model", text=str(place / "text.txt"), tokens=64
    ).tables["modules"]
    row = found[found["module"] == "model.layers.0.self_attn.q_proj"].iloc[0]
    model, tokenizer = load_model(place / "model")
    tokens = split_tokens(
        tokenizer, load_text(place / "text.txt"), calibration=64, evaluation=0
    ).calibration
    seen = []
    layer = model.get_submodule(row["module"])
    layer.register_forward_pre_hook(lambda _, args: seen.append(args[0][0, 4:]))
    with torch.no_grad():
        model(input_ids=tokens[None])
    inputs = seen[0].double()
    assert row["examples"] == len(inputs) == 60
    assert row["input_length"] == pytest.approx(float(inputs.norm()) / 60**0.5, rel=1e-5)
    update = load_adapter(adapter).updates[row["module"]]
    dense = update.scaling * update.lora_b.double() @ update.lora_a.double()
    assert row["spectral_radius"] == pytest.approx(float(torch.linalg.matrix_norm(dense, 2)))
    assert row["frobenius_radius"] == pytest.approx(float(dense.norm()))
    for kind in ("spectral", "frobenius", "factors"):
        rng = torch.Generator().manual_seed(0)
        draws = sampled_complexity(
            kind, inputs, *(update.shape[0], 4, row[f"{kind}_radius"]), draws=20, generator=rng
        )
        assert float(draws.mean()) < row[f"{kind}_bound"]
        assert row[f"{kind}_bound"] < 4 * float(draws.mean())
    assert row["full_spectral_bound"] > row["spectral_bound"]


def test_the_bounds_command_and_what_it_refuses(place, adapter):
    result = run_command("bounds", adapter, "--samples", 100, "--input-norm", 2)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "full" in result.stdout
    half, whole = (
        adapter_bounds(adapter, samples=100, input_norm=norm).record.value("spectral_bound").value
        for norm in (1.0, 2.0)
    )
    assert whole == pytest.approx(2 * half)
    fewer = adapter_bounds(adapter, samples=25).record.value("spectral_bound").value
    assert fewer == pytest.approx(2 * half)  # 1 / sqrt(N), not the printed 1 / N
    printed = adapter_bounds(adapter, samples=25).record.value("printed_lora_bound").value
    known = adapter_bounds(adapter, samples=100).record.value("printed_lora_bound").value
    assert printed == pytest.approx(4 * known)
    table = adapter_bounds(adapter, place / "model").tables["memory"].set_index("method")
    model, _ = load_model(place / "model")
    assert table.loc["full", "trained_parameters"].iloc[0] == sum(
        p.numel() for p in model.parameters()
    )
    with pytest.raises(SettingError):
        adapter_bounds(adapter, samples=0)
    with pytest.raises(AdapterError):
        adapter_bounds(place / "model", place / "model")
