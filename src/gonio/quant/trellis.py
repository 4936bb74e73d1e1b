"""Trellis-coded scalar quantization: coordinates chosen together, at whole bits each.

A coordinate of b bits has ``2^(b + 1)`` levels, numbered as they ascend, in four subsets by their
number modulo 4. Of its b bits one is the *path bit*; the subset is a function of it and of the path
bits of the coordinates before, and the other ``b - 1`` bits name the level in the subset. So twice
as many levels are within reach as bits allow, and Viterbi's algorithm finds the sequence of least
squared error. Since the function looks back a few coordinates only, decoding is one table look-up
per coordinate, in any order.

The subset is ``2 z1 + z0`` with z1 and z0 sums modulo 2 of path bits: Ungerboeck's codes for
amplitude modulation in feed-forward form, so that both branches of a state differ by two levels.

Sources: Marcellin and Fischer 1990 (doi:10.1109/26.46532); Ungerboeck 1982
(doi:10.1109/TIT.1982.1056454), table I; Tseng et al. 2024 (arXiv:2406.11235) for decoding without
walking the trellis.
"""

import torch
from torch import Tensor

from gonio.errors import SettingError

__all__ = ["STATES", "level_numbers", "trellis_codes"]

# Parity checks (h0, h1) of the code with so many states; bit k stands for the path bit k before.
TAPS = {4: (0o5, 0o2), 8: (0o13, 0o4), 16: (0o23, 0o4), 32: (0o45, 0o10), 64: (0o103, 0o24)}
STATES = (1, *TAPS)  # 1: no trellis, every coordinate alone
CHUNK = 4096  # tokens searched at once


def trellis_codes(rows: Tensor, levels: Tensor, widths: Tensor, states: int) -> Tensor:
    """Codes of least squared error over all coordinates of a token.

    Args:
        rows: Coordinates in the order of the trellis, ``(coordinates, tokens)``.
        levels: Of each coordinate its ``2^(width + 1)`` levels, ascending within each subset
            (number modulo 4); what lies behind them is ignored, ``(coordinates, most levels)``.
        widths: Bits of each coordinate, 1 to 8, integers ``(coordinates,)``.
        states: Of the trellis, 4 to 64.

    Returns:
        uint8 ``(coordinates, tokens)``: the path bit lowest, above it the level in the subset.

    Raises:
        SettingError: There is no trellis of so many states.
    """
    _taps(states)
    parts = [_chunk_codes(part, levels, widths, states) for part in rows.split(CHUNK, dim=1)]
    return torch.cat(parts, dim=1) if parts else rows.to(torch.uint8)


def level_numbers(codes: Tensor, states: int) -> Tensor:
    """Number of the level of each code, int64, the shape of the codes.

    Args:
        codes: As :func:`trellis_codes` returns.
        states: Of the trellis.

    Raises:
        SettingError: There is no trellis of so many states.
    """
    path = (codes & 1).long()
    first, second = _taps(states)
    return (codes >> 1).long() * 4 + 2 * _parity(path, first) + _parity(path, second)


def _parity(path: Tensor, taps: int) -> Tensor:
    """Sum modulo 2 of the path bits that the taps pick, each coordinate by itself."""
    found = torch.zeros_like(path)
    for back in range(min(taps.bit_length(), len(path))):
        if taps >> back & 1:
            found[back:] ^= path[: len(path) - back]
    return found


def _chunk_codes(rows: Tensor, levels: Tensor, widths: Tensor, states: int) -> Tensor:
    costs = rows.new_empty((len(rows), 4, rows.shape[1]))
    places = torch.empty(costs.shape, dtype=torch.uint8, device=rows.device)
    for width in widths.unique().tolist():
        where = (widths == width).nonzero()[:, 0]
        book = levels[where, : 2 << width].unflatten(1, (-1, 4)).mT.contiguous()  # subset, place
        x = rows[where, None].expand(-1, 4, -1).contiguous()
        edges = ((book[..., 1:] + book[..., :-1]) / 2).contiguous()
        nearest = torch.searchsorted(edges, x, right=True)
        costs[where] = (x - book.gather(2, nearest)).square()
        places[where] = nearest.to(torch.uint8)
    path = _best_path(costs, states)
    first, second = _taps(states)
    subset = 2 * _parity(path, first) + _parity(path, second)
    return places.gather(1, subset[:, None])[:, 0] << 1 | path.to(torch.uint8)


def _best_path(costs: Tensor, states: int) -> Tensor:
    """Path bits of least total cost from state 0, int64 ``(coordinates, tokens)``.

    Args:
        costs: Of each coordinate, subset and token, ``(coordinates, 4, tokens)``.
        states: Path bits a state holds are ``log2`` of them, the latest lowest.
    """
    count, _, tokens = costs.shape
    window = torch.arange(2 * states, device=costs.device)  # a state and the path bit after it
    first, second = (sum((window & taps) >> k & 1 for k in range(8)) % 2 for taps in _taps(states))
    subset, before = 2 * first + second, window >> 1
    total = costs.new_full((states, tokens), torch.inf)
    total[0] = 0
    older = torch.empty((count, states, tokens), dtype=torch.bool, device=costs.device)
    for step in range(count):
        both = (total[before] + costs[step, subset]).view(2, states, tokens)
        torch.lt(both[1], both[0], out=older[step])  # the path bit that falls out of the state
        total = torch.minimum(both[0], both[1])
    state = total.argmin(dim=0)
    path = torch.empty((count, tokens), dtype=torch.int64, device=costs.device)
    for step in reversed(range(count)):
        path[step] = state & 1
        state = (older[step].gather(0, state[None])[0].long() * states + state) >> 1
    return path


def _taps(states: int) -> tuple[int, int]:
    if states not in TAPS:
        raise SettingError(f"a trellis has {', '.join(map(str, TAPS))} states, not {states}")
    return TAPS[states]
