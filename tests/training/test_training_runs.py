"""Trainings of tiny models: they learn, write whole folders, and leave nothing else changed."""

import json
import math
import random
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import TrainerCallback

from gonio.errors import DataError, MissingDependencyError, OutputError, SettingError
from gonio.training import (
    PreferencePair,
    make_recipe,
    pair_log_probs,
    pairs_sha256,
    summarize_preferences,
    tokenize_pair,
    train_clm,
    train_dpo,
)
from gonio.training.backend import require_trackers

pytest.importorskip("trl")

TRAIN = {"dpo": train_dpo, "clm": train_clm}
MAX_LENGTH = 24


def recipe(kind="dpo", **changes):
    settings = {"steps": 3, "learning_rate": 1e-2, "batch_size": 2, "max_length": MAX_LENGTH}
    settings |= {"r": 4, "lora_alpha": 8, "seed": 5}
    return make_recipe(kind, **{**settings, **changes})


def copy_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def numpy_state():
    return np.random.get_state()[1].copy()  # noqa: NPY002 - the trainers seed the legacy generator


def seed_everything(seed):
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - see above
    torch.manual_seed(seed)


def adapter_of(folder):
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2"])
@pytest.mark.parametrize("kind", ["dpo", "clm"])
def test_the_loss_falls_on_a_few_pairs(tmp_path, make_model, tokenizer, pairs, kind, family):
    run = TRAIN[kind](
        make_model(family), tokenizer, pairs, recipe(kind, steps=30, batch_size=4), tmp_path / "run"
    )
    loss = run.log["loss"]
    if kind == "dpo":
        assert loss.iloc[0] == pytest.approx(
            math.log(2.0), abs=1e-5
        )  # float32 sums of some 20 nats
        assert loss.iloc[-1] < 0.2
        assert run.log["reward_margin"].iloc[-1] > 1.0
        assert run.log["preference_accuracy"].iloc[-1] == 1.0
    else:
        assert loss.iloc[-1] < 0.7 * loss.iloc[0]
    assert run.log["step"].tolist() == list(range(1, 31))
    assert np.isfinite(run.log.to_numpy(dtype=float)).all()


@pytest.mark.parametrize("kind", ["dpo", "clm"])
def test_training_changes_the_adapter_and_nothing_else(
    tmp_path, make_model, tokenizer, pairs, kind
):
    model = make_model()
    weights, tree = copy_of(model), [(n, type(m)) for n, m in model.named_modules()]
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    config = model.config.to_dict()
    seed_everything(99)
    states = torch.get_rng_state(), random.getstate(), numpy_state()
    TRAIN[kind](model, tokenizer, pairs, recipe(kind), tmp_path / "run")
    assert model.state_dict().keys() == weights.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    assert [(n, type(m)) for n, m in model.named_modules()] == tree
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert model.config.to_dict() == config
    assert not model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert tokenizer.pad_token is None
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(numpy_state(), states[2])


def test_the_folder_is_a_peft_folder_with_only_lora_weights(tmp_path, make_model, tokenizer, pairs):
    out = tmp_path / "deep" / "run"
    train_dpo(make_model(), tokenizer, pairs, recipe(use_rslora=True), out, base_name="tiny")
    weights = adapter_of(out)
    assert len(weights) == 2 * 2 * 7  # A and B, two layers, seven projections
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in weights)
    assert all(torch.count_nonzero(tensor) for tensor in weights.values())
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (4, 8, True)
    assert (config["base_model_name_or_path"], config["bias"]) == ("tiny", "none")
    assert {path.name for path in out.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "training.json",
        "training_log.parquet",
    }
    assert [path.name for path in out.parent.iterdir()] == ["run"]
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in out.iterdir())
    loaded = PeftModel.from_pretrained(make_model(), out)
    inside = {n.replace(".default", ""): p for n, p in loaded.named_parameters() if "lora_" in n}
    assert inside.keys() == weights.keys()
    assert all(torch.equal(inside[name], weights[name]) for name in weights)


def test_the_log_and_the_provenance_are_stored(tmp_path, make_model, tokenizer, pairs):
    run = train_dpo(make_model(), tokenizer, pairs, recipe(), tmp_path / "run", base_name="tiny")
    pd.testing.assert_frame_equal(pd.read_parquet(run.folder / "training_log.parquet"), run.log)
    assert {"reward_margin", "preference_accuracy", "grad_norm", "learning_rate"} <= set(run.log)
    stored = json.loads((run.folder / "training.json").read_text())
    assert make_recipe("dpo", **stored["recipe"]) == recipe()
    assert stored["pairs"] == {"count": 4, "sha256": pairs_sha256(pairs)}
    assert stored["base"] == "tiny"
    assert stored["num_trainable"] == sum(t.numel() for t in adapter_of(run.folder).values())


def test_the_logged_reward_is_that_of_our_evaluation(tmp_path, make_model, tokenizer, pairs):
    """Train one step, then log the second at learning rate ~0: its margin is the adapter's."""
    model = make_model()
    base = pair_log_probs(model, tokenizer, pairs, max_length=MAX_LENGTH)
    one_step = recipe(steps=1, batch_size=4)
    out = train_dpo(model, tokenizer, pairs, one_step, tmp_path / "one").folder
    trained = pair_log_probs(
        PeftModel.from_pretrained(make_model(), out), tokenizer, pairs, max_length=MAX_LENGTH
    )
    ours = one_step.beta * summarize_preferences(trained, base).mean_margin
    two_steps = recipe(steps=2, batch_size=4)
    logged = train_dpo(model, tokenizer, pairs, two_steps, tmp_path / "two").log["reward_margin"]
    assert logged.iloc[0] == pytest.approx(0.0, abs=1e-4)
    assert logged.iloc[1] == pytest.approx(ours, rel=1e-3)  # float32 sums, differences of 20 nats
    assert abs(ours) > 1e-2


@pytest.mark.parametrize("kind", ["dpo", "clm"])
def test_the_seed_decides_everything(tmp_path, make_model, tokenizer, pairs, kind):
    adapters = []
    for name, seed in [("first", 5), ("again", 5), ("other", 6)]:
        seed_everything(len(adapters))  # what came before must not matter
        settings = recipe(kind, seed=seed, dropout=0.1, learning_rate=1e-5)
        run = TRAIN[kind](make_model(), tokenizer, pairs, settings, tmp_path / name)
        adapters.append(adapter_of(run.folder))
    first, again, other = adapters
    assert all(torch.equal(first[name], again[name]) for name in first)
    # Three steps of Adam move an entry by 3e-5 at most: what differs more is the initialization.
    assert all((first[n] - other[n]).abs().max() > 0.01 for n in first if "lora_A" in n)


def test_the_seed_decides_the_order_of_the_data(tmp_path, make_model, tokenizer, pairs):
    """B is zero before the first step, so its loss depends on the pair alone."""
    losses = set()
    for seed in range(4):
        settings = recipe("clm", steps=1, batch_size=1, seed=seed)
        run = train_clm(make_model(), tokenizer, pairs, settings, tmp_path / f"run-{seed}")
        losses.add(round(run.log["loss"].iloc[0], 4))
    assert 1 < len(losses) <= len(pairs)


def test_the_loss_of_clm_is_that_of_the_chosen_responses(tmp_path, make_model, tokenizer, pairs):
    """Mean over their tokens, prompts not scored, by our own log-probabilities."""
    tokens = [tokenize_pair(tokenizer, pair, MAX_LENGTH) for pair in pairs]
    scored = sum(len(pair.chosen) for pair in tokens)
    total = pair_log_probs(make_model(), tokenizer, pairs, max_length=MAX_LENGTH).chosen.sum()
    settings = recipe("clm", steps=1, batch_size=4)
    run = train_clm(make_model(), tokenizer, pairs, settings, tmp_path / "run")
    assert run.log["loss"].iloc[0] == pytest.approx(-float(total) / scored, rel=1e-5)  # float32


@pytest.mark.parametrize(
    ("family", "targets", "modules"),
    [("llama", ("q_proj", "v_proj"), 4), ("gpt_neox", ("query_key_value", "dense"), 4)],
)
def test_only_the_named_modules_get_an_adapter(
    tmp_path, make_model, tokenizer, pairs, family, targets, modules
):
    settings = recipe(target_modules=targets)
    run = train_dpo(make_model(family), tokenizer, pairs, settings, tmp_path / "run")
    weights = adapter_of(run.folder)
    assert len(weights) == 2 * modules
    assert {name.split(".")[-3] for name in weights} == set(targets)


@pytest.mark.parametrize("targets", [("q_proj", "query"), ("lm_head",)])
def test_an_unknown_module_and_the_output_head_are_refused(
    tmp_path, make_model, tokenizer, pairs, targets
):
    settings = recipe(target_modules=targets)
    with pytest.raises(SettingError, match=f"{targets[-1]} in LlamaForCausalLM.*down_proj"):
        train_dpo(make_model(), tokenizer, pairs, settings, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["dpo", "clm"])
def test_an_interrupted_run_leaves_nothing_and_restores_the_model(
    tmp_path, make_model, tokenizer, pairs, kind
):
    model, old = make_model(), tmp_path / "old"
    tree = [(n, type(m)) for n, m in model.named_modules()]
    TRAIN[kind](model, tokenizer, pairs, recipe(kind), old)
    before = adapter_of(old)

    def interrupt(what, done, total):
        if done == 2:
            raise KeyboardInterrupt

    for out, overwrite in [(tmp_path / "new", False), (old, True)]:
        with pytest.raises(KeyboardInterrupt):
            TRAIN[kind](
                *(model, tokenizer, pairs, recipe(kind), out),
                progress=interrupt,
                overwrite=overwrite,
            )
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert all(torch.equal(before[name], tensor) for name, tensor in adapter_of(old).items())
    assert [(n, type(m)) for n, m in model.named_modules()] == tree
    assert "forward" not in vars(model)


def test_progress_counts_the_steps(tmp_path, make_model, tokenizer, pairs):
    seen = []

    def report(*step):
        seen.append(step)

    train_dpo(make_model(), tokenizer, pairs, recipe(), tmp_path / "run", progress=report)
    assert seen == [("preparing", 0, 3), *(("training", done, 3) for done in range(4))]


def test_what_a_tracker_writes_is_kept(tmp_path, make_model, tokenizer, pairs):
    class Tracker(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            Path(args.output_dir).mkdir(exist_ok=True)
            (Path(args.output_dir) / "events").write_text("one", encoding="utf-8")

    run = train_dpo(
        make_model(), tokenizer, pairs, recipe(), tmp_path / "run", callbacks=[Tracker()]
    )
    assert (run.folder / "trackers" / "events").read_text(encoding="utf-8") == "one"
    assert not list(run.folder.glob(".*"))


def test_a_tracker_that_is_not_installed_is_named(monkeypatch):
    from transformers.integrations import integration_utils

    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", list)
    with pytest.raises(MissingDependencyError, match="tracker wandb is not installed"):
        require_trackers(["wandb"])


@pytest.mark.parametrize("kind", ["dpo", "clm"])
def test_nothing_is_printed_and_nothing_is_deprecated(
    tmp_path, make_model, tokenizer, pairs, kind, capfd
):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        TRAIN[kind](make_model(), tokenizer, pairs, recipe(kind), tmp_path / "run")
    deprecated = (FutureWarning, DeprecationWarning, PendingDeprecationWarning)
    assert [str(w.message) for w in caught if issubclass(w.category, deprecated)] == []
    assert capfd.readouterr().out == ""


def test_pairs_that_do_not_fit_are_an_error(tmp_path, make_model, tokenizer, pairs):
    long = PreferencePair(" ".join(["river"] * 40), " stone", " copper")
    with pytest.raises(DataError, match="1 of 5 prompts fill max_length 24"):
        train_dpo(make_model(), tokenizer, [*pairs, long], recipe(), tmp_path / "run")
    with pytest.raises(DataError, match="no pairs"):
        train_clm(make_model(), tokenizer, [], recipe("clm"), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_full_folder_is_kept_unless_asked(tmp_path, make_model, tokenizer, pairs):
    out = tmp_path / "run"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"is not empty.*--force"):
        train_dpo(make_model(), tokenizer, pairs, recipe(), out)
    assert (out / "notes.txt").read_text() == "mine"
    train_dpo(make_model(), tokenizer, pairs, recipe(), out, overwrite=True)
    assert (out / "adapter_model.safetensors").is_file()
    with pytest.raises(OutputError, match="a file is there"):
        train_dpo(make_model(), tokenizer, pairs, recipe(), out / "training.json")


def test_a_diverged_training_is_an_error(tmp_path, make_model, tokenizer, pairs):
    settings = recipe("clm", learning_rate=1e30, steps=6)
    with pytest.raises(SettingError, match="diverged: the loss at step"):
        train_clm(make_model(), tokenizer, pairs, settings, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [1.0, 1.0, 1.0, 1.0]),
        ("constant", 2, [0.0, 0.5, 1.0, 1.0]),
        ("linear", 0, [1.0, 0.75, 0.5, 0.25]),
        ("cosine", 2, [0.0, 0.5, 1.0, 0.5]),
    ],
)
def test_the_learning_rate_follows_the_schedule(
    tmp_path, make_model, tokenizer, pairs, schedule, warmup, expected
):
    settings = recipe("clm", steps=4, schedule=schedule, warmup_steps=warmup)
    run = train_clm(make_model(), tokenizer, pairs, settings, tmp_path / "run")
    assert run.log["learning_rate"].tolist() == pytest.approx([1e-2 * x for x in expected])
