"""Truncation for the error of the outputs: optimal, exact for singular moments, plain for C = I."""

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gonio.adapters import LoraUpdate, resize
from gonio.adapters.dense import DenseUpdate
from gonio.adapters.weighted import resize_weighted
from gonio.errors import SettingError, ShapeError

KINDS = ["full", "singular", "anisotropic", "zero", "one direction"]


def dense(update):
    return update.scaling * update.lora_b.double() @ update.lora_a.double()


def draw_update(m, n, r, generator, module="m"):
    lora_a = torch.randn(r, n, generator=generator, dtype=torch.float64)
    lora_b = torch.randn(m, r, generator=generator, dtype=torch.float64)
    return LoraUpdate(module, lora_a, lora_b, 1.5, None, module)


def draw_inputs(kind, n, generator):
    """Inputs x as rows; their second moment is what is wanted."""
    rows = torch.randn(3 * n + 2, n, generator=generator, dtype=torch.float64)
    if kind == "singular":
        rows = rows[:, : (n + 1) // 2] @ torch.randn(
            (n + 1) // 2, n, generator=generator, dtype=torch.float64
        )
    if kind == "anisotropic":
        rows = rows * torch.logspace(3, -3, n, dtype=torch.float64)
    if kind == "zero":
        rows = torch.zeros_like(rows)
    if kind == "one direction":
        rows = rows[:, :1] * torch.ones(1, n, dtype=torch.float64)
    return rows


def moment(rows):
    return rows.mT @ rows / len(rows)


@settings(max_examples=120)
@given(
    m=st.integers(1, 7),
    n=st.integers(1, 7),
    r=st.integers(1, 8),
    k=st.integers(1, 8),
    kind=st.sampled_from(KINDS),
    exponent=st.sampled_from([-200, 0, 100]),
    seed=st.integers(0, 2**31),
)
def test_optimal_by_the_dense_route_on_any_shape(m, n, r, k, kind, exponent, seed):
    """The error is the tail of the dense spectrum of D X^T, computed from the inputs themselves."""
    generator = torch.Generator().manual_seed(seed)
    update = draw_update(m, n, r, generator)
    rows = draw_inputs(kind, n, generator)
    scaled = LoraUpdate("m", update.lora_a, update.lora_b * 2.0**exponent, 1.5, None, "m")
    found = resize_weighted([scaled], {"m": moment(rows)}, rank=k)
    exact = dense(update) @ rows.mT / len(rows) ** 0.5
    sigma = torch.linalg.svdvals(exact)
    best, total = float(sigma[k:].square().sum()), float(sigma.square().sum())
    size = 2.0 ** (2 * exponent)
    kept = dense(found.updates[0]) * 2.0**-exponent
    error = float(((kept - dense(update)) @ rows.mT).square().sum() / len(rows))
    assert abs(error - best) <= 1e-11 * total + 1e-300
    row = found.table.iloc[0]
    assert row["output_energy"] == pytest.approx(total * size, rel=1e-11)
    assert abs(row["output_error"] / size - error) <= 1e-11 * total
    plain = dense(resize([update], rank=k).updates[0])
    plain_error = float(((plain - dense(update)) @ rows.mT).square().sum() / len(rows))
    assert abs(row["output_error_plain"] / size - plain_error) <= 1e-11 * total
    assert row["output_error"] <= row["output_error_plain"] + 1e-11 * total * size
    energy = float(dense(update).square().sum())
    entries = float((kept - dense(update)).square().sum())
    assert abs(row["discarded_energy"] / size - entries) <= 1e-11 * energy
    assert row["discarded_energy_plain"] <= row["discarded_energy"] + 1e-11 * energy * size
    assert found.updates[0].rank == row["rank_after"] == min(k, m, n, r)
    if k >= min(m, n, r):
        assert entries <= 1e-20 * energy  # every direction kept: nothing changes, whatever C


@pytest.mark.parametrize("kind", ["full", "singular"])
def test_no_other_matrix_of_the_rank_does_better(kind, rng):
    """Brute force over the factors of D', from many starts, finds the same least error."""
    m, n, k = 4, 5, 1
    update = draw_update(m, n, 3, rng)
    rows = draw_inputs(kind, n, rng).numpy()
    target = dense(update).numpy()

    def error(parameters):
        left, right = parameters[: m * k].reshape(m, k), parameters[m * k :].reshape(k, n)
        residual = (left @ right - target) @ rows.T
        gradient = 2 * residual @ rows / len(rows)
        return (residual**2).sum() / len(rows), np.concatenate(
            [(gradient @ right.T).ravel(), (left.T @ gradient).ravel()]
        )

    starts = torch.randn(12, (m + n) * k, generator=rng, dtype=torch.float64).numpy()
    least = min(
        scipy.optimize.minimize(error, start, jac=True, method="L-BFGS-B").fun for start in starts
    )
    found = resize_weighted([update], {"m": moment(torch.from_numpy(rows))}, rank=k)
    assert found.table["output_error"].iloc[0] == pytest.approx(least, rel=1e-5)
    assert found.table["output_error_plain"].iloc[0] > 1.01 * least  # plain is told apart


def test_no_optimal_matrix_is_closer_to_the_update_than_this_one(rng):
    """Where C is singular many D' are optimal: they differ where no input is, U_k fixed."""
    update = draw_update(5, 6, 4, rng)
    rows = draw_inputs("singular", 6, rng)
    found = resize_weighted([update], {"m": moment(rows)}, rank=2)
    kept = dense(found.updates[0])
    unseen = torch.linalg.svd(rows).Vh[3:]
    basis = torch.linalg.svd(kept, full_matrices=False).U[:, :2]
    for _ in range(5):
        noise = torch.randn(2, 3, generator=rng, dtype=torch.float64)
        other = kept + basis @ noise @ unseen
        as_good = ((other - dense(update)) @ rows.mT).norm()
        assert as_good == pytest.approx(float(((kept - dense(update)) @ rows.mT).norm()), rel=1e-9)
        assert (other - dense(update)).norm() > (kept - dense(update)).norm()


@pytest.mark.parametrize("rule", [{"rank": 2}, {"energy": 0.8}, {"parameters": 40}], ids=str)
def test_white_inputs_give_the_plain_resize(rule, rng):
    updates = [draw_update(5, 6, 4, rng, "one"), draw_update(7, 4, 3, rng, "two")]
    eyes = {"one": 3.0 * torch.eye(6), "two": 3.0 * torch.eye(4, dtype=torch.float64)}
    found, plain = resize_weighted(updates, eyes, **rule), resize(updates, **rule)
    for one, two in zip(found.updates, plain.updates, strict=True):
        assert (dense(one) - dense(two)).norm() <= 1e-7 * dense(two).norm()
    columns = list(plain.table)
    assert list(found.table)[: len(columns)] == columns
    assert found.table["rank_after"].tolist() == plain.table["rank_after"].tolist()
    np.testing.assert_allclose(
        found.table["discarded_energy"], plain.table["discarded_energy"], rtol=1e-9
    )
    np.testing.assert_allclose(found.table["output_error"], 3 * found.table["discarded_energy"])


def test_rules_use_the_output_spectrum(rng):
    update = draw_update(6, 6, 5, rng)
    rows = draw_inputs("anisotropic", 6, rng)
    sigma = torch.linalg.svdvals(dense(update) @ rows.mT)
    shares = sigma.square().cumsum(0) / sigma.square().sum()
    wanted = int((shares < 0.999).sum()) + 1
    found = resize_weighted([update], {"m": moment(rows)}, energy=0.999)
    assert found.table["rank_after"].iloc[0] == wanted
    assert wanted < resize([update], energy=0.999).table["rank_after"].iloc[0]


def test_a_budget_is_spent_where_the_outputs_are(rng):
    """Two equal updates; the one whose inputs are 100 times larger gets the directions."""
    one = draw_update(5, 5, 4, rng, "one")
    two = LoraUpdate("two", one.lora_a, one.lora_b, one.scaling, None, "two")
    eyes = {"one": torch.eye(5), "two": 1e4 * torch.eye(5)}
    found = resize_weighted([one, two], eyes, parameters=30)
    assert found.table["rank_after"].tolist() == [0, 3]
    assert [update.module for update in found.updates] == ["two"]
    assert found.table["discarded_energy"][0] == pytest.approx(found.table["energy"][0])


def test_held_out_errors_are_those_on_the_other_inputs(rng):
    update = draw_update(6, 5, 4, rng)
    rows, others = draw_inputs("anisotropic", 5, rng), draw_inputs("full", 5, rng)
    found = resize_weighted([update], {"m": moment(rows)}, rank=2, held_out={"m": moment(others)})
    row = found.table.iloc[0]
    for column, kept in (
        ("held_out_output_error", found.updates[0]),
        ("held_out_output_error_plain", resize([update], rank=2).updates[0]),
    ):
        expected = ((dense(kept) - dense(update)) @ others.mT).square().sum() / len(others)
        assert row[column] == pytest.approx(float(expected), rel=1e-9)
    total = (dense(update) @ others.mT).square().sum() / len(others)
    assert row["held_out_output_energy"] == pytest.approx(float(total), rel=1e-12)


def test_a_dense_update_is_resized_like_its_factors(rng):
    update = draw_update(6, 5, 4, rng)
    whole = DenseUpdate("m", update.shape, lambda: dense(update))
    moments = {"m": moment(draw_inputs("anisotropic", 5, rng))}
    one, two = (resize_weighted([u], moments, rank=2).updates[0] for u in (whole, update))
    assert (dense(one) - dense(two)).norm() <= 1e-9 * dense(two).norm()


def test_a_zero_update_stays_zero():
    update = LoraUpdate("m", torch.ones(2, 3), torch.zeros(4, 2), 1.0, None, "m")
    found = resize_weighted([update], {"m": torch.eye(3)}, rank=1)
    assert dense(found.updates[0]).norm() == 0
    assert found.table["output_error"].iloc[0] == 0


def test_bad_input_is_refused(rng):
    update = draw_update(4, 3, 2, rng)
    eye = {"m": torch.eye(3)}
    for rule in ({}, {"rank": 1, "energy": 0.5}, {"rank": 0}, {"energy": 1.5}):
        with pytest.raises(SettingError):
            resize_weighted([update], eye, **rule)
    with pytest.raises(SettingError, match="no second moment for 1 of 1 modules, first m"):
        resize_weighted([update], {}, rank=1)
    with pytest.raises(SettingError, match="no second moment"):
        resize_weighted([update], eye, rank=1, held_out={})
    with pytest.raises(ShapeError, match="of m has shape"):
        resize_weighted([update], {"m": torch.eye(4)}, rank=1)
    with pytest.raises(SettingError, match="negative eigenvalues"):
        resize_weighted([update], {"m": -torch.eye(3)}, rank=1)
    crooked = torch.eye(3)
    crooked[0, 1] = 0.1
    for broken in (crooked, torch.full((3, 3), torch.nan)):
        with pytest.raises(SettingError, match="finite symmetric"):
            resize_weighted([update], {"m": broken}, rank=1)
