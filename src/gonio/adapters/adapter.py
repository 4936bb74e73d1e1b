"""What an adapter is once read: settings, one update per module, and all that is in no update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from torch import Tensor

from gonio.adapters.config import CONFIG_NAME, LoraSettings
from gonio.adapters.stored import WEIGHTS_NAME
from gonio.adapters.update import LoraUpdate

__all__ = ["Adapter", "AdapterKind", "UnusedKey"]

AdapterKind = Literal["lora", "dora", "full"]


class UnusedKey(NamedTuple):
    """A tensor that is not part of any update, and why."""

    key: str
    reason: str


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter, a DoRA adapter or a full fine-tune: one update per changed module.

    Attributes:
        path: The folder.
        settings: The checked configuration; of a full fine-tune, the largest rank and scaling 1.
        updates: Module name -> update, in layer order.
        unused: Every tensor that is in no update, with the reason.
        kind: ``lora`` (factored updates), ``dora`` or ``full`` (dense updates, read from the base
            and the adapter or the tuned model when they are used).
        unchanged: Tensors of a full fine-tune that equal the base model's.
        beside: Key in an adapter file -> tensor, each read when asked for: all that is in
            ``unused``, of a full fine-tune the vectors that changed.
    """

    path: Path
    settings: LoraSettings
    updates: Mapping[str, LoraUpdate] = field(repr=False)
    unused: tuple[UnusedKey, ...] = ()
    kind: AdapterKind = "lora"
    unchanged: int = 0
    beside: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files the adapter was read from."""
        if self.kind == "full":
            return tuple(sorted(self.path.glob("*.safetensors")))
        return self.path / CONFIG_NAME, self.path / WEIGHTS_NAME
