"""Filled caches as files: exact, on sliding layers too, refused with another codec."""

import copy

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import DynamicCache

from gonio.errors import CodecError
from gonio.kvcache import (
    CacheCodec,
    SignCodec,
    calibrate,
    control_codec,
    load_cache,
    load_codec,
    save_cache,
)
from gonio.kvcache.frame import Frame
from gonio.linalg.rotations import haar_rotation


@pytest.fixture
def filled(make_model, tokens):
    """A hybrid model, its 1-bit codec with sinks and window, and a cache of 17 tokens."""
    model = make_model("gemma2")
    plain = calibrate(model, tokens, rotation="haar")
    codec = CacheCodec(plain.layout, plain.keys, plain.keys, sinks=2, window=3)
    cache = codec.new_cache(model, left_padding=1)
    with torch.no_grad():
        for part in tokens[:, :17].split([12, 1, 4], dim=1):
            model(input_ids=part, past_key_values=cache)
    return model, codec, cache


@torch.no_grad()
def test_a_loaded_cache_is_the_saved_one_byte_for_byte(filled, tokens, tmp_path):
    model, codec, cache = filled
    path = save_cache(cache, tmp_path / "cache.safetensors")
    reread = load_codec(codec.save(tmp_path / "codec.safetensors"))
    loaded = load_cache(path, model, reread)
    for mine, other in zip(cache.layers, loaded.layers, strict=True):
        for stream, again in zip(mine.streams, other.streams, strict=True):
            assert len(stream.tensors) == len(again.tensors)
            assert [run.tokens for run in stream.runs] == [run.tokens for run in again.runs]
            assert all(map(torch.equal, stream.tensors, again.tensors))
    logits = [model(input_ids=tokens[:, 17:], past_key_values=c).logits for c in (cache, loaded)]
    assert torch.equal(*logits)


def test_the_file_holds_the_stored_bytes_and_little_else(filled, tmp_path):
    _, _, cache = filled
    path = save_cache(cache, tmp_path / "cache.safetensors")
    with safe_open(str(path), framework="pt") as file:
        stored = sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
    assert stored == cache.key_bytes + cache.value_bytes


def test_an_empty_cache_can_be_saved(filled, tmp_path):
    model, codec, _ = filled
    loaded = load_cache(save_cache(codec.new_cache(model), tmp_path / "empty"), model, codec)
    assert loaded.get_seq_length() == 0


def test_what_does_not_fit_is_refused(filled, tmp_path, rng):
    model, codec, cache = filled
    path = save_cache(cache, tmp_path / "cache.safetensors")
    rotation = haar_rotation(codec.layout.head_dim, rng, batch=(1,))
    other = CacheCodec(codec.layout, (SignCodec(Frame(rotation)),) * codec.layout.num_layers)
    with pytest.raises(CodecError, match="filled with another codec"):
        load_cache(path, model, other)
    with pytest.raises(CodecError, match="no cache file"):
        load_cache(tmp_path / "absent", model, codec)
    with pytest.raises(CodecError, match="not a gonio cache"):
        load_cache(codec.save(tmp_path / "codec.safetensors"), model, codec)
    with pytest.raises(CodecError, match="cannot save a DynamicCache"):
        save_cache(DynamicCache(), tmp_path / "plain")


def test_a_file_without_one_of_its_tensors_is_refused(filled, tmp_path):
    model, codec, cache = filled
    path = save_cache(cache, tmp_path / "cache.safetensors")
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    gone = next(name for name in tensors if "codes" in name)
    del tensors[gone]
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(CodecError, match=gone):
        load_cache(path, model, codec)


def test_another_model_or_dtype_is_refused(filled, make_model, tokens, tmp_path):
    """Weights of the same shape that differ in one element, and the same ones in bfloat16."""
    model, codec, cache = filled
    path = save_cache(cache, tmp_path / "marked", model=model)
    load_cache(path, model, codec)
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1
    with pytest.raises(CodecError, match="other weights"):
        load_cache(path, other, codec)
    with pytest.raises(CodecError, match=r"filled in float32, the model computes in bfloat16"):
        load_cache(path, model.to(torch.bfloat16), codec)


def test_damaged_files_are_refused(filled, tmp_path):
    """Cut anywhere, or with tensors and tokens that are not those announced."""
    model, codec, cache = filled
    path = save_cache(cache, tmp_path / "cache", tokens=torch.arange(17))
    whole = path.read_bytes()
    for share in (0, 0.01, 0.5, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(CodecError, match="not a safetensors file"):
            load_cache(path, model, codec)
    path.write_bytes(whole)
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name in ("1.keys.recent", "1.values.sink_part", "1.keys.0.codes"):
        save_file(tensors | {name: tensors[name][0]}, path, metadata=metadata)
        with pytest.raises(CodecError, match=r"is damaged\n.*(expected|must be)"):
            load_cache(path, model, codec)
    save_cache(cache, path, tokens=torch.arange(5))
    with pytest.raises(CodecError, match="names 5 tokens and holds 17"):
        load_cache(path, model, codec)


def test_equal_codecs_have_equal_fingerprints(make_model, tokens):
    model = make_model("llama")
    codec = calibrate(model, tokens)
    again = CacheCodec(
        codec.layout, tuple(SignCodec(Frame(k.frame.rotation.clone())) for k in codec.keys)
    )
    assert again.fingerprint == codec.fingerprint
    nudged = codec.keys[0].frame.rotation.clone()
    nudged[0, 0, 0] += 1e-6
    near = CacheCodec(codec.layout, (SignCodec(Frame(nudged)), codec.keys[1]))
    assert near.fingerprint != codec.fingerprint
    assert control_codec(model, "zeros").fingerprint != control_codec(model, "lossless").fingerprint
