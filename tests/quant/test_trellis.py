"""Trellis codes: the best of all sequences, read back exactly, better than scalar codes."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gonio.errors import SettingError
from gonio.kvcache.quantizer_design import design_levels, design_trellis
from gonio.quant.trellis import STATES, level_numbers, trellis_codes

TRELLISES = STATES[1:]


def walk(code_path: list[int], states: int) -> list[int]:
    """Subsets along a path by shift registers and Ungerboeck's octal parity checks."""
    checks = {4: ("5", "2"), 8: ("13", "04"), 16: ("23", "04"), 32: ("45", "10"), 64: ("103", "24")}
    first, second = (int(octal, 8) for octal in checks[states])
    register, subsets = 0, []
    for bit in code_path:
        register = (register << 1 | bit) & (2 * states - 1)
        subsets.append(
            2 * ((register & first).bit_count() % 2) + (register & second).bit_count() % 2
        )
    return subsets


@pytest.mark.parametrize("states", TRELLISES)
def test_codes_are_the_best_of_all_sequences(states, rng):
    """Every path of five coordinates and every level of its subsets, by brute force."""
    widths = torch.tensor([1, 2, 1, 3, 2])
    levels = torch.zeros(5, 16)
    for i, width in enumerate(widths.tolist()):
        levels[i, : 2 << width] = torch.randn(2 << width, generator=rng).sort().values * 2
    rows = 2 * torch.randn(5, 40, generator=rng)
    codes = trellis_codes(rows, levels, widths, states)
    assert bool((codes < 1 << widths[:, None]).all())
    decoded = levels.gather(1, level_numbers(codes, states))
    found = (rows - decoded).square().sum(dim=0)
    best = torch.full_like(found, torch.inf)
    for path in itertools.product((0, 1), repeat=5):
        total = torch.zeros_like(found)
        for i, subset in enumerate(walk(path, states)):
            book = levels[i, subset : 2 << int(widths[i]) : 4]
            total += (rows[i, :, None] - book).square().amin(dim=1)
        best = torch.minimum(best, total)
    torch.testing.assert_close(found, best, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("states", TRELLISES)
@settings(max_examples=20, deadline=None)
@given(widths=st.lists(st.integers(1, 8), min_size=1, max_size=12), seed=st.integers(0, 99))
def test_level_numbers_follow_the_path(states, widths, seed):
    """Any codes at all, against shift registers; the number modulo 4 is the subset."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor(widths)
    codes = (torch.rand(len(widths), 3, generator=generator) * (1 << sizes)[:, None]).byte()
    numbers = level_numbers(codes, states)
    assert bool((numbers < 2 << sizes[:, None]).all())
    for token in range(3):
        column = codes[:, token].tolist()
        subsets = walk([code & 1 for code in column], states)
        expected = [4 * (code >> 1) + subset for code, subset in zip(column, subsets, strict=True)]
        assert numbers[:, token].tolist() == expected


def test_both_branches_of_a_state_differ_by_two_levels():
    """What makes the code good: no branch leads to neighboring subsets."""
    for states in TRELLISES:
        for history in itertools.product((0, 1), repeat=states.bit_length() - 1):
            ends = {walk([*history, bit], states)[-1] for bit in (0, 1)}
            assert ends in ({0, 2}, {1, 3})


@pytest.mark.parametrize(("width", "gain"), [(1, 0.6), (2, 1.05), (3, 1.1)])
def test_normal_samples_gain_what_the_literature_says(width, gain, rng):
    """Marcellin and Fischer: 4.99 to 5.3 dB at 1 bit, 10.2 to 10.7 at 2; scalar 4.40 and 9.30."""
    learn, test = torch.randn(2, 48, 4096, generator=rng)
    widths = torch.full((48,), width, dtype=torch.uint8)
    levels = torch.stack(design_trellis(learn, widths, 16))
    found = levels.gather(1, level_numbers(trellis_codes(test, levels, widths, 16), 16))
    error = (test - found).square().mean()
    scalar = design_levels(test, width)[1].mean()
    assert 10 * torch.log10(scalar / error) > gain
    assert error > 4.0**-width  # the rate-distortion function


def test_a_coordinate_without_bits_is_its_mean(rng):
    rows = torch.randn(4, 2000, generator=rng) + 5
    levels = design_trellis(rows, torch.tensor([2, 0, 1, 0], dtype=torch.uint8), 8)
    assert [len(own) for own in levels] == [8, 1, 4, 1]
    torch.testing.assert_close(levels[1], rows[1].mean()[None])
    assert design_trellis(rows, torch.zeros(4, dtype=torch.uint8), 8)[3].shape == (1,)


def test_other_numbers_of_states_are_refused():
    with pytest.raises(SettingError, match="4, 8, 16, 32, 64 states, not 7"):
        trellis_codes(torch.zeros(1, 1), torch.zeros(1, 4), torch.ones(1), 7)
    with pytest.raises(SettingError, match="not 1"):
        level_numbers(torch.zeros(1, 1, dtype=torch.uint8), 1)
