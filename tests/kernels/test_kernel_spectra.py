"""Compiled spectra of factored products beside torch's, dense ones and exact numbers."""

import ctypes
import subprocess

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gonio.errors import SettingError, ShapeError
from gonio.kernels import available_levels, spectra
from gonio.kernels.build import FLAGS, find_compiler
from gonio.kernels.native import native_library
from gonio.kernels.spectra import stacked_spectrum
from gonio.linalg.gram import gram_entry_error
from gonio.linalg.lowrank import factored_spectrum

from .conftest import write_mutant

COMPILED = [level for level in available_levels() if level != "reference"]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
needs_kernels = pytest.mark.skipif(not COMPILED, reason="no C compiler here")
pytestmark = needs_kernels


@pytest.fixture(params=COMPILED)
def level(request, choose_kernels):
    choose_kernels(request.param)
    return request.param


@pytest.fixture
def only_native(monkeypatch):
    """Fails where torch computes."""
    monkeypatch.setattr(spectra, "factored_spectrum", None)


def draw(shape, count, dtype=torch.float32, seed=0):
    m, n, rank = shape
    generator = torch.Generator().manual_seed(seed)
    lefts = [torch.randn(m, rank, generator=generator).to(dtype) for _ in range(count)]
    rights = [torch.randn(rank, n, generator=generator).to(dtype) for _ in range(count)]
    return lefts, rights, torch.linspace(-2, 3, count, dtype=torch.float64)


@given(
    m=st.integers(1, 90),
    n=st.integers(1, 90),
    rank=st.integers(1, 20),
    count=st.integers(1, 19),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
@settings(max_examples=60)
def test_it_agrees_with_a_dense_svd_within_its_error(m, n, rank, count, dtype, seed, scale):
    lefts, rights, scaling = draw((m, n, rank), count, dtype, seed)
    lefts = [left * scale for left in lefts]
    found = stacked_spectrum(lefts, rights, scaling)
    assert found.sigma.shape == found.error.shape == (count, min(m, n, rank))
    for i in range(count):
        dense = lefts[i].double().numpy() @ rights[i].double().numpy() * float(scaling[i])
        sigma = np.linalg.svd(dense, compute_uv=False)[: min(m, n, rank)]
        rounding = 8 * max(m, n) * np.finfo(float).eps * sigma[0]  # of the dense route
        assert (np.abs(found.sigma[i].numpy() - sigma) <= found.error[i].numpy() + rounding).all()
    assert (found.sigma.diff(dim=-1) <= 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(40, 70, 16), (1600, 800, 3), (65, 64, 1), (300, 20, 5)])
def test_levels_agree_to_the_bit_and_with_torch(shape, dtype, choose_kernels, only_native):
    factors = draw(shape, 11, dtype)
    found = []
    for level in COMPILED:
        choose_kernels(level)
        found.append(stacked_spectrum(*factors))
    expected = factored_spectrum(*factors)
    for each in found:
        assert torch.equal(each.sigma, found[0].sigma)
        assert torch.equal(each.error, found[0].error)
        assert each.by_gram.all()
    assert (found[0].sigma - expected.sigma).abs().le(1e-13 * expected.sigma[:, :1]).all()
    torch.testing.assert_close(found[0].error, expected.error, rtol=1e-6, atol=0)


def test_layouts_as_files_and_views_have_them(level, only_native):
    lefts, rights, scaling = draw((50, 60, 7), 9)
    expected = stacked_spectrum(lefts, rights, scaling)
    columns = [left.mT.contiguous().mT for left in lefts]
    wide = torch.zeros(9, 7, 130)
    wide[:, :, 3:123:2] = torch.stack(rights)
    strided = [each[:, 3:123:2] for each in wide]
    found = stacked_spectrum(columns, strided, scaling)
    assert torch.equal(found.sigma, expected.sigma)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_number_of_16_bits_is_read_exactly(dtype, level, only_native):
    values = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
    values = values[values.isfinite() & (values != 0)]
    lefts = list(values.view(-1, 1, 1).unbind())
    found = stacked_spectrum(
        lefts, [torch.ones(1, 1)] * len(lefts), torch.ones(len(lefts)).double()
    )
    assert torch.equal(found.sigma.flatten(), values.double().abs())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("factor", [0, 1])
def test_numbers_that_are_none_are_refused(dtype, value, factor, level):
    factors = draw((20, 30, 4), 5, dtype)
    factors[factor][3][2, 1] = value
    with pytest.raises(SettingError, match="NaN or infinite"):
        stacked_spectrum(*factors)


def test_shapes_are_checked(level):
    lefts, rights, scaling = draw((20, 30, 4), 5)
    with pytest.raises(ShapeError, match="do not multiply"):
        stacked_spectrum(lefts, [right[:3] for right in rights], scaling)


@pytest.mark.parametrize("size", [0.0, 1e-200, 1e-70, 1e70, 1e200])
def test_where_gram_matrices_are_no_good_qr_computes(size, level):
    """Zero, dependent, tiny and huge rows among others; each product by its own route."""
    lefts, rights, scaling = draw((30, 25, 6), 10, torch.float64)
    lefts[4] = lefts[4] * size
    rights[7] = rights[7] + 1e9 * rights[7][:1]  # nearly dependent
    found, expected = (
        stacked_spectrum(lefts, rights, scaling),
        factored_spectrum(lefts, rights, scaling),
    )
    assert torch.equal(found.by_gram, expected.by_gram)
    assert found.by_gram.tolist().count(False) == 1 + (size in (0.0, 1e-200, 1e200))
    apart = (found.sigma - expected.sigma).abs()
    assert (apart <= 1e-3 * (found.error + expected.error) + 1e-13 * expected.sigma).all()
    rest = ~found.by_gram
    assert torch.equal(found.sigma[rest], expected.sigma[rest])


def test_repeated_and_graded_values_keep_their_digits(level, only_native):
    """Known spectra, by orthonormal factors whose rows and columns have all lengths."""
    generator = torch.Generator().manual_seed(5)
    sigma = torch.tensor([7.0, 7.0, 7.0, 1.0, 1.0, 1e-3, 1e-6, 1e-9], dtype=torch.float64)
    lefts, rights = (
        torch.linalg.qr(torch.randn(9, size, 8, generator=generator).double()).Q
        for size in (40, 31)
    )
    order = torch.randperm(8, generator=generator)
    found = stacked_spectrum(
        list((lefts * sigma[order].sqrt()).unbind()),
        list((sigma[order].sqrt()[:, None] * rights.mT).unbind()),
        torch.ones(9, dtype=torch.float64),
    )
    assert (found.sigma / sigma - 1).abs().max() < 1e-14
    assert ((found.sigma - sigma).abs() <= found.error).all()


def test_large_ranks_and_mixed_factors_go_to_torch(level):
    for factors in (
        draw((90, 95, 65), 2),
        ([torch.randn(8, 2), torch.randn(8, 2).double()], [torch.randn(2, 9)] * 2, torch.ones(2)),
    ):
        found, expected = stacked_spectrum(*factors), factored_spectrum(*factors)
        assert torch.equal(found.sigma, expected.sigma)


MUTANTS = {
    "rotation": ("spectra_lanes.h", "= cosine * x - sine * y", "= cosine * x + sine * y"),
    "triangle": ("spectra_lanes.h", "k < j; k++) sum -= other[k] * row[k];", "k < j; k++);"),
    "core": ("spectra_lanes.h", "k = i > j ? i : j", "k = i"),
    "bound": ("spectra_lanes.h", "squares += total * total", "squares += total"),
    "pieces": ("gram.c", "total[i] += part[i]", "total[i] = part[i]"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mistake_in_the_source_is_noticed(name, tmp_path):
    write_mutant(tmp_path, *MUTANTS[name])
    names = ("gram.c", "spectra.c", "spectra_avx2.c", "spectra_avx512.c")
    command = [find_compiler().path, *FLAGS, "-O1", "-o", str(tmp_path / "mutant.so")]
    subprocess.run([*command, *(str(tmp_path / unit) for unit in names), "-lm"], check=True)
    mutant = ctypes.CDLL(str(tmp_path / "mutant.so"))
    factors = draw((900, 40, 5), 4)
    right = results_of(native_library(), factors)
    wrong = results_of(mutant, factors)
    assert not np.allclose(right, wrong, rtol=1e-3, atol=0, equal_nan=True)


def results_of(library, factors):
    """Values, relative errors and sums of sizes as the library gives them, level portable."""
    lefts, rights, _ = factors
    count, (m, rank), n = len(lefts), lefts[0].shape, rights[0].shape[1]
    shapes = (spectra._Shape * 2)((rank, m, 1, rank, 1), (rank, n, n, 1, 1))
    errors = (ctypes.c_double * 2)(gram_entry_error(rank, m), gram_entry_error(rank, n))
    addresses = [(ctypes.c_void_p * count)(*(x.data_ptr() for x in side)) for side in factors[:2]]
    found = [np.zeros(size) for size in (count * rank, count, count)]
    pointers = [each.ctypes.data_as(ctypes.c_void_p) for each in found]
    library.gonio_spectra(*addresses, ctypes.c_int64(count), shapes, errors, 0, *pointers)
    return np.concatenate(found)
