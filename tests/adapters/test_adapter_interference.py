"""Interference of several adapters: the pairs' own comparison, nothing left out in silence."""

import pytest
import torch

from gonio.adapters import compare_adapters
from gonio.adapters.interference import interference_table
from gonio.errors import SettingError


@pytest.fixture
def three(factors, make_adapter):
    one = {"layers.0.q": factors(9, 7, 2), "layers.1.q": factors(9, 7, 2)}
    two = {"layers.0.q": factors(9, 7, 4), "layers.1.q": factors(9, 7, 1)}
    return [make_adapter(one), make_adapter(two, -0.5), make_adapter({"head": factors(5, 6, 1)})]


def test_every_row_is_that_of_the_pair(three):
    found = interference_table(three, ["a", "b", "c"])
    assert found.left_out == (("a", "c", "no shared module"), ("b", "c", "no shared module"))
    pair = compare_adapters(three[0], three[1], ks=())
    assert len(found.table) == 2
    for row in found.table.itertuples():
        assert (row.first, row.second) == ("a", "b")
        sides = pair.overlaps.set_index(["module", "side"])
        for side in ("left", "right"):
            for ours, theirs in (("overlap", "overlap"), ("chance", "chance"), ("z", "z_score")):
                expected = sides.loc[(row.module, side), theirs]
                assert getattr(row, f"{side}_{ours}") == expected
        assert row.k == (2 if row.module == "layers.0.q" else 1)
        updates = [adapter.updates[row.module] for adapter in three[:2]]
        one, two = (u.scaling * u.lora_b.double() @ u.lora_a.double() for u in updates)
        cosine = float((one * two).sum() / one.norm() / two.norm())
        assert row.cosine == pytest.approx(cosine, rel=1e-9)
        assert row.cosine_z == pytest.approx(cosine * 63**0.5, rel=1e-9)
        total = row.norm_first**2 + row.norm_second**2
        total += 2 * row.cosine * row.norm_first * row.norm_second
        assert total == pytest.approx(float((one + two).square().sum()), rel=1e-9)


def test_an_adapter_beside_itself_and_its_negative(three, make_adapter):
    first = three[0]
    factors = {name: (u.lora_b, u.lora_a) for name, u in first.updates.items()}
    found = interference_table([first, first, make_adapter(factors, -2.0)], ["a", "b", "c"])
    cosines = found.table.groupby(["first", "second"])["cosine"].mean()
    assert cosines["a", "b"] == pytest.approx(1.0)
    assert cosines["a", "c"] == pytest.approx(-1.0)
    assert found.table["left_overlap"].tolist() == pytest.approx([1.0] * 6)
    assert len(found.table) == 6


def test_zero_updates_are_named(three, make_adapter):
    zero = {
        name: (torch.zeros_like(u.lora_b) if name.startswith("layers.1") else u.lora_b, u.lora_a)
        for name, u in three[0].updates.items()
    }
    found = interference_table([three[1], make_adapter(zero)], ["a", "b"])
    assert found.left_out == (("a", "b", "layers.1.q: zero update"),)
    assert found.table["module"].tolist() == ["layers.0.q"]


def test_bad_input_is_refused(three):
    for adapters, names in ((three[:1], ["a"]), (three, ["a", "b"]), (three[:2], ["a", "a"])):
        with pytest.raises(SettingError, match="two or more adapters with distinct names"):
            interference_table(adapters, names)
    with pytest.raises(SettingError, match="change the same module"):
        interference_table([three[0], three[2]], ["a", "b"])
