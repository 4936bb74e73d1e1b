"""Fitting transform codecs: one water level over all layers and heads, and what it leaves to gain.

In the metric of :mod:`gonio.kvcache.sensitivity` an error costs the same wherever it is made, so
bits go where they lower the sum of errors most, whatever the layer. ``shared`` budgets do that;
``equal`` ones give every head the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from scipy.stats import differential_entropy
from torch import Tensor

from gonio.errors import DataError, SettingError
from gonio.kvcache.contract import Part, TensorCodec
from gonio.kvcache.entropy_codec import BLOCK, EntropyCodec, overhead_bits
from gonio.kvcache.pre_rope_codec import PreRopeCodec
from gonio.kvcache.quantizer_design import (
    RADIUS,
    CellDesign,
    design_cells,
    design_levels,
    design_trellis,
)
from gonio.kvcache.sensitivity import MetricSamples
from gonio.kvcache.transform_codec import TransformCodec
from gonio.kvcache.weighted_basis import Span, WeightedBasis, fit_span
from gonio.quant.code_tables import LARGEST_RADIUS, SYMBOLS, tables_from_counts
from gonio.quant.rate import reverse_water_filling

__all__ = [
    "Budget",
    "allocate_widths",
    "excess_over_limit",
    "fit_entropy_codecs",
    "fit_transform_codecs",
]

Budget = Literal["shared", "equal"]

LARGEST_WIDTH = 8
EMPIRICAL_WIDTH = 5  # wider codebooks have fewer samples per level than they need
SUBSAMPLE = 8  # tokens per token that the search for the step and the widths looks at
SEARCH_STEPS = 12
TRELLIS_GAIN = 0.77  # of the error, wherever there is a bit: 0.7 dB at 1 bit, 1.3 from 2 on
LEAST_OTHERS = 0.005  # of a table's range that codes other than the first take, at least
FINE = 64  # whole counts per sample, so that the prior's share counts too

Progress = Callable[[str, int, int], None]


def fit_transform_codecs(
    bits: float,
    vectors: Sequence[Tensor],
    metrics: Sequence[Tensor],
    options: dict[str, Any],
    progress: Progress | None = None,
) -> tuple[TransformCodec, ...]:
    """Fixed-rate codecs whose widths average to ``bits``, exactly but for whole bits.

    Args:
        bits: Mean bits per element, above 0 and at most 8.
        vectors: Per layer ``(windows, num_kv_heads, tokens, dim)``, without sinks.
        metrics: Per layer ``(num_kv_heads, dim, dim)``.
        options: ``budget``, ``floor``, ``span`` and ``states``.
        progress: Called with (what, layers done, layers).
    """
    bases = _bases(vectors, metrics, options)
    errors = []
    for layer, (basis, x) in enumerate(zip(bases, vectors, strict=True)):
        found = _errors_by_width(_some(basis.apply(x)))
        if options["states"] > 1:
            found[:, 1:] *= TRELLIS_GAIN
        errors.append(found)
        _tell(progress, "measuring rates", layer, len(bases))
    heads, dim = bases[0].heads, bases[0].dim
    table = torch.stack(errors)  # (layers, heads * dim, widths)
    if options["budget"] == "equal":
        groups = table.view(-1, dim if bases[0].turn is None else heads * dim, table.shape[-1])
        share = round(bits * groups.shape[1])
        widths = torch.stack([allocate_widths(each, share) for each in groups])
    else:
        total = round(bits * len(bases) * heads * dim)
        widths = allocate_widths(table.flatten(0, 1), total)
    codecs = []
    for layer, (basis, x, own) in enumerate(
        zip(bases, vectors, widths.view(len(bases), heads * dim), strict=True)
    ):
        codecs.append(_fixed_codec(basis, basis.apply(x), own, options["states"]))
        _tell(progress, "fitting codebooks", layer, len(bases))
    return tuple(codecs)


def fit_entropy_codecs(
    bits: float,
    vectors: Sequence[Tensor],
    metrics: Sequence[Tensor],
    options: dict[str, Any],
    progress: Progress | None = None,
) -> tuple[EntropyCodec, ...]:
    """Entropy-coded codecs that store ``bits`` per element, all overhead of a block included.

    Args:
        bits: Mean bits per element.
        vectors: Per layer ``(windows, num_kv_heads, tokens, dim)``, without sinks.
        metrics: Per layer ``(num_kv_heads, dim, dim)``.
        options: ``budget``, ``floor``, ``span`` and ``dead_zone``.
        progress: Called with (what, layers done, layers).

    Raises:
        SettingError: The bits do not even cover the overhead of a block.
    """
    bases = _bases(vectors, metrics, options)
    wanted = bits - overhead_bits(bases[0].heads, bases[0].dim)
    if wanted <= 0:
        raise SettingError(f"{bits} bits per element are fewer than a block's overhead")
    some = [_some(basis.apply(x)) for basis, x in zip(bases, vectors, strict=True)]
    weight = options["dead_zone"]
    if options["budget"] == "equal":
        steps = [_step([rows], wanted, weight) for rows in some]
    else:
        steps = [_step(some[:: max(1, len(some) // 8)], wanted, weight)] * len(some)
    found = []
    for layer, (basis, x, step) in enumerate(zip(bases, vectors, steps, strict=True)):
        unit = basis.scaled(step).stored()
        found.append((unit, design_cells(unit.apply(x), weight)))
        _tell(progress, "fitting tables", layer, len(bases))
    spent = torch.stack([design.bits.mean() for _, design in found])
    least = torch.stack([_least_bits(design) for _, design in found])
    above = (spent - least).clamp(min=1e-9)
    shares = least + above * ((wanted - least.mean()) / above.mean()) + (bits - wanted)
    return tuple(
        _entropy_codec(unit, design, share, weight)
        for (unit, design), share in zip(found, shares.tolist(), strict=True)
    )


def allocate_widths(errors: Tensor, total: int) -> Tensor:
    """Bits of each coordinate, so that the sum of errors is least for a total of bits.

    Greedy on the lower convex hull of each coordinate's errors; ties and the last bits go to the
    coordinates that gain most.

    Args:
        errors: Error of each coordinate at 0, 1, ... bits, ``(coordinates, widths)``.
        total: Bits to spend.

    Returns:
        uint8 ``(coordinates,)`` of sum ``total``.

    Raises:
        SettingError: The total is negative, or more than all coordinates can take.
    """
    count, sizes = errors.shape
    if not 0 <= total <= count * (sizes - 1):
        raise SettingError(f"{total} bits for {count} coordinates of at most {sizes - 1} bits each")
    # A marginal return above an earlier one cannot be had alone: make returns descend.
    gains = (errors[:, :-1] - errors[:, 1:]).double().cummin(dim=1).values
    order = gains.flatten().sort(descending=True, stable=True).indices[:total]
    widths = torch.bincount(order // (sizes - 1), minlength=count)
    return widths.to(torch.uint8)


def excess_over_limit(
    codecs: Sequence[TensorCodec], samples: MetricSamples, part: Part = "keys", skip: int = 4
) -> pd.DataFrame:
    """The error of each layer beside two limits at the same bits, in the local metric.

    The metric is that of the queries for keys (the mean squared error of attention scores) and of
    the output projection for values. Both limits split the layer's bits over coordinates by
    reverse water-filling: ``gaussian`` from their variances, ``shannon`` from their entropy powers
    ``2^(2h) / (2 pi e)``. The first is no bound, since the coordinates are not Gaussian; the second
    would be one if they were independent and h were known; h is Vasicek's estimate. Coordinates
    are those of a codec's own span: of each head, or of all heads of the layer together.

    Args:
        codecs: One per layer.
        samples: Keys, values and metrics of some text, best not that of calibration; keys before
            RoPE for codecs of such keys.
        part: ``keys`` or ``values``.
        skip: First tokens of a window to leave out.

    Returns:
        One row per layer: ``layer``, ``bits`` (stored, per element), ``error`` (mean squared, per
        token and head), ``gaussian`` and ``shannon`` (the same at the limits), and the excess over
        them in dB, ``over_gaussian`` and ``over_shannon``. The ``shannon`` columns are NaN where
        values repeat so often that no density can be estimated: values of a first layer that are
        those of the token alone.

    Raises:
        DataError: The samples do not fill a block.
        SettingError: Codecs and samples are not of the same side of RoPE.
    """
    is_turned = [isinstance(codec, PreRopeCodec) for codec in codecs]
    if part == "keys" and any(each != bool(samples.rotary) for each in is_turned):
        raise SettingError(
            "codecs and samples are of keys before and after RoPE\n"
            "Collect samples with pre_rope as the codecs were calibrated."
        )
    bases = [codec.base if isinstance(codec, PreRopeCodec) else codec for codec in codecs]
    vectors = samples.keys if part == "keys" else samples.values
    metrics = samples.key_local if part == "keys" else samples.value_local
    rows = []
    for layer, (codec, x, metric) in enumerate(zip(bases, vectors, metrics, strict=True)):
        x = x[:, :, skip:].transpose(0, 1).flatten(1, 2)[None]  # windows one after another
        tokens = x.shape[2] // codec.block * codec.block
        if not tokens:
            raise DataError(
                f"{x.shape[2]} tokens hold no block of {codec.block} to measure layer {layer} on"
            )
        x = x[:, :, :tokens]
        encoded = codec.encode(x)
        difference = (codec.decode(encoded) - x).transpose(0, 1).flatten(1, 2).double()
        error = torch.einsum("hti,hij,htj->ht", difference, metric, difference).mean().item()
        basis, variances = fit_span(x, metric, _span(codec))
        bits, heads = encoded.bits_per_element, basis.heads
        gaussian = _limit(variances.flatten(), bits) / heads
        shannon = _limit(_entropy_powers(basis.apply(x)), bits) / heads
        rows.append((layer, bits, error, gaussian, shannon))
    table = pd.DataFrame(rows, columns=["layer", "bits", "error", "gaussian", "shannon"])
    for name in ("gaussian", "shannon"):
        ratio = torch.tensor((table["error"] / table[name]).to_numpy())
        table[f"over_{name}"] = (10 * ratio.log10()).numpy()
    return table


def _span(codec: TensorCodec) -> Span:
    basis = getattr(codec, "basis", None)
    return basis.span if isinstance(basis, WeightedBasis) else "head"


def _limit(variances: Tensor, bits: float) -> float:
    if bool(variances.isnan().any()):
        return math.nan
    return float(reverse_water_filling(variances.double(), bits).distortion.sum())


def _entropy_powers(rows: Tensor) -> Tensor:
    """Of each coordinate; all NaN where one has no density."""
    with np.errstate(divide="ignore"):  # spacings of repeated values are 0
        entropy = torch.from_numpy(differential_entropy(rows.double().numpy(), axis=1, base=2))
    powers = (2 * entropy).exp2() / (2 * math.pi * math.e)
    return powers if bool(torch.isfinite(entropy).all()) else torch.full_like(powers, torch.nan)


def _bases(
    vectors: Sequence[Tensor], metrics: Sequence[Tensor], options: dict[str, Any]
) -> list[WeightedBasis]:
    span, floor = options["span"], options["floor"]
    pairs = zip(vectors, metrics, strict=True)
    return [fit_span(x, metric, span, floor=floor)[0] for x, metric in pairs]


def _some(rows: Tensor) -> Tensor:
    return rows[:, :: max(1, min(SUBSAMPLE, rows.shape[1] // 256))].contiguous()


def _errors_by_width(rows: Tensor) -> Tensor:
    """Error of each coordinate at 0 to 8 bits, ``(coordinates, 9)``."""
    errors = [design_levels(rows, width, steps=4)[1] for width in range(EMPIRICAL_WIDTH + 1)]
    while len(errors) <= LARGEST_WIDTH:
        errors.append(errors[-1] / 4)
    return torch.stack(errors, dim=1)


def _fixed_codec(basis: WeightedBasis, rows: Tensor, widths: Tensor, states: int) -> TransformCodec:
    """The codec of one layer; its unit makes the largest level 1000, for float16."""
    unit = max(rows.abs().max().item() / 1000, torch.finfo(torch.float32).tiny)
    stored = basis.scaled(unit).stored()
    if states > 1:
        levels = design_trellis(rows / unit, widths, states)
    else:
        levels = [torch.empty(0)] * len(widths)
        for width in widths.unique().tolist():
            where = (widths == width).nonzero()[:, 0]
            found, _ = design_levels(rows[where] / unit, width)
            for coordinate, own in zip(where.tolist(), found, strict=True):
                levels[coordinate] = own
    return TransformCodec(stored, widths, torch.cat(levels).to(torch.float16), states)


def _step(some: Sequence[Tensor], bits: float, weight: float) -> float:
    """The step at which the coordinates take ``bits`` on average, by bisection of its logarithm."""
    spread = max(math.sqrt(sum(x.square().mean().item() for x in some) / len(some)), 1e-30)
    low, high = math.log2(spread) - bits - 10, math.log2(spread) + 6
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        designs = (design_cells(rows / 2**middle, weight, steps=2) for rows in some)
        spent = sum(design.bits.mean().item() for design in designs) / len(some)
        low, high = (middle, high) if spent > bits else (low, middle)
    return 2 ** ((low + high) / 2)


def _least_bits(design: CellDesign) -> Tensor:
    """Bits per element of the most frequent codes: what a block takes when nothing else fits."""
    share = design.counts.amax(dim=1) / design.counts.sum(dim=1)
    return -share.clamp(max=1 - LEAST_OTHERS).log2().mean() + LEAST_OTHERS


def _entropy_codec(
    basis: WeightedBasis, design: CellDesign, bits: float, weight: float
) -> EntropyCodec:
    counts = torch.zeros((basis.heads, basis.dim, SYMBOLS), dtype=torch.int64)
    first = LARGEST_RADIUS - RADIUS
    fine = (FINE * design.counts).round().long()
    counts[..., first : first + fine.shape[1]] = fine.view(basis.heads, basis.dim, -1)
    tables = tables_from_counts(counts)
    radius = tables.radius.long()[tables.index.long().flatten()]
    middle = design.levels.shape[1] // 2
    levels = [
        own[middle - r : middle + r + 1]
        for own, r in zip(design.levels, radius.tolist(), strict=True)
    ]
    words = int((bits * BLOCK * basis.heads * basis.dim - 16 * (basis.heads + 1)) // 16)
    return EntropyCodec(basis, tables, torch.cat(levels).to(torch.float16), words, weight)


def _tell(progress: Progress | None, what: str, layer: int, layers: int) -> None:
    if progress is not None:
        progress(what, layer + 1, layers)
