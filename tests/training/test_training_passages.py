"""Pairs from a text: verbatim, fair between chosen and rejected, disjoint, deterministic."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gonio.errors import DataError, SettingError
from gonio.training import PassageShape, pairs_from_text

SHAPE = PassageShape(prompt_chars=90, response_chars=40)
LONGEST_WORD = 10


def test_prompt_and_chosen_are_verbatim_and_consecutive(long_text):
    split = pairs_from_text(long_text, train=30, held_out=8, shape=SHAPE)
    assert (len(split.train), len(split.held_out)) == (30, 8)
    for pair in split.train + split.held_out:
        assert pair.prompt + pair.chosen in long_text


def test_rejected_is_another_place_of_the_text_and_never_the_true_continuation(long_text):
    split = pairs_from_text(long_text, train=60, held_out=8, shape=SHAPE)
    for pair in split.train + split.held_out:
        wrong = pair.rejected.lstrip()
        assert pair.prompt + pair.rejected not in long_text
        place = long_text.index(wrong)
        before = long_text[:place]
        assert re.search(r"([.!?][ \t]+|\n\s*)\Z", before), repr(before[-10:])
        assert wrong != pair.chosen.lstrip()


def test_nothing_but_content_tells_chosen_from_rejected(long_text):
    """Same white space in front, same rule for the end, lengths equal to within a word."""
    split = pairs_from_text(long_text, train=60, held_out=8, shape=SHAPE)
    for pair in split.train + split.held_out:
        lengths = []
        for response in (pair.chosen, pair.rejected):
            body = response.lstrip()
            lengths.append(len(body))
            assert (
                response[: len(response) - len(body)] == pair.chosen[: -len(pair.chosen.lstrip())]
            )
            after = long_text[long_text.index(body) + len(body) :][:1]
            assert after == "" or after.isspace()
        assert all(SHAPE.response_chars <= n < SHAPE.response_chars + LONGEST_WORD for n in lengths)


def test_no_held_out_text_is_seen_in_training(long_text):
    """Every sentence ends with its own number: no number occurs on both sides."""
    shape = PassageShape(prompt_chars=90, response_chars=80)
    split = pairs_from_text(long_text, train=40, held_out=10, shape=shape)
    numbers = [
        {n for p in side for part in (p.prompt, p.chosen, p.rejected) for n in numbers_in(part)}
        for side in (split.train, split.held_out)
    ]
    assert all(numbers_in(p.rejected) for p in split.held_out)
    assert not numbers[0] & numbers[1]


def numbers_in(text):
    return re.findall(r"\b\d+\b", text)


def test_same_seed_same_pairs_other_seed_other_pairs(long_text):
    first = pairs_from_text(long_text, train=20, held_out=5, seed=4, shape=SHAPE)
    assert pairs_from_text(long_text, train=20, held_out=5, seed=4, shape=SHAPE) == first
    assert pairs_from_text(long_text, train=20, held_out=5, seed=5, shape=SHAPE) != first


def test_repeated_text_never_puts_one_prompt_on_both_sides(long_text):
    split = pairs_from_text(long_text[:6000] * 4, train=20, held_out=4, shape=SHAPE)
    train = {pair.prompt for pair in split.train}
    assert len(train) == 20
    assert not train & {pair.prompt for pair in split.held_out}


@pytest.mark.parametrize(
    "text", ["", "One sentence.", "word " * 500], ids=["empty", "short", "flat"]
)
def test_a_text_without_enough_passages_is_refused(text):
    with pytest.raises(DataError, match="0 training pairs where 2 are wanted"):
        pairs_from_text(text, train=2, held_out=1, shape=SHAPE)


@given(
    st.text(alphabet=" \n\t.ab!é", max_size=400),
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(0, 3),
)
def test_awkward_texts_give_valid_pairs_or_one_error(text, prompt_chars, response_chars, seed):
    shape = PassageShape(prompt_chars, response_chars, held_out_share=0.5)
    try:
        split = pairs_from_text(text, train=2, held_out=1, seed=seed, shape=shape)
    except DataError:
        return
    for pair in split.train + split.held_out:
        assert pair.prompt + pair.chosen in text
        assert pair.rejected.lstrip() in text
        assert pair.chosen != pair.rejected


@pytest.mark.parametrize(
    "settings", [{"prompt_chars": 0}, {"response_chars": -1}, {"held_out_share": 1.0}]
)
def test_impossible_shapes_are_refused(settings):
    with pytest.raises(SettingError):
        PassageShape(**settings)
