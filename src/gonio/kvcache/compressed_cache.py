"""A filled cache: what it holds in memory, and as one file to continue from later."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import Cache

from gonio.kvcache.layer import CompressedLayer

__all__ = ["CompressedCache"]


class CompressedCache(Cache):
    """The cache that :meth:`gonio.kvcache.CacheCodec.new_cache` returns.

    Args:
        layers: One per decoder layer.
        fingerprint: Of the codec; what is stored can only be read with an equal one.
    """

    layers: list[CompressedLayer]  # type: ignore[assignment]  # every layer is one of ours

    def __init__(self, layers: Sequence[CompressedLayer], fingerprint: str) -> None:
        super().__init__(layers=list(layers))
        self.fingerprint = fingerprint

    @property
    def key_bytes(self) -> int:
        """Bytes stored for keys in all layers."""
        return sum(layer.key_bytes for layer in self.layers)

    @property
    def value_bytes(self) -> int:
        """Bytes stored for values in all layers."""
        return sum(layer.value_bytes for layer in self.layers)

    @property
    def scratch_bytes(self) -> int:
        """Bytes of decoded tokens that are kept to save time, in all layers."""
        return sum(layer.scratch_bytes for layer in self.layers)

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the memory behind every tensor of the cache, each allocation once.

        Equal to keys, values and scratch together when nothing is over-allocated or kept alive by
        a view.
        """
        storages = {
            storage.data_ptr(): storage.nbytes()
            for layer in self.layers
            for stream in layer.streams
            for tensor in (*stream.tensors, stream.scratch)
            if tensor is not None
            for storage in (tensor.untyped_storage(),)
        }
        return sum(storages.values())
