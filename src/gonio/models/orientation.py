"""Which way round a stored matrix lies: (out_features, in_features), or transposed.

Linear layers store (out, in); GPT-2's ``Conv1D`` stores (in, out). Biases tell: they have
out_features entries.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["ShapeSource", "is_stored_transposed"]


class ShapeSource(Protocol):
    """Anything that knows the shapes of a model's tensors by name."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor name."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the tensor called ``name``, without reading it."""
        ...


def is_stored_transposed(weights: ShapeSource, name: str) -> bool | None:
    """Whether the matrices of a layer are stored as (in_features, out_features).

    A rectangular matrix with a bias shows its order, and a layer stores all of its matrices the
    same way: ``name`` itself decides, or the first such neighbor in its numbered block.

    Args:
        weights: The model's tensors.
        name: A tensor of the layer, for example ``transformer.h.0.attn.c_proj.weight``.

    Returns:
        True or False; None when no rectangular matrix of the block has a bias.
    """
    names = frozenset(weights.names)
    own = _bias_tells(weights, name, names)
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    if own is not None or not numbers:
        return own
    block = ".".join(parts[: numbers[0] + 1]) + "."
    told = (_bias_tells(weights, n, names) for n in sorted(names) if n.startswith(block))
    return next((answer for answer in told if answer is not None), None)


def _bias_tells(weights: ShapeSource, name: str, names: frozenset[str]) -> bool | None:
    """What a rectangular weight and its own bias tell; None where they tell nothing."""
    bias = f"{name.removesuffix('.weight')}.bias"
    if not name.endswith(".weight") or bias not in names:
        return None
    shape, out = tuple(weights.shape(name)), tuple(weights.shape(bias))
    if len(shape) == 2 and len(out) == 1 and shape[0] != shape[1] and out[0] in shape:
        return out[0] == shape[1]
    return None
