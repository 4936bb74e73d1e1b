"""Where the time of a forward pass goes: attention modules, and the cache inside them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

__all__ = ["Clocks", "attention_clocks"]


@dataclass
class Clocks:
    """Seconds since the last reset.

    Attributes:
        attention: In attention modules: projections, the cache, attention itself.
        cache: In updates of cache layers, a part of ``attention``: storing new keys and values,
            and decoding or joining those stored.
    """

    attention: float = 0.0
    cache: float = 0.0

    def reset(self) -> None:
        """Start again from zero."""
        self.attention = self.cache = 0.0


@contextmanager
def attention_clocks(model: PreTrainedModel, cache: Cache) -> Iterator[Clocks]:
    """Time attention and cache inside the block, by hooks that are removed afterwards.

    On an accelerator each reading waits for it, which slows the model down a little.

    Args:
        model: A decoder; attention modules are those with a ``layer_idx`` whose class is named
            after attention.
        cache: The cache it uses.
    """
    clocks = Clocks()
    now = _clock(model.device)
    started: list[float] = []

    def begin(module: nn.Module, args: Any) -> None:
        started.append(now())

    def end(module: nn.Module, args: Any, output: Any) -> None:
        clocks.attention += now() - started.pop()

    handles = []
    for module in model.modules():
        if hasattr(module, "layer_idx") and "attention" in type(module).__name__.lower():
            handles.append(module.register_forward_pre_hook(begin))
            handles.append(module.register_forward_hook(end))

    def timed(update: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = now()
            try:
                return update(*args, **kwargs)
            finally:
                clocks.cache += now() - start

        return run

    own: Any = cache.update
    try:
        cache.update = timed(own)  # type: ignore[method-assign]  # this cache's only
        yield clocks
    finally:
        del cache.update  # the class's own is found again
        for handle in handles:
            handle.remove()


def _clock(device: torch.device) -> Callable[[], float]:
    if device.type != "cuda":
        return time.perf_counter

    def now() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return now
