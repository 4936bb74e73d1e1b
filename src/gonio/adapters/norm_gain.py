"""Do updates read along the gain of the normalization layer in front of them?

A linear layer that reads ``gamma * normalized(x)`` sees its input through the gain vector gamma.
The share of gamma's energy inside the top k right singular vectors of the update says whether the
update reads there; a random k-space holds ``k / n`` of it, with a Beta law.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import NamedTuple

import pandas as pd
import torch
from scipy.special import betainc, betaincc, betaincinv
from torch import Tensor

from gonio.adapters.adapter import Adapter
from gonio.adapters.base import BaseWeights, WeightSource
from gonio.adapters.compare import DEFAULT_KS, check_ks
from gonio.adapters.measure import numerical_rank_of
from gonio.adapters.update import LoraUpdate, split_module_name
from gonio.errors import AdapterError
from gonio.linalg.spectrum import stable_rank

__all__ = ["NormGain", "norm_gain_table"]


@dataclass(frozen=True)
class NormGain:
    """What :func:`norm_gain_table` found.

    Attributes:
        shares: One row per module, k and form of the gain: ``module, layer, projection, norm``
            (tensor name)``, gain`` (``raw`` or ``centered``: without its mean)``, dimension`` (n)
            ``, k, k_from`` (``fixed`` or ``stable_rank``)``, share`` in [0, 1]``, chance`` (k/n)
            ``, chance_low, chance_high`` (95% of the null)``, z_score, p_value`` (two-sided; both
            NaN where k = n).
        left_out: ``(module, why)``: no known normalization layer in front, a zero update, a
            constant gain without its mean, a k above the numerical rank.
    """

    shares: pd.DataFrame
    left_out: tuple[tuple[str, str], ...]


class _Norms(NamedTuple):
    """The packaged table: what each projection reads from, first that exists; stored gains."""

    readers: dict[str, list[dict[str, str]]]
    stored_minus_one: frozenset[str]


def norm_gain_table(
    adapter: Adapter,
    weights: WeightSource,
    ks: Sequence[int] = DEFAULT_KS,
    *,
    model_type: str | None = None,
) -> NormGain:
    """Share of the norm gain's energy in each update's top right singular subspace.

    ``|V_k^T gamma|^2 / |gamma|^2`` for the given k and the update's rounded stable rank, once for
    gamma and once for gamma minus its mean. Under a Haar-random k-space of R^n the share follows
    Beta(k/2, (n-k)/2). Which layer a projection reads from is told by the names in the base: a
    model that normalizes after a block under the names of one that does so before (OPT-350M) is
    read wrongly. Biases of normalization layers play no part.

    Args:
        adapter: A loaded adapter.
        weights: The base model's tensors.
        ks: Numbers of top directions, each at least 1.
        model_type: ``model_type`` of the base's configuration. Gemma, Nemotron and Qwen3-Next
            store gamma - 1; without it their raw shares are those of the stored vector. Centered
            shares are the same either way.

    Raises:
        AdapterError: The base lacks a module, a gain is not finite, or no update is left.
        SettingError: A k is below 1.
    """
    ks = check_ks(ks)
    base = BaseWeights(weights, fan_in_fan_out=adapter.settings.fan_in_fan_out)
    norms, names = _norms(), frozenset(weights.names)
    offset = 1.0 if model_type in norms.stored_minus_one else 0.0
    rows: list[dict[str, object]] = []
    left_out: list[tuple[str, str]] = []
    for update in adapter.updates.values():
        norm, reason = _norm_of(update, base.name(update.module), norms, names, weights)
        if norm:
            gain = weights.get(norm).double() + offset
            if not bool(torch.isfinite(gain).all()):
                raise AdapterError(f"the base tensor {norm} holds NaN or infinite entries")
            found, reasons = _module_rows(update, norm, gain, ks)
            rows += found
        else:
            reasons = [reason]
        left_out += [(update.module, reason) for reason in reasons]
    if not rows:
        first = f"{left_out[0][0]}: {left_out[0][1]}"
        raise AdapterError(f"no update of {adapter.path} reads a normalization gain\n  {first}")
    return NormGain(pd.DataFrame(rows).astype({"layer": "Int64"}), tuple(left_out))


def _norms() -> _Norms:
    text = files("gonio.adapters").joinpath("norms.json").read_text(encoding="utf-8")
    data = json.loads(text)
    readers = {p: entry["norms"] for entry in data["readers"] for p in entry["projections"]}
    return _Norms(readers, frozenset(data["stored_minus_one"]))


def _norm_of(
    update: LoraUpdate, tensor: str, norms: _Norms, names: frozenset[str], weights: WeightSource
) -> tuple[str, str]:
    """The gain tensor a module reads, or why there is none."""
    if update.projection not in norms.readers:
        return "", "not known to read from a normalization layer"
    inside = split_module_name(tensor.removesuffix(".weight"))[1]
    block = "" if update.layer is None else _block(tensor, inside)
    for norm in norms.readers[update.projection]:
        name = f"{block}{norm['name']}.weight"
        is_other = f"{block}{norm['unless']}.weight" in names if "unless" in norm else False
        if name not in names or is_other:
            continue
        if tuple(weights.shape(name)) != (update.in_features,):
            return "", f"{name} does not have its {update.in_features} inputs"
        return name, ""
    return "", "the base has none of the normalization layers it could read from"


def _block(tensor: str, inside: str) -> str:
    """What precedes the projection in a tensor's name, with its last dot."""
    parts = tensor.removesuffix(".weight").split(".")
    return ".".join(parts[: len(parts) - inside.count(".") - 1]) + "."


def _module_rows(
    update: LoraUpdate, norm: str, gain: Tensor, ks: Sequence[int]
) -> tuple[list[dict[str, object]], list[str]]:
    _, sigma, right = update.svd()
    rank = numerical_rank_of(update, sigma)
    if rank == 0:
        return [], ["zero update"]
    chosen = [(k, "fixed") for k in ks if k <= rank]
    chosen.append((min(rank, round(float(stable_rank(sigma)))), "stable_rank"))
    reasons = [f"k = {k} exceeds the update's numerical rank {rank}" for k in ks if k > rank]
    rows: list[dict[str, object]] = []
    for form, vector in (("raw", gain), ("centered", gain - gain.mean())):
        # The mean of a constant gain is known to rounding only.
        if float(vector.abs().max()) <= 8 * torch.finfo(gain.dtype).eps * float(gain.abs().max()):
            reasons.append(f"{norm}: the {form} gain is zero")
            continue
        energy = (right @ (vector / torch.linalg.vector_norm(vector))).square()
        for k, source in chosen:
            share = min(1.0, float(energy[:k].sum()))
            rows.append(
                {
                    "module": update.module,
                    "layer": update.layer,
                    "projection": update.projection,
                    "norm": norm,
                    "gain": form,
                    "dimension": update.in_features,
                    "k": k,
                    "k_from": source,
                    "share": share,
                    **_null(share, k, update.in_features),
                }
            )
    return rows, reasons


def _null(share: float, k: int, n: int) -> dict[str, float]:
    """Chance of a share: Beta(k/2, (n-k)/2); a k-space that is all of R^n always holds it all."""
    mean = k / n
    low = high = 1.0
    z_score = p_value = math.nan
    if k < n:
        shape = k / 2, (n - k) / 2
        low, high = (float(betaincinv(*shape, quantile)) for quantile in (0.025, 0.975))
        z_score = (share - mean) / math.sqrt(mean * (1 - mean) / (n / 2 + 1))
        tails = float(betainc(*shape, share)), float(betaincc(*shape, share))
        p_value = min(1.0, 2 * min(tails))
    return {
        "chance": mean,
        "chance_low": low,
        "chance_high": high,
        "z_score": z_score,
        "p_value": p_value,
    }
