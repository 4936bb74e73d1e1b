"""Entropy-coded blocks against a coder of one symbol at a time, exact sizes, damaged streams."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gonio.errors import CodecError, SettingError, ShapeError
from gonio.quant.code_tables import CodeTables, fit_tables
from gonio.quant.lanes import _push
from gonio.quant.rans import EncodedBlocks, decode_blocks, encode_blocks


def normal_codes(shape, scale, rng):
    """Rounded normal numbers, wider where ``scale`` is larger."""
    return (torch.randn(shape, generator=rng) * scale).round().to(torch.int16)


@pytest.fixture
def stored(rng):
    """Codes of 6 streams and 3 groups of tables, 150 tokens in blocks of 64: the last has 22."""
    codes = normal_codes((6, 150, 5), torch.tensor([0.1, 0.5, 1.0, 3.0, 80.0]), rng)
    tables = fit_tables(codes.reshape(2, 3, 150, 5).transpose(0, 1).reshape(3, 300, 5))
    return codes, tables, encode_blocks(codes, tables)


def intervals(tables, stream):
    """Of each coordinate: radius, and (frequency, first slot) by code; None is the escape."""
    starts = [0, *torch.cumsum(2 * tables.radius.long() + 2, 0).tolist()]
    rows = tables.index if tables.index.ndim == 2 else tables.index[None]
    found = []
    for table in rows[stream % len(rows)].tolist():
        radius, first, law = int(tables.radius[table]), 0, {}
        frequencies = tables.frequencies[starts[table] : starts[table + 1]].tolist()
        names = [*range(-radius, radius + 1), None]
        for name, frequency in zip(names, frequencies, strict=True):
            law[name] = (frequency, first)
            first += frequency
        found.append(law)
    return found


def reference_block(codes, laws, precision, lanes):
    """Words of one block (tokens, dim), by Python integers and one symbol at a time."""
    lanes = min(lanes, len(codes))
    steps = [
        (token % lanes, coordinate, codes[token][coordinate])
        for start in range(0, len(codes), lanes)
        for coordinate in range(len(laws))
        for token in range(start, min(start + lanes, len(codes)))
    ]
    states, words, raw = [1 << 16] * lanes, [], []
    for lane, coordinate, code in reversed(steps):
        law = laws[coordinate]
        frequency, first = law[code if code in law else None]
        grown = (states[lane] // frequency << precision) + states[lane] % frequency + first
        if grown >= 1 << 32:
            words.append(states[lane] & 0xFFFF)
            states[lane] >>= 16
            grown = (states[lane] // frequency << precision) + states[lane] % frequency + first
        states[lane] = grown
    raw = [c & 0xFFFF for row in codes for c, law in zip(row, laws, strict=True) if c not in law]
    heads = [half for state in states for half in (state & 0xFFFF, state >> 16)]
    return heads + words[::-1] + raw


@pytest.mark.parametrize("precision", [8, 11, 12])
@pytest.mark.parametrize("lanes", [1, 3, 4])
def test_words_equal_those_of_a_scalar_coder(precision, lanes, rng):
    scale = torch.tensor([0.2, 2.0, 30.0])
    tables = fit_tables(normal_codes((2, 100, 3), scale, rng), precision=precision)
    codes = normal_codes((4, 26, 3), 1.5 * scale, rng)
    encoded = encode_blocks(codes, tables, block=11, lanes=lanes)
    expected, lengths = [], []
    for block in range(3):
        for stream in range(4):
            part = codes[stream, 11 * block : 11 * block + 11].tolist()
            words = reference_block(part, intervals(tables, stream), precision, lanes)
            expected += words
            lengths.append(len(words))
    assert encoded.words.tolist() == expected
    assert encoded.lengths.T.flatten().tolist() == lengths


def test_states_at_the_edges_follow_python_integers():
    """Every frequency, with states at the ends of the range, the threshold and its multiples."""
    cases = [
        (state, frequency)
        for frequency in range(1, 4096)
        for edge in (1 << 16, frequency << 20, (1 << 32) // frequency * frequency, 1 << 32)
        for state in (edge - 1, edge, edge + 1)
        if 1 << 16 <= state < 1 << 32
    ]
    states = np.array([state for state, _ in cases], np.uint32)
    entries = np.array([f << 16 | 4096 - f for _, f in cases], np.uint32)
    buffer, fronts = np.zeros(len(cases), np.uint16), np.arange(len(cases)) + 1
    _push(states, entries, 12, buffer, fronts, 1)
    for place, (state, frequency) in enumerate(cases):
        taken = state // frequency >= 1 << 20
        assert fronts[place] == place + (not taken)
        assert buffer[place] == (state & 0xFFFF if taken else 0)
        x = state >> 16 if taken else state
        assert states[place] == (x // frequency << 12) + x % frequency + 4096 - frequency


@settings(max_examples=120)
@given(
    streams=st.integers(0, 4),
    tokens=st.integers(0, 40),
    dim=st.one_of(st.integers(1, 6), st.sampled_from([63, 64, 130])),
    block=st.integers(1, 20),
    lanes=st.integers(1, 9),
    precision=st.integers(8, 12),
    fitted=st.floats(0.01, 300.0),
    drawn=st.floats(0.01, 30000.0),
    seed=st.integers(0, 2**31),
)
def test_round_trip(streams, tokens, dim, block, lanes, precision, fitted, drawn, seed):
    rng = torch.Generator().manual_seed(seed)
    tables = fit_tables(normal_codes((30, dim), fitted, rng), precision=precision)
    codes = torch.randn(streams, tokens, dim, generator=rng) * drawn
    codes = codes.round().clamp(-32768, 32767).to(torch.int16)
    encoded = encode_blocks(codes, tables, block, lanes=lanes)
    assert encoded.stored_bytes == 2 * (encoded.words.numel() + encoded.lengths.numel())
    decoded = decode_blocks(encoded, tables)
    assert decoded.dtype == torch.int16
    assert torch.equal(decoded, codes)


@settings(max_examples=60)
@given(
    codes=st.lists(st.integers(-32768, 32767), min_size=1, max_size=60),
    seen=st.lists(st.integers(-32768, 32767), min_size=1, max_size=20),
)
def test_any_codes_with_any_tables(codes, seen):
    tables = fit_tables(torch.tensor(seen, dtype=torch.int16)[:, None])
    wanted = torch.tensor(codes, dtype=torch.int64).reshape(1, -1, 1)
    encoded = encode_blocks(wanted, tables, 16)
    assert torch.equal(decode_blocks(encoded, tables), wanted.to(torch.int16))


@pytest.mark.parametrize("value", [0, 1, -127, 127, 128, -128, -32768, 32767])
def test_one_symbol_only(value):
    """Seen alone it is nearly free; escaped everywhere it costs 28 bits and more."""
    codes = torch.full((2, 130, 7), value, dtype=torch.int16)
    own, other = fit_tables(codes[0]), fit_tables(torch.full((9, 7), 2))
    for tables in (own, other):
        encoded = encode_blocks(codes, tables)
        assert torch.equal(decode_blocks(encoded, tables), codes)
    if abs(value) <= 127:
        heads = 2 * 2 * (4 + 4 + 2)  # words of states: two blocks of 4 lanes, one of 2 tokens
        assert encode_blocks(codes, own).words.numel() <= heads + 14
    if abs(value) > 2:
        assert 8 * encode_blocks(codes, other).stored_bytes > 28 * codes.numel()


@pytest.mark.parametrize("at_once", [1, 7, 16, 1 << 14])
def test_random_access_equals_full_decoding(stored, at_once, monkeypatch):
    """Any range of blocks, and whatever the number of lanes that are worked on together."""
    codes, tables, encoded = stored
    monkeypatch.setattr("gonio.quant.rans.LANES_AT_ONCE", at_once)
    again = encode_blocks(codes, tables)
    assert torch.equal(again.words, encoded.words)
    assert torch.equal(again.lengths, encoded.lengths)
    for first in range(4):
        for last in range(first, 4):
            part = decode_blocks(encoded, tables, first, last)
            assert torch.equal(part, codes[:, 64 * first : min(64 * last, 150)])
    assert torch.equal(decode_blocks(encoded, tables, 1), codes[:, 64:])


def test_blocks_are_appended_dropped_and_reordered(stored):
    codes, tables, encoded = stored
    head = encoded.first_blocks(2)
    assert head.tokens == 128
    assert torch.equal(decode_blocks(head, tables), codes[:, :128])
    whole = head.extended(encode_blocks(codes[:, 128:], tables))
    assert torch.equal(whole.words, encoded.words)
    assert torch.equal(whole.lengths, encoded.lengths)
    order = torch.tensor([3, 1, 5, 3, 1, 2])  # streams of the same group in the same places
    chosen = encoded.selected_streams(order)
    assert torch.equal(decode_blocks(chosen, tables), codes[order])
    assert encoded.first_blocks(0).stored_bytes == 0
    with pytest.raises(ShapeError, match="whole blocks before"):
        encoded.extended(head)
    with pytest.raises(ShapeError, match="equal settings"):
        head.extended(encode_blocks(codes, tables, 32))
    with pytest.raises(SettingError, match="4 blocks asked for"):
        encoded.first_blocks(4)
    with pytest.raises(SettingError, match="streams asked for"):
        encoded.selected_streams(torch.tensor([6]))


def test_groups_of_tables_follow_the_streams(stored):
    """Streams of one group decode with that group's own tables alone."""
    codes, tables, encoded = stored
    for group in range(3):
        alone = CodeTables(tables.frequencies, tables.radius, tables.index[group])
        part = encode_blocks(codes[group::3], alone)
        assert torch.equal(part.lengths, encoded.lengths[group::3])
        assert torch.equal(decode_blocks(part, alone), codes[group::3])


@pytest.mark.parametrize("lanes", [1, 2, 4, 8])
def test_overhead_is_the_stated_one(lanes, rng):
    """Over the ideal bits: 16 to 32 bits a lane, 16 a block, and rounding below 0.2%."""
    scale = torch.logspace(0.7, -1.2, 64)
    codes = normal_codes((16, 512, 64), scale, rng)
    tables = fit_tables(codes.reshape(-1, 64))
    ideal = float(tables.ideal_bits(codes).sum())
    encoded = encode_blocks(codes, tables, lanes=lanes)
    blocks = 16 * 8
    over = 8 * encoded.stored_bytes - ideal
    assert 1.4 < ideal / codes.numel() < 1.7
    assert blocks * (16 * lanes + 16) <= over + 1.0
    assert over <= blocks * (32 * lanes + 16) + 0.002 * ideal
    if lanes == 4:
        assert over < 0.02 * ideal


def test_every_damaged_word_of_states_and_symbols_is_found(rng):
    tables = fit_tables(normal_codes((200, 6), 1.0, rng))
    codes = normal_codes((1, 16, 6), 1.0, rng).clamp(-1, 1)  # nothing is escaped
    encoded = encode_blocks(codes, tables, 16)
    words = encoded.words.to(torch.int32)
    for place in range(words.numel()):
        for bit in (0, 7, 15):
            damaged = words.clone()
            damaged[place] ^= 1 << bit
            with pytest.raises(CodecError, match="damaged or was made with other tables"):
                decode_blocks(replace(encoded, words=damaged.to(torch.uint16)), tables)


@settings(max_examples=100)
@given(seed=st.integers(0, 2**31), streams=st.integers(1, 3))
def test_random_words_never_crash(seed, streams):
    """Noise, with every sort of lengths, is refused as a damaged stream."""
    rng = torch.Generator().manual_seed(seed)
    tables = fit_tables(normal_codes((50, 4), 2.0, rng))
    lengths = torch.randint(40, (streams, 3), generator=rng)
    words = torch.randint(1 << 16, (int(lengths.sum()),), generator=rng)
    encoded = EncodedBlocks(
        words.to(torch.uint16), lengths.to(torch.uint16), tokens=40, dim=4, block=16, lanes=4
    )
    with pytest.raises(CodecError, match="entropy-coded block"):
        decode_blocks(encoded, tables)


def test_truncated_and_shifted_streams_are_refused(stored):
    _, tables, encoded = stored
    with pytest.raises(CodecError, match="truncated or damaged"):
        replace(encoded, words=encoded.words[:-1])
    lengths = encoded.lengths.to(torch.int32)
    lengths[0, 0] -= 1
    lengths[1, 0] += 1
    with pytest.raises(CodecError, match="does not end where it was begun"):
        decode_blocks(replace(encoded, lengths=lengths.to(torch.uint16)), tables)
    lengths[1, 0] += lengths[0, 0] - 7
    lengths[0, 0] = 7
    with pytest.raises(CodecError, match="shorter than its states"):
        decode_blocks(replace(encoded, lengths=lengths.to(torch.uint16)), tables)


def test_frequencies_one_off_are_caught(stored):
    """The nearest other table, one unit between two symbols, does not decode the stream."""
    _, tables, encoded = stored
    frequencies = tables.frequencies.to(torch.int32)
    widest = int(frequencies[: 2 * int(tables.radius[0]) + 2].argmax())
    frequencies[widest] -= 1
    frequencies[widest + 1] += 1
    mutant = replace(tables, frequencies=frequencies.to(torch.uint16))
    with pytest.raises(CodecError, match="other tables"):
        decode_blocks(encoded, mutant)


def test_settings_are_checked(stored):
    codes, tables, encoded = stored
    with pytest.raises(ShapeError, match="codes have shape"):
        encode_blocks(codes[0], tables)
    with pytest.raises(ShapeError, match="tables of 5 coordinates, codes of 4"):
        encode_blocks(codes[..., :4], tables)
    with pytest.raises(ShapeError, match="3 groups for 4 streams"):
        encode_blocks(codes[:4], tables)
    with pytest.raises(SettingError, match="expected integers"):
        encode_blocks(codes.float(), tables)
    with pytest.raises(SettingError, match="range of int16"):
        encode_blocks(codes.int() + 40000, tables)
    with pytest.raises(SettingError, match="at least 1 each"):
        encode_blocks(codes, tables, lanes=0)
    with pytest.raises(SettingError, match="choose shorter blocks"):
        encode_blocks(codes, tables, 1 << 14)
    for first, last in ((-1, 2), (2, 1), (0, 4)):
        with pytest.raises(SettingError, match="expected a range"):
            decode_blocks(encoded, tables, first, last)
    with pytest.raises(ShapeError, match="tables of 4"):
        decode_blocks(encoded, replace(tables, index=tables.index[:, :4]))
    with pytest.raises(SettingError, match=r"expected torch\.uint16"):
        replace(encoded, words=encoded.words.to(torch.int32))
    with pytest.raises(ShapeError, match=r"expected \(streams, 4\)"):
        replace(encoded, tokens=200)


def test_capacity_of_a_block_is_never_exceeded(rng):
    """The longest block that is accepted, all codes escaped at the highest cost."""
    tables = fit_tables(torch.zeros(10, 127, dtype=torch.int16))
    block = math.floor((65535 / 2 - 4) / 127)
    codes = torch.full((1, block, 127), -32768, dtype=torch.int16)
    encoded = encode_blocks(codes, tables, block)
    assert int(encoded.lengths[0, 0]) > 50000
    assert torch.equal(decode_blocks(encoded, tables), codes)
