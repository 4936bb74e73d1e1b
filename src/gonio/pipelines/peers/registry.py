"""Which packages are compared, in which version, with which settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["PEERS", "Peer"]

_DRIVERS = "gonio.pipelines.peers"
_GROUP = {"q_group_size": 32}
_KIVI = {**_GROUP, "axis_key": -1, "axis_value": 0}


@dataclass(frozen=True)
class Peer:
    """A package and how it is driven.

    Attributes:
        name: What rows call it.
        distribution: Its name on the package index.
        version: The version that was read and is installed.
        settings: What is measured of it, by name; each goes to the driver.
        driver: Module of the driver.
        requires: Small packages it imports that this environment may lack, with versions.
        is_bundled: It is part of this environment and needs no folder.
    """

    name: str
    distribution: str
    version: str
    settings: Mapping[str, Mapping[str, Any]] = field(hash=False)
    driver: str
    requires: tuple[str, ...] = ()
    is_bundled: bool = False

    def folder(self, root: Path) -> Path:
        """Where it is installed below ``root``."""
        return root / f"{self.distribution}-{self.version}"

    def is_installed(self, root: Path) -> bool:
        """Whether it can be started."""
        return self.is_bundled or self.folder(root).is_dir()


_ALL = (
    Peer(
        "quanto",
        "optimum-quanto",
        "0.2.7",
        {
            "2 bit, KIVI axes": {"nbits": 2, **_KIVI},
            "4 bit, KIVI axes": {"nbits": 4, **_KIVI},
            "2 bit, default axes": {"nbits": 2},
            "4 bit, default axes": {"nbits": 4},
        },
        f"{_DRIVERS}.quanto",
        ("ninja==1.13.2",),
    ),
    Peer(
        "hqq",
        "hqq",
        "0.2.8.post1",
        {
            "2 bit, groups of 32": {"nbits": 2, **_GROUP, "axis_key": 1, "axis_value": 1},
            "4 bit, groups of 32": {"nbits": 4, **_GROUP, "axis_key": 1, "axis_value": 1},
            "2 bit, default axes": {"nbits": 2},
        },
        f"{_DRIVERS}.hqq",
        ("einops==0.8.2", "termcolor==3.3.0"),
    ),
    Peer(
        "tiny-turboquant",
        "tiny-turboquant",
        "0.18.0",
        {
            **{
                f"{bits} bit, blocks of 32": {"bits": bits, "block_size": 32, "residual_len": 32}
                for bits in (2, 3, 4)
            },
            "3 bit, defaults": {"bits": 3},
        },
        f"{_DRIVERS}.tiny_turboquant",
    ),
    Peer(
        "turbokv",
        "turbokv",
        "0.1.0",
        {"2 bit": {"bits": 2}, "4 bit": {"bits": 4}},
        f"{_DRIVERS}.turbokv",
    ),
    Peer(
        "nexusquant",
        "nexusquant-kv",
        "0.6.3",
        {
            "K3V2": {"key_bits": 3, "value_bits": 2},
            "K2V2": {"key_bits": 2, "value_bits": 2},
            "K4V4": {"key_bits": 4, "value_bits": 4},
        },
        f"{_DRIVERS}.nexusquant",
        ("zstandard==0.25.0",),
    ),
    Peer(
        "spectralquant",
        "spectralquant",
        "0.3.1",
        {name: {"preset": name} for name in ("standard", "high")},
        f"{_DRIVERS}.spectralquant",
    ),
    Peer(
        "rabitq",
        "qntz",
        "0.1.3",
        {f"{bits} bit": {"bits": bits} for bits in (2, 3, 4)},
        f"{_DRIVERS}.rabitq",
    ),
    Peer(
        "kakeyalattice",
        "kakeyalattice",
        "1.5.0",
        {f"E8, Q {q}": {"q_range": q} for q in (2, 5, 10)},
        f"{_DRIVERS}.kakeyalattice",
    ),
    Peer(
        "transformers-fp8",
        "transformers",
        "",
        {"fp8": {}},
        f"{_DRIVERS}.fp8",
        is_bundled=True,
    ),
)
PEERS: Mapping[str, Peer] = {peer.name: peer for peer in _ALL}
