"""tiny-turboquant: KIVI-style affine codes, keys per channel and block, values per token."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gonio.pipelines.peers.driver import Part, PeerDriver

__all__ = ["Driver"]


class Driver(PeerDriver):
    """One of its cache layers per tensor; tokens short of a block stay raw and are counted."""

    def encode(self, x: Tensor, layer: int, part: Part) -> Any:
        """A layer of its cache that has taken the tokens in, with no window of raw tokens."""
        from tiny_turboquant.cache import TinyKVLayer

        found = TinyKVLayer(**{**self._arguments(), "residual_len": 0})
        found.ingest(x, x)
        return found

    def kept(self, stored: Any, part: Part) -> Any:
        """The layer holds both parts; the tensors of one of them."""
        word = part.removesuffix("s")
        names = [f"_{word}_{kind}" for kind in ("indices", "scales", "zeros")]
        return [getattr(stored, name) for name in (*names, f"_residual_{part}")]

    def coded_bits(self, stored: Any, layer: int, part: Part) -> float:
        """The bytes of its tensors: the empty remainder is a view that keeps all tokens alive."""
        found = self.kept(stored, part)
        size = sum(tensor.numel() * tensor.element_size() for tensor in found)
        tokens = stored.get_seq_length()
        return float(8 * size / (self.facts.num_kv_heads * self.facts.head_dim * tokens))

    def decode(self, stored: Any, layer: int, part: Part) -> Tensor:
        """What attention would read."""
        keys, values = stored._materialize_full()
        found: Tensor = keys if part == "keys" else values
        return found

    def new_cache(self) -> Any:
        """Its cache, every layer quantized."""
        from tiny_turboquant import TinyKVCache

        return TinyKVCache(num_hidden_layers=self.facts.num_layers, **self._arguments())

    def _arguments(self) -> dict[str, Any]:
        rest = {name: value for name, value in self.setting.items() if name != "bits"}
        return {"key_bits": self.setting["bits"], "value_bits": self.setting["bits"], **rest}
