"""What a unit's error falls to with every further bit, and a stand-in codec at each place on it.

The error is that of :mod:`gonio.kvcache.sensitivity`: summed over heads, in units of the metric
that was given. Curves come from the same designs as the codecs: codebooks per width for a fixed
rate, cells of one step for an entropy-coded one. A stand-in makes about the errors of the codec
that would be fitted there, at a small part of its cost: it is what a search tries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gonio.kvcache.entropy_codec import BLOCK, overhead_bits
from gonio.kvcache.quantizer_design import cell_edges, design_cells, design_levels
from gonio.kvcache.stand_in import StandIn
from gonio.kvcache.transform_fit import TRELLIS_GAIN, allocate_widths
from gonio.kvcache.weighted_basis import WeightedBasis, fit_span

__all__ = ["TIERS", "EntropyCurve", "FixedCurve", "RateCurve", "Tier", "rate_curve"]

Tier = Literal["fixed", "entropy"]
TIERS: dict[Tier, str] = {"fixed": "transform", "entropy": "entropy"}  # method of each tier

LARGEST_WIDTH = 8
DESIGNED_WIDTH = 5  # wider codebooks have fewer samples per level than they need
SAMPLES = 1024  # tokens per head that a curve looks at
SPARE_BITS = 0.06  # per element, above the overhead of a block: the cheapest codes fit
OCTAVES = np.arange(-8.0, 4.5, 1.0)  # steps of the entropy-coded curve over the mean spread


@dataclass(frozen=True, eq=False)
class RateCurve(ABC):
    """Error of a unit by what it stores.

    Attributes:
        basis: Coordinates of the unit.
        rows: Samples of each coordinate, ``(coordinates, n)``.
        errors: Error per token at 0, 1, ... quanta.
        least: Fewest quanta that its codec can have.
        quantum_bits: Bits per token that a quantum takes.
    """

    basis: WeightedBasis
    rows: Tensor
    errors: NDArray[np.float64]
    least: int
    quantum_bits: float

    @property
    def elements(self) -> int:
        """Elements per token."""
        return len(self.rows)

    def bits(self, quanta: int) -> float:
        """Bits per element that a number of quanta store."""
        return quanta * self.quantum_bits / self.elements

    @abstractmethod
    def stand_in(self, quanta: int) -> StandIn:
        """About the codec of so many quanta."""


@dataclass(frozen=True, eq=False)
class FixedCurve(RateCurve):
    """Whole bits per coordinate, a quantum each.

    Attributes:
        table: Error of each coordinate at 0 to 8 bits, ``(coordinates, 9)``.
        levels: Levels of each coordinate at 0 to 5 bits, ``(coordinates, 2^bits)``.
        gain: Share of the error of scalar codes that a trellis leaves.
    """

    table: Tensor
    levels: tuple[Tensor, ...]
    gain: float

    def stand_in(self, quanta: int) -> StandIn:
        """Scalar codes whose errors are shrunk to the size of those of a trellis."""
        widths = allocate_widths(self.table, quanta)
        levels = self.rows.new_full((len(widths), 1 << DESIGNED_WIDTH), torch.inf)
        for width in widths.unique().tolist():
            own = self.levels[min(width, DESIGNED_WIDTH)]
            levels[widths == width, : own.shape[1]] = own[widths == width]
        edges = ((levels[:, 1:] + levels[:, :-1]) / 2).contiguous()
        finer = (widths.float() - DESIGNED_WIDTH).clamp(min=0)
        shrink = self.gain**0.5 * torch.exp2(-finer)
        return StandIn(self.basis, levels, edges, shrink.where(widths > 0, 1.0))


@dataclass(frozen=True, eq=False)
class EntropyCurve(RateCurve):
    """Words per block of 64 tokens, a quantum each.

    Attributes:
        rates: Bits per element without overhead, ascending.
        log_steps: Binary logarithm of the step at each.
        dead_zone: Weight of a bit against a squared error, in squared steps.
    """

    rates: NDArray[np.float64]
    log_steps: NDArray[np.float64]
    dead_zone: float

    def stand_in(self, quanta: int) -> StandIn:
        """The cells of the step, the same in every block."""
        bits = self.bits(quanta) - overhead_bits(self.basis.heads, self.basis.dim)
        step = 2.0 ** float(np.interp(bits, self.rates, self.log_steps))
        design = design_cells(self.rows / step, self.dead_zone, steps=2)
        lengths = design.counts.sum(dim=1, keepdim=True).log2() - design.counts.log2()
        edges = cell_edges(design.levels, lengths, self.dead_zone)
        return StandIn(
            self.basis, design.levels * step, edges * step, self.rows.new_ones(len(self.rows))
        )


def rate_curve(tier: Tier, vectors: Tensor, metric: Tensor, options: dict[str, Any]) -> RateCurve:
    """The curve of one unit.

    Args:
        tier: ``fixed``, in bits per token, or ``entropy``, in 16-bit words per block of 64 tokens.
        vectors: ``(windows, num_kv_heads, tokens, dim)``, without sinks.
        metric: ``(num_kv_heads, dim, dim)``.
        options: Of the tier's method, see :class:`gonio.kvcache.options.CodecOptions`.
    """
    basis, _ = fit_span(vectors, metric, options["span"], floor=options["floor"])
    rows = basis.apply(vectors)
    rows = rows[:, :: max(1, rows.shape[1] // SAMPLES)].contiguous()
    if tier == "fixed":
        return _fixed_curve(basis, rows, TRELLIS_GAIN if options["states"] > 1 else 1.0)
    return _entropy_curve(basis, rows, options["dead_zone"])


def _fixed_curve(basis: WeightedBasis, rows: Tensor, gain: float) -> FixedCurve:
    designs = [design_levels(rows, width, steps=4) for width in range(DESIGNED_WIDTH + 1)]
    errors = [error * (gain if width else 1.0) for width, (_, error) in enumerate(designs)]
    errors += [errors[-1] / 4**more for more in range(1, LARGEST_WIDTH - DESIGNED_WIDTH + 1)]
    table = torch.stack(errors, dim=1).double()
    gains = (table[:, :-1] - table[:, 1:]).cummin(dim=1).values.flatten()
    gains = gains.sort(descending=True).values.clamp(min=0)
    spent = torch.cat([gains.new_zeros(1), gains.cumsum(0)])
    curve = (table[:, 0].sum() - spent).clamp(min=0).numpy()
    levels = tuple(found for found, _ in designs)
    return FixedCurve(basis, rows, curve, 0, 1.0, table, levels, gain)


def _entropy_curve(basis: WeightedBasis, rows: Tensor, dead_zone: float) -> EntropyCurve:
    elements = len(rows)
    spread = rows.square().mean().sqrt().clamp(min=1e-30).item()
    some = rows[:, ::2].contiguous()
    rates, errors = [], []
    log_steps = np.log2(spread) + OCTAVES[::-1]  # coarse to fine: bits ascend
    for step in (2.0**log_steps).tolist():
        design = design_cells(some / step, dead_zone, steps=2)
        rates.append(design.bits.double().mean().item())
        errors.append(np.log2(max(design.error.double().sum().item() * step**2, 1e-300)))
    ascending = np.maximum.accumulate(np.array(rates))
    quantum = 16 / BLOCK
    overhead = overhead_bits(basis.heads, basis.dim)
    places = np.arange(int(LARGEST_WIDTH * elements / quantum) + 1) * quantum / elements - overhead
    curve = 2.0 ** np.interp(places, ascending, errors)
    least = int(np.ceil((overhead + SPARE_BITS) * elements / quantum))
    return EntropyCurve(basis, rows, curve, least, quantum, ascending, log_steps, dead_zone)
