"""Gain energy against dense projections and simulation; which norm each real model reads."""

import math

import pytest
import torch
import transformers

from gonio.adapters import load_adapter
from gonio.adapters.norm_gain import norm_gain_table
from gonio.errors import AdapterError, SettingError
from gonio.models import WeightReader

BLOCK = "model.layers.0"
Q0 = f"{BLOCK}.self_attn.q_proj"


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("form", ["raw", "centered"])
def test_shares_equal_dense_projections(form, make_adapter, weight_source):
    lora_b, lora_a, gain = normal(12, 4), normal(4, 9, seed=1), 1 + 0.3 * normal(9, seed=2)
    weights = weight_source(
        {f"{Q0}.weight": normal(12, 9), f"{BLOCK}.input_layernorm.weight": gain}
    )
    found = norm_gain_table(make_adapter({Q0: (lora_b, lora_a)}), weights, ks=(1, 3, 7))
    vector = gain if form == "raw" else gain - gain.mean()
    right = torch.linalg.svd(lora_b @ lora_a).Vh
    rows = found.shares.query("gain == @form and k_from == 'fixed'")
    assert rows["k"].tolist() == [1, 3]
    for row in rows.itertuples():
        projector = right[: row.k].mT @ right[: row.k]
        expected = float((projector @ vector).norm() ** 2 / vector.norm() ** 2)
        assert row.share == pytest.approx(expected, rel=1e-10)
        assert row.chance == row.k / 9
    assert (Q0, "k = 7 exceeds the update's numerical rank 4") in found.left_out


def test_a_planted_gain_is_found_and_its_centered_part_is_apart(make_adapter, weight_source):
    """The update reads the all-ones direction: most of a gain near 1, none of its variation."""
    n = 50
    gain = 1 + 0.2 * normal(n, seed=3)
    ones = torch.full((1, n), 1 / math.sqrt(n), dtype=torch.float64)
    weights = weight_source(
        {f"{Q0}.weight": normal(20, n), f"{BLOCK}.input_layernorm.weight": gain}
    )
    found = norm_gain_table(make_adapter({Q0: (normal(20, 1), ones)}), weights, ks=(1,))
    rows = found.shares.query("k_from == 'fixed'").set_index("gain")
    assert rows.loc["raw", "share"] > 0.9
    assert rows.loc["raw", "p_value"] < 1e-9
    assert rows.loc["raw", "z_score"] > 10
    assert rows.loc["centered", "share"] == pytest.approx(0.0, abs=1e-12)


def test_the_null_is_that_of_random_updates(make_adapter, weight_source):
    """400 random updates: uniform p-values, standard z-scores, 5% outside the interval."""
    names = [f"model.layers.{i}.self_attn.q_proj" for i in range(400)]
    tensors = {f"{name}.weight": torch.zeros(10, 16) for name in names}
    gain = 1 + 0.5 * normal(16, seed=7)
    tensors |= {f"model.layers.{i}.input_layernorm.weight": gain for i in range(400)}
    pairs = {
        name: (normal(10, 4, seed=i), normal(4, 16, seed=1000 + i)) for i, name in enumerate(names)
    }
    found = norm_gain_table(make_adapter(pairs), weight_source(tensors), ks=(3,)).shares
    for form in ("raw", "centered"):
        rows = found[(found["gain"] == form) & (found["k_from"] == "fixed")]
        assert len(rows) == 400
        assert abs(rows["z_score"].mean()) < 4 / 20
        assert rows["z_score"].std() == pytest.approx(1.0, abs=0.15)
        assert rows["p_value"].mean() == pytest.approx(0.5, abs=4 * 0.289 / 20)
        outside = (rows["share"] < rows["chance_low"]) | (rows["share"] > rows["chance_high"])
        assert outside.mean() == pytest.approx(0.05, abs=4 * 0.0109)


READS = {
    "llama": {
        "self_attn.q_proj": "input_layernorm",
        "self_attn.k_proj": "input_layernorm",
        "self_attn.v_proj": "input_layernorm",
        "mlp.gate_proj": "post_attention_layernorm",
        "mlp.up_proj": "post_attention_layernorm",
    },
    "gpt2": {"attn.c_attn": "ln_1", "mlp.c_fc": "ln_2"},
    "neox": {
        "attention.query_key_value": "input_layernorm",
        "mlp.dense_h_to_4h": "post_attention_layernorm",
    },
}


@pytest.mark.parametrize("family", READS)
def test_saved_models_are_read_through_the_norm_that_feeds_them(family, save_with_peft):
    """Doubling the named gain in the model itself doubles the module's input."""
    saved = save_with_peft(family, r=2, target_modules="all-linear")
    with WeightReader(saved.base) as weights:
        found = norm_gain_table(load_adapter(saved.adapter), _Varied(weights), ks=(1,))
    rows = found.shares.drop_duplicates("module")
    read = {(row.projection, row.norm.split(".")[-2]) for row in rows.itertuples()}
    assert read == set(READS[family].items())
    assert {why for _, why in found.left_out} == {"not known to read from a normalization layer"}
    model = transformers.AutoModelForCausalLM.from_pretrained(saved.base)
    for row in rows.itertuples():
        before = _input(model, row.module)
        prefix = "" if row.norm in model.state_dict() else f"{model.base_model_prefix}."
        gain = model.get_parameter(prefix + row.norm)
        with torch.no_grad():
            gain.mul_(2)
            torch.testing.assert_close(_input(model, row.module), 2 * before)
            gain.div_(2)


def _input(model: torch.nn.Module, module: str) -> torch.Tensor:
    """What a module reads on a fixed sequence."""
    seen = []
    layer = model.get_submodule(module)
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(torch.arange(8)[None])
    handle.remove()
    return seen[0]


class _Varied:
    """The weights of a fresh model, whose gains are all one, with gains that vary."""

    def __init__(self, weights: WeightReader) -> None:
        self._weights = weights
        self.names, self.shape = weights.names, weights.shape

    def get(self, name: str) -> torch.Tensor:
        tensor = self._weights.get(name)
        return tensor + torch.linspace(0, 1, len(tensor)) if tensor.ndim == 1 else tensor


@pytest.mark.parametrize(
    ("projection", "present", "read"),
    [
        ("mlp.gate_proj", ("post_attention_layernorm", "pre_feedforward_layernorm",
                           "post_feedforward_layernorm", "input_layernorm"),
         "pre_feedforward_layernorm"),
        ("mlp.up_proj", ("input_layernorm", "post_attention_layernorm", "post_self_attn_layernorm",
                         "post_mlp_layernorm"), "post_attention_layernorm"),
        ("mlp.gate_proj", ("input_layernorm",), "input_layernorm"),
        ("mlp.fc1", ("input_layernorm",), "input_layernorm"),
        ("mlp.gate_proj", ("post_attention_layernorm", "post_feedforward_layernorm"), None),
        ("self_attn.q_proj", ("post_attention_layernorm", "post_feedforward_layernorm"), None),
        ("fc1", ("self_attn_layer_norm", "final_layer_norm"), "final_layer_norm"),
        ("self_attn.v_proj", ("self_attn_layer_norm", "final_layer_norm"), "self_attn_layer_norm"),
        ("self_attention.query_key_value", ("ln_attn", "ln_mlp"), "ln_attn"),
        ("mlp.experts.3.up_proj", ("input_layernorm", "post_attention_layernorm"),
         "post_attention_layernorm"),
    ],
    ids=["gemma2", "glm4", "cohere", "phi", "olmo2 mlp", "olmo2 attention", "opt mlp",
         "opt attention", "falcon", "experts"],
)  # fmt: skip
def test_names_of_other_families(projection, present, read, make_adapter, weight_source):
    module = f"{BLOCK}.{projection}"
    tensors = {f"{module}.weight": normal(6, 5)}
    tensors |= {f"{BLOCK}.{name}.weight": 1 + normal(5, seed=i) for i, name in enumerate(present)}
    adapter = make_adapter({module: (normal(6, 2), normal(2, 5, seed=1))})
    if read is None:
        with pytest.raises(AdapterError, match="none of the normalization layers"):
            norm_gain_table(adapter, weight_source(tensors))
    else:
        found = norm_gain_table(adapter, weight_source(tensors), ks=(1,))
        assert set(found.shares["norm"]) == {f"{BLOCK}.{read}.weight"}


@pytest.mark.parametrize(("model_type", "stored"), [("gemma2", -1.0), ("llama", 0.0), (None, 0.0)])
def test_gains_stored_less_one_are_restored(model_type, stored, make_adapter, weight_source):
    gain = 1 + 0.3 * normal(9, seed=2)
    pair = normal(12, 4), normal(4, 9, seed=1)
    tables = []
    for offset, kind in ((0.0, "llama"), (stored, model_type)):
        tensors = {f"{Q0}.weight": normal(12, 9)}
        tensors[f"{BLOCK}.input_layernorm.weight"] = gain + offset
        found = norm_gain_table(
            make_adapter({Q0: pair}), weight_source(tensors), ks=(2,), model_type=kind
        )
        tables.append(found.shares["share"])
    assert tables[0].tolist() == pytest.approx(tables[1].tolist(), rel=1e-9)


def test_what_cannot_be_measured_is_said(make_adapter, weight_source):
    pair = normal(6, 2), normal(2, 5, seed=1)
    tensors = {f"{Q0}.weight": normal(6, 5), f"{BLOCK}.input_layernorm.weight": torch.ones(5)}
    found = norm_gain_table(make_adapter({Q0: pair}), weight_source(tensors), ks=(1,))
    assert set(found.shares["gain"]) == {"raw"}
    assert any("centered gain is zero" in why for _, why in found.left_out)
    with pytest.raises(AdapterError, match="zero update"):
        norm_gain_table(make_adapter({Q0: (0 * pair[0], pair[1])}), weight_source(tensors))
    tensors[f"{BLOCK}.input_layernorm.weight"] = torch.ones(4)
    with pytest.raises(AdapterError, match="does not have its 5 inputs"):
        norm_gain_table(make_adapter({Q0: pair}), weight_source(tensors))
    tensors[f"{BLOCK}.input_layernorm.weight"] = torch.full((5,), torch.inf)
    with pytest.raises(AdapterError, match="NaN or infinite"):
        norm_gain_table(make_adapter({Q0: pair}), weight_source(tensors))
    with pytest.raises(SettingError, match="at least 1"):
        norm_gain_table(make_adapter({Q0: pair}), weight_source(tensors), ks=(0,))


def test_a_subspace_that_is_everything_has_no_z_score(make_adapter, weight_source):
    gain = 1 + normal(3, seed=4)
    tensors = {f"{Q0}.weight": normal(6, 3), f"{BLOCK}.input_layernorm.weight": gain}
    adapter = make_adapter({Q0: (normal(6, 3), normal(3, 3, seed=1))})
    row = norm_gain_table(adapter, weight_source(tensors), ks=(3,)).shares.query("k == 3").iloc[0]
    assert (row["share"], row["chance"]) == (pytest.approx(1.0), 1.0)
    assert math.isnan(row["z_score"])
    assert math.isnan(row["p_value"])
