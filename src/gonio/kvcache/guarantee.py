"""Bits spent until a bound holds: layers over a budget get wider codecs, at last exact ones.

The bound is that of :mod:`gonio.kvcache.distortion_bound` on the queries of one text, so what is
reached is a guarantee for that text, and only there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import pandas as pd

from gonio.errors import SettingError
from gonio.kvcache.calibrate import calibrate_from_samples
from gonio.kvcache.certify import LayerCertificate, certify_layer
from gonio.kvcache.codec import CacheCodec
from gonio.kvcache.contract import Part, TensorCodec
from gonio.kvcache.control_codecs import LosslessCodec
from gonio.kvcache.distortion_bound import RUNGS, AttentionInputs, Rung
from gonio.kvcache.options import CodecOptions
from gonio.kvcache.samples import CacheSamples

__all__ = ["Budget", "spend_until_bounded"]

_RAISABLE = ("scalar", "affine", "transform", "entropy", "residual_sign")
_MOST_BITS = 8


@dataclass(frozen=True)
class Budget:
    """How far outputs may move.

    Attributes:
        share: Largest bound allowed, over the range of a head's values; above 0.
        rung: Which bound must meet it.
    """

    share: float = 0.05
    rung: Rung = "weights"

    def __post_init__(self) -> None:
        if not self.share > 0 or self.rung not in RUNGS:
            raise SettingError(
                f"a budget is a share above 0 of the values' range, for one of {', '.join(RUNGS)}; "
                f"found {self.share} and {self.rung!r}"
            )

    def excess(self, certificate: LayerCertificate) -> float:
        """The largest bound of a layer over the budget; at most 1 when it is met."""
        bound = certificate.relative(certificate.bounds[self.rung])
        return float(bound.max()) / self.share


def spend_until_bounded(
    codec: CacheCodec,
    inputs: Sequence[Sequence[AttentionInputs]],
    samples: CacheSamples,
    budget: Budget,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[CacheCodec, tuple[LayerCertificate, ...], pd.DataFrame]:
    """A codec whose bounds meet the budget on the given text, layer by layer.

    In a layer over the budget, the part (keys or values) that makes more of the largest bound is
    calibrated again with more bits, by the codec's own method and options; a part that has 8
    bits, or whose method has one width only, is kept exact.

    Args:
        codec: Where to start from.
        inputs: What each layer's attention reads in the text, as
            :func:`gonio.kvcache.certify.collect_inputs` gives it.
        samples: Keys and values to calibrate on;
            :class:`gonio.kvcache.sensitivity.MetricSamples` for ``transform`` and ``entropy``, of
            keys before RoPE where the codec's are.
        budget: What is allowed.
        progress: Called with (what, layers done, layers).

    Returns:
        The codec; its certificates, all within the budget; and a table with one row per layer:
        ``layer``, ``steps`` (codecs fitted), ``keys_from``, ``keys_to``, ``values_from``,
        ``values_to`` (method and bits), ``bound_before`` and ``bound_after`` (over the range).

    Raises:
        SettingError: A refit is refused.
    """
    parts: dict[Part, list[TensorCodec]] = {"keys": list(codec.keys), "values": list(codec.values)}
    certificates, rows = [], []
    for layer, own in enumerate(inputs):
        raised = _Layer(codec, samples, layer)
        found = before = certify_layer(own, codec, layer)
        start, steps = raised.names, 0
        while budget.excess(found) > 1:
            raised.spend(_part_to_raise(found, budget), budget.excess(found))
            found = certify_layer(own, raised.inside(codec), layer)
            steps += 1
        for part in parts:
            parts[part][layer] = raised.codecs[part]
        certificates.append(found)
        row: dict[str, Any] = {"layer": layer, "steps": steps}
        for part in parts:
            row |= {f"{part}_from": start[part], f"{part}_to": raised.names[part]}
        share = budget.share
        after = share * budget.excess(found)
        rows.append({**row, "bound_before": share * budget.excess(before), "bound_after": after})
        if progress is not None:
            progress("spending bits", layer + 1, len(inputs))
    guarantee = {"budget": budget.share, "rung": budget.rung}
    made = replace(
        codec,
        keys=tuple(parts["keys"]),
        values=tuple(parts["values"]),
        provenance={**codec.provenance, "guarantee": guarantee},
    )
    return made, tuple(certificates), pd.DataFrame(rows)


class _Layer:
    """The two codecs of one layer, and how to widen them."""

    def __init__(self, codec: CacheCodec, samples: CacheSamples, layer: int) -> None:
        self._codec, self._layer = codec, layer
        self._samples = _of_layer(samples, layer)
        self.codecs: dict[Part, TensorCodec] = {
            "keys": codec.keys[layer],
            "values": codec.values[layer],
        }
        facts: dict[Part, Mapping[str, Any]] = {
            "keys": codec.provenance,
            "values": codec.provenance.get("values", {}),
        }
        self._facts = facts
        self._bits: dict[Part, float] = {part: each.get("bits", 0) for part, each in facts.items()}

    @property
    def names(self) -> dict[Part, str]:
        """Method and nominal bits of both parts."""
        return {
            part: codec.method
            if isinstance(codec, LosslessCodec) or not self._bits[part]
            else f"{codec.method} {self._bits[part]:g}"
            for part, codec in self.codecs.items()
        }

    def inside(self, codec: CacheCodec) -> CacheCodec:
        """``codec`` with this layer's parts."""
        keys, values = list(codec.keys), list(codec.values)
        keys[self._layer], values[self._layer] = self.codecs["keys"], self.codecs["values"]
        return replace(codec, keys=tuple(keys), values=tuple(values))

    def spend(self, part: Part, excess: float) -> None:
        """Widen ``part``, or the other one where it is exact already.

        Args:
            part: What makes more of the bound.
            excess: The bound over the budget. Errors about halve with each bit, so that many bits
                are added at once.
        """
        if isinstance(self.codecs[part], LosslessCodec):
            part = "values" if part == "keys" else "keys"
        method = self._facts[part].get("method")
        bits = self._bits[part]
        if method not in _RAISABLE or bits >= _MOST_BITS:
            self.codecs[part] = LosslessCodec()
            return
        more = max(1, math.floor(math.log2(excess))) if math.isfinite(excess) else _MOST_BITS
        self._bits[part] = min(_MOST_BITS, math.floor(bits) + more)
        self.codecs[part] = self._fit(part, method, self._bits[part])

    def _fit(self, part: Part, method: Any, bits: float) -> TensorCodec:
        names = CodecOptions.__annotations__
        options: Any = {k: v for k, v in self._facts[part].items() if k in names}
        seed, sinks = int(self._codec.provenance.get("seed", 0)), self._codec.sinks
        if part == "keys":
            fitted = calibrate_from_samples(
                self._samples, bits=bits, method=method, sinks=sinks, seed=seed, **options
            )
            return fitted.keys[0]
        fitted = calibrate_from_samples(
            self._samples,
            method="lossless",
            value_bits=bits,
            value_method=method,
            value_options=options,
            sinks=sinks,
            seed=seed,
        )
        return fitted.values[0]


def _part_to_raise(certificate: LayerCertificate, budget: Budget) -> Part:
    """The part that makes more of the largest relative bound."""
    relative = certificate.relative(certificate.bounds[budget.rung])
    worst = relative.argmax()
    bound = certificate.bounds[budget.rung].flatten()[worst]
    from_values = certificate.value_error.flatten()[worst]
    return "values" if from_values > bound - from_values else "keys"


def _of_layer(samples: CacheSamples, layer: int) -> CacheSamples:
    """Samples of one layer, as if the model had no other."""
    windows = samples.layout.windows
    layout = replace(
        samples.layout, num_layers=1, windows=(windows[layer],) if windows else windows
    )
    per_layer: dict[str, Any] = {
        each.name: (getattr(samples, each.name)[layer],)
        for each in fields(samples)
        if isinstance(getattr(samples, each.name), tuple) and getattr(samples, each.name)
    }
    return replace(samples, layout=layout, **per_layer)
