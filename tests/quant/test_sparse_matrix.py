"""Sparse matrices: entry for entry, every byte counted, magnitudes exact."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from gonio.errors import CodecError, SettingError, ShapeError
from gonio.quant.sparse import SparseMatrix, kept_entries, magnitude_mask, sparse_from_tensors


@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.sampled_from([0.01, 0.1, 0.5, 1.0]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    st.integers(0, 1000),
)
def test_a_pruned_matrix_comes_back_entry_for_entry(m, n, density, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(m, n, generator=generator).to(dtype)
    matrix = matrix * magnitude_mask(matrix, density)
    encoded = SparseMatrix.encode(matrix)
    assert torch.equal(encoded.decode(), matrix)
    nonzero = int(torch.count_nonzero(matrix))
    places = min(math.ceil(m * n / 8), 4 * nonzero)
    assert encoded.stored_bytes == nonzero * dtype.itemsize + places + 16
    assert encoded.stored_bytes == sum(t.nbytes for t in encoded.tensors("x").values())
    assert encoded.density == nonzero / (m * n)


@pytest.mark.parametrize(
    ("matrix", "nonzero"), [(torch.zeros(3, 5), 0), (torch.ones(3, 5), 15), (torch.eye(1), 1)]
)
def test_empty_and_full_matrices(matrix, nonzero):
    encoded = SparseMatrix.encode(matrix)
    assert len(encoded.values) == nonzero
    assert torch.equal(encoded.decode(), matrix)


def test_indices_are_taken_below_a_density_of_one_in_32():
    matrix = torch.zeros(64, 64)
    matrix[0, :32] = 1.0
    assert SparseMatrix.encode(matrix).places.dtype == torch.int32
    matrix[1, :96] = 1.0
    assert SparseMatrix.encode(matrix).places.dtype == torch.int32  # 96 of 4096: 384 of 512 bytes
    matrix[2, :64] = 1.0
    assert SparseMatrix.encode(matrix).places.dtype == torch.uint8


@given(st.integers(1, 50), st.floats(0.001, 1.0), st.integers(0, 100))
def test_the_mask_keeps_the_largest(numel, density, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-5, 6, (numel,), generator=generator).float()  # many ties
    mask = magnitude_mask(values, density)
    assert (
        int(mask.sum())
        == kept_entries(numel, density)
        == min(numel, max(1, math.ceil(density * numel - 1e-9)))
    )
    if not mask.all():
        assert values[mask].abs().min() >= values[~mask].abs().max()


def test_of_equal_magnitudes_the_first_stay():
    assert magnitude_mask(torch.tensor([1.0, -1.0, 1.0, 2.0]), 0.5).tolist() == [
        True,
        False,
        False,
        True,
    ]
    assert kept_entries(30, 0.1) == 3  # 0.1 * 30 is a little above 3 in floating point


@pytest.mark.parametrize("density", [0.0, -0.1, 1.5, math.nan])
def test_a_density_out_of_range_is_refused(density):
    with pytest.raises(SettingError, match=r"density must be in \(0, 1\]"):
        magnitude_mask(torch.ones(3), density)


def test_files_keep_several_matrices(tmp_path, rng):
    matrices = {name: torch.randn(3, 4, generator=rng).relu() for name in ("a.b", "a", "c")}
    tensors = {}
    for name, matrix in matrices.items():
        tensors |= SparseMatrix.encode(matrix).tensors(name)
    save_file(tensors, tmp_path / "x.safetensors")
    found = sparse_from_tensors(load_file(tmp_path / "x.safetensors"))
    assert {name: m.decode().tolist() for name, m in found.items()} == {
        name: matrix.tolist() for name, matrix in matrices.items()
    }


def test_broken_parts_are_refused():
    tensors = SparseMatrix.encode(torch.eye(4)).tensors("a")
    for key in ("a.values", "a.places"):
        with pytest.raises(CodecError, match="lacks its values"):
            sparse_from_tensors({k: v for k, v in tensors.items() if k != key})
    with pytest.raises(CodecError, match="belongs to no sparse matrix"):
        sparse_from_tensors(tensors | {"b": torch.ones(1)})
    with pytest.raises(CodecError, match="expected uint8 or int32"):
        sparse_from_tensors(tensors | {"a.places": torch.ones(2)})
    for change in (
        {"a.values": torch.ones(3)},
        {"a.shape": torch.tensor([9, 9])},
        {"a.places": torch.tensor([0, 1, 2, 99], dtype=torch.int32)},
        {"a.places": torch.tensor([0, 1, 2, -1], dtype=torch.int32)},
    ):
        with pytest.raises(CodecError, match="is broken"):
            sparse_from_tensors(tensors | change)["a"].decode()
    with pytest.raises(ShapeError, match="expected a matrix"):
        SparseMatrix.encode(torch.ones(3))
