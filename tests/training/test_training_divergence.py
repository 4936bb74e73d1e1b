"""Divergences equal a direct computation over the whole vocabulary, one sequence at a time."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from gonio.errors import DataError, SettingError
from gonio.training import pair_log_probs, response_divergence, tokenize_pair

pytest.importorskip("trl")


def trained_model(make_model, family="llama", scale=0.3):
    torch.manual_seed(7)
    targets = {"llama": ["q_proj", "up_proj"], "gpt2": ["c_fc"], "gpt_neox": ["dense"]}[family]
    config = LoraConfig(r=4, target_modules=targets, fan_in_fan_out=family == "gpt2")
    model = get_peft_model(make_model(family), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=scale)
    return model.double().eval()  # padding moves float32 logits by 1e-6


def sequences_of(tokenizer, pairs):
    tokens = [tokenize_pair(tokenizer, pair, 24) for pair in pairs]
    return [(each.prompt, each.chosen) for each in tokens]


def direct(model, base, sequences):
    """Unpadded, float64, with torch's own divergence."""
    rows = []
    for prompt, response in sequences:
        ids = torch.tensor([[*prompt, *response]])
        with torch.no_grad():
            p, q = (
                m(ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
                for m in (model, base)
            )
        kl = torch.nn.functional.kl_div
        rows.append(
            [
                kl(q, p, log_target=True, reduction="sum"),
                kl(p, q, log_target=True, reduction="sum"),
                (p - q)[torch.arange(len(response)), torch.tensor(response)].sum(),
            ]
        )
    return torch.tensor(rows)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_direct_computation_agrees(make_model, tokenizer, pairs, family, batch_size):
    model, base = trained_model(make_model, family), make_model(family).double()
    sequences = sequences_of(tokenizer, pairs)
    found = response_divergence(model, sequences, batch_size=batch_size)
    wanted = direct(model, base, sequences)
    assert found.tokens.tolist() == [len(response) for _, response in sequences]
    for column, name in enumerate(("kl_to_base", "kl_from_base", "log_ratio")):
        torch.testing.assert_close(getattr(found, name), wanted[:, column], rtol=0, atol=1e-9)
    assert (found.kl_to_base > 0.01).all()
    assert (found.kl_to_base - found.log_ratio).abs().min() > 1e-3  # another quantity
    apart = response_divergence(model, sequences, base=base, batch_size=batch_size)
    torch.testing.assert_close(apart.kl_to_base, found.kl_to_base, rtol=0, atol=1e-9)


def test_log_probabilities_are_those_of_the_pairs(make_model, tokenizer, pairs):
    model = trained_model(make_model)
    found = response_divergence(model, sequences_of(tokenizer, pairs))
    wanted = pair_log_probs(model, tokenizer, pairs, max_length=24)
    torch.testing.assert_close(found.trained, wanted.chosen, rtol=0, atol=1e-4)


def test_no_change_is_no_divergence_and_modes_come_back(make_model, tokenizer, pairs):
    model = trained_model(make_model, scale=0.0).train()
    found = response_divergence(model, sequences_of(tokenizer, pairs))
    assert found.kl_to_base.abs().max() < 1e-12
    assert found.log_ratio.abs().max() < 1e-12
    assert model.training


def test_what_cannot_be_compared_is_refused(make_model, tokenizer, pairs):
    model = make_model("llama")
    with pytest.raises(SettingError, match="no adapter to switch off"):
        response_divergence(model, sequences_of(tokenizer, pairs))
    with pytest.raises(DataError, match="response 1 has no tokens"):
        response_divergence(model, [((1,), (2,)), ((1,), ())], base=model)
    with pytest.raises(SettingError, match="batch_size"):
        response_divergence(model, [((1,), (2,))], base=model, batch_size=0)
