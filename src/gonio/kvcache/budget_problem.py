"""Units of a cache, what their errors cost by the metric, and codecs for given bits per unit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gonio.errors import DataError, SettingError
from gonio.kvcache.calibrate import SINK_TOKENS
from gonio.kvcache.codec import CacheCodec
from gonio.kvcache.contract import Part, TensorCodec
from gonio.kvcache.options import CodecOptions, Stage, resolve_options
from gonio.kvcache.pre_rope_codec import PreRopeCodec, place_bits
from gonio.kvcache.rate_curves import TIERS, RateCurve, Tier, rate_curve
from gonio.kvcache.rotary import Rotary
from gonio.kvcache.sensitivity import MetricSamples
from gonio.kvcache.transform_fit import fit_entropy_codecs, fit_transform_codecs
from gonio.models.attention import AttentionLayout

__all__ = ["BudgetProblem", "Unit", "pose_problem"]

Progress = Callable[[str, int, int], None]
Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Unit:
    """The keys or the values of one layer.

    Attributes:
        layer: Decoder layer.
        part: ``keys`` or ``values``.
        vectors: ``(windows, num_kv_heads, tokens, dim)``, without sinks.
        metric: ``(num_kv_heads, dim, dim)``.
        scale: Nats per token that an error of 1 in the metric costs, by the curvature of the
            model's own likelihood.
        curve: Error by quanta.
    """

    layer: int
    part: Part
    vectors: Tensor
    metric: Tensor
    scale: float
    curve: RateCurve

    @property
    def name(self) -> str:
        """Part and layer."""
        return f"{self.part} {self.layer}"

    @property
    def damages(self) -> NDArray[np.float64]:
        """Predicted nats per token at 0, 1, ... quanta."""
        return self.scale * self.curve.errors


@dataclass(frozen=True, eq=False)
class BudgetProblem:
    """All units of a cache, keys first, each by layer.

    Attributes:
        layout: Shape of the cache.
        tier: ``fixed`` or ``entropy``.
        units: Keys of layer 0, 1, ..., then values.
        sinks: First tokens the codecs keep raw.
        options: Options of the tier's method.
        rotary: The turns of each layer, where keys are those before RoPE; else none.
    """

    layout: AttentionLayout
    tier: Tier
    units: tuple[Unit, ...]
    sinks: int
    options: dict[str, Any]
    rotary: tuple[Rotary, ...] = ()

    @property
    def elements(self) -> Counts:
        """Elements per token of each unit."""
        return np.array([unit.curve.elements for unit in self.units], dtype=np.int64)

    @property
    def least(self) -> Counts:
        """Fewest quanta of each unit."""
        return np.array([unit.curve.least for unit in self.units], dtype=np.int64)

    @property
    def most(self) -> Counts:
        """Most quanta of each unit."""
        return np.array([len(unit.curve.errors) - 1 for unit in self.units], dtype=np.int64)

    @property
    def damages(self) -> list[NDArray[np.float64]]:
        """Predicted damages of each unit, nats per token."""
        return [unit.damages for unit in self.units]

    @property
    def place_bits(self) -> float:
        """Bits per token that the positions of blocks take in all layers."""
        return len(self.rotary) * place_bits(TIERS[self.tier])

    def total(self, bits: float, seq_len: int = 4096) -> int:
        """Quanta that a mean of bits affords, raw sinks in float16 and positions paid from it.

        Args:
            bits: Mean over keys and values of all layers.
            seq_len: Tokens at which the raw sinks are counted.

        Raises:
            SettingError: The bits are out of the tier's range.
        """
        coded = (bits * seq_len - 16.0 * self.sinks) / (seq_len - self.sinks)
        left = coded * self.elements.sum() - self.place_bits
        total = int(left / self.units[0].curve.quantum_bits + 1e-6)
        low, high = int(self.least.sum()), int(self.most.sum())
        if not low <= total <= high:
            lowest, highest = (self.mean_bits(np.array([x]), seq_len) for x in (low, high))
            raise SettingError(
                f"{bits:g} bits per element are out of the range of the {self.tier} tier: from "
                f"{lowest:.3g} to {highest:.3g} with {self.sinks} raw sinks"
            )
        return total

    def mean_bits(self, quanta: Counts, seq_len: int = 4096) -> float:
        """Mean bits per element that quanta store, raw sinks in float16 and positions counted."""
        coded = quanta.sum() * self.units[0].curve.quantum_bits + self.place_bits
        coded /= self.elements.sum()
        return float((coded * (seq_len - self.sinks) + 16.0 * self.sinks) / seq_len)

    def unit_bits(self, quanta: Counts) -> list[float]:
        """Bits per element of each unit's codes, positions apart."""
        return [
            unit.curve.bits(count) for unit, count in zip(self.units, quanta.tolist(), strict=True)
        ]

    def fit(
        self,
        quanta: Counts,
        *,
        provenance: dict[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> CacheCodec:
        """The codec in which every unit has its quanta.

        Args:
            quanta: Of each unit.
            provenance: Facts to keep in the codec.
            progress: Called with (what, units done, units).
        """
        found: dict[Part, list[TensorCodec]] = {part: [] for part in get_args(Part)}
        for done, (unit, count) in enumerate(zip(self.units, quanta.tolist(), strict=True)):
            found[unit.part].append(self._fit_unit(unit, count))
            if progress is not None:
                progress("fitting codecs", done + 1, len(self.units))
        facts = {"method": TIERS[self.tier], **self.options, **(provenance or {})}
        return CacheCodec(
            self.layout,
            self._turned(found["keys"]),
            tuple(found["values"]),
            sinks=self.sinks,
            provenance=facts,
        )

    def stand_in(self, quanta: Counts) -> CacheCodec:
        """About the codec that :meth:`fit` would give, made at once; it stores no codes."""
        found = [
            unit.curve.stand_in(count)
            for unit, count in zip(self.units, quanta.tolist(), strict=True)
        ]
        half = len(found) // 2
        keys = self._turned(found[:half])
        return CacheCodec(self.layout, keys, tuple(found[half:]), sinks=self.sinks)

    def _turned(self, keys: Sequence[TensorCodec]) -> tuple[TensorCodec, ...]:
        """Codecs of keys behind the turns, where there are any."""
        if not self.rotary:
            return tuple(keys)
        return tuple(PreRopeCodec(key, turns) for key, turns in zip(keys, self.rotary, strict=True))

    def _fit_unit(self, unit: Unit, quanta: int) -> TensorCodec:
        if self.tier == "fixed":
            bits = unit.curve.bits(quanta)
            if bits == 0:  # the mean alone; the fit wants bits, and gives the one it has none
                bits = 0.4 / unit.curve.elements
            return fit_transform_codecs(bits, [unit.vectors], [unit.metric], self.options)[0]
        bits = unit.curve.bits(quanta) + 0.5 * unit.curve.quantum_bits / unit.curve.elements
        return fit_entropy_codecs(bits, [unit.vectors], [unit.metric], self.options)[0]


def pose_problem(
    samples: MetricSamples,
    tier: Tier = "fixed",
    *,
    sinks: int = SINK_TOKENS,
    progress: Progress | None = None,
) -> BudgetProblem:
    """Units of a cache with their predicted damages.

    The metric is the joined one of :mod:`gonio.kvcache.sensitivity`; keys and values are made
    comparable by the mean trace of their Fisher metrics, half of which is what a small error of 1
    costs in nats.

    Args:
        samples: Keys, values and metrics of calibration text; codecs are of keys on their side
            of RoPE.
        tier: ``fixed`` or ``entropy``.
        sinks: First tokens the codecs keep raw.
        progress: Called with (what, units done, units).

    Raises:
        SettingError: The tier is unknown.
        DataError: The windows are no longer than the sink tokens.
    """
    if tier not in TIERS:
        raise SettingError(f"tier must be one of {', '.join(TIERS)}, found {tier!r}")
    skip = max(SINK_TOKENS, sinks)
    used = samples.positions >= skip
    if not bool(used.any()):
        raise DataError(
            f"calibration windows end at token {int(samples.positions.max())}, and the first "
            f"{skip} are left out as sinks\nUse longer windows."
        )
    stage: Stage = "pre_rope" if samples.rotary else "post_rope"
    options = resolve_options(TIERS[tier], "keys", CodecOptions(stage=stage))
    units: list[Unit] = []
    parts: Sequence[Part] = get_args(Part)
    for part in parts:
        vectors = samples.keys if part == "keys" else samples.values
        fisher = torch.stack(samples.key_fisher if part == "keys" else samples.value_fisher)
        scale = fisher.diagonal(dim1=-2, dim2=-1).mean().item() / 2
        for layer, metric in enumerate(samples.metrics(part, options["metric"])):
            x = vectors[layer][:, :, used]
            curve = rate_curve(tier, x, metric, options)
            units.append(Unit(layer, part, x, metric, scale, curve))
            if progress is not None:
                progress("measuring rates", len(units), len(parts) * samples.layout.num_layers)
    return BudgetProblem(samples.layout, tier, tuple(units), sinks, options, samples.rotary)
