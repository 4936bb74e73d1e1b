"""Rotary embedding of a model as angles per position, and the positions of the tokens it reads.

Which pairs of coordinates turn is read off the model's own code, how fast off its rotary module.
What is built on it turns keys back before they are coded and forward again afterwards, by the same
angles: a wrong position costs compression and never correctness.
"""

from __future__ import annotations

import inspect
import weakref
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from gonio.errors import ModelError, ShapeError
from gonio.kvcache.fold import rotary_layout
from gonio.models.attention import attention_layout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["PositionWatch", "Rotary", "can_turn", "has_rotary", "model_rotary"]

_MOVING = ("dynamic", "longrope")  # their frequencies change with the length that is read


@dataclass(frozen=True, eq=False)
class Rotary:
    """The turns that rotary embedding makes in one layer.

    Attributes:
        pairs: Coordinates ``(first, second)`` that turn together, int64 ``(num_pairs, 2)``; the
            others stay.
        frequencies: Radians per position of each pair, float32 ``(num_pairs,)``.
    """

    pairs: Tensor
    frequencies: Tensor

    def __post_init__(self) -> None:
        if self.pairs.shape != (*self.frequencies.shape, 2):
            raise ShapeError(
                f"{tuple(self.frequencies.shape)} frequencies do not fit pairs "
                f"{tuple(self.pairs.shape)}"
            )

    def phases(self, positions: Tensor) -> Tensor:
        """``exp(i angle)`` of every pair at integer positions ``(...)``: ``(..., num_pairs)``."""
        frequencies = self.frequencies.to(positions.device).double()
        angles = positions[..., None].double() * frequencies
        return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)

    def turn(self, x: Tensor, phases: Tensor) -> Tensor:
        """Vectors turned forward; by ``phases.conj()`` they are turned back.

        Args:
            x: Float32 ``(..., tokens, head_dim)``.
            phases: ``(..., tokens, num_pairs)``, broadcast over the axes before.
        """
        first, second = self._columns
        cos, sin = phases.real.contiguous(), phases.imag.contiguous()
        out = x.clone()
        out[..., first] = x[..., first] * cos - x[..., second] * sin
        out[..., second] = x[..., second] * cos + x[..., first] * sin
        return out

    @cached_property
    def _columns(self) -> tuple[slice | Tensor, slice | Tensor]:
        """First and second coordinates of the pairs: slices where they are evenly spaced."""
        first, second = (_evenly_spaced(column) for column in self.pairs.cpu().unbind(dim=1))
        return first, second


def _evenly_spaced(places: Tensor) -> slice | Tensor:
    """A slice of the same places, which reads without gathering; the places if there is none."""
    numbers = places.tolist()
    step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
    if (
        not numbers
        or step < 1
        or numbers != list(range(numbers[0], numbers[0] + step * len(numbers), step))
    ):
        return places
    return slice(numbers[0], numbers[-1] + 1, step)


def has_rotary(model: PreTrainedModel) -> bool:
    """Whether the model has a rotary module, so that what it caches depends on positions."""
    return bool(_rotary_modules(model))


def can_turn(model: PreTrainedModel) -> bool:
    """Whether the turns of the model are known, so that keys can be coded before them."""
    try:
        model_rotary(model)
    except ModelError:
        return False
    return True


def model_rotary(model: PreTrainedModel) -> tuple[Rotary, ...]:
    """The turns of every layer of a model.

    Raises:
        ModelError: The family is not known, there is not one rotary module that is told the
            positions, or its frequencies depend on the length.
    """
    name = type(model).__name__
    layout, modules = rotary_layout(model), _rotary_modules(model)
    if len(modules) != 1 or not len(layout.pairs):
        raise ModelError(
            f"{name}: {len(modules)} modules make rotary angles of positions, expected 1, so keys "
            "before rotary embedding are not known\nCode keys after it (stage='post_rope')."
        )
    kinds = getattr(modules[0], "rope_type", "default")
    kinds = set(kinds.values()) if isinstance(kinds, dict) else {kinds}
    if kinds & set(_MOVING):
        raise ModelError(
            f"{name}: rotary embedding of type {', '.join(sorted(kinds))} changes with the length "
            "that is read\nCode keys after it (stage='post_rope')."
        )
    text: Any = model.config.get_text_config(decoder=True)
    takes_type = "layer_type" in inspect.signature(modules[0].forward).parameters
    return tuple(
        Rotary(layout.pairs, _frequencies(modules[0], layout.pairs, kind))
        for kind in (
            text.layer_types if takes_type else [None] * attention_layout(model.config).num_layers
        )
    )


class PositionWatch:
    """The position ids of a model's latest forward pass, seen by a hook on its rotary module.

    The hook goes when the watch does. Copies of what holds a watch share it.

    Attributes:
        latest: ``(batch or 1, tokens)``, or None before the first pass.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.latest: Tensor | None = None
        (module,) = _rotary_modules(model)
        names = list(inspect.signature(module.forward).parameters)
        place, watch = names.index("position_ids"), weakref.ref(self)

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found = watch()
            if found is not None:
                found.latest = kwargs["position_ids"] if len(args) <= place else args[place]

        handle = module.register_forward_pre_hook(note, with_kwargs=True)
        weakref.finalize(self, handle.remove)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def last(self, new: Tensor, seen: int) -> Tensor:
        """Position of the last of new tokens in each row, int64 ``(batch,)``.

        Args:
            new: Keys ``(batch, num_kv_heads, tokens, head_dim)``.
            seen: Tokens before them, for keys that do not come from the latest pass.
        """
        batch, _, tokens, _ = new.shape
        if self.latest is not None and self.latest.shape in ((batch, tokens), (1, tokens)):
            return self.latest[:, -1].to(new.device).long().expand(batch)
        return torch.full((batch,), seen + tokens - 1, device=new.device)


def _rotary_modules(model: PreTrainedModel) -> list[nn.Module]:
    return [
        module
        for module in model.modules()
        if any(name.endswith("inv_freq") for name, _ in module.named_buffers(recurse=False))
        and "position_ids" in inspect.signature(module.forward).parameters
    ]


@torch.no_grad()
def _frequencies(module: nn.Module, pairs: Tensor, layer_type: str | None) -> Tensor:
    """The angles that a rotary module gives position 1, below pi in every model known."""
    device = next(module.buffers()).device
    kind = {} if layer_type is None else {"layer_type": layer_type}
    one = torch.ones((1, 1), dtype=torch.long, device=device)
    cos, sin = module.forward(torch.zeros(1, device=device), position_ids=one, **kind)
    angles = torch.atan2(sin[0, 0].double(), cos[0, 0].double()).float().cpu()
    if angles.shape[0] == len(pairs):  # one per pair
        return angles
    if angles.shape[0] != 2 * len(pairs):
        raise ModelError(
            f"{type(module).__name__} makes {angles.shape[0]} angles for {len(pairs)} pairs"
        )
    return angles[pairs[:, 0]].contiguous()
