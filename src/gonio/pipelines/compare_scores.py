"""Contenders scored window by window, with what they store, in a file that survives a kill.

``teacher-forced``: one pass in which attention reads every key (and value) through the contender.
``cache``: a prefill through its cache, then chunks that read what it kept. Both are those of
:mod:`gonio.kvcache.evaluate`; a peer takes part in the second with the cache it ships.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from gonio.errors import CodecError, GonioError
from gonio.files import write_text
from gonio.kvcache import CacheCodec, EncodedTensor
from gonio.kvcache.contract import TensorCodec
from gonio.kvcache.evaluate import Protocol, score_tokens
from gonio.kvcache.filling import read_chunks
from gonio.kvcache.pre_rope_codec import PreRopeCodec
from gonio.models import attention_layout
from gonio.pipelines.compare_methods import Contender
from gonio.pipelines.peers.codec import PeerMeter, peer_cache, peer_codec
from gonio.pipelines.peers.driver import ModelFacts
from gonio.pipelines.peers.process import PeerProcess
from gonio.pipelines.peers.registry import Peer

__all__ = ["NoCacheError", "ScoreBook", "Scorer", "WholeBlocks"]

BITS_LENGTH = 4096  # tokens at which bits are counted: 4 raw sinks weigh 0.016 bits
_PARTS = ("keys", "values")

Samples = Callable[[], tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]


class NoCacheError(GonioError):
    """A peer ships no cache, so the protocol that needs one does not apply to it."""


@dataclass(frozen=True)
class WholeBlocks:
    """A codec whose incomplete last block is filled up with its last token and coded.

    A cache keeps such a block raw; in a window that is read once nothing of it would be tested.

    Attributes:
        codec: The codec.
        first: Position of the first token that is coded, behind the sinks.
    """

    codec: TensorCodec
    first: int = 0
    method: ClassVar[str] = "whole"

    @property
    def block(self) -> int:
        """Any number of tokens is coded."""
        return 1

    @property
    def side_bytes(self) -> int:
        """Counted with the codec itself."""
        return 0

    def encode(self, x: Tensor) -> EncodedTensor:
        """What decoding gives."""
        short = -x.shape[2] % self.codec.block
        filled = torch.cat([x, x[:, :, -1:].expand(-1, -1, short, -1)], dim=2)
        if isinstance(self.codec, PreRopeCodec):
            last = torch.full((len(x),), self.first + filled.shape[2] - 1)
            encoded = self.codec.encode(filled, last)
        else:
            encoded = self.codec.encode(filled)
        decoded = self.codec.decode(encoded)[:, :, : x.shape[2]]
        return EncodedTensor({"decoded": decoded}, x.shape[2], x.shape[3], x.dtype)

    def decode(self, encoded: EncodedTensor) -> Tensor:
        """What was decoded."""
        return encoded.tensors["decoded"]

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Nothing: it is made anew from its codec."""
        return {}, {}

    @classmethod
    def from_state(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Not possible.

        Raises:
            CodecError: Always.
        """
        raise CodecError("a codec of whole blocks is made from a codec")


class ScoreBook:
    """Scores of finished windows on disk, by contender, protocol and window.

    Args:
        path: A JSON file; what an earlier run wrote is read, and every new row is written at once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        if path.is_file():
            self.rows = json.loads(path.read_text(encoding="utf-8"))

    def find(self, key: str, protocol: str, window: int) -> dict[str, Any] | None:
        """The row, or None."""
        return self.rows.get(f"{protocol}/{window}/{key}")

    def add(self, key: str, protocol: str, window: int, row: dict[str, Any]) -> None:
        """Keep a row.

        Raises:
            OutputError: The file cannot be written.
        """
        self.rows[f"{protocol}/{window}/{key}"] = row
        write_text(self.path, json.dumps(self.rows))


@dataclass(frozen=True)
class Scorer:
    """Scores contenders on the windows of one text.

    Attributes:
        model: The model.
        windows: Token ids ``(num_windows, length)``.
        prefill: Tokens before the first chunk of the ``cache`` protocol.
        chunk: Tokens per chunk.
        peers_root: Where peers are installed.
        samples: Gives keys and values of the calibration windows, for peers that calibrate.
        seed: Seed given to peers.
    """

    model: PreTrainedModel
    windows: Tensor
    prefill: int
    chunk: int
    peers_root: Path
    samples: Samples
    seed: int = 0

    @cached_property
    def facts(self) -> ModelFacts:
        """What peers may know of the model."""
        config: Any = self.model.config.get_text_config(decoder=True)
        layout = attention_layout(self.model.config)
        plain = json.loads(config.to_json_string(use_diff=False))
        return ModelFacts(
            model_type=config.model_type,
            config=plain,
            num_layers=layout.num_layers,
            num_kv_heads=layout.num_kv_heads,
            head_dim=layout.head_dim,
            seed=self.seed,
        )

    def score_full(self, window: int, protocol: Protocol) -> dict[str, Any]:
        """The row of the exact cache."""
        return self._score(window, protocol, DynamicCache(config=self.model.config), "full")

    @contextmanager
    def open(self, contender: Contender) -> Iterator[Callable[[int, Protocol], dict[str, Any]]]:
        """A function from window and protocol to a row of scores and stored bytes.

        Raises:
            PeerError: The peer fails.
            CodecError: What is decoded is not finite, or a codec does not fit.
            NoCacheError: The peer ships no cache and the protocol asks for one.
        """
        if contender.codec is not None:
            codec = contender.codec
            facts = self._stored(codec)

            def score(window: int, protocol: Protocol) -> dict[str, Any]:
                cache = (
                    _whole_blocks(codec).new_cache(self.model, prefill="decoded")
                    if protocol == "teacher-forced"
                    else codec.new_cache(self.model)
                )
                return {**self._score(window, protocol, cache, contender.name), **facts}

            yield score
            return
        assert contender.peer is not None
        process = self._process(contender.peer)
        if process.open(contender.setting, self.facts):
            process.calibrate(*self.samples())

        def ask(window: int, protocol: Protocol) -> dict[str, Any]:
            score = self._peer_window if protocol == "teacher-forced" else self._peer_cache
            return {**score(window, process, contender), "version": process.version}

        yield ask

    def close(self) -> None:
        """End the running peer, if there is one."""
        while self._running:
            self._running.pop().close()

    @cached_property
    def _running(self) -> list[PeerProcess]:
        return []

    def _process(self, peer: Peer) -> PeerProcess:
        """The peer's process; one runs at a time, and serves the peer's settings in turn."""
        if not (self._running and self._running[0].peer is peer and self._running[0].is_alive):
            self.close()
            self._running.append(PeerProcess(peer, self.peers_root))
        return self._running[0]

    def _peer_window(
        self, window: int, process: PeerProcess, contender: Contender
    ) -> dict[str, Any]:
        meter = PeerMeter()
        layout = attention_layout(self.model.config)
        codec = peer_codec(process, layout, meter, values=contender.parts == "both")
        cache = codec.new_cache(self.model, prefill="decoded")
        scores = self._score(window, "teacher-forced", cache, contender.name)
        row: dict[str, Any] = {**scores, "side_bytes": meter.side_bytes}
        for part in _PARTS:
            elements = meter.elements.get(part)
            word = part.removesuffix("s")
            row[f"{word}_bits"] = meter.coded_bits[part] / elements if elements else 16.0
            held = 8 * meter.held_bytes[part] / elements if elements else 16.0
            row[f"held_{word}_bits"] = held
        return row

    def _peer_cache(
        self, window: int, process: PeerProcess, contender: Contender
    ) -> dict[str, Any]:
        cache = peer_cache(process, self.facts.num_layers)
        if cache is None:
            raise NoCacheError(f"{process.peer.name} ships no transformers cache")
        row = self._score(window, "cache", cache, contender.name)
        tokens = self.windows.shape[1] - 1
        layout = attention_layout(self.model.config)
        width = layout.num_kv_heads * (layout.head_dim + layout.value_dim)
        held = 8 * process.held_bytes() / (layout.num_layers * tokens * width)
        return {**row, "held_bits": held}

    def _score(
        self, window: int, protocol: Protocol, cache: Cache, name: str
    ) -> dict[str, float | int]:
        logits = self._logits(window, protocol, cache)
        full = self._full(window, protocol)
        targets = self.windows[window, -logits.shape[0] :].to(logits.device)
        scores = score_tokens(logits, full, targets, what=f"{name}, window {window}")
        means = {column: float(each.mean()) for column, each in scores.items()}
        return {"scored_tokens": targets.numel(), **means}

    def _full(self, window: int, protocol: Protocol) -> Tensor:
        """Full-precision logits, kept for the windows of one protocol at a time."""
        known = self._known
        if known.get("protocol") != protocol:
            known.clear()
            known["protocol"] = protocol
        if window not in known:
            exact = DynamicCache(config=self.model.config)
            known[window] = self._logits(window, protocol, exact)
        found: Tensor = known[window]
        return found

    @cached_property
    def _known(self) -> dict[Any, Any]:
        return {}

    @torch.no_grad()
    def _logits(self, window: int, protocol: Protocol, cache: Cache) -> Tensor:
        ids = self.windows[window][None].to(self.model.device)
        if protocol == "teacher-forced":
            output = self.model(input_ids=ids, past_key_values=cache, use_cache=True)
            found: Tensor = output.logits[0, :-1]
            return found
        first = ids[:, : self.prefill]
        self.model(input_ids=first, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return torch.cat(
            list(read_chunks(self.model, ids[:, self.prefill : -1], cache, self.chunk))
        )

    def _stored(self, codec: CacheCodec) -> dict[str, Any]:
        """Bits at :data:`BITS_LENGTH` coded tokens, and bytes held at the windows' length."""
        row: dict[str, Any] = {"side_bytes": 0}
        held_bytes = elements = 0
        for part in _PARTS:
            word = part.removesuffix("s")
            long = codec.stored(BITS_LENGTH + codec.sinks, part)  # type: ignore[arg-type]
            held = codec.stored(self.windows.shape[1], part)  # type: ignore[arg-type]
            row[f"{word}_bits"] = long.bits_per_element
            row[f"held_{word}_bits"] = held.bits_per_element
            row["side_bytes"] += long.side_bytes
            held_bytes += held.code_bytes + held.metadata_bytes
            elements += held.elements
        return {**row, "held_bits": 8 * held_bytes / elements}


def _whole_blocks(codec: CacheCodec) -> CacheCodec:
    keys, values = (
        tuple(WholeBlocks(each, codec.sinks) for each in codec.of(part))  # type: ignore[arg-type]
        for part in _PARTS
    )
    return replace(codec, keys=keys, values=values)
