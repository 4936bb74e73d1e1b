"""Second moments of inputs: against inputs taken by hand, shared where they are shared."""

import pytest
import torch
import transformers

from gonio.errors import ModelError, SettingError, ShapeError
from gonio.models.activations import input_second_moments

COMMON = {"vocab_size": 40, "bos_token_id": 0, "eos_token_id": 1}


@pytest.fixture
def llama():
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        **COMMON,
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture
def gpt2():
    torch.manual_seed(3)
    config = transformers.GPT2Config(n_embd=24, n_layer=2, n_head=4, n_positions=16, **COMMON)
    return transformers.GPT2LMHeadModel(config).eval()


@pytest.fixture
def windows(rng):
    return torch.randint(0, 40, (5, 12), generator=rng)


def weights_of(model):
    return [
        name
        for name, module in model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D")
    ]


def inputs_by_hand(model, windows, name):
    """Every input of one layer, from one batched pass in which outputs are untouched."""
    seen = []
    layer = model.get_submodule(name)
    handle = layer.register_forward_hook(lambda _, args, out: seen.append(args[0]))
    with torch.no_grad():
        model(input_ids=windows, use_cache=False)
    handle.remove()
    return torch.cat([x.flatten(0, -2) for x in seen]).double()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_linear_layer_by_hand(family, windows, request):
    model = request.getfixturevalue(family)
    names = weights_of(model)
    assert "lm_head" in names
    found = input_second_moments(model, windows, names)
    assert list(found) == names
    for name in names:
        rows = inputs_by_hand(model, windows, name)
        expected = rows.mT @ rows / len(rows)
        assert found[name].count == len(rows) == 60
        assert found[name].matrix.dtype == torch.float64
        torch.testing.assert_close(
            found[name].matrix, expected, rtol=0, atol=1e-5 * float(expected.abs().max())
        )
        assert torch.equal(found[name].matrix, found[name].matrix.mT)


def test_layers_that_read_one_tensor_share_one_matrix(llama, windows):
    found = input_second_moments(llama, windows, weights_of(llama))
    first = "model.layers.0."
    attention = tuple(f"{first}self_attn.{p}_proj" for p in "qkv")
    assert {found[name].read_by for name in attention} == {attention}
    assert len({found[name].matrix.data_ptr() for name in attention}) == 1
    gate, up = f"{first}mlp.gate_proj", f"{first}mlp.up_proj"
    assert found[gate].matrix is found[up].matrix
    down, out = f"{first}mlp.down_proj", f"{first}self_attn.o_proj"
    assert found[down].read_by == (down,)
    assert found[out].matrix is not found[attention[0]].matrix
    assert len({id(m.matrix) for m in found.values()}) == 2 * 4 + 1


def test_the_output_of_a_layer_has_the_predicted_energy(llama, windows):
    """E|W x|^2 = tr(W C W^T): the use these matrices are put to."""
    name = "model.layers.1.mlp.down_proj"
    moment = input_second_moments(llama, windows, [name])[name]
    weight = llama.get_submodule(name).weight.detach().double()
    outputs = inputs_by_hand(llama, windows, name) @ weight.mT
    expected = float(outputs.square().sum(dim=1).mean())
    assert float((weight @ moment.matrix @ weight.mT).trace()) == pytest.approx(expected, rel=1e-5)


def test_first_tokens_can_be_left_out(llama, windows):
    name = "model.layers.0.mlp.down_proj"
    rows = inputs_by_hand(llama, windows, name).view(5, 12, 40)[:, 3:].flatten(0, 1)
    found = input_second_moments(llama, windows, [name], skip=3)[name]
    assert found.count == 45
    torch.testing.assert_close(
        found.matrix, rows.mT @ rows / 45, rtol=0, atol=1e-6 * float(found.matrix.max())
    )


def test_windows_are_streamed_and_half_precision_is_summed_wide(llama, windows):
    """A long run of one window has that window's moment: nothing is lost in the sum."""
    name = "model.layers.1.self_attn.o_proj"
    llama.to(torch.bfloat16)
    once = input_second_moments(llama, windows[:1], [name])[name]
    seen = []
    often = input_second_moments(
        llama, windows[:1].expand(50, -1), [name], progress=lambda *done: seen.append(done)
    )[name]
    torch.testing.assert_close(often.matrix, once.matrix, rtol=1e-12, atol=0)
    assert often.count == 50 * once.count
    assert seen[-1] == ("observing inputs", 50, 50)


def count_hooks(model):
    return sum(len(module._forward_pre_hooks) for module in model.modules())


def test_hooks_are_gone_afterwards_and_after_an_error(llama, windows):
    input_second_moments(llama, windows, weights_of(llama))
    assert count_hooks(llama) == 0
    with pytest.raises(IndexError):
        input_second_moments(llama, windows + 100, weights_of(llama))
    assert count_hooks(llama) == 0
    with pytest.raises(KeyboardInterrupt):
        input_second_moments(llama, windows, weights_of(llama), progress=_interrupt)
    assert count_hooks(llama) == 0
    assert not any(parameter.grad is not None for parameter in llama.parameters())


def _interrupt(*_):
    raise KeyboardInterrupt


def test_bad_requests_are_refused(llama, windows):
    good = "model.layers.0.mlp.up_proj"
    for name, message in (
        ("model.embed_tokens", "is an embedding: it reads token ids"),
        ("model.layers.0.mlp", "expected a Linear or Conv1D"),
        ("model.layers.0.mlp.up_prj", r"no module .*; nearest: model\.layers\.0\.mlp\.up_proj"),
    ):
        with pytest.raises(ModelError, match=message):
            input_second_moments(llama, windows, [good, name])
    with pytest.raises(ShapeError, match="num_windows"):
        input_second_moments(llama, windows[0], [good])
    for bad in ({"windows": windows[:0]}, {"modules": []}, {"skip": 12}, {"skip": -1}):
        with pytest.raises(SettingError):
            input_second_moments(llama, **{"windows": windows, "modules": [good], **bad})
    with pytest.raises(ModelError, match=r"model\.eval\(\)"):
        input_second_moments(llama.train(), windows, [good])
    assert count_hooks(llama) == 0


def test_a_layer_that_never_runs_is_named(llama, windows):
    llama.model.layers[0].mlp.spare = torch.nn.Linear(24, 24)
    with pytest.raises(ModelError, match=r"never ran model\.layers\.0\.mlp\.spare"):
        input_second_moments(llama, windows, ["model.layers.0.mlp.spare"])


def test_broken_weights_are_named(llama, windows):
    llama.model.layers[1].mlp.gate_proj.weight.data.fill_(torch.nan)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.down_proj read NaN"):
        input_second_moments(llama, windows, ["model.layers.1.mlp.down_proj"])
