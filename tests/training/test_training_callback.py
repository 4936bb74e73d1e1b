"""The geometry by step agrees with dense decompositions of what the trainer really changed."""

import math

import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments

from gonio.errors import SettingError
from gonio.training import SpectrumCallback

pytest.importorskip("trl")

K = 2


def make_trainer(folder, model, tokenizer, text, callbacks, steps=4, **settings):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    rows = [{"input_ids": ids[i : i + 16], "labels": ids[i : i + 16]} for i in range(0, 320, 16)]
    arguments = {"learning_rate": 1e-2, "save_strategy": "no"} | settings
    return Trainer(
        model,
        TrainingArguments(
            str(folder),
            max_steps=steps,
            per_device_train_batch_size=2,
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            **arguments,
        ),
        train_dataset=rows,
        callbacks=callbacks,
    )


def peft_model(make_model, family, **changes):
    targets = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn"], "gpt_neox": ["dense"]}
    settings = {"r": 4, "lora_alpha": 8, "fan_in_fan_out": family == "gpt2"} | changes
    return get_peft_model(
        make_model(family), LoraConfig(target_modules=targets[family], **settings)
    )


def dense_row(change, base):
    """The same numbers by dense decompositions."""
    left, sigma, right = torch.linalg.svd(change.double())
    base_left, _, base_right = torch.linalg.svd(base.double())
    energy = sigma.square().cumsum(0) / sigma.square().sum()
    return {
        "frobenius_norm": change.double().norm().item(),
        "spectral_norm": sigma[0].item(),
        "stable_rank": (sigma.square().sum() / sigma[0] ** 2).item(),
        "k90": float((energy < 0.9).sum() + 1),
        "overlap_base_left": (left[:, :K].mT @ base_left[:, :K]).square().sum().item() / K,
        "overlap_base_right": (right[:K] @ base_right[:K].mT).square().sum().item() / K,
    }


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_the_last_step_agrees_with_peft_s_own_update(
    tmp_path, make_model, tokenizer, long_text, family
):
    model = peft_model(make_model, family, use_rslora=True)
    callback = SpectrumCallback(2, k=K)
    make_trainer(tmp_path, model, tokenizer, long_text, [callback]).train()
    table = callback.table
    assert sorted(table["step"].unique()) == [2, 4]
    layers = dict(model.base_model.model.named_modules())
    for row in table[table["step"] == 4].to_dict("records"):
        layer = layers[row["module"]]
        base = layer.get_base_layer().weight.detach()
        change = layer.get_delta_weight("default").detach()
        if family == "gpt2":
            base, change = base.mT, change.mT
        assert (row["out_features"], row["in_features"]) == tuple(base.shape)
        wanted = dense_row(change, base)
        assert {name: row[name] for name in wanted} == pytest.approx(wanted, rel=1e-4, abs=1e-5)
        assert row["chance_left"] == K / base.shape[0]
        assert row["chance_right"] == K / base.shape[1]
        assert 1 < row["random_lora_stable_rank"] < 4


def test_weights_that_are_trained_themselves(tmp_path, make_model, tokenizer, long_text):
    model = make_model("llama").train()
    start = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    names = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"]
    callback = SpectrumCallback(3, modules=names, k=K)
    make_trainer(tmp_path, model, tokenizer, long_text, [callback], steps=3).train()
    table = callback.table.set_index("module")
    assert list(table.index) == names
    assert table["rank"].isna().all()
    for name in names:
        end = model.get_parameter(f"{name}.weight").detach()
        wanted = dense_row(end - start[f"{name}.weight"], start[f"{name}.weight"])
        found = table.loc[name]
        assert {key: found[key] for key in wanted} == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_overlap_with_the_step_before(tmp_path, make_model, tokenizer, long_text):
    model = peft_model(make_model, "llama")
    seen = {}

    class Copies(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            layer = model.base_model.model.model.layers[0].self_attn.q_proj
            seen[state.global_step] = layer.get_delta_weight("default").detach().clone().double()

    callback = SpectrumCallback(1, modules=["model.layers.0.self_attn.q_proj"], k=K)
    make_trainer(tmp_path, model, tokenizer, long_text, [Copies(), callback]).train()
    table = callback.table.set_index("step")
    assert math.isnan(table.loc[1, "overlap_previous_left"])
    for step in (2, 3, 4):
        before, after = (torch.linalg.svd(seen[s])[0][:, :K] for s in (step - 1, step))
        wanted = (before.mT @ after).square().sum().item() / K
        assert table.loc[step, "overlap_previous_left"] == pytest.approx(wanted, abs=1e-5)


def test_the_log_and_trackers_see_the_means(tmp_path, make_model, tokenizer, long_text):
    class Tracker(TrainerCallback):
        def __init__(self):
            self.seen = []

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.seen.append(dict(logs))

    tracker = Tracker()
    trainer = make_trainer(
        tmp_path, peft_model(make_model, "llama"), tokenizer, long_text, [tracker]
    )
    callback = SpectrumCallback(2, k=K).attach(trainer)
    trainer.train()
    mean = callback.table.groupby("step")["stable_rank"].mean()
    history = {row["step"]: row for row in trainer.state.log_history if "loss" in row}
    assert "gonio/stable_rank" not in history[1]
    for step in (2, 4):
        assert history[step]["gonio/stable_rank"] == pytest.approx(mean[step])
        assert tracker.seen[step - 1]["gonio/stable_rank"] == pytest.approx(mean[step])
    assert 0 < callback.measuring_seconds < callback.training_seconds
    assert callback.overhead > 0


def test_a_resumed_run_keeps_the_rows_before(tmp_path, make_model, tokenizer, long_text):
    path = tmp_path / "out" / "geometry.parquet"
    checkpoints = {"save_strategy": "steps", "save_steps": 2}

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    def run(name, callbacks, resume=None):
        trainer = make_trainer(
            tmp_path / name,
            peft_model(make_model, "llama"),
            tokenizer,
            long_text,
            callbacks,
            **checkpoints,
        )
        trainer.train(resume_from_checkpoint=resume)

    torch.manual_seed(0)
    whole = SpectrumCallback(1, k=0)
    run("whole", [whole])
    torch.manual_seed(0)
    run("halved", [SpectrumCallback(1, k=0, path=path), Stop()])
    run("halved", [SpectrumCallback(1, k=0, path=path)], str(tmp_path / "halved" / "checkpoint-2"))
    pd.testing.assert_frame_equal(pd.read_parquet(path), whole.table)


def test_a_number_of_modules_is_spread_over_the_model(tmp_path, make_model, tokenizer, long_text):
    callback = SpectrumCallback(4, modules=2, k=0)
    trainer = make_trainer(
        tmp_path, peft_model(make_model, "llama"), tokenizer, long_text, [callback]
    )
    trainer.train()
    layers = callback.table["module"].str.extract(r"layers\.(\d)")[0]
    assert sorted(layers) == ["0", "1"]
    assert callback.table[["overlap_base_left", "chance_left"]].isna().all(axis=None)


def test_what_cannot_be_followed_is_said(tmp_path, make_model, tokenizer, long_text):
    mixed = LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"])
    callback = SpectrumCallback(4, k=0)
    trainer = make_trainer(
        tmp_path, get_peft_model(make_model("llama"), mixed), tokenizer, long_text, [callback]
    )
    with pytest.warns(UserWarning, match="1 LoRA layers are not followed: not a linear layer"):
        trainer.train()
    assert list(callback.left_out) == ["model.embed_tokens"]
    dora = peft_model(make_model, "llama", use_dora=True)
    with pytest.raises(SettingError, match="changes more than B @ A"):
        make_trainer(tmp_path, dora, tokenizer, long_text, [SpectrumCallback()]).train()
    with pytest.raises(SettingError, match=r"no update of lm_head; there are model\.layers"):
        make_trainer(
            tmp_path,
            peft_model(make_model, "llama"),
            tokenizer,
            long_text,
            [SpectrumCallback(modules=["lm_head"])],
        ).train()


@pytest.mark.parametrize("settings", [{"every": 0}, {"k": -1}, {"modules": 0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(SettingError):
        SpectrumCallback(**settings)
