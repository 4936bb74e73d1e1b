"""Gradients of factors: closed forms against autograd through the dense weight, growth by rank."""

import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments

from gonio.cli.main import cli
from gonio.errors import SettingError, ShapeError
from gonio.training.factor_gradients import (
    FactorGradients,
    expected_gradient_ratio,
    factor_gradients,
    gradient_exponent,
    imbalance,
    lora_scaling,
)
from gonio.training.gradient_callback import GradientCallback

pytest.importorskip("trl")

TARGETS = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn"], "gpt_neox": ["dense"]}


def relative(found, wanted):
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-300))


@given(
    m=st.integers(1, 7),
    n=st.integers(1, 7),
    rank=st.integers(1, 9),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    seed=st.integers(0, 1000),
)
def test_closed_forms_equal_autograd_through_a_nonlinear_loss(m, n, rank, scale, seed):
    rng = torch.Generator().manual_seed(seed)
    weight, inputs = (
        torch.randn(shape, generator=rng, dtype=torch.float64) for shape in ((m, n), (5, n))
    )
    lora_b, lora_a = (
        torch.randn(shape, generator=rng, dtype=torch.float64) for shape in ((m, rank), (rank, n))
    )
    scaling = scale / rank

    def loss(full):
        return (inputs @ full.mT).sin().square().sum()

    factors = [lora_b.clone().requires_grad_(), lora_a.clone().requires_grad_()]
    loss(weight + scaling * factors[0] @ factors[1]).backward()
    full = (weight + scaling * lora_b @ lora_a).requires_grad_()
    loss(full).backward()
    found = factor_gradients(full.grad, lora_b, lora_a, scaling)
    assert relative(found.lora_b, factors[0].grad) < 1e-6
    assert relative(found.lora_a, factors[1].grad) < 1e-6
    assert imbalance(lora_b, lora_a, found) < 1e-10


def test_wrong_gradients_are_told(rng):
    """Near misses: one factor's gradient 1 % off, or a weight decay that got into it."""
    weight = torch.randn(6, 5, generator=rng)
    lora_b, lora_a = torch.randn(6, 3, generator=rng), torch.randn(3, 5, generator=rng)
    found = factor_gradients(weight, lora_b, lora_a, 2.0)
    assert imbalance(lora_b, lora_a, found) < 1e-6
    assert imbalance(lora_b, lora_a, found._replace(lora_b=1.01 * found.lora_b)) > 1e-3
    decayed = FactorGradients(found.lora_a, found.lora_b + 0.1 * lora_b)
    assert imbalance(lora_b, lora_a, decayed) > 1e-3
    with pytest.raises(ShapeError, match="are not those of a weight"):
        factor_gradients(weight.mT, lora_b, lora_a, 2.0)
    assert imbalance(torch.zeros(6, 3), lora_a, FactorGradients(torch.zeros(3, 5), lora_b)) == 0.0


@pytest.mark.parametrize("rule", ["lora", "rslora"])
def test_the_gradient_at_the_start_scales_as_said(rule, rng):
    """Mean over draws of A of |G A^T|^2, and the exponent between two ranks."""
    weight = torch.randn(9, 12, generator=rng, dtype=torch.float64)
    means = {}
    for rank in (2, 32):
        scaling = lora_scaling(rule, 8.0, rank)
        ratios = []
        for _ in range(400):
            lora_a = (torch.rand(rank, 12, generator=rng, dtype=torch.float64) * 2 - 1) / 12**0.5
            gradients = factor_gradients(weight, torch.zeros(9, rank).double(), lora_a, scaling)
            assert not gradients.lora_a.any()
            ratios.append(float(gradients.lora_b.norm() / weight.norm()) ** 2)
        means[rank] = math.sqrt(np.mean(ratios))
        assert means[rank] == pytest.approx(expected_gradient_ratio(scaling, rank, 1 / 36), rel=0.1)
    slope = math.log(means[32] / means[2]) / math.log(16)
    assert slope == pytest.approx(gradient_exponent(rule), abs=0.06)


def make_trainer(folder, model, tokenizer, text, callbacks, **settings):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    rows = [{"input_ids": ids[i : i + 16], "labels": ids[i : i + 16]} for i in range(0, 320, 16)]
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=2,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
        learning_rate=1e-2,
        **settings,
    )
    return Trainer(model, arguments, train_dataset=rows, callbacks=callbacks)


class Dense(TrainerCallback):
    """Keeps the gradient of a layer's full weight, and the factors it was taken at, by step."""

    def __init__(self, layer):
        self.layer, self.seen = layer, {}

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        gradient = self.layer.get_base_layer().weight.grad.double()
        factors = (self.layer.lora_B["default"].weight, self.layer.lora_A["default"].weight)
        copies = tuple(factor.detach().double().clone() for factor in factors)
        self.seen[state.global_step] = (gradient.clone(), *copies)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_the_callback_reports_what_the_full_weight_s_gradient_predicts(
    tmp_path, make_model, tokenizer, long_text, family
):
    """Autograd gives G too when the base weight of a layer is trained beside its factors."""
    settings = {"r": 4, "lora_alpha": 8, "fan_in_fan_out": family == "gpt2"}
    model = get_peft_model(
        make_model(family), LoraConfig(target_modules=TARGETS[family], **settings)
    )
    name, layer = next((n, m) for n, m in model.named_modules() if hasattr(m, "lora_A"))
    layer.get_base_layer().weight.requires_grad_()
    dense = Dense(layer)
    callback = GradientCallback(path=tmp_path / "gradients.parquet", closed_forms=True)
    make_trainer(
        *(tmp_path, model, tokenizer, long_text, [dense, callback]), max_steps=3, max_grad_norm=0.0
    ).train()
    table = callback.table
    assert list(table["step"].unique()) == [0, 1, 2, 3]
    mine = table[table["module"] == name.removeprefix("base_model.model.")].set_index("step")
    for step, (gradient, lora_b, lora_a) in dense.seen.items():
        full = gradient.mT if family == "gpt2" else gradient
        wanted = factor_gradients(full, lora_b, lora_a, 2.0)
        descent = 2.0 * (lora_b @ wanted.lora_a + wanted.lora_b @ lora_a)
        found = mine.loc[step]
        assert found["gradient_a"] == pytest.approx(float(wanted.lora_a.norm()), rel=1e-5)
        assert found["gradient_b"] == pytest.approx(float(wanted.lora_b.norm()), rel=1e-5)
        assert found["closed_gradient_a"] == pytest.approx(float(wanted.lora_a.norm()), rel=1e-5)
        assert found["closed_gradient_b"] == pytest.approx(float(wanted.lora_b.norm()), rel=1e-5)
        assert found["weight_gradient"] == pytest.approx(float(full.norm()), rel=1e-5)
        assert found["descent_norm"] == pytest.approx(float(descent.norm()), rel=1e-5)
    start = table[table["step"] == 0]
    assert (start[["gradient_a", "norm_b", "update_norm"]] == 0).all(axis=None)
    assert (table.loc[table["step"].isin([1, 2]), "gradient_a"] > 0).all()
    assert table["imbalance"].max() < 1e-4
    assert table.loc[table["step"] == 3, "gradient_a"].isna().all()
    change = layer.get_delta_weight("default").detach()
    assert mine.loc[3, "update_norm"] == pytest.approx(float(change.norm()), rel=1e-5)
    assert (tmp_path / "gradients.parquet").is_file()


def test_models_without_factors_and_settings_out_of_range_are_refused(
    tmp_path, make_model, tokenizer, long_text
):
    model = make_model("llama").train()
    with pytest.raises(SettingError, match="no LoRA layer to follow"):
        make_trainer(
            tmp_path, model, tokenizer, long_text, [GradientCallback()], max_steps=1
        ).train()
    with pytest.raises(SettingError):
        GradientCallback(0)
    with pytest.raises(SettingError):
        lora_scaling("none", 1.0, 2)
    with pytest.raises(SettingError):
        expected_gradient_ratio(1.0, 0, 1.0)


def test_the_command_prints_growth_by_rank(tmp_path, make_model, tokenizer, long_text):
    folder, text = tmp_path / "model", tmp_path / "text.txt"
    make_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    text.write_text(long_text, encoding="utf-8")
    arguments = ["adapter", "dynamics", folder, "--data", text, "--rank", "1", "--rank", "16"]
    arguments += ["--steps", "2", "--max-length", "120", "--kind", "clm"]
    result = CliRunner().invoke(cli, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed["record"]["kind"] == "adapter-dynamics"
    rows = {(row["scaling_rule"], row["rank"]): row for row in printed["tables"]["growth"]}
    assert len(rows) == 4
    assert all(row["gradient_a_at_start"] == 0 for row in rows.values())
    assert all(row["imbalance"] < 1e-4 for row in rows.values())
    assert rows["lora", 1]["gradient_b_at_start"] == pytest.approx(
        rows["rslora", 1]["gradient_b_at_start"], rel=1e-5
    )
    ratio = rows["rslora", 16]["gradient_b_at_start"] / rows["lora", 16]["gradient_b_at_start"]
    assert ratio == pytest.approx(4.0, rel=1e-4)  # same A: sqrt(16) times the scaling
    assert all(row["closed_form_error"] < 1e-4 for row in rows.values())
    for row in rows.values():  # 14 modules of 32 columns, one draw of A
        expected = row["expected_gradient_b_at_start"]
        assert row["gradient_b_at_start"] == pytest.approx(expected, rel=0.5)
    few = CliRunner().invoke(cli, [*map(str, arguments), "--rank", "16"])
    assert few.exit_code == 2
    assert "distinct ranks" in few.stderr
