"""Tokens that attention or norms single out: attention sinks and outliers, by layer and position.

Received attention of a token is the mean weight that later queries give it, over sampled queries
strictly after it that may see it and over all heads of a layer; its chance is what it would be if
each query spread its attention evenly. A norm is compared with the median norm of the head's
vectors in the window, and the ratio is averaged (geometrically) over heads.

Source: Gu et al. 2024 (arXiv:2410.10781), section 2.3, for the mean received weight and the
threshold of 0.3 (there per head, and the query's own key counts); Xiao et al. 2023
(arXiv:2309.17453) for attention sinks.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from torch import Tensor

from gonio.errors import SettingError
from gonio.kvcache.capture import AttentionCall

__all__ = ["SinkFinder", "SinkSettings", "norm_ratio", "received_attention"]

Criterion = Literal["attention", "key_norm", "value_norm"]

LEADING = 4  # positions told apart; later ones are told apart by their token
MEANS = 8  # first positions of which means are kept, whatever they are

_COLUMNS = (
    *("layer", "criterion", "position", "token_id", "found", "per_window"),
    *("first_position", "last_position", "value", "chance", "threshold"),
)
_LEADING_COLUMNS = ("layer", "position", "attention", "chance", "key_norm", "value_norm")


@dataclass(frozen=True)
class SinkSettings:
    """What counts as a sink or an outlier.

    Attributes:
        attention: Mean received attention from which a token is a sink, in (0, 1).
        norm_ratio: A norm this many times above or below the median is an outlier; above 1.
        queries: Queries sampled per window, evenly spaced.
        least_queries: A token with fewer sampled queries after it is not judged by attention.
    """

    attention: float = 0.3
    norm_ratio: float = 3.0
    queries: int = 64
    least_queries: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.attention < 1 or not self.norm_ratio > 1:
            raise SettingError(
                f"sinks need attention in (0, 1) and norm_ratio > 1, found {self.attention} and "
                f"{self.norm_ratio}"
            )
        if self.queries < self.least_queries or self.least_queries < 1:
            raise SettingError(
                f"sinks need queries >= least_queries >= 1, found {self.queries} and "
                f"{self.least_queries}"
            )


def received_attention(
    weights: Tensor, rows: Tensor, visible: Tensor, least_queries: int = 1
) -> tuple[Tensor, Tensor]:
    """Mean attention that each token receives from later queries, and its chance.

    Args:
        weights: Attention weights of some queries, ``(heads, rows, tokens)``.
        rows: Positions of these queries, ``(rows,)``.
        visible: Which tokens each query may attend to, bool ``(rows, tokens)``.
        least_queries: Tokens with fewer later queries get NaN.

    Returns:
        Received attention ``(heads, tokens)``, in [0, 1], and the mean of one over the number of
        tokens visible to a query, over the same queries, ``(tokens,)``; both float64.
    """
    tokens = torch.arange(weights.shape[-1], device=weights.device)
    counted = (visible & (rows[:, None] > tokens)).double()  # (rows, tokens)
    count = counted.sum(dim=0)
    count = torch.where(count >= least_queries, count, torch.nan)
    received = (weights.double() * counted).sum(dim=-2) / count
    even = counted / visible.sum(dim=-1, keepdim=True).clamp(min=1)
    return received, even.sum(dim=0) / count


def norm_ratio(vectors: Tensor) -> Tensor:
    """Norm of each token's vectors over the median norm, as a geometric mean over heads.

    Args:
        vectors: ``(heads, tokens, dim)``.

    Returns:
        Ratios, float64 ``(tokens,)``: 0 for a zero vector, NaN where a median norm is zero.
    """
    norms = vectors.double().square().sum(dim=-1).sqrt()
    middle = norms.median(dim=-1, keepdim=True).values
    logs = torch.where(middle > 0, norms / middle, torch.nan).log()
    return logs.mean(dim=0).exp()


@dataclass
class _Tally:
    """What was found of one position or token."""

    found: int = 0
    value: float = 0.0
    chance: float = 0.0
    first: int = sys.maxsize
    last: int = -1

    def add(self, position: int, value: float, chance: float) -> None:
        self.found += 1
        self.value += value
        self.chance += chance
        self.first, self.last = min(self.first, position), max(self.last, position)


class SinkFinder:
    """Collects what is found, window by window.

    Memory is at most that of one tally per layer, criterion and leading position or token of the
    vocabulary, and of the means of the first eight positions, however many windows there are.
    """

    def __init__(self, settings: SinkSettings) -> None:
        self.settings = settings
        self._windows = 0
        # layer, criterion, leading position or None, token id or None
        self._tallies: dict[tuple[int, Criterion, int | None, int | None], _Tally] = {}
        # By layer: sums over windows, and the windows in them, of attention received, its chance,
        # and the logarithms of the norm ratios of keys and values; each (2, 4, MEANS).
        self._leading: dict[int, Tensor] = {}

    def start_window(self) -> None:
        """Count one more window."""
        self._windows += 1

    def add(self, call: AttentionCall, token_ids: Tensor) -> None:
        """Look at one layer of the current window.

        Args:
            call: What the layer's attention was given, batch 1.
            token_ids: The window, ``(tokens,)``.
        """
        settings, tokens = self.settings, call.key.shape[-2]
        rows = torch.linspace(0, tokens - 1, min(settings.queries, tokens)).round().long()
        rows = rows.to(call.key.device)
        received, chance = received_attention(
            call.weights(rows)[0], rows, call.visible[rows], settings.least_queries
        )
        attention = received.mean(dim=0)
        ids = token_ids.tolist()
        self._note(call.layer, "attention", ids, attention, attention >= settings.attention, chance)
        limit = settings.norm_ratio
        normed: dict[Criterion, Tensor] = {
            "key_norm": norm_ratio(call.key[0]),
            "value_norm": norm_ratio(call.value[0]),
        }
        self._lead(call.layer, attention, chance, *(ratio.log() for ratio in normed.values()))
        for criterion, ratio in normed.items():
            outside = (ratio > limit) | (ratio < 1 / limit)
            self._note(call.layer, criterion, ids, ratio, outside, torch.ones_like(ratio))

    def table(self) -> pd.DataFrame:
        """What was found.

        Returns:
            Rows per layer and criterion (``attention``, ``key_norm``, ``value_norm``): one for
            each of the first four positions, without a ``token_id``, and one for each token found
            at later ones, without a ``position``. ``found`` times in all, ``per_window`` of them,
            from ``first_position`` to ``last_position``; ``value`` is the mean received attention
            or norm ratio of those found, beside ``chance`` and ``threshold``. The frequent first.
        """
        rows = [
            (
                *key,
                tally.found,
                tally.found / self._windows,
                *(tally.first, tally.last),
                *(tally.value / tally.found, tally.chance / tally.found),
                self.settings.attention if key[1] == "attention" else self.settings.norm_ratio,
            )
            for key, tally in self._tallies.items()
        ]
        table = pd.DataFrame(rows, columns=list(_COLUMNS))
        table = table.astype({"layer": "int64", "position": "Int64", "token_id": "Int64"})
        order = ["layer", "criterion", "found", "first_position", "token_id"]
        upward = [True, True, False, True, True]
        return table.sort_values(order, ascending=upward, ignore_index=True)

    def leading_table(self) -> pd.DataFrame:
        """What the first positions receive and how long their vectors are, found or not.

        Returns:
            Rows per layer and position, of the first eight at most: mean received ``attention``
            beside its ``chance``, NaN where too few queries follow; ``key_norm`` and
            ``value_norm``, the geometric means over windows of the norm ratios.
        """
        rows = []
        for layer, (sums, counts) in sorted(self._leading.items()):
            means = torch.where(counts > 0, sums / counts, torch.nan)
            means[2:] = means[2:].exp()
            rows += [
                (layer, position, *means[:, position].tolist())
                for position in range(MEANS)
                if counts[:, position].any()
            ]
        return pd.DataFrame(rows, columns=list(_LEADING_COLUMNS))

    def _lead(self, layer: int, *quantities: Tensor) -> None:
        first = torch.stack([values[:MEANS] for values in quantities]).double().cpu()
        known = ~first.isnan()
        sums = self._leading.setdefault(layer, torch.zeros(2, len(first), MEANS).double())
        sums[0, :, : first.shape[1]] += torch.where(known, first, 0.0)
        sums[1, :, : first.shape[1]] += known

    def _note(
        self,
        layer: int,
        criterion: Criterion,
        ids: list[int],
        values: Tensor,
        is_found: Tensor,
        chance: Tensor,
    ) -> None:
        for at in is_found.nonzero()[:, 0].tolist():
            key = (
                (layer, criterion, at, None) if at < LEADING else (layer, criterion, None, ids[at])
            )
            tally = self._tallies.setdefault(key, _Tally())
            tally.add(at, float(values[at]), float(chance[at]))
