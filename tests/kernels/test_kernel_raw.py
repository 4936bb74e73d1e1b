"""Attention over raw tokens, parts joined to the whole, and codes read in runs and frames."""

import ctypes
import subprocess
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gonio.errors import ShapeError
from gonio.kernels import (
    CodeRun,
    Frame,
    attend,
    attend_raw,
    available_levels,
    encode,
    merge_attention,
    native,
)
from gonio.kernels.build import FLAGS, find_compiler, source_files
from gonio.kernels.reference import reference_merge

from .conftest import make_layer, write_mutant

COMPILED = [level for level in available_levels() if level != "reference"]
LEVELS = ["reference", *COMPILED]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def draw(shape, dtype=torch.float32, seed=0, tokens=70):
    """Query, keys and values of ``(batch, heads, rows, dim, value_dim)``."""
    batch, heads, rows, dim, value_dim = shape
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, heads, rows, dim, generator=generator)
    keys = torch.randn(batch, heads, tokens, dim, generator=generator).to(dtype)
    return query, keys, torch.randn(batch, heads, tokens, value_dim, generator=generator).to(dtype)


def exact(query, keys, values, mask=None, softcap=0.0):
    """The same in float64, by the definition."""
    scores = query.double() @ keys.double().mT
    if softcap:
        scores = softcap * (scores / softcap).tanh()
    if mask is not None:
        scores = scores + mask.double().repeat(1, query.shape[2] // mask.shape[1], 1)[:, None]
    lse = scores.logsumexp(dim=-1)
    weights = (scores - lse[..., None]).exp().nan_to_num(0.0)
    return weights @ values.double(), lse


def assert_near(found, expected, limit=3e-6):
    scale = 1 + max(0.0, *(each.abs().max().item() for each in expected if each.isfinite().any()))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), other, rtol=limit, atol=limit * min(scale, 100))


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, most) for most in (3, 3, 9, 70, 70))),
    tokens=st.sampled_from([1, 2, 15, 16, 17, 63, 64, 65, 130]),
    dtype=st.sampled_from(DTYPES),
    softcap=st.sampled_from([0.0, 5.0]),
    masked=st.sampled_from([None, "one", "all"]),
    level=st.sampled_from(LEVELS),
    seed=st.integers(0, 99),
)
def test_it_is_attention(shape, tokens, dtype, softcap, masked, level, seed):
    query, keys, values = draw(shape, dtype, seed, tokens)
    query = query / shape[3] ** 0.5
    mask, first = None, 3
    if masked:
        generator = torch.Generator().manual_seed(seed)
        mask = torch.randn(
            shape[0], 1 if masked == "one" else shape[2], tokens + 5, generator=generator
        )
        mask[mask > 0.8] = -torch.inf
        mask[:, :, first] = 0.0
    found = attend_raw(query, keys, values, mask=mask, first=first, softcap=softcap, level=level)
    part = None if mask is None else mask[:, :, first : first + tokens]
    assert_near(found, exact(query, keys, values, part, softcap))


@pytest.mark.parametrize("level", LEVELS)
def test_rows_that_see_nothing_are_zero(level):
    query, keys, values = draw((2, 1, 2, 8, 5), tokens=70)
    mask = torch.zeros(2, 2, 70)
    mask[1, 0] = -torch.inf
    mask[0, 1, :64] = -torch.inf  # a whole tile
    out, lse = attend_raw(query, keys, values, mask=mask, level=level)
    assert (out[1, :, 0] == 0).all()
    assert (lse[1, :, 0] == -torch.inf).all()
    seen = torch.tensor([[True, True], [False, True]])[:, None, :].expand(2, 1, 2)
    expected_out, expected_lse = exact(query, keys, values, mask)
    assert_near((out[seen], lse[seen]), (expected_out[seen], expected_lse[seen]))
    out, lse = attend_raw(query, keys[:, :, :0], values[:, :, :0], level=level)
    assert (out == 0).all()
    assert (lse == -torch.inf).all()


@pytest.mark.parametrize("level", LEVELS)
def test_a_query_that_is_no_number_shows_in_codes(level, coded):
    query, run, plans, frame, _ = coded
    for bad in (torch.nan, *([] if level == "reference" else [torch.inf, -torch.inf])):
        for around in (frame,) if level == "reference" else (None, frame):
            broken = query.clone()
            broken[1, 0, 5, 2] = bad
            out, lse = attend(broken, [run(0, 210)], plans, frame=around, level=level)
            wrong = out.isnan().any(dim=-1)
            assert wrong.nonzero().tolist() == [[1, 0, 5]]
            assert torch.equal(lse.isnan(), wrong)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("which", ["query", "keys", "values"])
def test_what_is_no_number_shows(which, level):
    tensors = dict(zip(("query", "keys", "values"), draw((1, 1, 1, 8, 8)), strict=True))
    tensors[which][0, 0, 0, 3] = torch.nan
    out, _ = attend_raw(**tensors, level=level)
    assert out.isnan().any()


def test_any_layout_is_read():
    query, keys, values = draw((2, 3, 4, 16, 16), torch.bfloat16)
    plain = attend_raw(query, keys, values)
    turned = attend_raw(
        query.transpose(1, 2).contiguous().transpose(1, 2),
        keys.mT.contiguous().mT,
        values.transpose(0, 1).contiguous().transpose(0, 1),
    )
    assert all(torch.equal(one, two) for one, two in zip(plain, turned, strict=True))


def test_half_numbers_are_read_exactly():
    """Every float16 number but those above the largest, as a value of its own token."""
    numbers = torch.arange(1 << 16).to(torch.int32).to(torch.uint16).view(torch.float16)
    numbers = numbers[numbers.isfinite()].view(1, 1, 1, -1)
    for values in (numbers, numbers.to(torch.bfloat16)):
        out, lse = attend_raw(torch.ones(1, 1, 1, 1), values.new_zeros(1, 1, 1, 1), values)
        assert torch.equal(out, values.float())
        assert lse.item() == 0


def test_shapes_that_do_not_fit_are_refused():
    query, keys, values = draw((2, 3, 4, 16, 16))
    for bad in (
        (query, keys[:, :, 1:], values),
        (query[:1], keys, values),
        (query, keys, values[:, :2]),
    ):
        with pytest.raises(ShapeError, match="do not fit"):
            attend_raw(*bad)
    for shape in ((1, 4, 70), (2, 3, 70), (2, 0, 70), (2, 70)):
        with pytest.raises(ShapeError, match="mask"):
            attend_raw(query, keys, values, mask=torch.zeros(shape))
    with pytest.raises(ShapeError, match="does not cover"):
        attend_raw(query, keys, values, mask=torch.zeros(2, 4, 72), first=3)


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_parts_are_joined(parts, rng):
    query, keys, values = draw((2, 3, 4, 16, 10), tokens=100)
    mask = torch.zeros(2, 4, 100)
    mask[0, 1] = -torch.inf  # sees nothing at all
    mask[1, 2, 20:] = -torch.inf  # nothing in later parts
    cuts = [round(100 * part / parts) for part in range(parts + 1)]
    found = [
        attend_raw(query, keys[:, :, a:b], values[:, :, a:b], mask=mask, first=a)
        for a, b in pairwise(cuts)
    ]
    for merged in (merge_attention(found), reference_merge(found)):
        assert_near(merged, exact(query, keys, values, mask))


def test_parts_far_apart_are_joined():
    out = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1, 1)
    for lse, expected in (
        ((1e30, -1e30), 1.0),
        ((-200.0, -200.0), 2.0),
        ((0.0, torch.nan), torch.nan),
    ):
        pairs = [(out[i], torch.tensor(lse[i]).view(1, 1, 1)) for i in range(2)]
        merged = merge_attention(pairs)[0].item()
        assert merged == expected or (expected != expected and merged != merged)


@pytest.fixture
def coded(rng):
    """A layer of two sequences of 210 tokens in three runs, and its frame."""
    layer = make_layer("narrow", 2, 18, rng)
    plans = layer.plan("keys"), layer.plan("values")
    rows = torch.randn(36, 2 * 210, generator=rng)

    def run(first, last):
        own = rows.view(36, 2, 210)[:, :, first:last].reshape(36, -1)
        data = (
            encode(own, p.tensors, p.kind == "keys", 2, 0, p.block_bytes, "auto") for p in plans
        )
        return CodeRun(*data, last - first)

    bases = [torch.randn(2, 18, 18, generator=rng) / 4 for _ in plans]
    offsets = [torch.randn(2, 18, generator=rng) for _ in plans]
    frame = Frame.of((bases[0], offsets[0]), (bases[1], offsets[1]))
    query = torch.randn(2, 2, 6, 18, generator=rng)
    return query, run, plans, frame, (bases, offsets)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("level", LEVELS)
def test_runs_are_read_as_one(coded, level, threads, monkeypatch):
    query, run, plans, frame, _ = coded
    monkeypatch.setattr("gonio.kernels.threads.LEAST_BLOCKS", 1)
    mask = torch.randn(2, 3, 220, generator=torch.Generator().manual_seed(1))
    mask[mask > 1] = -torch.inf
    options = {"mask": mask, "first": 7, "softcap": 4.0, "precise": True, "level": level}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for around in (None, frame):
            whole = attend(query, [run(0, 210)], plans, frame=around, **options)
            pieces = [run(0, 64), run(64, 100), run(100, 100), run(100, 210)]
            found = attend(query, pieces, plans, frame=around, **options)
            torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("level", LEVELS)
def test_a_frame_turns_queries_and_outputs(coded, level):
    query, run, plans, frame, (bases, offsets) = coded
    runs = [run(0, 64), run(64, 210)]
    found = attend(query, runs, plans, frame=frame, precise=True, level=level)
    coordinates = (query.double() @ bases[0].double()).float()
    bias = (query.double() * offsets[0][:, None]).sum(-1).float()
    out, lse = attend(coordinates, runs, plans, bias=bias, precise=True, level="reference")
    vectors = out.double() @ bases[1].double().mT + offsets[1][:, None]
    limit = 1e-5 if level == "reference" else 1e-3  # tables of 16 bits
    torch.testing.assert_close(found, (vectors.float(), lse), rtol=limit, atol=limit)


@pytest.mark.parametrize("dim", [1, 3, 15, 16, 17, 33, 64])
def test_every_level_turns_to_the_same_bits(dim, rng):
    """Scores are whole numbers of coordinates: a single token's lse shows them."""
    layer = make_layer("2", 2, dim, rng)
    plans = layer.plan("keys"), layer.plan("values")
    rows = torch.randn(2 * dim, 1, generator=rng)
    data = (encode(rows, p.tensors, p.kind == "keys", 1, 0, p.block_bytes, "auto") for p in plans)
    basis = torch.randn(2, dim, dim, generator=rng)
    frame = Frame.of((basis, torch.zeros(2, dim)), (basis, torch.zeros(2, dim)))
    query, runs = torch.randn(1, 2, 5, dim, generator=rng), [CodeRun(*data, 1)]
    found = [
        attend(query, runs, plans, frame=frame, precise=True, level=one)[1] for one in COMPILED
    ]
    assert all(torch.equal(found[0], other) for other in found)


def test_frames_and_runs_that_do_not_fit_are_refused(coded):
    query, run, plans, frame, (bases, offsets) = coded
    small = Frame.of((bases[0][:, :8, :8], offsets[0][:, :8]), (bases[1], offsets[1]))
    with pytest.raises(ShapeError, match="do not fit keys of 2 heads of 18"):
        attend(query, [run(0, 64)], plans, frame=small)
    with pytest.raises(ShapeError, match="at least one run"):
        attend(query, [], plans, frame=frame)
    with pytest.raises(ShapeError, match="packed codes"):
        attend(query, [run(0, 64), CodeRun(run(0, 64).values[:1], run(0, 64).values, 64)], plans)


MUTANTS = {
    "factor": ("raw.c", "part[k] = factor * sum[j + k]", "part[k] = sum[j + k]"),
    "tail": ("raw.c", "t < BLOCK; t++) score[t] = -INFINITY", "t < BLOCK; t++) score[t] = 0"),
    "mask of a sequence": ("raw.c", "mask + i / heads * mask_rows", "mask + i % heads * mask_rows"),
    "cap": ("raw.c", "c->softcap * tanhf", "tanhf"),
    "share": ("raw.c", "expf(lses[p][r] - most) / total", "expf(lses[p][r] - most)"),
    "sum": ("raw.c", "lse[r] += logf(total)", ""),
    "half": ("numbers.h", "0x1p112f", "0x1p113f"),
    "offset": ("frame.c", "sum[0] += a[j] * b[j]", "sum[0] = a[j] * b[j]"),
    "column": ("frame.c", "at += 2 * lanes) columns", "at += 2 * lanes + 1) columns"),
    "run": ("attention.c", "first -= blocks, last -= blocks;", "first -= blocks;"),
    "mask of a run": ("attention.c", "c->mask += runs[i].tokens", "c->mask += 64"),
    "head of a frame": ("attention.c", "value_basis + index * dim * dim", "value_basis"),
    "outputs of none": ("attention.c", "        if (g->total[r] > 0)\n", ""),
}


@pytest.fixture(scope="session")
def objects(tmp_path_factory):
    """All units compiled without optimization, to be linked with one that is wrong."""
    folder = tmp_path_factory.mktemp("objects")
    for unit in (path for path in source_files() if path.suffix == ".c"):
        command = [find_compiler().path, *FLAGS, "-O0", "-c", "-o", folder / f"{unit.stem}.o", unit]
        subprocess.run(command, check=True)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not COMPILED, reason="no C compiler here")
@pytest.mark.parametrize("name", [None, *MUTANTS])
def test_a_mistake_in_the_source_is_noticed(name, objects, tmp_path, coded, monkeypatch):
    """These checks pass with the sources as they are (no name), and fail with any mistake."""
    library = mutant(name, objects, tmp_path)
    monkeypatch.setattr(native, "native_library", lambda: library)
    monkeypatch.setattr(
        native, "resolve_level", lambda level: "portable" if level == "auto" else level
    )
    monkeypatch.setattr("gonio.kernels.threads.LEAST_BLOCKS", 1)
    assert is_right(coded) == (name is None)


def mutant(name, objects, folder):
    units = []
    if name:
        file, right, wrong = MUTANTS[name]
        write_mutant(folder, file, right, wrong)
        units = [file] if file.endswith(".c") else ["raw.c", "gram.c"]
    for unit in units:
        command = [find_compiler().path, *FLAGS, "-O0", "-c", "-o", folder / f"{unit[:-2]}.o"]
        subprocess.run([*command, folder / unit], check=True)
    linked = [
        folder / path.name if (folder / path.name).exists() else path
        for path in sorted(objects.glob("*.o"))
    ]
    output = folder / "mutant.so"
    subprocess.run([find_compiler().path, "-shared", "-o", output, *linked, "-lm"], check=True)
    library = ctypes.CDLL(str(output))
    for function, (result, arguments) in native._SIGNATURES.items():
        getattr(library, function).restype = result
        getattr(library, function).argtypes = arguments
    return library


def is_right(coded):
    """Whether a few results are what torch computes."""
    query, run, plans, frame, _ = coded
    rows, keys, values = draw((2, 3, 4, 17, 9), torch.float16, tokens=70)
    values[:, :, :, 0] = 2.0**-20
    mask = torch.randn(2, 4, 74, generator=torch.Generator().manual_seed(0)).masked_fill_(
        torch.arange(74) % 5 == 0, -torch.inf
    )
    mask[1, 2] = -torch.inf
    many = torch.randn(2, 1, 230, generator=torch.Generator().manual_seed(1))
    many[0] = -torch.inf
    runs = [run(0, 60), run(60, 130), run(130, 210)]
    pairs = []
    for level in ("portable", "reference"):
        first = attend_raw(rows, keys, values, mask=mask, first=2, softcap=3.0, level=level)
        second = attend_raw(rows[:, :, :, :3], keys[:, :, :, :3], values, level=level)
        merge = merge_attention if level == "portable" else reference_merge
        coded_parts = attend(
            query, runs, plans, frame=frame, mask=many, first=9, precise=True, level=level
        )
        split = split_attention(query, runs, plans, level)
        pairs.append([*first, *second, *merge([first, second]), *coded_parts, *split])
    return all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(*pairs, strict=True))


def split_attention(query, runs, plans, level):
    """In three threads, each of which reads some blocks of the runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        return attend(query, runs, plans, precise=True, level=level)
    finally:
        torch.set_num_threads(before)
