"""Batches of updates give what each update gives alone, in the order asked for."""

import pytest
import torch

from gonio.adapters import DenseUpdate, LoraUpdate, merge, resize
from gonio.adapters.batches import spectra_of, truncations_of
from gonio.adapters.update import split_module_name
from gonio.errors import AdapterError

SHAPES = [(40, 30, 4), (30, 40, 4), (40, 30, 4), (6, 5, 8), (1, 9, 2), (40, 30, 4), (5, 6, 1)]


@pytest.fixture
def updates(factors):
    """Shapes mixed, one update zero, one of dependent columns, one without factors."""
    made = []
    for number, shape in enumerate(SHAPES):
        lora_b, lora_a = factors(*shape, torch.float16 if number == 1 else torch.float32)
        lora_b = 0 * lora_b if number == 2 else lora_b
        if number == 5:
            lora_b[:, 1] = lora_b[:, 0]
        module = f"model.layers.{number}.q_proj"
        made.append(LoraUpdate(module, lora_a, lora_b, 0.5 - number, *split_module_name(module)))
    matrix = torch.linspace(-1, 1, 63, dtype=torch.float64).sin().reshape(7, 9)
    made.insert(3, DenseUpdate("model.layers.9.v_proj", (7, 9), lambda: matrix))
    return made


def dense(update):
    return update.scaling * update.lora_b.double() @ update.lora_a.double()


def test_spectra_are_those_of_the_dense_products(updates):
    found = dict(spectra_of(updates))
    assert sorted(found) == list(range(len(updates)))
    for i, update in enumerate(updates):
        expected = torch.linalg.svdvals(dense(update))[: min(*update.shape, update.rank)]
        rounding = max(update.shape) * torch.finfo(torch.float64).eps * float(expected[0])
        difference = (found[i].sigma - expected).abs()
        assert bool((difference <= found[i].error + rounding).all()), i
        assert not expected.any() or float(found[i].error.max()) < 1e-9 * float(expected[0])


def test_truncations_are_the_best_of_their_ranks(updates):
    ranks = [2, 3, 1, 4, 5, 1, 0, 1]
    seen = []
    for i, kept, spectrum in truncations_of(updates, ranks):
        seen.append(i)
        assert type(kept) is LoraUpdate
        assert (kept.module, kept.shape, kept.scaling) == (updates[i].module, updates[i].shape, 1.0)
        assert kept.rank == min(ranks[i], len(spectrum.sigma))
        product = dense(updates[i])
        tail = torch.linalg.svdvals(product)[kept.rank :].norm()
        distance = (product - kept.lora_b @ kept.lora_a).norm()
        assert float(distance) == pytest.approx(float(tail), abs=1e-9 * float(product.norm()))
    assert sorted(seen) == list(range(len(updates)))


def test_resize_keeps_the_order_and_the_energies(updates):
    nonzero = [update for update in updates if bool(dense(update).any())]
    resized = resize(nonzero, rank=2)
    assert [u.module for u in resized.updates] == [u.module for u in nonzero]
    assert resized.table["module"].tolist() == [u.module for u in nonzero]
    for update, energy, lost in zip(
        nonzero, resized.table["energy"], resized.table["discarded_energy"], strict=True
    ):
        squares = torch.linalg.svdvals(dense(update)).square()
        assert energy == pytest.approx(float(squares.sum()), rel=1e-9)
        assert lost == pytest.approx(float(squares[2:].sum()), rel=1e-9, abs=1e-9 * energy)


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.3, -1.2], [0.0, 0.0]], ids=str)
def test_a_merge_is_the_weighted_sum(weights, make_adapter, factors):
    """Equal weights keep the stored factors and become the scaling; others are folded in."""
    one = make_adapter({"x": factors(20, 30, 3), "y": factors(8, 6, 2)}, scaling=2.0)
    two = make_adapter({"x": factors(20, 30, 5)}, scaling=2.0)
    found = {update.module: update for update in merge([one, two], weights)}
    expected = weights[0] * dense(one.updates["x"]) + weights[1] * dense(two.updates["x"])
    torch.testing.assert_close(dense(found["x"]), expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(dense(found["y"]), weights[0] * dense(one.updates["y"]))
    assert found["x"].rank == 8
    is_equal = weights[0] == weights[1]
    assert found["x"].lora_a.dtype == (torch.float32 if is_equal else torch.float64)
    best = torch.linalg.svd(expected)
    kept = {update.module: update for update in resize(list(found.values()), rank=4).updates}["x"]
    truncated = (best.U[:, :4] * best.S[:4]) @ best.Vh[:4]
    torch.testing.assert_close(dense(kept), truncated, rtol=0, atol=1e-9)


def test_merging_other_shapes_is_refused(make_adapter, factors):
    with pytest.raises(AdapterError, match="different bases"):
        merge([make_adapter({"x": factors(*shape)}) for shape in ((20, 30, 3), (30, 20, 3))])
