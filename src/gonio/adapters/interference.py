"""What adapters share before they are added: cosines and subspace overlaps of every pair.

``|D_1 + D_2|_F^2`` is ``|D_1|^2 + |D_2|^2 + 2 cos |D_1| |D_2|``: a positive cosine adds up, a
negative one cancels. Overlap without cosine means that both write to, or read from, the same
directions in different ways. Every value stands beside its chance level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import pandas as pd

from gonio.adapters.adapter import Adapter
from gonio.adapters.pair import PairComparison, compare_adapters
from gonio.errors import SettingError

__all__ = ["Interference", "interference_table"]

_COSINE_COLUMNS = {
    "z_score": "cosine_z",
    "frobenius_norm_first": "norm_first",
    "frobenius_norm_second": "norm_second",
}
_OVERLAP_COLUMNS = {"overlap": "overlap", "chance": "chance", "z_score": "z"}
_COLUMNS = ["first", "second", "module", "layer", "projection", "cosine", "cosine_z", "k"]
_COLUMNS += [f"{side}_{name}" for side in ("left", "right") for name in _OVERLAP_COLUMNS.values()]
_COLUMNS += ["norm_first", "norm_second"]


@dataclass(frozen=True)
class Interference:
    """What :func:`interference_table` found.

    Attributes:
        table: One row per pair and shared module: ``first, second, module, layer, projection,
            cosine, cosine_z, k`` (the smaller numerical rank)``, left_overlap, left_chance,
            left_z, right_overlap, right_chance, right_z, norm_first, norm_second``.
        left_out: ``(first, second, what)`` for pairs without a shared module, and for shared
            modules with a zero update.
    """

    table: pd.DataFrame
    left_out: tuple[tuple[str, str, str], ...]


def interference_table(
    adapters: Sequence[Adapter],
    names: Sequence[str],
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> Interference:
    """Compare every two adapters, module by module, on all of their directions.

    Args:
        adapters: At least two of one base model.
        names: One distinct name per adapter.
        progress: Called as ``progress(what, pairs done, pairs)``.

    Raises:
        SettingError: Fewer than two adapters, names do not fit, or no pair shares a module.
        AdapterError: Shapes differ, or in every shared module of a pair one update is zero.
    """
    if len(adapters) < 2 or len(names) != len(adapters) or len(set(names)) != len(names):
        raise SettingError(
            f"interference needs two or more adapters with distinct names, found {len(adapters)} "
            f"adapters and the names {', '.join(names)}"
        )
    frames: list[pd.DataFrame] = []
    left_out: list[tuple[str, str, str]] = []
    pairs = list(combinations(zip(names, adapters, strict=True), 2))
    for done, ((one, first), (two, second)) in enumerate(pairs, start=1):
        if first.updates.keys() & second.updates.keys():
            found = compare_adapters(first, second, ks=(), samples=1)  # its angles are not used
            frames.append(_rows(found).assign(first=one, second=two))
            left_out += [(one, two, f"{module}: {why}") for module, why in found.left_out]
        else:
            left_out.append((one, two, "no shared module"))
        if progress:
            progress(f"{one} and {two}", done, len(pairs))
    if not frames:
        raise SettingError(f"no two of {', '.join(names)} change the same module")
    return Interference(pd.concat(frames, ignore_index=True)[_COLUMNS], tuple(left_out))


def _rows(found: PairComparison) -> pd.DataFrame:
    """The two sides of each module beside its cosine."""
    rows = found.cosines.rename(columns=_COSINE_COLUMNS)
    for side in ("left", "right"):
        columns = {name: f"{side}_{short}" for name, short in _OVERLAP_COLUMNS.items()}
        half = found.overlaps[found.overlaps["side"] == side].rename(columns=columns)
        shared = ["module", "k"] if side == "left" else ["module"]  # k is that of both sides
        rows = rows.merge(half[[*shared, *columns.values()]], on="module", validate="one_to_one")
    return rows
