"""The compiled coder of entropy-coded blocks against the one of array operations, word by word."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gonio.errors import CodecError, ShapeError
from gonio.kernels import available_levels
from gonio.kernels.entropy import BlockWords, decode_levels, encode_streams
from gonio.quant.code_tables import CodeTables, fit_tables
from gonio.quant.rans import EncodedBlocks, encode_blocks

COMPILED = available_levels()[-1]
pytestmark = pytest.mark.skipif(COMPILED == "reference", reason="no C compiler")


def spans(encoded: EncodedBlocks, groups: int) -> BlockWords:
    blocks, streams = encoded.lengths.T.shape
    starts, ends = (torch.from_numpy(border) for border in encoded.borders())
    shape = (blocks, streams // groups, groups)
    words = encoded.words.view(torch.int16)
    lengths = (ends - starts).view(shape)
    return BlockWords(words, starts.view(shape), lengths, encoded.block, encoded.lanes)


def draw_codes(shape: tuple[int, ...], scale: float, rng: torch.Generator) -> torch.Tensor:
    wide = torch.logspace(0, -2, shape[-1]) * scale
    return (torch.randn(shape, generator=rng) * wide).round().clamp(-32768, 32767).to(torch.int16)


def draw_tables(groups: int, dim: int, fitted: float, rng: torch.Generator) -> CodeTables:
    return fit_tables(draw_codes((groups, 40, dim), fitted, rng))


def numbered_levels(tables: CodeTables, rng: torch.Generator) -> torch.Tensor:
    """Random levels of the codes of each table; codes beyond it are their own."""
    widest = int(tables.radius.max())
    numbers = torch.arange(-widest, widest + 1)
    inside = numbers.abs() <= tables.radius[tables.index.flatten().long()].long()[:, None]
    random = torch.randn(inside.shape, generator=rng)
    return torch.where(inside, random, numbers.float()).contiguous()


@settings(max_examples=40)
@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 3),
    blocks=st.integers(0, 19),
    dim=st.one_of(st.integers(1, 5), st.just(33)),
    block=st.integers(1, 9),
    lanes=st.integers(1, 8),
    fitted=st.floats(0.01, 300.0),
    drawn=st.floats(0.01, 30000.0),
    seed=st.integers(0, 2**31),
)
def test_words_and_levels_are_those_of_array_operations(
    batch, groups, blocks, dim, block, lanes, fitted, drawn, seed
):
    rng = torch.Generator().manual_seed(seed)
    lanes = min(lanes, block)
    tables = draw_tables(groups, dim, fitted, rng)
    codes = draw_codes((batch * groups, blocks * block, dim), drawn, rng)
    expected = encode_blocks(codes, tables, block, lanes=lanes)
    found = encode_streams(codes, tables, block, lanes=lanes, level=COMPILED)
    assert torch.equal(found.words.view(torch.int16), expected.words.view(torch.int16))
    assert torch.equal(found.lengths.view(torch.int16), expected.lengths.view(torch.int16))
    levels, scale = numbered_levels(tables, rng), torch.randn(batch, blocks, generator=rng)
    rows = [
        decode_levels(spans(found, groups), tables, levels, scale, level=level)
        for level in (COMPILED, "reference")
    ]
    assert torch.equal(rows[0], rows[1])
    widest = levels.shape[1] // 2
    numbers = codes.view(batch, groups, -1, dim).permute(1, 3, 0, 2).reshape(groups * dim, -1)
    inside = numbers.abs() <= widest if blocks else numbers.bool()
    own = levels.gather(1, (numbers.long() + widest).clamp(0, 2 * widest))
    by_hand = torch.where(inside, own, numbers.float())
    by_hand = by_hand * scale.flatten().repeat_interleave(block)
    far = numbers == -32768  # its magnitude is no int16
    assert torch.equal(rows[0][~far], by_hand[~far])


@pytest.fixture
def stored(rng):
    tables = draw_tables(2, 4, 3.0, rng)
    codes = draw_codes((4, 3 * 16, 4), 4.0, torch.Generator().manual_seed(1))
    levels = numbered_levels(tables, rng)
    coded = spans(encode_streams(codes, tables, 16), 2)
    return coded, tables, levels, torch.ones(2, 3)


def test_a_damaged_word_is_found_or_changes_one_code(stored):
    """Any bit flipped anywhere: an error, but for rare luck and codes stored as they are."""
    coded, tables, levels, scale = stored
    right = decode_levels(coded, tables, levels, scale, level=COMPILED)
    errors = 0
    for place in range(coded.words.numel()):
        words = coded.words.clone()
        words[place] ^= 1 << place % 15
        broken = BlockWords(words, coded.starts, coded.lengths, coded.block, coded.lanes)
        try:
            found = decode_levels(broken, tables, levels, scale, level=COMPILED)
        except CodecError:
            errors += 1
        else:
            assert (found != right).sum() == 1
    codes = draw_codes((4, 3 * 16, 4), 4.0, torch.Generator().manual_seed(1))
    radius = tables.radius[tables.index.long()].long()  # (groups, dim)
    escaped = codes.abs().view(2, 2, -1, 4) > radius[:, None]
    coded_words = coded.words.numel() - int(escaped.sum())
    assert 0.95 * coded_words < errors <= coded_words


def test_noise_ends_in_an_error_and_reads_nothing_outside(stored, rng):
    coded, tables, levels, scale = stored
    for _ in range(50):
        words = torch.randint(-32768, 32768, coded.words.shape, generator=rng).to(torch.int16)
        noise = BlockWords(words, coded.starts, coded.lengths, coded.block, coded.lanes)
        with pytest.raises(CodecError, match="damaged"):
            decode_levels(noise, tables, levels, scale, level=COMPILED)


def test_tables_of_other_data_are_noticed(stored, rng):
    coded, tables, _, scale = stored
    other = draw_tables(2, 4, 1.0, rng)
    with pytest.raises(CodecError, match="other tables"):
        decode_levels(coded, other, numbered_levels(other, rng), scale, level=COMPILED)
    assert tables.precision == other.precision


def test_blocks_outside_their_words_are_refused(stored):
    coded, *_ = stored
    for starts, lengths in (
        (coded.starts + 1, coded.lengths),
        (coded.starts - 1, coded.lengths),
        (coded.starts, -coded.lengths),
    ):
        with pytest.raises(CodecError, match="truncated or damaged"):
            BlockWords(coded.words, starts, lengths, 16, 2)
    with pytest.raises(ShapeError, match="lanes"):
        BlockWords(coded.words, coded.starts, coded.lengths, 16, 9)
    with pytest.raises(ShapeError, match="starts and lengths"):
        BlockWords(coded.words, coded.starts, coded.lengths[:1], 16, 2)


def test_shapes_that_do_not_fit_are_refused(stored):
    coded, tables, levels, scale = stored
    with pytest.raises(ShapeError, match="do not fit"):
        decode_levels(coded, tables, levels[:, 1:], scale)
    with pytest.raises(ShapeError, match="do not fit"):
        decode_levels(coded, tables, levels, scale.T)
    with pytest.raises(ShapeError, match="blocks of 16"):
        encode_streams(torch.zeros((4, 17, 4), dtype=torch.int16), tables, 16)
