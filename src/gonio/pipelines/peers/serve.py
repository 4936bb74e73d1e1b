"""The child process: ``python -m gonio.pipelines.peers.serve DRIVER_MODULE DISTRIBUTION``.

Answers messages on standard input with messages on standard output until the input ends. Whatever
a package prints goes to standard error, so that it cannot enter an answer.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.metadata import version
from typing import IO, Any

import torch
from torch import Tensor

from gonio.pipelines.peers.driver import ModelFacts, PeerDriver
from gonio.pipelines.peers.held import held_bytes
from gonio.pipelines.peers.wire import read_message, write_message

__all__ = ["Server", "main"]

Tensors = dict[str, Tensor]
Answer = tuple[dict[str, Any], Tensors]


class Server:
    """One driver, opened with one setting at a time.

    Args:
        module: Dotted name of a module with a class ``Driver``.
        distribution: Whose version is reported.
    """

    def __init__(self, module: str, distribution: str) -> None:
        self.module = module
        self.distribution = distribution
        self.driver: PeerDriver | None = None
        self.cache: Any = None

    def answer(self, request: dict[str, Any], tensors: Tensors) -> Answer:
        """Carry out one request, named in ``do``."""
        if request["do"] == "open":
            return self._open(request)
        if self.driver is None:
            raise RuntimeError("nothing is open")
        actions = {
            "calibrate": self._calibrate,
            "roundtrip": self._roundtrip,
            "new_cache": self._new_cache,
            "update": self._update,
            "held": self._held,
        }
        return actions[request["do"]](self.driver, request, tensors)

    def _open(self, request: dict[str, Any]) -> Answer:
        facts = ModelFacts(**request["facts"])
        self.cache = None
        self.driver = import_module(self.module).Driver(request["setting"], facts)
        assert self.driver is not None
        found = {
            "version": version(self.distribution),
            "needs_calibration": self.driver.needs_calibration,
        }
        return found, {}

    def _calibrate(self, driver: PeerDriver, request: dict[str, Any], tensors: Tensors) -> Answer:
        layers = range(driver.facts.num_layers)
        keys, values = ([tensors[f"{part}.{i}"] for i in layers] for part in ("keys", "values"))
        driver.calibrate(keys, values)
        return {}, {}

    def _roundtrip(self, driver: PeerDriver, request: dict[str, Any], tensors: Tensors) -> Answer:
        layer, part = request["layer"], request["part"]
        x = tensors["x"]
        stored = driver.encode(x.clone(), layer, part)  # a codec must not keep what it was given
        found = {
            "held_bytes": held_bytes(driver.kept(stored, part)),
            "coded_bits": driver.coded_bits(stored, layer, part),
            "side_bytes": held_bytes(driver.side()),
        }
        return found, {"x": driver.decode(stored, layer, part)}

    def _new_cache(self, driver: PeerDriver, request: dict[str, Any], tensors: Tensors) -> Answer:
        self.cache = driver.new_cache()
        return {"has_cache": self.cache is not None}, {}

    def _update(self, driver: PeerDriver, request: dict[str, Any], tensors: Tensors) -> Answer:
        keys, values = self.cache.update(tensors["keys"], tensors["values"], request["layer"])
        return {}, {"keys": keys.clone(), "values": values.clone()}

    def _held(self, driver: PeerDriver, request: dict[str, Any], tensors: Tensors) -> Answer:
        return {"held_bytes": held_bytes(self.cache)}, {}


def main(arguments: list[str], source: IO[bytes], target: IO[bytes]) -> None:
    """Serve until the input ends; an exception is an answer too."""
    server = Server(*arguments)
    with torch.no_grad():
        while (message := read_message(source)) is not None:
            try:
                content, tensors = server.answer(*message)
                write_message(target, content, tensors)
            except Exception as error:  # the package's fault, whatever it is, belongs in its row
                write_message(target, {"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    _answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    main(sys.argv[1:], sys.stdin.buffer, _answers)
