"""Bits spent until a bound holds: it holds, nothing is spent in vain, exactness comes last."""

import pytest
import torch

from gonio.errors import SettingError
from gonio.kvcache import CacheCodec, LosslessCodec, calibrate, control_codec, load_codec
from gonio.kvcache.certify import certify_attention, collect_inputs
from gonio.kvcache.guarantee import Budget, spend_until_bounded
from gonio.kvcache.sensitivity import collect_metrics


@pytest.fixture
def text() -> torch.Tensor:
    return torch.randint(1, 61, (3, 48), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def spend(make_model, text):
    """Spends bits on a tiny model with two sliding and two full layers."""
    model = make_model("qwen2-sliding")
    inputs = collect_inputs(model, text)

    def run(codec: CacheCodec, budget: Budget):
        turned = codec.provenance.get("stage") == "pre_rope"
        samples = collect_metrics(model, text, pre_rope=turned)
        return model, spend_until_bounded(codec, inputs, samples, budget)

    return model, run


@pytest.mark.parametrize(
    ("method", "rung"),
    [("affine", "queries"), ("scalar", "scores"), ("transform", "weights")],
)
def test_the_budget_is_met_on_the_text(spend, text, method, rung, tmp_path):
    model, run = spend
    codec = calibrate(
        model, text, method=method, bits=2, value_method=method, value_bits=2, window=48, sinks=2
    )
    budget = Budget(0.1, rung)
    _, (made, certificates, spending) = run(codec, budget)
    made.save(tmp_path / "codec")
    again = certify_attention(model, text, load_codec(tmp_path / "codec"))
    for found, kept in zip(again, certificates, strict=True):
        relative = found.relative(found.bounds[rung])
        assert relative.max() <= 0.1
        assert torch.equal(found.error, kept.error)  # the file decodes to the same bits
    before = certify_attention(model, text, codec)
    assert max(budget.excess(each) for each in before) > 1  # there was something to do
    assert (spending["steps"] > 0).any()
    assert (spending["bound_after"] <= 0.1).all()
    assert (spending["bound_before"] * (1 + 1e-9) >= spending["bound_after"]).all()
    assert made.sinks == codec.sinks
    assert made.provenance["guarantee"] == {"budget": 0.1, "rung": rung}


def test_layers_within_the_budget_are_left_alone(spend, text):
    model, run = spend
    codec = calibrate(model, text, method="affine", bits=4, window=48)
    _, (made, _, spending) = run(codec, Budget(100.0))
    assert made.keys == codec.keys
    assert spending["steps"].sum() == 0
    assert set(spending["keys_to"]) == {"affine 4"}


def test_methods_of_one_width_become_exact(spend, text):
    model, run = spend
    codec = calibrate(model, text, window=48, iterations=2)
    _, (made, certificates, spending) = run(codec, Budget(1e-3))
    assert all(isinstance(each, LosslessCodec) for each in made.keys)
    assert set(spending["steps"]) == {1}
    assert max(float(each.error.max()) for each in certificates) == 0
    _, (zeros, _, _) = run(control_codec(model, "zeros"), Budget(1e-3))
    assert all(isinstance(each, LosslessCodec) for each in zeros.keys)


def test_the_smallest_budget_is_met_by_exact_caches(spend, text):
    """Keys first at 8 bits, then exact, then values: the search ends whatever the budget."""
    model, run = spend
    codec = calibrate(model, text, method="affine", bits=2, value_bits=2, window=48)
    _, (made, certificates, _) = run(codec, Budget(1e-9))
    assert all(isinstance(each, LosslessCodec) for each in (*made.keys, *made.values))
    assert all(0 < each.bounds["norms"].max() < 1e-9 for each in certificates)


def test_the_guarantee_is_for_the_text_only(spend, text):
    """Other text may break the budget: nothing is promised there, and nothing says otherwise."""
    model, run = spend
    codec = calibrate(model, text[:1], method="affine", bits=3, value_bits=3, window=48)
    _, (made, _, _) = run(codec, Budget(0.1))
    other = torch.randint(1, 61, (8, 48), generator=torch.Generator().manual_seed(4))
    unseen = certify_attention(model, other, made)
    assert sum(each.violations for each in unseen) == 0  # the bounds themselves hold everywhere
    assert max(Budget(0.1).excess(each) for each in unseen) > 1


@pytest.mark.parametrize(("share", "rung"), [(0.0, "weights"), (float("nan"), "weights"), (1, "x")])
def test_budgets_that_mean_nothing_are_refused(share, rung):
    with pytest.raises(SettingError, match="a budget is"):
        Budget(share, rung)
