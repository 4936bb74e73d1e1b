"""Eigenvalues of second moments, per layer and head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from gonio.kvcache.moments import HeadMoments
from gonio.linalg.spectrum import effective_rank, stable_rank

__all__ = ["eigenvalue_table", "second_moment_eigenvalues", "spectra_table"]


def second_moment_eigenvalues(moments: HeadMoments) -> Tensor:
    """Eigenvalues of ``sum x x^T / count``, descending.

    Returns:
        Float64 ``(heads, dim)``, not negative, in the squared unit of the vectors.
    """
    ascending: Tensor = torch.linalg.eigvalsh(moments.second_moment)
    return ascending.flip(-1).clamp(min=0)


def spectra_table(moments: Mapping[str, Sequence[HeadMoments]]) -> pd.DataFrame:
    """Summaries of every head's second moment.

    Returns:
        One row per layer, head and ``what``: ``energy`` (trace, the mean squared length; of
        queries, summed over their group), ``effective_rank`` and ``stable_rank`` of the second
        moment matrix, ``top_share`` (largest eigenvalue over the trace) with ``top_chance``
        (1/dim, all directions alike). Ranks and shares are NaN for a head that is zero.
    """
    rows = []
    for what, layer, values in _eigenvalues(moments):
        for head, eigenvalues in enumerate(values):
            energy = eigenvalues.sum().item()
            ranks = (float("nan"),) * 3
            if energy > 0:
                top = eigenvalues[0].item() / energy
                ranks = (effective_rank(eigenvalues).item(), stable_rank(eigenvalues).item(), top)
            rows.append((layer, head, what, energy, *ranks, 1 / len(eigenvalues)))
    columns = ["layer", "head", "what", "energy", "effective_rank", "stable_rank", "top_share"]
    return pd.DataFrame(rows, columns=[*columns, "top_chance"])


def eigenvalue_table(moments: Mapping[str, Sequence[HeadMoments]]) -> pd.DataFrame:
    """Eigenvalues over their sum, as a mean over the heads of a layer.

    Returns:
        One row per layer, ``what`` and ``index`` (0 for the largest): ``share``, in [0, 1], NaN if
        a head is zero.
    """
    frames = []
    for what, layer, values in _eigenvalues(moments):
        shares = (values / values.sum(dim=-1, keepdim=True)).mean(dim=0)
        frame = pd.DataFrame({"index": range(len(shares)), "share": shares.numpy()})
        frames.append(frame.assign(layer=layer, what=what))
    return pd.concat(frames, ignore_index=True)[["layer", "what", "index", "share"]]


def _eigenvalues(
    moments: Mapping[str, Sequence[HeadMoments]],
) -> list[tuple[str, int, Tensor]]:
    return [
        (what, layer, second_moment_eigenvalues(sums))
        for what, layers in moments.items()
        for layer, sums in enumerate(layers)
    ]
