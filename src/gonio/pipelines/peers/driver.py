"""What a peer's driver does: encode and decode one tensor, and open the peer's own cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

__all__ = ["ModelFacts", "Part", "PeerDriver"]

Part = Literal["keys", "values"]


@dataclass(frozen=True)
class ModelFacts:
    """What a driver may know of the model.

    Attributes:
        model_type: Name of the architecture in transformers.
        config: Its configuration as plain data.
        num_layers: Decoder layers.
        num_kv_heads: Key-value heads.
        head_dim: Elements of a key.
        seed: Seed of everything random.
    """

    model_type: str
    config: dict[str, Any]
    num_layers: int
    num_kv_heads: int
    head_dim: int
    seed: int = 0

    def transformers_config(self) -> Any:
        """The model's configuration as transformers builds it."""
        from transformers import AutoConfig

        plain = {name: value for name, value in self.config.items() if name != "model_type"}
        return AutoConfig.for_model(self.model_type, **plain)


class PeerDriver:
    """Base of the drivers. Imports of the peer's package stay inside methods.

    Args:
        setting: One entry of the peer's settings.
        facts: The model.

    Attributes:
        needs_calibration: Whether :meth:`calibrate` must be called first.
    """

    needs_calibration = False

    def __init__(self, setting: Mapping[str, Any], facts: ModelFacts) -> None:
        self.setting = dict(setting)
        self.facts = facts

    def calibrate(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Learn from keys after RoPE and values, per layer ``(windows, heads, tokens, dim)``."""

    def encode(self, x: Tensor, layer: int, part: Part) -> Any:
        """What the peer keeps of ``x``, float16 ``(1, heads, tokens, head_dim)``."""
        raise NotImplementedError

    def decode(self, stored: Any, layer: int, part: Part) -> Tensor:
        """The approximation of what was encoded, in its shape."""
        raise NotImplementedError

    def kept(self, stored: Any, part: Part) -> Any:
        """The share of ``stored`` that is kept for this part: what bytes are counted of."""
        return stored

    def coded_bits(self, stored: Any, layer: int, part: Part) -> float | None:
        """Bits per element of the codes where the peer itself keeps something larger.

        Some packages return dense tensors and leave packing to others; what a packer would store
        is then worked out here, every scale included. None where the kept bytes are the codes.
        """
        return None

    def side(self) -> Any:
        """Fixed data of all layers: rotations, codebooks."""
        return ()

    def new_cache(self) -> Any:
        """An empty transformers cache of the peer's own; None where it ships none."""
        return None
