"""The parent's end of a peer: a child process that is asked for one tensor at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from gonio.errors import PeerError
from gonio.pipelines.peers.driver import ModelFacts, Part
from gonio.pipelines.peers.registry import Peer
from gonio.pipelines.peers.wire import read_message, write_message

__all__ = ["PeerProcess"]

_TIMEOUT_SECONDS = 600.0  # of one answer; a package may design codebooks for minutes
_SHOWN_CHARACTERS = 400


class PeerProcess:
    """A running peer; a context manager that ends it.

    Args:
        peer: The package.
        root: Folder below which it is installed.
        timeout_seconds: How long one answer may take.

    Attributes:
        version: Version of the installed package, known after :meth:`open`.
    """

    def __init__(
        self, peer: Peer, root: Path, *, timeout_seconds: float = _TIMEOUT_SECONDS
    ) -> None:
        self.peer = peer
        self.timeout_seconds = timeout_seconds
        self.version = ""
        environment = dict(os.environ)
        if not peer.is_bundled:
            paths = [str(peer.folder(root).resolve()), environment.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.serve", peer.driver, peer.distribution],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
        )

    def __enter__(self) -> Self:
        """The process itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the process."""
        self.close()

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with suppress(OSError):  # bytes that a dead process never took
                    stream.close()

    @property
    def is_alive(self) -> bool:
        """Whether it can still be asked."""
        return self._process.poll() is None

    def open(self, setting: Mapping[str, Any], facts: ModelFacts) -> bool:
        """Make the driver with a setting; whether it must be calibrated.

        Raises:
            PeerError: The package cannot be imported, or refuses the setting.
        """
        content, _ = self._ask({"do": "open", "setting": dict(setting), "facts": asdict(facts)})
        self.version = str(content["version"])
        return bool(content["needs_calibration"])

    def calibrate(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Show the peer keys and values, per layer ``(windows, heads, tokens, dim)``.

        Raises:
            PeerError: The package fails.
        """
        parts = {"keys": keys, "values": values}
        tensors = {f"{part}.{i}": x.half() for part, xs in parts.items() for i, x in enumerate(xs)}
        self._ask({"do": "calibrate"}, tensors)

    def roundtrip(self, x: Tensor, layer: int, part: Part) -> tuple[Tensor, dict[str, Any]]:
        """What the peer makes of ``x``, and what it stores for it.

        Args:
            x: ``(1, heads, tokens, head_dim)``; the peer is given float16.
            layer: Decoder layer.
            part: ``keys`` or ``values``.

        Returns:
            The approximation in the dtype of ``x``; ``held_bytes`` (all memory behind what is
            kept), ``coded_bits`` (per element, None where the held bytes are the codes) and
            ``side_bytes``.

        Raises:
            PeerError: The package fails, or answers with another shape or with NaN.
        """
        content, tensors = self._ask({"do": "roundtrip", "layer": layer, "part": part}, {"x": x})
        return self._checked(tensors, "x", x), content

    def new_cache(self) -> bool:
        """Start an empty cache of the peer's own; False where it has none.

        Raises:
            PeerError: The package fails.
        """
        return bool(self._ask({"do": "new_cache"})[0]["has_cache"])

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Add keys and values to the peer's cache; what attention reads, of any length.

        Raises:
            PeerError: The package fails, or answers with NaN.
        """
        request = {"do": "update", "layer": layer}
        _, found = self._ask(request, {"keys": keys, "values": values})
        return (
            self._checked(found, "keys", keys, any_length=True),
            self._checked(found, "values", values, any_length=True),
        )

    def held_bytes(self) -> int:
        """All memory behind the peer's cache.

        Raises:
            PeerError: The package fails.
        """
        return int(self._ask({"do": "held"})[0]["held_bytes"])

    def _checked(
        self, found: Mapping[str, Tensor], name: str, given: Tensor, *, any_length: bool = False
    ) -> Tensor:
        """The answer in the dtype and on the device of what was given."""
        tensor = found[name]
        wanted, shape = list(given.shape), list(tensor.shape)
        if any_length and len(shape) == len(wanted):
            wanted[2] = shape[2]
        if shape != wanted:
            raise PeerError(
                f"{self.peer.name} returned a tensor of shape {tuple(shape)} for one of "
                f"{tuple(given.shape)}"
            )
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise PeerError(f"{self.peer.name} returned numbers that are not finite")
        return tensor.to(given)

    def _ask(
        self, content: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        source, target = self._process.stdout, self._process.stdin
        assert source is not None  # both are pipes
        assert target is not None
        timer = threading.Timer(self.timeout_seconds, self._process.kill)
        timer.start()
        try:
            halves = {name: x.half().cpu() for name, x in (tensors or {}).items()}
            write_message(target, content, halves)
            answer = read_message(source)
        except OSError:
            answer = None
        finally:
            late = not timer.is_alive()
            timer.cancel()
        if answer is None:
            why = f"no answer within {self.timeout_seconds:g} s" if late else self._last_words()
            raise PeerError(f"{self.peer.name} ended while asked to {content['do']}: {why}")
        if "error" in answer[0]:
            said = str(answer[0]["error"])[:_SHOWN_CHARACTERS]
            raise PeerError(f"{self.peer.name} failed to {content['do']}: {said}")
        return answer

    def _last_words(self) -> str:
        """The end of what the process wrote to standard error."""
        self._process.wait()
        self._errors.seek(0)
        text = self._errors.read().decode("utf-8", "replace").strip()
        code = f"exit code {self._process.returncode}"
        return f"{code}: {text[-_SHOWN_CHARACTERS:]}" if text else code
