"""Frequency tables against a greedy optimum, the entropy of the data and damaged states."""

import heapq
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gonio.errors import SettingError, ShapeError
from gonio.quant.code_tables import (
    CodeTables,
    count_codes,
    entropy_bits,
    fit_tables,
    tables_from_counts,
)

ESCAPE = 255


def laplace_codes(shape, scale, rng):
    """Integer codes of a two-sided exponential law, wider where ``scale`` is larger."""
    sign = torch.randint(2, shape, generator=rng) * 2 - 1
    sizes = -torch.rand(shape, generator=rng, dtype=torch.float64).log() * scale
    return (sign * sizes).round().clamp(-32768, 32767).to(torch.int16)


def greedy_frequencies(counts, total):
    """The optimum by its definition: units given one by one to whoever saves most."""
    frequencies = [1] * len(counts)
    gains = [(-c * math.log2(2), i) for i, c in enumerate(counts)]
    heapq.heapify(gains)
    for _ in range(total - len(counts)):
        _, best = heapq.heappop(gains)
        frequencies[best] += 1
        heapq.heappush(gains, (-counts[best] * math.log1p(1 / frequencies[best]), best))
    return frequencies


def cost_in_bits(counts, frequencies):
    total = sum(frequencies)
    return sum(c * math.log2(total / f) for c, f in zip(counts, frequencies, strict=True))


def symbol_counts(codes, radius):
    """Counts of one coordinate's codes -radius..radius, then of all others."""
    inside = [codes.count(value) for value in range(-radius, radius + 1)]
    return [*inside, len(codes) - sum(inside)]


@settings(max_examples=100)
@given(
    codes=st.lists(st.one_of(st.integers(-3, 3), st.integers(-200, 200)), min_size=1, max_size=300),
    precision=st.integers(8, 12),
)
def test_frequencies_are_the_greedy_optimum(codes, precision):
    tables = fit_tables(torch.tensor(codes, dtype=torch.int16)[:, None], precision=precision)
    counts = symbol_counts(codes, int(tables.radius[0]))
    found = tables.frequencies.tolist()
    best = cost_in_bits(counts, greedy_frequencies(counts, 1 << precision))
    assert cost_in_bits(counts, found) == pytest.approx(best, rel=1e-12, abs=1e-9)
    assert sum(found) == 1 << precision
    assert min(found) >= 1
    assert tables.precision == precision


def test_no_unit_is_better_elsewhere(rng):
    """A frequency table one unit off costs more: the optimum is seen by the same sum."""
    codes = laplace_codes((2000, 1), 2.0, rng)
    tables = fit_tables(codes)
    counts = symbol_counts(codes[:, 0].tolist(), int(tables.radius[0]))
    found = tables.frequencies.tolist()
    best = cost_in_bits(counts, found)
    for giver in range(len(found)):
        for taker in range(len(found)):
            if giver != taker and found[giver] > 1:
                moved = list(found)
                moved[giver] -= 1
                moved[taker] += 1
                assert cost_in_bits(counts, moved) >= best - 1e-9


def test_excess_over_the_entropy_is_small(rng):
    """4096 units cost less than 0.5% of the entropy; 256 units cost more, none saves."""
    codes = laplace_codes((20000, 24), torch.logspace(-1, 1, 24), rng)
    counts = count_codes(codes)
    entropy = entropy_bits(counts)
    fine = fit_tables(codes).expected_bits(counts) - entropy
    coarse = fit_tables(codes, precision=8).expected_bits(counts) - entropy
    assert float(fine.min()) > -1e-9
    assert float(fine.mean()) < 0.005 * float(entropy.mean())
    assert float(coarse.mean()) > float(fine.mean())


def test_entropy_of_known_laws():
    codes = torch.tensor([[0, -1, -128], [0, 0, 0], [0, 1, 1], [0, 0, 2]], dtype=torch.int16)
    expected = torch.tensor([0.0, 1.5, 2.0 + 16 / 4], dtype=torch.float64)
    torch.testing.assert_close(entropy_bits(count_codes(codes)), expected)


def test_ideal_bits_follow_the_definition(rng):
    tables = fit_tables(laplace_codes((500, 3), 1.5, rng))
    codes = laplace_codes((50, 3), 4.0, rng)
    codes[0] = torch.tensor([-32768, 32767, 300])
    starts = [0, *torch.cumsum(2 * tables.radius.long() + 2, 0).tolist()]
    expected = []
    for j in range(3):
        radius, bits = int(tables.radius[j]), 0.0
        for code in codes[:, j].tolist():
            place = code + radius if abs(code) <= radius else 2 * radius + 1
            bits += 12 - math.log2(int(tables.frequencies[starts[j] + place]))
            bits += 16 * (abs(code) > radius)
        expected.append(bits)
    torch.testing.assert_close(
        tables.ideal_bits(codes), torch.tensor(expected, dtype=torch.float64)
    )
    grouped = replace(tables, index=tables.index.repeat(2, 1))
    both = grouped.ideal_bits(torch.stack((codes, codes[:1].expand(50, 3), codes, codes)))
    torch.testing.assert_close(both[0], 2 * tables.ideal_bits(codes))
    per_code = tables.expected_bits(count_codes(codes))
    torch.testing.assert_close(per_code * 50, tables.ideal_bits(codes))


def test_radius_is_near_the_best_of_all(rng):
    """A code seen once in 10,000 is cheaper escaped than kept within a wide table."""
    codes = torch.zeros(10000, 1, dtype=torch.int16)
    codes[0] = 90
    tables = fit_tables(codes)
    assert int(tables.radius[0]) == 0
    codes = laplace_codes((5000, 1), 3.0, rng)
    counts = count_codes(codes)
    found = float(fit_tables(codes).expected_bits(counts))
    best = min(
        cost_in_bits(kept, greedy_frequencies(kept, 4096)) + 16 * kept[-1]
        for radius in range(40)
        for kept in [symbol_counts(codes[:, 0].tolist(), radius)]
    )
    assert best / 5000 <= found + 1e-9
    assert found <= best / 5000 + 0.002


def test_counts_of_batches_add_up_and_classes_share_a_table(rng):
    first, second = (laplace_codes((2, 300, 4), 2.0, rng) for _ in range(2))
    both = torch.cat((first, second), dim=1)
    counts = count_codes(first) + count_codes(second)
    assert torch.equal(counts, count_codes(both))
    assert int(counts.sum()) == both.numel()
    classes = torch.tensor([[0, 1, 1, 0], [2, 1, 0, 2]])
    tables = tables_from_counts(counts, classes=classes)
    assert tables.num_tables == 3
    pooled = torch.cat((both[0, :, 0], both[0, :, 3], both[1, :, 2]))[:, None]
    alone = fit_tables(pooled)
    assert torch.equal(tables.frequencies[: alone.frequencies.numel()], alone.frequencies)
    assert torch.equal(tables.index.long(), classes)


def test_chunked_counts_equal_one_count(rng, monkeypatch):
    codes = laplace_codes((257, 5), 60.0, rng)
    expected = count_codes(codes)
    monkeypatch.setattr("gonio.quant.code_tables.CHUNK", 64)
    assert torch.equal(count_codes(codes), expected)
    assert int(expected[:, ESCAPE].sum()) == int((codes.abs() > 127).sum())


def test_state_round_trip(rng):
    tables = fit_tables(laplace_codes((3, 100, 5), 2.0, rng))
    state = tables.state()
    again = CodeTables.from_state({name: tensor.clone() for name, tensor in state.items()})
    read = again.state()
    assert again.precision == 12
    assert again.dim == 5
    assert all(torch.equal(state[name], read[name]) for name in state)
    with pytest.raises(SettingError, match="lack index"):
        CodeTables.from_state({k: v for k, v in state.items() if k != "index"})


def test_unseen_data_still_has_finite_cost():
    tables = fit_tables(torch.zeros(0, 2, dtype=torch.int16))
    bits = tables.ideal_bits(torch.tensor([[0, -32768]], dtype=torch.int16))
    assert bits[0] < 0.001
    assert bits[1] == 28.0
    assert tables.expected_bits(torch.zeros(2, 256, dtype=torch.int64)).tolist() == [0.0, 0.0]


def broken(tables, **changes):
    return CodeTables.from_state(tables.state() | changes)


def test_damaged_states_are_refused(rng):
    tables = fit_tables(laplace_codes((100, 2), 2.0, rng))
    off_by_one = tables.frequencies.to(torch.int32)
    off_by_one[0] += 1
    with pytest.raises(SettingError, match="add up to one power of two"):
        broken(tables, frequencies=off_by_one.to(torch.uint16))
    zero = tables.frequencies.to(torch.int32)
    zero[1] += zero[0]
    zero[0] = 0
    with pytest.raises(SettingError, match="at least 1"):
        broken(tables, frequencies=zero.to(torch.uint16))
    with pytest.raises(ShapeError, match="do not fill"):
        broken(tables, frequencies=tables.frequencies[:-1])
    with pytest.raises(ShapeError, match="do not fill"):
        broken(tables, radius=tables.radius + 1)
    with pytest.raises(SettingError, match="dtypes"):
        broken(tables, radius=tables.radius.long())
    with pytest.raises(ShapeError, match="must be frequencies"):
        broken(tables, index=tables.index.reshape(1, 1, 2))
    with pytest.raises(SettingError, match="name tables 0 to 1"):
        broken(tables, index=tables.index + 1)


def test_settings_are_checked(rng):
    codes = laplace_codes((10, 2), 1.0, rng)
    with pytest.raises(SettingError, match="13 bits"):
        fit_tables(codes, precision=13)
    with pytest.raises(SettingError, match="float32"):
        fit_tables(codes.float())
    with pytest.raises(SettingError, match="range of int16"):
        fit_tables(codes.int() + 40000)
    with pytest.raises(ShapeError, match="codes have shape"):
        fit_tables(codes[0])
    with pytest.raises(ShapeError, match="classes have shape"):
        fit_tables(codes, classes=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(SettingError, match="without gaps"):
        fit_tables(codes, classes=torch.tensor([0, 2]))
    with pytest.raises(ShapeError, match="counts have shape"):
        tables_from_counts(torch.zeros(2, 255, dtype=torch.int64))
    with pytest.raises(ShapeError, match="counts have shape"):
        fit_tables(codes).expected_bits(torch.zeros(3, 256))
    with pytest.raises(ShapeError, match="codes have shape"):
        fit_tables(codes).ideal_bits(codes[:, :1])
    with pytest.raises(ShapeError, match="a multiple of the groups"):
        fit_tables(codes[None].repeat(2, 1, 1)).ideal_bits(codes[None].repeat(3, 1, 1))
