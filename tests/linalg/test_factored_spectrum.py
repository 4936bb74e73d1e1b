"""Error bounds of factored spectra against 50-digit arithmetic, and the choice of route."""

import dataclasses

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gonio.errors import SettingError, ShapeError
from gonio.linalg import (
    cores,
    factored_frobenius_norm,
    factored_spectrum,
    factored_truncation,
    haar_rotation,
)
from gonio.linalg.gram import gram_triangles

F64 = torch.float64
EPS = torch.finfo(F64).eps
ANY_DEVIATION = 0.5  # accepts the Gram route far beyond its use, where its bound must hold too


def gaussian(*shape, rng):
    return torch.randn(shape, generator=rng, dtype=F64)


def conditioned(rows, columns, condition, rng):
    q = min(rows, columns)
    sigma = torch.logspace(0, -float(torch.tensor(condition).log10()), q, dtype=F64)
    left, right = (haar_rotation(size, rng, dtype=F64)[:, :q] for size in (rows, columns))
    return (left * sigma) @ right.mT


def hard_factors(kind, m, n, r, condition, rng):
    """Factors of one kind of difficulty; ``condition`` also sets how far directions cancel."""
    lora_b, lora_a = conditioned(m, r, condition, rng), conditioned(r, n, condition, rng)
    if kind == "one side":
        lora_a = gaussian(r, n, rng=rng)
    elif kind == "undone":
        lora_a = torch.linalg.pinv(lora_b, rtol=1e-15)
        lora_a = lora_a[:, :n] if n <= m else torch.nn.functional.pad(lora_a, (0, n - m))
    elif kind == "cancelling" and r > 1:
        lora_b[:, 1] = -lora_b[:, 0] * (1 + 1 / condition)
        lora_a[1] = lora_a[0] * (1 + gaussian(n, rng=rng) / condition)
    elif kind == "zero column":
        lora_b[:, 0] = 0
    elif kind == "duplicated" and r > 1:
        lora_b[:, 1] = lora_b[:, 0]
    elif kind == "spread":
        spread = condition ** torch.linspace(-1, 1, r, dtype=F64)
        lora_b, lora_a = gaussian(m, r, rng=rng) * spread, gaussian(r, n, rng=rng)
    return lora_b, lora_a


def exact_singular_values(lora_b, lora_a, scaling):
    """By mpmath on the product of the very float64 entries."""
    with mpmath.workdps(50):
        product = mpmath.matrix(lora_b.tolist()) * mpmath.matrix(lora_a.tolist())
        q = min(*lora_b.shape, lora_a.shape[1])
        values = mpmath.svd_r(product, compute_uv=False)
        return [abs(mpmath.mpf(scaling)) * values[i] for i in range(q)]


KINDS = ["conditioned", "one side", "undone", "cancelling", "zero column", "duplicated", "spread"]


@settings(max_examples=80)
@given(
    kind=st.sampled_from(KINDS),
    m=st.integers(1, 6),
    n=st.integers(1, 6),
    r=st.integers(1, 7),
    condition=st.sampled_from([1.0, 1e2, 1e4, 1e6, 1e10, 1e14]),
    scale=st.sampled_from([1e-200, 1e-30, 1.0, 1e30, 1e200]),
    scaling=st.sampled_from([1.0, -0.3, 1e-3]),
    seed=st.integers(0, 2**31),
)
def test_every_singular_value_lies_within_its_bound(kind, m, n, r, condition, scale, scaling, seed):
    """Whatever the factors and the route; the bound is never above that of QR at relative 0."""
    rng = torch.Generator().manual_seed(seed)
    lora_b, lora_a = hard_factors(kind, m, n, r, condition, rng)
    lora_b = lora_b * scale
    exact = exact_singular_values(lora_b, lora_a, scaling)
    lengths = (lora_b / scale).norm(dim=0) * lora_a.norm(dim=1)
    size = float(lengths.sum()) * scale * abs(scaling)
    for relative_error in (0.0, 1e-10, ANY_DEVIATION):
        found = factored_spectrum(lora_b, lora_a, scaling, relative_error=relative_error)
        for value, error, true in zip(
            found.sigma.tolist(), found.error.tolist(), exact, strict=True
        ):
            assert abs(value - true) <= error
            assert (
                error <= relative_error * value + (max(m, n, r) + 4 * r + 9) * EPS * size + 1e-307
            )


def test_a_bound_without_the_condition_is_wrong(monkeypatch, rng):
    """The mutant that believes every triangle exact fails the same comparison."""
    right = gram_triangles

    def exact(matrices):
        found = right(matrices)
        return dataclasses.replace(found, deviation=torch.zeros_like(found.deviation))

    lora_b, lora_a = hard_factors("undone", 6, 6, 5, 1e5, rng)
    truth = exact_singular_values(lora_b, lora_a, 1.0)

    def within(found):
        pairs = zip(found.sigma.tolist(), found.error.tolist(), truth, strict=True)
        return all(abs(value - true) <= error for value, error, true in pairs)

    assert within(factored_spectrum(lora_b, lora_a, relative_error=ANY_DEVIATION))
    monkeypatch.setattr(cores, "gram_triangles", exact)
    assert not within(factored_spectrum(lora_b, lora_a, relative_error=ANY_DEVIATION))


@pytest.mark.parametrize(
    ("kind", "shape", "by_gram"),
    [
        ("gaussian", (200, 150, 8), True),
        ("gaussian", (3000, 1700, 6), True),
        ("spread", (200, 150, 8), True),
        ("conditioned", (200, 150, 8), False),
        ("zero column", (200, 150, 8), False),
        ("duplicated", (200, 150, 8), False),
        ("gaussian", (9, 150, 10), False),
        ("huge", (200, 150, 8), False),
    ],
    ids=str,
)
def test_the_route_follows_the_conditioning(kind, shape, by_gram, rng):
    """Columns of unequal length are no obstacle; dependent ones, and squares out of range, are."""
    m, n, r = shape
    lora_b, lora_a = gaussian(m, r, rng=rng), gaussian(r, n, rng=rng)
    if kind == "huge":
        lora_b = lora_b * 1e160
    elif kind != "gaussian":
        lora_b, lora_a = hard_factors(kind, m, n, r, 1e8, rng)
    found = factored_spectrum(lora_b, lora_a)
    assert bool(found.by_gram) == by_gram
    triangles = [torch.linalg.qr(x, mode="r").R for x in (lora_b, lora_a.mT)]
    core = torch.linalg.svdvals(triangles[0] @ triangles[1].mT)
    rounding = max(shape) * EPS * r * float(core[0])
    assert bool(((found.sigma - core).abs() <= found.error + rounding).all())
    assert float((found.sigma * 1.001 - core).abs()[0]) > float(found.error[0]) + rounding


def test_the_deviation_bounds_the_loss_of_orthogonality(rng):
    """|Q^T Q - I| of Q = B D^-1 R^-1, in 40 digits, over six orders of conditioning."""
    for condition in (1e0, 1e2, 1e4, 1e6):
        rows = conditioned(5, 12, condition, rng)
        found = gram_triangles([rows])
        with mpmath.workdps(40):
            x = mpmath.matrix(rows.tolist()).T
            d = mpmath.diag([1 / mpmath.mpf(float(v)) for v in found.lengths[0]])
            q = x * d * mpmath.matrix(found.triangles[0].tolist()) ** -1
            loss = float(mpmath.mnorm(q.T * q - mpmath.eye(5), "f"))
        assert loss <= 5**0.5 * float(found.deviation[0])


def test_a_batch_is_its_members(rng):
    """Routes are chosen one by one; stacks, sequences and single matrices agree."""
    m, n, r = 40, 30, 5
    members = [
        hard_factors(kind, m, n, r, 1e7, rng) for kind in ("conditioned", "spread", "one side")
    ]
    members.append((gaussian(m, r, rng=rng), torch.zeros(r, n, dtype=F64)))
    scaling = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=F64)
    lefts, rights = (list(side) for side in zip(*members, strict=True))
    batched = factored_spectrum(lefts, rights, scaling)
    stacked = factored_spectrum(torch.stack(lefts), torch.stack(rights), scaling)
    assert batched.by_gram.tolist() == [False, True, False, False]
    for i, (lora_b, lora_a) in enumerate(members):
        single = factored_spectrum(lora_b, lora_a, float(scaling[i]))
        assert bool(single.by_gram) == bool(batched.by_gram[i])
        for found in (batched, stacked):
            # The members' small matrices are decomposed in another order: rounding may differ.
            atol = float(single.error.max())
            torch.testing.assert_close(found.sigma[i], single.sigma, rtol=0, atol=atol)
            torch.testing.assert_close(found.error[i], single.error, rtol=1e-6, atol=0)
    norms = factored_frobenius_norm(lefts, rights, scaling)
    torch.testing.assert_close(norms, batched.sigma.norm(dim=-1), rtol=1e-10, atol=0)


@pytest.mark.parametrize("k", [0, 1, 3, 9])
@pytest.mark.parametrize("kind", ["spread", "conditioned"])
def test_truncation_is_the_best_of_its_rank(kind, k, rng):
    m, n, r, scaling = 50, 40, 6, -0.7
    lora_b, lora_a = hard_factors(kind, m, n, r, 1e3, rng)
    found = factored_truncation(lora_b, lora_a, k, scaling)
    assert bool(found.spectrum.by_gram) == (kind == "spread")
    kept = min(k, r)
    assert (found.lora_b.shape, found.lora_a.shape) == ((m, kept), (kept, n))
    dense = scaling * lora_b @ lora_a
    values = torch.linalg.svdvals(dense)
    distance = float((dense - found.lora_b @ found.lora_a).norm())
    least = float(values[kept:r].norm())
    assert distance <= least * (1 + 1e-9) + 64 * EPS * float(values.sum())
    assert kept in (0, r) or float((dense - 1.01 * found.lora_b @ found.lora_a).norm()) > distance
    identity, roots = torch.eye(kept, dtype=F64), found.spectrum.sigma[:kept].sqrt()
    for frame in (found.lora_b / roots, found.lora_a.mT / roots):
        torch.testing.assert_close(frame.mT @ frame, identity, rtol=0, atol=1e-10)


def test_narrow_factors_of_a_sequence_are_not_rounded(rng):
    lefts = [gaussian(30, 4, rng=rng).to(torch.float16) for _ in range(3)]
    rights = [gaussian(4, 20, rng=rng).to(torch.bfloat16) for _ in range(3)]
    found = factored_truncation(lefts, rights, 4, torch.tensor([1.0, 2.0, -3.0]))
    for i, scaling in enumerate((1.0, 2.0, -3.0)):
        dense = scaling * lefts[i].double() @ rights[i].double()
        product = found.lora_b[i] @ found.lora_a[i]
        torch.testing.assert_close(product, dense, rtol=0, atol=1e-10 * float(dense.norm()))


def test_wrong_batches_are_refused(rng):
    lora_b, lora_a = gaussian(6, 2, rng=rng), gaussian(2, 5, rng=rng)
    for lefts, rights in (
        ([lora_b], [lora_a, lora_a]),
        ([], []),
        ([lora_b, lora_b[:4]], [lora_a, lora_a]),
        ([lora_b[None]], [lora_a[None]]),
    ):
        with pytest.raises(ShapeError):
            factored_spectrum(lefts, rights)
    with pytest.raises(SettingError, match="NaN"):
        factored_spectrum([lora_b], [lora_a * torch.nan])
    with pytest.raises(SettingError, match="scaling"):
        factored_spectrum([lora_b], [lora_a], torch.tensor([torch.inf]))
    with pytest.raises(SettingError, match="floating point"):
        factored_spectrum(lora_b, lora_a.long())
    with pytest.raises(SettingError, match="rank"):
        factored_truncation(lora_b, lora_a, -1)
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(SettingError, match="relative error"):
            factored_spectrum(lora_b, lora_a, relative_error=share)
