"""The storage of one tensor: sinks, blocks and window; what is encoded never changes."""

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gonio.errors import CodecError, ShapeError
from gonio.kvcache import EncodedTensor, LosslessCodec, SignCodec
from gonio.kvcache.stream import TokenStream

OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["append", "append", "remove_last", "select"]), st.integers(0, 13)),
    max_size=12,
)


def draw(tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, tokens, 5, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("block", [1, 4])
@given(
    operations=OPERATIONS,
    sinks=st.integers(0, 3),
    window=st.integers(0, 5),
    scratch=st.sampled_from([0, 4 * 2 * 3 * 5 * 4, 1 << 20]),
)
def test_any_history_leaves_what_a_plain_tensor_would_hold(
    blocked, block, operations, sinks, window, scratch
):
    """Lossless blocks: reading equals concatenation, slicing and indexing of a raw tensor."""
    stream = TokenStream(blocked(block), sinks, window, scratch)
    plain = draw(0)
    for step, (name, count) in enumerate(operations):
        if name == "append":
            more = draw(count, step)
            stream.append(more)
            plain = torch.cat([plain, more], dim=2)
        elif name == "remove_last":
            stream.remove_last(count)
            plain = plain[:, :, : max(plain.shape[2] - count, 0)]
        else:
            rows = torch.tensor([count % 2, 0])
            stream.map(lambda tensor, rows=rows: tensor[rows])
            plain = plain[rows]
        assert stream.tokens == plain.shape[2]
        if stream.tokens:
            assert torch.equal(stream.read(), plain)
        assert stream.scratch_bytes <= min(scratch, 4 * 2 * 3 * 5 * stream.encoded_tokens)
        lengths = [run.tokens for run in stream.runs]
        assert all(tokens % block == 0 for tokens in lengths)
        _check_memory(stream)


@given(steps=st.lists(st.integers(1, 9), min_size=1, max_size=30), block=st.sampled_from([1, 4]))
def test_bytes_once_encoded_never_change(blocked, steps, block):
    stream = TokenStream(blocked(block), sinks=2, window=3)
    before: dict[int, str] = {}
    for seed, count in enumerate(steps):
        stream.append(draw(count, seed))
        encoded = stream.encoded
        if encoded is None:
            continue
        for tokens, digest in before.items():
            assert _digest(encoded.first(tokens)) == digest
        before[encoded.tokens] = _digest(encoded)
        waiting = stream.tokens - encoded.tokens - 2
        assert 3 <= waiting < 3 + block


def test_only_what_is_not_kept_decoded_is_decoded_again(blocked):
    """Tokens decoded by each read, counted; a limit of one block keeps one block."""

    class Counting(blocked):
        def decode(self, encoded):
            decoded.append(encoded.tokens)
            return super().decode(encoded)

    sizes = {0: [8, 12, 12, 8], 4 * 120: [8, 8, 8, 4], 1 << 20: [8, 4, 0, 0]}
    for limit, expected in sizes.items():
        stream, found = TokenStream(Counting(4), scratch_limit=limit), []
        for count in (8, 4, 0, -4):
            decoded: list[int] = []
            stream.append(draw(max(count, 0)))
            stream.remove_last(max(-count, 0))
            stream.read()
            found.append(sum(decoded))
        assert found == expected
        assert stream.scratch_bytes == min(limit, 8 * 120)
        stored = stream.stored_bytes
        stream.map(lambda tensor: tensor.repeat_interleave(2, dim=0))
        assert stream.stored_bytes == 2 * stored
        assert stream.scratch_bytes <= limit
        stream.remove_first(4)
        assert stream.scratch_bytes <= 4 * 240
        stream.clear()
        assert stream.scratch_bytes == 0


def test_reading_is_raw_sinks_decoded_blocks_raw_window(rng):
    keys = torch.randn(1, 2, 40, 8, generator=rng)
    codec = SignCodec()
    stream = TokenStream(codec, sinks=4, window=6)
    for start in range(0, 40, 5):
        stream.append(keys[:, :, start : start + 5])
    read = stream.read()
    assert torch.equal(read[:, :, :4], keys[:, :, :4])
    assert torch.equal(read[:, :, -6:], keys[:, :, -6:])
    middle = keys[:, :, 4:-6]
    torch.testing.assert_close(read[:, :, 4:-6], codec.decode(codec.encode(middle)))
    raw, encoded = 10 * 2 * 8 * 4, 30 * 2 * (1 + 2)
    assert stream.stored_bytes == raw + encoded
    assert stream.metadata_bytes == 30 * 2 * 2


def test_a_cut_inside_a_block_keeps_the_rest_of_it_as_decoded(rng):
    class Coarse(SignCodec):
        block = 4

        def encode(self, x):
            found = super().encode(x)
            return EncodedTensor(found.tensors, found.tokens, found.head_dim, found.dtype, 4)

    keys = torch.randn(1, 1, 12, 8, generator=rng)
    stream = TokenStream(Coarse())
    stream.append(keys)
    before = stream.read()
    stream.remove_last(2)
    assert (stream.encoded_tokens, stream.tokens) == (8, 10)
    assert torch.equal(stream.read(), before[:, :, :10])
    stream.append(keys[:, :, :2])
    assert stream.encoded_tokens == 12
    assert torch.equal(stream.read()[:, :, :8], before[:, :, :8])


@given(
    removed=st.lists(st.integers(0, 9), max_size=5),
    appended=st.integers(1, 40),
    window=st.integers(0, 4),
)
def test_removing_first_tokens_drops_whole_blocks_only(blocked, removed, appended, window):
    stream = TokenStream(blocked(4), window=window)
    plain = draw(appended)
    stream.append(plain)
    for count in removed:
        wanted = max(stream.tokens - count, 0)
        stream.remove_first(count)
        assert wanted <= stream.tokens < wanted + 4
        if stream.tokens:
            assert torch.equal(stream.read(), plain[:, :, -stream.tokens :])
        _check_memory(stream)


def test_growth_copies_each_token_a_few_times_and_allocates_nothing_spare():
    """One token at a time to 4,096: copies stay below 2 log2(n) per token, not n / 2."""
    copied = 0

    class Counting(EncodedTensor):
        def append(self, later):
            nonlocal copied
            copied += self.tokens + later.tokens
            return super().append(later)

    class Codec(LosslessCodec):
        def encode(self, x):
            found = super().encode(x)
            return Counting(found.tensors, found.tokens, found.head_dim, found.dtype)

    stream = TokenStream(Codec())
    for _ in range(4096):
        stream.append(torch.zeros(1, 1, 1, 1))
    assert copied < 2 * 12 * 4096
    assert len(stream.runs) <= 13
    _check_memory(stream)


def test_what_cannot_be_is_refused(rng):
    stream = TokenStream(LosslessCodec(), sinks=2)
    with pytest.raises(CodecError, match="empty cache"):
        stream.read()
    stream.append(draw(5))
    with pytest.raises(CodecError, match="kept as sinks"):
        stream.remove_first(1)
    with pytest.raises(ShapeError, match="not whole blocks of 4"):
        EncodedTensor({"codes": draw(6)}, 6, 5, torch.float32, block=4)
    with pytest.raises(ShapeError, match="stored tensor 'codes'"):
        EncodedTensor({"codes": draw(3)}, 8, 5, torch.float32, block=4)
    with pytest.raises(ShapeError, match="cannot cut tokens 0 to 6"):
        EncodedTensor({"codes": draw(8)}, 8, 5, torch.float32, block=4).first(6)


def _digest(encoded: EncodedTensor) -> str:
    digest = hashlib.sha256()
    for name in sorted(encoded.tensors):
        digest.update(encoded.tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _check_memory(stream: TokenStream) -> None:
    """No tensor is a view of a larger allocation, and runs at least halve."""
    for tensor in stream.tensors:
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
    lengths = [run.tokens for run in stream.runs]
    assert all(tokens > 0 for tokens in lengths)
