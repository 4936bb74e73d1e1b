"""Files read once: the tensors the library reads, or none; errors and hashes as without."""

import json
import math
import re

import pandas as pd
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from gonio.adapters import load_adapter, spectrum_table
from gonio.adapters.contents import parse_tensors, prefetch_contents, read_contents
from gonio.errors import AdapterError, DataError
from gonio.files import file_sha256

KEY = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture
def folder(tmp_path, rng):
    """An adapter of twelve layers, so that layer 10 must not come before layer 2."""
    tensors = {}
    for layer in range(12):
        tensors[KEY.format(layer, "A")] = torch.randn(4, 8, generator=rng)
        tensors[KEY.format(layer, "B")] = torch.randn(6, 4, generator=rng)
    save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (tmp_path / CONFIG).write_text(json.dumps(config))
    return tmp_path


def stored(header, data=b"\0" * 32, pad=True):
    """The bytes of a file with this header, an object or text."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    if pad:
        text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def parsed(contents):
    return parse_tensors(torch.frombuffer(bytearray(contents), dtype=torch.uint8))


def entry(shape, first, last, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


def test_an_adapter_read_once_is_the_adapter(folder):
    contents = read_contents(folder)
    assert contents.sha256 == {name: file_sha256(folder / name) for name in (CONFIG, WEIGHTS)}
    assert contents.tensors.is_finite
    once, twice = load_adapter(folder, contents=contents), load_adapter(folder)
    assert list(once.updates) == list(twice.updates)
    assert once.settings == twice.settings
    for name, update in twice.updates.items():
        assert torch.equal(once.updates[name].lora_a, update.lora_a)
        assert torch.equal(once.updates[name].lora_b, update.lora_b)
        assert once.updates[name].scaling == update.scaling


def test_what_is_measured_is_what_was_hashed(folder):
    before, hashed = load_adapter(folder), file_sha256(folder / WEIGHTS)
    expected = [update.lora_a.clone() for update in before.updates.values()]
    contents = read_contents(folder)
    (folder / WEIGHTS).write_bytes(bytes((folder / WEIGHTS).stat().st_size))
    (folder / CONFIG).write_text("{}")
    after = load_adapter(folder, contents=contents)
    assert contents.sha256[WEIGHTS] == hashed
    assert all(
        torch.equal(update.lora_a, factor)
        for update, factor in zip(after.updates.values(), expected, strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_float_dtype(tmp_path, dtype, rng):
    tensors = {"b": torch.randn(3, 5, generator=rng).to(dtype), "a": torch.ones((), dtype=dtype)}
    found = parsed(safetensors.torch.save(tensors))
    assert found.is_finite
    assert found.by_key.keys() == tensors.keys()
    assert all(torch.equal(found.by_key[key], tensors[key]) for key in tensors)


def test_dtypes_side_by_side_are_checked_one_by_one(rng):
    tensors = {"a": torch.randn(4, 2, generator=rng), "b": torch.ones(2, 2, dtype=torch.float16)}
    assert not parsed(safetensors.torch.save(tensors)).is_finite  # not known
    assert parsed(safetensors.torch.save({"a": torch.ones(2), "b": torch.ones(4)})).is_finite
    bad = {"a": torch.ones(2), "b": torch.tensor([1.0, torch.nan])}
    assert not parsed(safetensors.torch.save(bad)).is_finite


NOT_PLAIN = {
    "short": b"\3\0",
    "length beyond the end": (1 << 40).to_bytes(8, "little") + b"{}",
    "no object": stored("[]"),
    "no JSON": stored('{"a"'),
    "not ASCII": stored('{"ä":' + json.dumps(entry([8], 0, 32)) + "}"),
    "escape": stored('{"\\u0061":' + json.dumps(entry([8], 0, 32)) + "}"),
    "key twice": stored(
        f'{{"a":{json.dumps(entry([8], 0, 32))},"a":{json.dumps(entry([8], 0, 32))}}}'
    ),
    "no field": stored({"a": {"dtype": "F32", "shape": [8]}}),
    "further field": stored({"a": entry([8], 0, 32) | {"more": 1}}),
    "integers": stored({"a": entry([8], 0, 32, "I32")}),
    "unknown dtype": stored({"a": entry([8], 0, 32, "F7")}),
    "size of another shape": stored({"a": entry([7], 0, 32)}),
    "negative shape": stored({"a": entry([-2, -4], 0, 32)}),
    "negative zero": stored('{"a":{"dtype":"F32","shape":[8],"data_offsets":[-0,32]}}'),
    "fraction": stored({"a": entry([8.0], 0, 32)}),
    "truth": stored({"a": entry([True, 8], 0, 32)}),
    "huge shape": stored({"a": entry([1 << 62, 4], 0, 32)}),
    "empty tensor": stored({"a": entry([8], 0, 32), "b": entry([0], 32, 32)}),
    "overlap": stored({"a": entry([8], 0, 32), "b": entry([4], 16, 32)}),
    "gap": stored({"a": entry([2], 0, 8), "b": entry([4], 16, 32)}),
    "late start": stored({"a": entry([6], 8, 32)}),
    "bytes behind": stored({"a": entry([7], 0, 28)}),
    "bytes missing": stored({"a": entry([9], 0, 36)}),
    "not aligned": stored({"a": entry([8], 0, 32), "bc": entry([1], 32, 36)}, bytes(36), pad=False),
    "metadata of numbers": stored({"__metadata__": {"a": 1}, "a": entry([8], 0, 32)}),
    "deep": stored('{"a":' * 3000 + "1" + "}" * 3000),
}


@pytest.mark.parametrize("contents", NOT_PLAIN.values(), ids=NOT_PLAIN)
def test_what_is_not_plain_is_left_to_the_library(contents):
    assert parsed(contents) is None


def test_the_plain_file_those_differ_from():
    found = parsed(stored({"__metadata__": {"a": "1"}, "a": entry([8], 0, 32)}))
    assert found.by_key["a"].tolist() == [0.0] * 8


PLAIN = stored({"a": entry([2, 3], 0, 24), "b": entry([4], 24, 32, "BF16")}, bytes(range(32)))


@given(st.lists(st.tuples(st.integers(0, len(PLAIN) - 1), st.integers(0, 255)), max_size=3))
def test_what_is_accepted_the_library_reads_alike(changes):
    contents = bytearray(PLAIN)
    for place, value in changes:
        contents[place] = value
    found = parsed(contents)
    if found is None:
        assert changes
        return
    expected = safetensors.torch.load(bytes(contents))
    assert found.by_key.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found.by_key[key].dtype == tensor.dtype
        torch.testing.assert_close(found.by_key[key], tensor, rtol=0, atol=0, equal_nan=True)


BROKEN = {
    "weights": lambda folder: (folder / WEIGHTS).write_bytes(b"not safetensors"),
    "empty": lambda folder: (folder / WEIGHTS).write_bytes(b""),
    "no tensors": lambda folder: save_file({}, folder / WEIGHTS),
    "cut": lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-4]),
    "NaN": lambda folder: (folder / WEIGHTS).write_bytes(
        (folder / WEIGHTS).read_bytes()[:-4] + b"\0\0\xc0\x7f"
    ),
    "integers": lambda folder: save_file(
        {KEY.format(0, part): torch.ones(4, 4, dtype=torch.int32) for part in "AB"},
        folder / WEIGHTS,
    ),
    "rank": lambda folder: save_file(
        {KEY.format(0, part): torch.ones(3, 3) for part in "AB"}, folder / WEIGHTS
    ),
    "configuration": lambda folder: (folder / CONFIG).write_bytes(b'{"peft_type": "LORA", \xff'),
}


@pytest.mark.parametrize("harm", BROKEN.values(), ids=BROKEN)
def test_errors_are_those_of_a_folder_read_by_the_library(folder, harm):
    harm(folder)
    with pytest.raises(AdapterError) as expected:
        load_adapter(folder)
    contents = read_contents(folder)
    with pytest.raises(AdapterError, match=re.escape(str(expected.value))):
        load_adapter(folder, contents=contents)
    assert contents.sha256 == {name: file_sha256(folder / name) for name in (CONFIG, WEIGHTS)}


def test_large_weights_are_hashed_and_not_kept(folder):
    contents = read_contents(folder, limit=100)
    assert contents.weights is None
    assert contents.tensors is None
    assert contents.sha256[WEIGHTS] == file_sha256(folder / WEIGHTS)
    assert len(load_adapter(folder, contents=contents).updates) == 12


def test_files_that_cannot_be_read(folder):
    with pytest.raises(DataError, match="was stopped"):
        read_contents(folder, stopped=lambda: True)
    (folder / WEIGHTS).unlink()
    prefetch_contents(folder)
    with pytest.raises(DataError, match=f"cannot read .*{WEIGHTS}"):
        read_contents(folder)


def changed(folder, change, config=None):
    """Write the tensors of a folder once more, changed, and perhaps another configuration."""
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    save_file(change(tensors), folder / WEIGHTS, metadata={"format": "pt"})
    if config is not None:
        known = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(known | config))


def header(folder):
    contents = (folder / WEIGHTS).read_bytes()
    return contents[: 8 + int.from_bytes(contents[:8], "little")]


def with_entry(value, factor="A"):
    """Tensors of equal names and shapes with one value changed, in the last layer."""

    def change(tensors):
        tensors[KEY.format(11, factor)][0, 0] = value
        return tensors

    return change


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("factor", "AB")
def test_values_are_checked_of_every_file_of_one_header(folder, value, factor):
    load_adapter(folder, contents=read_contents(folder))
    before = header(folder)
    changed(folder, with_entry(value, factor))
    assert header(folder) == before
    with pytest.raises(AdapterError, match=f"layers.11.*lora_{factor} holds 1 NaN or infinite"):
        load_adapter(folder, contents=read_contents(folder))
    changed(folder, with_entry(1.0, factor))
    found = load_adapter(folder, contents=read_contents(folder)).updates
    update = found["model.layers.11.self_attn.q_proj"]
    assert float((update.lora_a if factor == "A" else update.lora_b)[0, 0]) == 1.0


def test_the_size_of_every_file_of_one_header_is_checked(folder):
    changed(folder, lambda tensors: {key: value.double() for key, value in tensors.items()})
    load_adapter(folder, contents=read_contents(folder))
    changed(folder, with_entry(1e160))
    with pytest.raises(AdapterError, match=r"layers.11.*too large for float64"):
        load_adapter(folder, contents=read_contents(folder))


def test_each_configuration_is_that_of_its_own_folder(folder):
    """With equal headers: scaling, rank patterns, and what is refused."""
    tensors = {"base_model.model.head.weight": torch.ones(2, 2)}
    changed(folder, lambda others: others | tensors)
    first = load_adapter(folder, contents=read_contents(folder))
    changed(folder, dict, {"lora_alpha": 20, "modules_to_save": ["head"]})
    second = load_adapter(folder, contents=read_contents(folder))
    assert {update.scaling for update in first.updates.values()} == {2.0}
    assert {update.scaling for update in second.updates.values()} == {5.0}
    assert ["saved whole" in one.unused[0].reason for one in (first, second)] == [False, True]
    changed(folder, dict, {"r": 5})
    with pytest.raises(AdapterError, match=re.escape(f"{folder / WEIGHTS}\n  model.layers.0.")):
        load_adapter(folder, contents=read_contents(folder))


@pytest.mark.parametrize("what", ["names", "kind"])
def test_each_header_is_that_of_its_own_file(folder, what):
    """With equal configurations: other modules, or a convolution in place of a matrix."""
    load_adapter(folder, contents=read_contents(folder))
    if what == "names":
        changed(folder, lambda tensors: {k.replace("q_", "v_"): v for k, v in tensors.items()})
    else:
        changed(folder, lambda tensors: {k: v[..., None, None] for k, v in tensors.items()})
    once = load_adapter(folder, contents=read_contents(folder)).updates
    twice = load_adapter(folder).updates
    assert list(once) == list(twice)
    assert [u.kind for u in once.values()] == [u.kind for u in twice.values()]
    assert [u.shape for u in once.values()] == [u.shape for u in twice.values()]


def test_a_table_of_modules_is_its_own(folder):
    first = spectrum_table(load_adapter(folder), samples=5)
    expected = first.copy(deep=True)
    first.iloc[0, 0] = first.iloc[1, 2] = "changed"
    pd.testing.assert_frame_equal(spectrum_table(load_adapter(folder), samples=5), expected)
