"""Finding the base weight that an update changes, the right way round.

PEFT names modules as the model does; files may name tensors with another leading component, and
GPT-2's ``Conv1D`` layers store weights as (in, out). Both are settled here from names and shapes.
"""

from __future__ import annotations

import difflib
from typing import Protocol

from torch import Tensor

from gonio.adapters.update import LoraUpdate
from gonio.errors import AdapterError

__all__ = ["BaseWeights", "WeightSource"]


_OUTPUT_HEADS = ("lm_head", "embed_out")
_INPUT_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")


class WeightSource(Protocol):
    """Anything that hands out the base model's tensors one at a time."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor name."""
        ...

    def get(self, name: str) -> Tensor:
        """The tensor called ``name``."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape, without reading it."""
        ...


class BaseWeights:
    """The base weights of an adapter's modules, as (out_features, in_features).

    Args:
        weights: The base model's tensors.
        fan_in_fan_out: What the adapter's configuration says; used for a square weight when
            nothing around it tells how the base stores its layers.
    """

    def __init__(self, weights: WeightSource, *, fan_in_fan_out: bool = False) -> None:
        self._weights = weights
        self._names = frozenset(weights.names)
        self._hint = fan_in_fan_out
        self._transposed: dict[str, bool] = {}

    def name(self, module: str) -> str:
        """The tensor that holds a module's weight.

        Tries ``MODULE.weight``, then the same without its first component (a checkpoint of the
        bare decoder), then the one name that ends in it (an adapter of the bare decoder). A file
        without an output head holds tied embeddings: the head's weight is the input embedding.

        Raises:
            AdapterError: The base has no such module.
        """
        exact = f"{module}.weight"
        shorter = exact.partition(".")[2]
        if exact in self._names:
            return exact
        if shorter.count(".") > 1 and shorter in self._names:
            return shorter
        longer = [name for name in self._names if name.endswith(f".{exact}")]
        if len(longer) == 1:
            return longer[0]
        tied = [name for name in self._names if name.endswith(_INPUT_EMBEDDINGS)]
        if module in _OUTPUT_HEADS and not longer and len(tied) == 1:
            return tied[0]
        near = difflib.get_close_matches(exact, self._names, n=1, cutoff=0.0)
        raise AdapterError(
            f"the base model has no weight for the adapter's module {module}\n"
            f"  expected a tensor {exact}; nearest: {near[0] if near else 'none'}\n"
            "Give the model the adapter was trained on with --base."
        )

    def get(self, update: LoraUpdate) -> Tensor:
        """The base weight of an update's module, shape ``(out_features, in_features)``.

        Raises:
            AdapterError: The base has no such module, or its weight has another shape.
        """
        name = self.name(update.module)
        shape = tuple(self._weights.shape(name))
        if shape not in (update.shape, update.shape[::-1]):
            raise AdapterError(
                f"the update of {update.module} does not fit the base model\n"
                f"  the update is {update.shape}, {name} is {shape}\n"
                "Give the model the adapter was trained on with --base."
            )
        square = shape[0] == shape[1]
        transposed = self._is_transposed(name) if square else shape != update.shape
        weight = self._weights.get(name)
        return weight.mT if transposed else weight

    def _is_transposed(self, name: str) -> bool:
        """How the layer around a square weight stores its matrices, told by their biases.

        A bias has out_features entries, so a rectangular neighbor with a bias shows its order.
        The configuration's flag is the last resort: PEFT resets it per layer while it wraps the
        model and stores whatever the last layer needed.
        """
        parts = name.split(".")
        numbers = [i for i, part in enumerate(parts) if part.isdigit()]
        block = ".".join(parts[: numbers[0] + 1]) + "." if numbers else ""
        if block not in self._transposed:
            self._transposed[block] = self._block_is_transposed(block)
        return self._transposed[block]

    def _block_is_transposed(self, block: str) -> bool:
        for name in sorted(self._names):
            bias = f"{name.removesuffix('.weight')}.bias"
            if not (block and name.startswith(block) and name.endswith(".weight")):
                continue
            if bias not in self._names:
                continue
            shape, out = tuple(self._weights.shape(name)), tuple(self._weights.shape(bias))
            if len(shape) == 2 and len(out) == 1 and shape[0] != shape[1] and out[0] in shape:
                return out[0] == shape[1]
        return self._hint
