"""Finding the base weight that an update changes, the right way round.

PEFT names modules as the model does; files may name tensors with another leading component, and
GPT-2's ``Conv1D`` layers store weights as (in, out). Both are settled here from names and shapes.
Embeddings are (num_embeddings, dim) everywhere.
"""

from __future__ import annotations

import difflib
import math
from typing import Protocol

from torch import Tensor

from gonio.adapters.update import LoraUpdate
from gonio.errors import AdapterError
from gonio.models.orientation import is_stored_transposed

__all__ = ["INPUT_EMBEDDINGS", "OUTPUT_HEADS", "BaseWeights", "WeightSource"]

OUTPUT_HEADS = ("lm_head", "embed_out")
INPUT_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")


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

    def stored(self, name: str) -> Tensor:
        """The tensor called ``name`` as the base stores it."""
        return self._weights.get(name)

    def stored_shape(self, name: str) -> tuple[int, ...]:
        """Its shape, without reading it."""
        return tuple(self._weights.shape(name))

    def name(self, module: str) -> str:
        """The tensor that holds a module's weight; see :meth:`find`.

        Raises:
            AdapterError: The base has no such module.
        """
        found = self.find(module)
        if found is not None:
            return found
        exact = f"{module}.weight"
        near = difflib.get_close_matches(exact, self._names, n=1, cutoff=0.0)
        raise AdapterError(
            f"the base model has no weight for the adapter's module {module}\n"
            f"  expected a tensor {exact}; nearest: {near[0] if near else 'none'}\n"
            "Give the model the adapter was trained on with --base."
        )

    def find(self, module: str) -> str | None:
        """The tensor that holds a module's weight, None if the base has no such module.

        Tries ``MODULE.weight``, then the same without its first component (a checkpoint of the
        bare decoder), then the one name that ends in it (an adapter of the bare decoder). A file
        without an output head holds tied embeddings: the head's weight is the input embedding.
        """
        exact = f"{module}.weight"
        for stored_otherwise in (module, f"{module}.in_proj_weight"):  # bare, MultiheadAttention
            if exact not in self._names and stored_otherwise in self._names:
                return stored_otherwise
        shorter = exact.partition(".")[2]
        if exact in self._names:
            return exact
        if shorter.count(".") > 1 and shorter in self._names:
            return shorter
        longer = [name for name in self._names if name.endswith(f".{exact}")]
        if len(longer) == 1:
            return longer[0]
        tied = [name for name in self._names if name.endswith(INPUT_EMBEDDINGS)]
        if module in OUTPUT_HEADS and not longer and len(tied) == 1:
            return tied[0]
        return None

    def locate(self, update: LoraUpdate) -> str:
        """The tensor that holds the weight of an update's module, its shape checked.

        Raises:
            AdapterError: The base has no such module, or its weight has another shape.
        """
        name = self.name(update.module)
        shape = tuple(self._weights.shape(name))
        m, n = update.shape
        if update.module_kind == "convolution":
            fits = shape[:1] == (m,) and shape[2:] == update.kernel and math.prod(shape[1:]) == n
        elif update.module_kind == "embedding":
            fits = shape == (m, n)
        else:
            fits = shape in ((m, n), (n, m))
        if not fits:
            raise AdapterError(
                f"the update of {update.module} does not fit the base model\n"
                f"  the update is {update.shape}, {name} is {shape}\n"
                "Give the model the adapter was trained on with --base."
            )
        return name

    def get(self, update: LoraUpdate) -> Tensor:
        """The base weight of an update's module, shape ``(out_features, in_features)``.

        An embedding's is ``(num_embeddings, dim)``, a convolution's is flattened behind its
        first axis.

        Raises:
            AdapterError: The base has no such module, or its weight has another shape.
        """
        name = self.locate(update)
        weight = self._weights.get(name)
        if update.module_kind == "convolution":
            return weight.flatten(1)
        if update.module_kind == "embedding":
            return weight
        is_square = weight.shape[0] == weight.shape[1]
        transposed = self.is_transposed(name) if is_square else weight.shape != update.shape
        return weight.mT if transposed else weight

    def is_transposed(self, name: str) -> bool:
        """Whether a matrix is stored as (in, out), told by the biases around it.

        A bias has out_features entries, so a rectangular neighbor with a bias shows its order.
        The configuration's flag is the last resort: PEFT resets it per layer while it wraps the
        model and stores whatever the last layer needed.

        Args:
            name: A tensor of two dimensions that is no embedding.
        """
        if name not in self._transposed:
            found = is_stored_transposed(self._weights, name)
            self._transposed[name] = self._hint if found is None else found
        return self._transposed[name]
