"""What is compared: gonio's methods with their settings, and the rows of the peers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from gonio.errors import SettingError
from gonio.kvcache import CacheCodec
from gonio.pipelines.peers.registry import PEERS, Peer

__all__ = ["METHODS", "Contender", "peer_contenders", "select_methods", "select_peers"]

Parts = Literal["keys", "both"]

# Raw sinks cost 4 of 4,096 tokens, 0.0156 bits per element, which the target leaves room for.
_SINK_BITS = 0.015


def _spectral(method: str, key_bits: float, value_bits: float | None = None) -> dict[str, Any]:
    options: dict[str, Any] = {"method": method, "bits": key_bits - _SINK_BITS, "sinks": 4}
    if value_bits is not None:
        options |= {"value_method": method, "value_bits": value_bits - _SINK_BITS}
    return options


METHODS: Mapping[str, Mapping[str, Any]] = {
    "sign learned": {"method": "sign"},
    **{f"affine {b}": {"method": "affine", "bits": b} for b in (2, 3, 4)},
    **{f"scalar {b}": {"method": "scalar", "bits": b} for b in (2, 3, 4)},
    "residual sign 2": {"method": "residual_sign", "bits": 2},
    **{f"transform {b}": _spectral("transform", b) for b in (1.25, 1.75, 2.25, 3.0)},
    **{f"entropy {b}": _spectral("entropy", b) for b in (0.8, 1.1, 1.5, 1.9, 2.4)},
    **{f"affine K{b} V{b}": {"method": "affine", "bits": b, "value_bits": b} for b in (2, 4)},
    # Keys before RoPE need about a bit less than values: see docs/budgets.md.
    "transform K1.5 V2": _spectral("transform", 1.5, 2.0),
    "transform K2 V2.75": _spectral("transform", 2.0, 2.75),
    "entropy K1 V1.6": _spectral("entropy", 1.0, 1.6),
    "entropy K1.4 V2.4": _spectral("entropy", 1.4, 2.4),
    "entropy K2 V3.2": _spectral("entropy", 2.0, 3.2),
    "entropy K2.6 V4": _spectral("entropy", 2.6, 4.0),
}


@dataclass(frozen=True)
class Contender:
    """One row: a codec of gonio, or a peer with a setting.

    Attributes:
        name: Unique name of the row.
        parts: ``keys`` (values exact) or ``both``.
        key: What its scores are kept under between runs: changes with whatever changes them.
        codec: The codec, for a row of gonio.
        peer: The package, for a row of a peer.
        setting: The peer's setting.
    """

    name: str
    parts: Parts
    key: str
    codec: CacheCodec | None = None
    peer: Peer | None = None
    setting: Mapping[str, Any] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        """``gonio`` or the peer's name."""
        return "gonio" if self.peer is None else self.peer.name


def peer_contenders(peers: Sequence[Peer]) -> list[Contender]:
    """Every setting of every peer, keys alone and both parts."""
    found = []
    for peer in peers:
        for label, setting in peer.settings.items():
            for parts in get_args(Parts):
                name = peer.name if label == peer.name else f"{peer.name} {label}"
                identity = [peer.distribution, peer.version, peer.driver, dict(setting), parts]
                found.append(
                    Contender(
                        name=name if parts == "keys" else f"{name}, K+V",
                        parts=parts,
                        key="peer " + json.dumps(identity, sort_keys=True),
                        peer=peer,
                        setting=setting,
                    )
                )
    return found


def select_methods(words: Sequence[str]) -> list[str]:
    """Names of gonio's methods that begin with one of ``words``; ``all`` and ``none`` too.

    Raises:
        SettingError: A word begins no name.
    """
    if list(words) == ["none"]:
        return []
    if list(words) == ["all"]:
        return list(METHODS)
    for word in words:
        if not any(name.startswith(word) for name in METHODS):
            raise SettingError(f"no method begins with {word!r}\n  known: {', '.join(METHODS)}")
    return [name for name in METHODS if name.startswith(tuple(words))]


def select_peers(words: Sequence[str], peers: Mapping[str, Peer] = PEERS) -> list[Peer]:
    """The peers of these names; ``all`` and ``none`` too.

    Raises:
        SettingError: A name is unknown.
    """
    if list(words) == ["none"]:
        return []
    if list(words) == ["all"]:
        return list(peers.values())
    unknown = [word for word in words if word not in peers]
    if unknown:
        raise SettingError(f"no peer is called {unknown[0]!r}\n  known: {', '.join(peers)}")
    return [peers[word] for word in dict.fromkeys(words)]
