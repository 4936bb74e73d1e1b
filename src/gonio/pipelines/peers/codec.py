"""A peer where gonio expects a codec, and a peer's cache where a model expects a cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from gonio.errors import CodecError
from gonio.kvcache import CacheCodec, EncodedTensor, LosslessCodec
from gonio.models.attention import AttentionLayout
from gonio.pipelines.peers.driver import Part
from gonio.pipelines.peers.process import PeerProcess

__all__ = ["PeerCodec", "PeerMeter", "peer_cache", "peer_codec"]


@dataclass
class PeerMeter:
    """What a peer stored while it was scored, by part."""

    elements: dict[str, int] = field(default_factory=dict)
    held_bytes: dict[str, int] = field(default_factory=dict)
    coded_bits: dict[str, float] = field(default_factory=dict)  # in all, not per element
    side_bytes: int = 0

    def add(self, part: Part, elements: int, stored: Mapping[str, Any]) -> None:
        """Count one tensor."""
        per_element = stored["coded_bits"]
        coded = 8 * stored["held_bytes"] if per_element is None else per_element * elements
        self.elements[part] = self.elements.get(part, 0) + elements
        self.held_bytes[part] = self.held_bytes.get(part, 0) + int(stored["held_bytes"])
        self.coded_bits[part] = self.coded_bits.get(part, 0.0) + float(coded)
        self.side_bytes = int(stored["side_bytes"])


@dataclass(frozen=True)
class PeerCodec:
    """The keys, or the values, of one layer through a peer. Decoding returns what it answered."""

    method: ClassVar[str] = "peer"
    process: PeerProcess
    layer: int
    part: Part
    meter: PeerMeter

    @property
    def block(self) -> int:
        """The peer is given whatever comes at once."""
        return 1

    def encode(self, x: Tensor) -> EncodedTensor:
        """Ask the peer; its answer stands for what it stored."""
        found, stored = self.process.roundtrip(x, self.layer, self.part)
        self.meter.add(self.part, x.numel(), stored)
        return EncodedTensor({"decoded": found}, x.shape[2], x.shape[3], x.dtype)

    def decode(self, encoded: EncodedTensor) -> Tensor:
        """What the peer answered."""
        return encoded.tensors["decoded"]

    @property
    def side_bytes(self) -> int:
        """Known to the peer only; see the meter."""
        return 0

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Which tensor it is; a process has no state that could be stored."""
        return {"layer": self.layer, "part": self.part}, {}

    @classmethod
    def from_state(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Not possible.

        Raises:
            CodecError: Always.
        """
        raise CodecError("a peer's codec lives in its process and cannot be made from settings")


def peer_codec(
    process: PeerProcess, layout: AttentionLayout, meter: PeerMeter, *, values: bool
) -> CacheCodec:
    """A codec for a whole model that asks a peer; values exact unless ``values``."""
    layers = range(layout.num_layers)
    keys = tuple(PeerCodec(process, i, "keys", meter) for i in layers)
    coded = tuple(PeerCodec(process, i, "values", meter) for i in layers)
    return CacheCodec(layout, keys, coded if values else (LosslessCodec(),) * layout.num_layers)


class _PeerLayer(CacheLayerMixin):
    """One layer of a cache that lives in a peer's process."""

    is_sliding = False

    def __init__(self, process: PeerProcess, layer: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers is partly untyped
        self.process = process
        self.layer = layer
        self.tokens = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is kept on this side."""
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Hand the new tokens over; what the peer returns is what attention reads."""
        self.tokens += key_states.shape[2]
        keys, values = self.process.update(key_states, value_states, self.layer)
        if keys.shape[2] != self.tokens or values.shape[2] != self.tokens:
            raise CodecError(
                f"{self.process.peer.name}: its cache returns {keys.shape[2]} keys and "
                f"{values.shape[2]} values for {self.tokens} tokens"
            )
        return keys, values

    def get_seq_length(self) -> int:
        """Tokens handed over."""
        return self.tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that a mask must cover."""
        return self.tokens + query_length, 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1


def peer_cache(process: PeerProcess, num_layers: int) -> Cache | None:
    """A model's cache whose content a peer keeps; None where the peer ships none.

    Raises:
        PeerError: The package fails.
    """
    if not process.new_cache():
        return None
    return Cache(layers=[_PeerLayer(process, layer) for layer in range(num_layers)])
