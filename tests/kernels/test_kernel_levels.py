"""Every compiled level computes what the torch reference does, for every shape and mix of bits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gonio.errors import SettingError, ShapeError
from gonio.kernels import (
    attention,
    available_levels,
    decode,
    encode,
    kernel_status,
    merge_attention,
    scores,
)

from .conftest import MIXES, Layer, make_layer, needs_triton

COMPILED = [level for level in available_levels() if level != "reference"]
BYTE_LEVELS = [level for level in COMPILED if level in ("avx2", "avxvnni", "avx512")]
LENGTHS = [0, 1, 63, 64, 65, 1023, 1025, 2060]  # tiles have 1,024 tokens
SHAPES = st.tuples(
    st.sampled_from(sorted(MIXES)),
    st.integers(1, 3),  # heads
    st.integers(1, 40),  # dim
    st.integers(1, 2),  # batch
    st.integers(1, 9),  # rows
    st.sampled_from(LENGTHS),
    st.integers(0, 2**31),
)

if not COMPILED:
    pytest.skip(f"no compiled kernels: {kernel_status().reason}", allow_module_level=True)


def case(shape):
    mix, heads, dim, batch, rows, tokens, seed = shape
    rng = torch.Generator().manual_seed(seed)
    layer = make_layer(mix, heads, dim, rng)
    query = torch.randn(batch, heads, rows, dim, generator=rng)
    vectors = torch.randn(heads * dim, batch * tokens, generator=rng)
    return layer, query, vectors, rng


def pack(layer, kind, vectors, batch, skip=0, level="reference"):
    plan = layer.plan(kind)
    return encode(vectors, plan.tensors, kind == "keys", batch, skip, plan.block_bytes, level)


@settings(max_examples=40)
@given(shape=SHAPES, skip=st.integers(0, 130), kind=st.sampled_from(["keys", "values"]))
def test_codes_and_levels_are_equal_to_the_byte(shape, skip, kind):
    layer, query, vectors, _ = case(shape)
    plan, batch, tokens = layer.plan(kind), len(query), shape[5]
    expected = pack(layer, kind, vectors, batch, skip)
    whole = pack(layer, kind, vectors, batch)
    rows = decode(whole, plan.tensors, kind == "keys", tokens, "reference")
    for level in COMPILED:
        assert torch.equal(pack(layer, kind, vectors, batch, skip, level), expected)
        assert torch.equal(decode(whole, plan.tensors, kind == "keys", tokens, level), rows)


@settings(max_examples=40)
@given(shape=SHAPES, precise=st.booleans())
def test_scores_are_equal_between_levels_and_near_the_reference(shape, precise):
    layer, query, vectors, _ = case(shape)
    plan, tokens = layer.plan("keys"), shape[5]
    data = pack(layer, "keys", vectors, len(query))
    exact = scores(query, data, plan.tensors, tokens, False, "reference")
    found = [scores(query, data, plan.tensors, tokens, precise, level) for level in COMPILED]
    for other in found[1:]:
        assert torch.equal(other, found[0])
    # Half a step of the coarsest table entry for each nibble, in the worst case.
    step = 1 / 32767 if precise else 1 / 127
    ranges = (query.abs() @ levels_range(layer)).flatten(0, 2)
    limit = (ranges * step).amax() + 1e-5 if len(ranges) else 0
    assert ((found[0] - exact).abs() <= limit).all()


def levels_range(layer):
    """Distance between the first and last level of each coordinate, ``(heads, dim, 1)``."""
    books = layer.levels.split((1 << layer.widths).tolist())
    return torch.stack([b[-1] - b[0] for b in books]).view(layer.heads, layer.dim, 1)


@pytest.mark.parametrize("bits", ["1", "2", "4", "narrow", "wide"])
def test_errors_of_scores_stay_within_their_limits(bits, level, rng):
    """2 % of the scores' deviation for 8-bit tables, 0.1 % for 16-bit ones."""
    layer = make_layer(bits, 2, 64, rng)
    query = torch.randn(1, 2, 4, 64, generator=rng)
    data = pack(layer, "keys", torch.randn(128, 2048, generator=rng), 1)
    plan = layer.plan("keys").tensors
    exact = scores(query, data, plan, 2048, False, "reference")
    for precise, limit in ((False, 0.02), (True, 0.001)):
        error = scores(query, data, plan, 2048, precise, level) - exact
        assert error.square().mean().sqrt() <= limit * exact.std()


@settings(max_examples=60)
@given(
    shape=SHAPES,
    sharpness=st.sampled_from([0.0, 0.3, 3.0]),
    softcap=st.sampled_from([0.0, 2.0]),
    masked=st.booleans(),
)
def test_attention_is_that_of_the_reference(shape, sharpness, softcap, masked):
    layer, query, vectors, rng = case(shape)
    batch, rows, tokens = len(query), shape[4], shape[5]
    query = query * sharpness
    bias = torch.randn(batch, layer.heads, rows, generator=rng) if softcap else None
    mask = None
    if masked:
        mask_rows = next(n for n in (3, 2, 1) if rows % n == 0)
        seen = torch.rand(batch, mask_rows, tokens, generator=rng) > 0.3
        seen[:, :, : tokens // 2] &= bool(tokens % 2)  # whole tiles that nobody sees
        mask = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
    keys, values = (pack(layer, kind, vectors, batch) for kind in ("keys", "values"))
    arguments = (
        *(query, keys, values, layer.plan("keys").tensors, layer.plan("values").tensors),
        *(bias, mask, softcap, tokens),
    )
    expected = attention(*arguments, False, "reference")
    for level in COMPILED:
        for precise, limit in ((False, 0.06), (True, 1e-3)):
            found = attention(*arguments, precise, level)
            assert torch.equal(found[1].isneginf(), expected[1].isneginf())
            seen = ~found[1].isneginf()
            near = limit * (1 + sharpness * layer.dim**0.5)
            assert ((found[1] - expected[1])[seen].abs() <= near).all()
            # Errors of scores act as factors of weights: relative to the values' size.
            error = (found[0] - expected[0]).abs().max() if tokens else 0
            assert error <= limit * (1 + sharpness * layer.dim**0.5) * layer.levels.abs().max()


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_that_would_fill_pages_have_one_line_more(bits, compiled_level, rng):
    check_blocks_of_pages(bits, compiled_level, rng)


@needs_triton
@pytest.mark.slow
def test_triton_steps_over_that_line(rng):
    check_blocks_of_pages(8, "triton", rng)


def check_blocks_of_pages(bits, level, rng):
    """64 bytes of zero behind each block, which every level steps over."""
    count = 512 // bits
    levels = torch.randn(count, 1 << bits, generator=rng).sort().values.flatten()
    layer = Layer(2, count // 2, torch.full((count,), bits), levels)
    vectors, query = torch.randn(count, 70, generator=rng), torch.ones(1, 2, 1, count // 2)
    codes, plans = [], []
    for kind in ("keys", "values"):
        plan = layer.plan(kind)
        data = pack(layer, kind, vectors, 1, level=level)
        assert data.shape == (1, 2, 4096 + 64)
        assert plan.bits_per_element == bits * 4160 / 4096
        assert torch.equal(data, pack(layer, kind, vectors, 1))
        assert (data[..., -64:] == 0).all()
        rows = decode(data, plan.tensors, kind == "keys", 70, level)
        assert torch.equal(rows, layer.nearest(vectors))
        codes.append(data)
        plans.append(plan.tensors)
    exact, found = (
        attention(query * 0.1, *codes, *plans, None, None, 0.0, 70, False, which)[0]
        for which in ("reference", level)
    )
    assert (found - exact).norm() <= 0.02 * exact.norm()


@settings(max_examples=25)
@given(shape=SHAPES, how=st.sampled_from(["transposed", "every second", "in a frame"]))
def test_strides_change_nothing(shape, how):
    layer, query, vectors, rng = case(shape)
    batch, rows, tokens = len(query), shape[4], shape[5]
    keys, values = (pack(layer, kind, vectors, batch) for kind in ("keys", "values"))
    bias = torch.randn(batch, layer.heads, rows, generator=rng)
    mask = torch.randn(batch, 1, tokens, generator=rng)
    plans = layer.plan("keys").tensors, layer.plan("values").tensors
    inputs = (query, keys, values, bias, mask, vectors)
    for level in (*COMPILED, "reference"):
        results = []
        for q, k, v, b, m, x in (inputs, [strided(each, how) for each in inputs]):
            results.append(
                [
                    scores(q, k, plans[0], tokens, False, level),
                    *attention(q, k, v, *plans, b, m, 0.0, tokens, False, level),
                    decode(v, plans[1], False, tokens, level),
                    pack(layer, "keys", x, batch, level=level),
                ]
            )
        for one, two in zip(*results, strict=True):
            torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-5)


def strided(tensor, how):
    """The same numbers with other strides."""
    if how == "transposed":
        return tensor.mT.contiguous().mT
    if how == "every second":
        return torch.stack([tensor, tensor], dim=-1).flatten(-2)[..., ::2]
    frame = tensor.new_zeros([size + 2 for size in tensor.shape])
    inside = frame[tuple(slice(1, size + 1) for size in tensor.shape)]
    return inside.copy_(tensor)


def test_few_heavy_tokens_do_not_drown_the_many(level, rng):
    """One token of weight 1 among 511 of 1/700: bytes alone would round those to nothing."""
    layer = make_layer("2", 1, 32, rng)
    vectors = torch.randn(32, 512, generator=rng)
    mask = torch.full((1, 1, 512), -6.55)
    mask[0, 0, 100] = 0
    keys, values = (pack(layer, kind, vectors, 1) for kind in ("keys", "values"))
    plans = layer.plan("keys").tensors, layer.plan("values").tensors
    query = torch.zeros(1, 1, 1, 32)
    expected, found = (
        attention(query, keys, values, *plans, None, mask, 0.0, 512, False, which)[0]
        for which in ("reference", level)
    )
    assert (found - expected).norm() <= 0.01 * expected.norm()
    alone = layer.nearest(vectors)[:, 100]
    assert (alone - expected.flatten()).norm() > 0.2 * expected.norm()


@pytest.mark.parametrize("heavy_rows", [[1], [0, 2], [3, 1], [0, 1, 2, 3]])
@pytest.mark.parametrize("mix", ["narrow", "all"])
def test_each_row_has_heavy_tokens_of_its_own(heavy_rows, mix, level, rng):
    """Rows that need a second byte of weight beside rows that do not, in one tile."""
    layer = make_layer(mix, 2, 32, rng)
    vectors = torch.randn(64, 1300, generator=rng)
    mask = torch.zeros(1, 4, 1300)
    for row in heavy_rows:
        mask[0, row] = -7.2
        mask[0, row, 100 + row] = 0
    keys, values = (pack(layer, kind, vectors, 1) for kind in ("keys", "values"))
    plans = layer.plan("keys").tensors, layer.plan("values").tensors
    query = torch.randn(1, 2, 4, 32, generator=rng) * 0.02
    expected, found = (
        attention(query, keys, values, *plans, None, mask, 0.0, 1300, False, which)[0]
        for which in ("reference", level)
    )
    error = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert (error <= 0.02).all()


@pytest.mark.parametrize("mix", ["narrow", "all", "wide"])
def test_rows_that_see_nothing_of_a_tile_beside_rows_that_do(mix, level, rng):
    layer = make_layer(mix, 2, 16, rng)
    vectors = torch.randn(32, 2060, generator=rng)
    mask = torch.zeros(1, 4, 2060)
    mask[0, 0, :1024] = mask[0, 1, 1024:] = mask[0, 2] = -torch.inf
    keys, values = (pack(layer, kind, vectors, 1) for kind in ("keys", "values"))
    plans = layer.plan("keys").tensors, layer.plan("values").tensors
    query = torch.randn(1, 2, 4, 16, generator=rng) * 0.1
    expected, found = (
        attention(query, keys, values, *plans, None, mask, 0.0, 2060, False, which)
        for which in ("reference", level)
    )
    limit = 0.05 * expected[0].norm(dim=-1, keepdim=True)
    assert ((found[0] - expected[0]).abs() <= limit).all()
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=0.01)
    assert (found[0][:, :, 2] == 0).all()


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing_but_the_order_of_sums(threads, compiled_level, rng):
    level = compiled_level
    layer = make_layer("narrow", 2, 24, rng)
    vectors = torch.randn(48, 2 * 4200, generator=rng)
    keys, values = (pack(layer, kind, vectors, 2) for kind in ("keys", "values"))
    query = torch.randn(2, 2, 5, 24, generator=rng)
    plans = layer.plan("keys").tensors, layer.plan("values").tensors
    before = torch.get_num_threads()
    try:
        results = []
        for count in (1, threads):
            torch.set_num_threads(count)
            one = scores(query, keys, plans[0], 4200, False, level)
            results.append(
                (one, attention(query, keys, values, *plans, None, None, 0.0, 4200, True, level))
            )
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1][0], results[1][1][0])


def test_parts_merge_to_the_whole(level, rng):
    layer = make_layer("narrow", 2, 16, rng)
    vectors = torch.randn(32, 256, generator=rng)
    query = torch.randn(1, 2, 3, 16, generator=rng)
    plans = layer.plan("keys").tensors, layer.plan("values").tensors

    def part(first, last):
        own = vectors[:, first:last]
        data = (pack(layer, kind, own, 1) for kind in ("keys", "values"))
        return attention(query, *data, *plans, None, None, 0.0, last - first, True, level)

    merged = merge_attention([part(0, 64), part(64, 70), part(70, 70), part(70, 256)])
    torch.testing.assert_close(merged, part(0, 256), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sharpness", [0.0, 1e-6, 0.01, 1.0, 30.0, 1e3, 1e6])
@pytest.mark.parametrize("mix", ["2", "all"])
def test_outputs_are_values_weighted_by_scores(mix, sharpness, compiled_level, rng):
    """Of the scores of the same level, however far apart they are."""
    layer = make_layer(mix, 2, 32, rng)
    vectors = torch.randn(64, 1100, generator=rng)
    keys, values = (pack(layer, kind, vectors, 1) for kind in ("keys", "values"))
    plans = layer.plan("keys").tensors, layer.plan("values").tensors
    query = torch.randn(1, 2, 3, 32, generator=rng) * sharpness
    found = scores(query, keys, plans[0], 1100, False, compiled_level)
    rows = layer.nearest(vectors) - layer.plan("values").constants.flatten()[:, None]
    if compiled_level in BYTE_LEVELS:  # of up to 4 bits, levels are read as whole units
        units = layer.plan("values").units[:, None]
        rows = torch.where(layer.widths[:, None] <= 4, (rows / units).round() * units, rows)
    expected = found.softmax(dim=-1) @ rows.view(2, 32, 1100).mT
    out, lse = attention(query, keys, values, *plans, None, None, 0.0, 1100, False, compiled_level)
    error = (out - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert (error <= 0.03).all()
    assert ((lse - found.logsumexp(dim=-1)).abs() <= 2e-3 * (1 + found.abs().amax(dim=-1))).all()


@pytest.mark.parametrize("weights", ["flat", "pairs", "one", "steps", "random"])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5])
def test_neighbors_of_largest_weight_and_level_do_not_saturate(weights, rows, compiled_level, rng):
    """Tokens that are all of the largest level have it as their mean, whatever they weigh."""
    layer = Layer(1, 3, torch.tensor([1, 2, 4]), torch.linspace(-1, 1, 22))
    vectors = torch.full((3, 1024), 9.0)
    vectors[1] = -9.0
    mask = {
        "flat": torch.zeros(1024),
        "pairs": torch.where(torch.arange(1024) // 2 % 16 == 5, 0.0, -3.0),
        "one": torch.where(torch.arange(1024) == 77, 0.0, -8.0),
        "steps": torch.linspace(-9, 0, 1024),
        "random": 2 * torch.randn(1024, generator=rng),
    }[weights]
    keys, values = (pack(layer, kind, vectors, 1) for kind in ("keys", "values"))
    plans = layer.plan("keys").tensors, layer.plan("values").tensors
    query, mask = torch.zeros(1, 1, rows, 3), mask.expand(1, 1, -1).contiguous()
    out = attention(query, keys, values, *plans, None, mask, 0.0, 1024, False, compiled_level)[0]
    expected = layer.levels[[1, 2, 21]]
    # 1e-3 is half a unit of the many, at e^-8 of the one, which AVX-512 sums before rounding.
    torch.testing.assert_close(out, expected.expand_as(out), rtol=2e-3, atol=0)


@pytest.mark.skipif("avxvnni" not in COMPILED, reason="this processor has no AVX-VNNI")
@settings(max_examples=20)
@given(shape=SHAPES, sharpness=st.sampled_from([0.0, 0.3, 3.0]))
def test_both_ways_to_add_products_are_equal_to_the_bit(shape, sharpness):
    layer, query, vectors, _ = case(shape)
    keys, values = (pack(layer, kind, vectors, len(query)) for kind in ("keys", "values"))
    plans = layer.plan("keys").tensors, layer.plan("values").tensors
    one, two = (
        attention(query * sharpness, keys, values, *plans, None, None, 0.0, shape[5], False, level)
        for level in ("avx2", "avxvnni")
    )
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_unknown_levels_and_lengths_are_refused(rng):
    layer = make_layer("2", 1, 8, rng)
    data = pack(layer, "keys", torch.randn(8, 64, generator=rng), 1)
    query = torch.zeros(1, 1, 1, 8)
    with pytest.raises(SettingError, match="available: reference"):
        scores(query, data, layer.plan("keys").tensors, 64, False, "abacus")
    with pytest.raises(ShapeError, match="65 tokens asked of 1 blocks"):
        scores(query, data, layer.plan("keys").tensors, 65, False, "auto")
