"""Overlaps against SciPy's principal angles, planted answers, and the names of base tensors."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

from gonio.adapters import compare_with_base, load_adapter
from gonio.adapters.base import BaseWeights
from gonio.errors import AdapterError, SettingError
from gonio.models import WeightReader

Q0 = "model.layers.0.self_attn.q_proj"


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def scipy_overlap(basis_u: torch.Tensor, basis_v: torch.Tensor) -> float:
    return float((np.cos(subspace_angles(basis_u.numpy(), basis_v.numpy())) ** 2).mean())


@pytest.mark.parametrize("shape", [(30, 20, 6), (20, 30, 6), (12, 12, 4)], ids=str)
def test_overlaps_equal_scipy_on_dense_svds(shape, make_adapter, weight_source):
    m, n, r = shape
    lora_b, lora_a, weight = normal(m, r), normal(r, n, seed=1), normal(m, n, seed=2)
    adapter = make_adapter({Q0: (lora_b, lora_a)})
    found = compare_with_base(adapter, weight_source({f"{Q0}.weight": weight}), ks=(1, 3, r, r + 1))
    change = torch.linalg.svd(lora_b @ lora_a)
    base = torch.linalg.svd(weight)
    sides = {"left": (change.U, base.U, m), "right": (change.Vh.mT, base.Vh.mT, n)}
    assert set(found.overlaps["side"]) == {"left", "right"}
    for row in found.overlaps.itertuples():
        mine, theirs, dimension = sides[row.side]
        expected = scipy_overlap(mine[:, : row.k], theirs[:, : row.k])
        assert row.overlap == pytest.approx(expected, abs=1e-6)
        assert row.overlap != pytest.approx(expected * 1.01, abs=1e-6)
        assert (row.dimension, row.chance) == (dimension, row.k / dimension)
        assert row.overlap_ratio == pytest.approx(row.overlap / row.chance)
        sigma = base.S
        following = float(sigma[row.k]) if row.k < len(sigma) else 0.0
        assert row.base_gap == pytest.approx(1 - following / float(sigma[row.k - 1]), abs=1e-9)
    fixed = found.overlaps.query("k_from == 'fixed'")
    assert sorted(set(fixed["k"])) == [1, 3, r]
    assert found.left_out == ((Q0, f"k = {r + 1} exceeds the update's numerical rank {r}"),)
    energy = change.S.square()
    (k,) = set(found.overlaps.query("k_from == 'stable_rank'")["k"])
    assert k == round(float(energy.sum() / energy[0]))


def test_a_planted_right_subspace_is_found(make_adapter, weight_source):
    """The update reads the base's top 3 input directions and writes elsewhere."""
    weight = normal(40, 30, seed=2)
    base = torch.linalg.svd(weight)
    adapter = make_adapter({Q0: (base.U[:, 10:13], base.Vh[:3])})
    found = compare_with_base(adapter, weight_source({f"{Q0}.weight": weight}), ks=(3,))
    rows = found.overlaps.query("k_from == 'fixed'").set_index("side")
    assert rows.loc["right", "overlap"] == pytest.approx(1.0, abs=1e-9)
    assert rows.loc["right", "overlap_ratio"] == pytest.approx(10.0, abs=1e-8)
    assert rows.loc["right", "z_score"] > 10
    assert rows.loc["left", "overlap"] == pytest.approx(0.0, abs=1e-9)
    assert rows.loc["left", "z_score"] < 0


def test_random_updates_have_standard_z_scores(make_adapter, weight_source):
    """300 random updates: z-scores of mean 0 and deviation 1, within four standard errors."""
    names = [f"layers.{i}.q" for i in range(300)]
    adapter = make_adapter(
        {
            name: (normal(32, 5, seed=2 * i), normal(5, 24, seed=2 * i + 1))
            for i, name in enumerate(names)
        }
    )
    base = normal(32, 24, seed=-1)
    found = compare_with_base(adapter, weight_source({f"{n}.weight": base for n in names}), ks=(4,))
    for _, group in found.overlaps.query("k_from == 'fixed'").groupby("side"):
        assert abs(group["z_score"].mean()) < 4 / math.sqrt(300)
        assert abs(group["z_score"].std() - 1) < 4 / math.sqrt(2 * 300) * 1.5
        assert abs((group["overlap_ratio"]).mean() - 1) < 0.1
    for side in ("column", "row"):
        z = found.gains[f"{side}_gain_residual_z_score"]
        assert abs(z.mean()) < 4 / math.sqrt(300)
        assert abs(z.std() - 1) < 0.3


def test_a_full_dimension_has_no_z_score(make_adapter, weight_source):
    adapter = make_adapter({Q0: (normal(4, 3), normal(3, 3, seed=1))})
    found = compare_with_base(
        adapter, weight_source({f"{Q0}.weight": normal(4, 3, seed=2)}), ks=(3,)
    )
    row = found.overlaps.query("side == 'right' and k == 3").iloc[0]
    assert (row["overlap"], row["chance"]) == (pytest.approx(1.0), 1.0)
    assert math.isnan(row["z_score"])


def test_zero_updates_are_left_out_and_said(make_adapter, weight_source):
    pair = normal(6, 2), normal(2, 5, seed=1)
    adapter = make_adapter({"a": pair, "b": (0 * pair[0], pair[1])})
    weights = weight_source({"a.weight": normal(6, 5), "b.weight": normal(6, 5)})
    found = compare_with_base(adapter, weights, ks=(1,))
    assert set(found.overlaps["module"]) == set(found.gains["module"]) == {"a"}
    assert found.left_out == (("b", "zero update"),)
    zero = make_adapter({"b": (0 * pair[0], pair[1])})
    with pytest.raises(AdapterError, match=r"every update .* is zero"):
        compare_with_base(zero, weights)


def test_a_missing_module_names_the_nearest_before_any_work(make_adapter, weight_source):
    pair = normal(6, 2), normal(2, 5, seed=1)
    seen = []
    with pytest.raises(AdapterError, match=r"layers.1.q_proj\n.*nearest: layers.1.k_proj.weight"):
        compare_with_base(
            make_adapter({"layers.0.q_proj": pair, "layers.1.q_proj": pair}),
            weight_source(
                {"layers.0.q_proj.weight": normal(6, 5), "layers.1.k_proj.weight": normal(6, 5)}
            ),
            progress=lambda *call: seen.append(call),
        )
    assert not seen


@pytest.mark.parametrize(
    ("weight", "found"),
    [
        (normal(6, 4), r"the update is \(6, 5\), a.weight is \(6, 4\)"),
        (normal(30), r"a.weight is \(30,\)"),
        (torch.full((6, 5), torch.nan), "NaN or infinite"),
        (torch.zeros(6, 5), "has no top 2 directions"),
        (normal(6, 1) @ normal(1, 5), "has no top 2 directions"),
    ],
    ids=["shape", "vector", "nan", "zero", "rank 1"],
)
def test_a_base_that_does_not_fit_is_named(weight, found, make_adapter, weight_source):
    adapter = make_adapter({"a": (normal(6, 2), normal(2, 5, seed=1))})
    with pytest.raises(AdapterError, match=found):
        compare_with_base(adapter, weight_source({"a.weight": weight}), ks=(2,))


def test_a_base_of_exactly_rank_k_is_compared(make_adapter, weight_source):
    weight = normal(9, 2) @ normal(2, 7, seed=1)
    adapter = make_adapter({"a": (normal(9, 3, seed=2), normal(3, 7, seed=3))})
    found = compare_with_base(adapter, weight_source({"a.weight": weight}), ks=(2,))
    assert found.overlaps["base_gap"].max() == pytest.approx(1.0, abs=1e-6)  # a bound


@pytest.mark.parametrize("ks", [(0,), (5, -1)])
def test_bad_ks_are_refused(ks, make_adapter, weight_source):
    adapter = make_adapter({"a": (normal(6, 2), normal(2, 5))})
    with pytest.raises(SettingError, match="at least 1"):
        compare_with_base(adapter, weight_source({"a.weight": normal(6, 5)}), ks=ks)


@pytest.mark.parametrize(
    ("module", "tensor"),
    [
        ("model.layers.0.q", "model.layers.0.q.weight"),
        ("transformer.h.0.q", "h.0.q.weight"),
        ("layers.0.q", "model.layers.0.q.weight"),
    ],
)
def test_leading_components_may_differ(module, tensor, weight_source):
    assert BaseWeights(weight_source({tensor: normal(2, 3)})).name(module) == tensor


@pytest.mark.parametrize("embedding", ["model.embed_tokens.weight", "wte.weight"])
def test_a_tied_head_is_the_input_embedding(embedding, make_adapter, weight_source):
    weight = normal(9, 5)
    base = BaseWeights(weight_source({embedding: weight, "model.layers.0.q.weight": weight}))
    update = make_adapter({"lm_head": (normal(9, 2), normal(2, 5))}).updates["lm_head"]
    assert torch.equal(base.get(update), weight)
    with pytest.raises(AdapterError, match=r"no weight for the adapter's module layers\.0\.head"):
        base.name("layers.0.head")


def test_ambiguous_endings_are_not_guessed(weight_source):
    base = BaseWeights(
        weight_source({"a.l.0.q.weight": normal(2, 3), "b.l.0.q.weight": normal(2, 3)})
    )
    with pytest.raises(AdapterError, match="nearest"):
        base.name("l.0.q")


@pytest.mark.parametrize("targets", [["c_proj"], ["c_proj", "lm_head"], ["attn.c_proj"]], ids=str)
def test_conv1d_weights_are_turned(targets, save_with_peft):
    """GPT-2: square attn.c_proj too, also where PEFT stored fan_in_fan_out false.

    The planted answer: an update that equals the base weight as PEFT sees it has overlap 1.
    """
    saved = save_with_peft("gpt2", r=4, target_modules=targets)
    adapter = load_adapter(saved.adapter)
    with WeightReader(saved.base) as reader:
        base = BaseWeights(reader, fan_in_fan_out=adapter.settings.fan_in_fan_out)
        for module, update in adapter.updates.items():
            if module == "lm_head":
                continue
            stored = reader.get(base.name(module))
            assert torch.equal(base.get(update), stored.mT)
            product = update.scaling * update.lora_b.double() @ update.lora_a.double()
            change = saved.changes[f"{module}.weight"]
            torch.testing.assert_close(product.mT, change, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", ["llama", "neox"])
def test_linear_weights_are_not_turned(family, save_with_peft):
    target = {"llama": ["q_proj", "o_proj"], "neox": ["attention.dense"]}[family]
    saved = save_with_peft(family, r=2, target_modules=target)
    adapter = load_adapter(saved.adapter)
    with WeightReader(saved.base) as reader:
        # A wrong flag in the file is outvoted where biases tell.
        base = BaseWeights(reader, fan_in_fan_out=family == "neox")
        for module, update in adapter.updates.items():
            assert torch.equal(base.get(update), reader.get(f"{module}.weight"))


def test_a_square_weight_alone_follows_the_flag(make_adapter, weight_source):
    update = make_adapter({"a": (normal(4, 2), normal(2, 4))}).updates["a"]
    weight = normal(4, 4, seed=3)
    for flag, expected in ((False, weight), (True, weight.mT)):
        found = BaseWeights(weight_source({"a.weight": weight}), fan_in_fan_out=flag).get(update)
        assert torch.equal(found, expected)


def test_base_overlaps_are_within_their_bound_of_dense_ones(make_adapter, weight_source):
    """Against a full SVD of the base, in every storage dtype; the bounds are not idle."""
    generator = torch.Generator().manual_seed(5)
    left, right = (torch.linalg.qr(normal(d, 40, seed=d)).Q for d in (90, 70))
    exact = (left * 1.05 ** -torch.arange(40.0, dtype=torch.float64)) @ right.mT
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        weight = exact.to(dtype)
        noise = torch.randn(90, 8, generator=generator, dtype=torch.float64)
        adapter = make_adapter({Q0: (left[:, :8] + 0.1 * noise, right[:, :8].mT)})
        found = compare_with_base(adapter, weight_source({f"{Q0}.weight": weight}), ks=(2, 5))
        base = torch.linalg.svd(weight.double())
        update = adapter.updates[Q0].svd()
        for row in found.overlaps.itertuples():
            mine, theirs = (update[0], base.U) if row.side == "left" else (update[2].mT, base.Vh.mT)
            expected = scipy_overlap(mine[:, : row.k], theirs[:, : row.k])
            assert abs(row.overlap - expected) <= row.base_sine_bound + 1e-12
            assert (row.certified, row.certificate) == (True, "")
            assert 0 < row.base_sine_bound <= 1e-3


def test_a_k_in_no_gap_of_the_base_is_said_and_kept(make_adapter, weight_source):
    left, right = (torch.linalg.qr(normal(d, 6, seed=d)).Q for d in (30, 20))
    sigma = torch.tensor([5.0, 3.0, 3.0, 1.0, 0.5, 0.2], dtype=torch.float64)
    weight = ((left * sigma) @ right.mT).float()
    adapter = make_adapter({Q0: (normal(30, 4, seed=8), normal(4, 20, seed=9))})
    found = compare_with_base(adapter, weight_source({f"{Q0}.weight": weight}), ks=(1, 2, 3))
    rows = found.overlaps.query("k_from == 'fixed' and side == 'left'").set_index("k")
    assert rows["certificate"].to_dict() == {1: "", 2: "k in no gap", 3: ""}
    assert rows["certified"].to_dict() == {1: True, 2: False, 3: True}


def test_relative_norms_are_those_of_the_dense_matrices(make_adapter, weight_source):
    lora_b, lora_a, weight = normal(12, 3), normal(3, 9, seed=1), normal(12, 9, seed=2)
    adapter = make_adapter({Q0: (lora_b, lora_a)}, scaling=-0.5)
    found = compare_with_base(adapter, weight_source({f"{Q0}.weight": weight}), ks=(1,))
    change = -0.5 * lora_b @ lora_a
    row = found.gains.iloc[0]
    for name, order in (("frobenius", "fro"), ("spectral", 2)):
        expected = float(torch.linalg.norm(change, order) / torch.linalg.norm(weight, order))
        assert row[f"relative_{name}_norm"] == pytest.approx(expected, rel=1e-12)
        assert row[f"relative_{name}_norm"] != pytest.approx(1.001 * expected, rel=1e-12)
