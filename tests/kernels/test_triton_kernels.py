"""Triton kernels compute what the torch reference does; here in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gonio.errors import SettingError
from gonio.kernels import attention, decode, encode
from gonio.kernels.native import compute_level
from gonio.kernels.triton_kernels import why_no_triton

from .conftest import MIXES, make_layer, needs_triton
from .test_kernel_levels import pack

CPU = torch.device("cpu")
LENGTHS = [0, 1, 63, 64, 65, 300]
COMPILER = Path(__file__).parent / "compile_triton.py"


@needs_triton
@settings(max_examples=25, deadline=None)
@given(
    mix=st.sampled_from(sorted(MIXES)),
    heads=st.integers(1, 2),
    dim=st.integers(1, 40),
    batch=st.integers(1, 2),
    rows=st.sampled_from([1, 4, 17]),  # a decode step, and more rows than one tile of it has
    tokens=st.sampled_from(LENGTHS),
    softcap=st.sampled_from([0.0, 2.0]),
    masked=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_attention_is_that_of_the_reference(
    mix, heads, dim, batch, rows, tokens, softcap, masked, seed
):
    rng = torch.Generator().manual_seed(seed)
    layer = make_layer(mix, heads, dim, rng)
    query = torch.randn(batch, heads, rows, dim, generator=rng)
    vectors = torch.randn(heads * dim, batch * tokens, generator=rng)
    data = (pack(layer, kind, vectors, batch) for kind in ("keys", "values"))
    bias = torch.randn(batch, heads, rows, generator=rng) if softcap else None
    mask = None
    if masked:
        seen = torch.rand(batch, rows, tokens, generator=rng) > 0.4
        seen[:, :, : tokens // 2] &= bool(tokens % 2)  # blocks that nobody sees
        mask = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
    plans = layer.plan("keys").tensors, layer.plan("values").tensors
    arguments = (query, *data, *plans, bias, mask, softcap, tokens, False)
    expected, found = (attention(*arguments, which) for which in ("reference", "triton"))
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-3, atol=1e-3)


@needs_triton
@settings(max_examples=10, deadline=None)
@given(
    mix=st.sampled_from(sorted(MIXES)),
    kind=st.sampled_from(["keys", "values"]),
    dim=st.integers(1, 16),
    tokens=st.sampled_from(LENGTHS[:-1]),
    skip=st.integers(0, 70),
    seed=st.integers(0, 2**31),
)
def test_codes_are_equal_to_the_byte(mix, kind, dim, tokens, skip, seed):
    rng = torch.Generator().manual_seed(seed)
    layer = make_layer(mix, 2, dim, rng)
    plan = layer.plan(kind)
    rows = torch.randn(2 * dim, 2 * tokens, generator=rng)
    arguments = (rows, plan.tensors, kind == "keys", 2, skip, plan.block_bytes)
    expected, found = (encode(*arguments, which) for which in ("reference", "triton"))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["keys", "values"])
def test_places_say_where_every_code_lies(kind, rng):
    """Levels read coordinate by coordinate are those of the decoder; no Triton needed."""
    layer = make_layer("all", 2, 30, rng)
    plan = layer.plan(kind)
    rows = torch.randn(60, 64, generator=rng)
    data = encode(rows, plan.tensors, kind == "keys", 1, 0, plan.block_bytes, "reference")
    units = data.view(torch.int32) if kind == "keys" else data.int()
    places = plan.places
    words = units[0, 0][places.at[:, None].long() + torch.arange(64)]
    codes = (words >> places.shift[:, None]) & places.mask[:, None]
    levels = places.levels.gather(1, codes.long()) + plan.constants.flatten()[:, None]
    assert torch.equal(levels, decode(data, plan.tensors, kind == "keys", 64, "reference"))
    for unit, (dims, shifts) in enumerate(zip(places.unit_dims, places.unit_shifts, strict=True)):
        for dim, shift in zip(dims.tolist(), shifts.tolist(), strict=True):
            if dim >= 0:
                assert places.at[dim] == places.unit_at[unit]
                assert places.shift[dim] == shift


def test_without_a_gpu_or_the_interpreter_it_says_so(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    assert why_no_triton(CPU)
    with pytest.raises(SettingError, match=r"Triton (runs on GPUs, not on cpu|is not installed)"):
        compute_level("triton", torch.zeros(1))


@needs_triton
@pytest.mark.slow
def test_they_compile_for_a_gpu_that_is_not_here(tmp_path):
    """In a process of its own: the interpreter changes Triton's language for good."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, COMPILER], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    sizes = [int(line.split()[-1]) for line in done.stdout.splitlines()]
    assert len(sizes) == 4
    assert min(sizes) > 1000
