"""The change of a weight that is stored whole: the difference of two tensors, made when used."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from gonio.adapters.base import BaseWeights
from gonio.adapters.dense import DenseUpdate

__all__ = ["is_embedding_name", "whole_change"]

_EMBEDDINGS = frozenset(
    {
        "embed_in",
        "embed_positions",
        "embed_tokens",
        "position_embeddings",
        "shared",
        "token_type_embeddings",
        "tok_embeddings",
        "word_embeddings",
        "wpe",
        "wte",
    }
)


def is_embedding_name(module: str) -> bool:
    """Whether a module of this name is an embedding in the models transformers knows."""
    return module.rpartition(".")[2] in _EMBEDDINGS


def whole_change(
    module: str, read_tuned: Callable[[], Tensor], base: BaseWeights, name: str
) -> DenseUpdate:
    """The update ``W_tuned - W_base`` of one weight, computed when it is used.

    Args:
        module: Name of the module.
        read_tuned: Reads the tuned weight, of the base's shape as stored: at least two
            dimensions; more than two are a convolution's.
        base: The base model's weights; they must stay open.
        name: The tensor of the base.

    Returns:
        The update; a subtraction in float64 of floats of at most 32 bits is right to the last
        digit of its own result.
    """
    stored = base.stored_shape(name)
    kernel = stored[2:]
    is_embedding = not kernel and is_embedding_name(module)
    transposed = not kernel and not is_embedding and base.is_transposed(name)
    rows, columns = stored[0], math.prod(stored[1:])

    def read() -> Tensor:
        change = (read_tuned().double() - base.stored(name).double()).flatten(1)
        return change.mT if transposed else change

    return DenseUpdate(
        module,
        (columns, rows) if transposed else (rows, columns),
        read,
        module_kind="convolution" if kernel else "embedding" if is_embedding else "linear",
        kernel=kernel,
    )
