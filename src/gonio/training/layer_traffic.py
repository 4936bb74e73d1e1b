"""What goes through linear layers in a training step: inputs, and gradients of outputs.

With x the inputs of a layer (tokens x n) and d the gradients of its outputs (tokens x m), the
gradient in the full weight is ``G = d^T x``. Its norm and its products with small factors follow
from x and d without forming it, and without looking at the gradients of the factors.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["ClosedForms", "LayerTraffic"]


class ClosedForms(NamedTuple):
    """Frobenius norms that the layer's inputs and output gradients give.

    Attributes:
        gradient_a: Of ``s B^T G``.
        gradient_b: Of ``s G A^T``.
        weight_gradient: Of G.
    """

    gradient_a: float
    gradient_b: float
    weight_gradient: float


class LayerTraffic:
    """Listens to layers from one step to the next; :meth:`close` ends it.

    Args:
        layers: Layers by name, each called with its input as first argument and returning its
            output. Inputs must reach the factors as they are: no dropout.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._parts: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}
        self._handles = [
            layer.register_forward_hook(partial(self._listen, name))
            for name, layer in layers.items()
        ]

    def closed_forms(
        self, name: str, lora_b: Tensor, lora_a: Tensor, scaling: float
    ) -> ClosedForms:
        """Norms over all batches since the last :meth:`forget`, float64.

        Args:
            name: Of a layer that was called and differentiated since.
            lora_b: Shape ``(out_features, rank)``, as it was then.
            lora_a: Shape ``(rank, in_features)``.
            scaling: s.
        """
        parts = self._parts[name]
        inputs = torch.cat([x for x, _ in parts]).double()
        outputs = torch.cat([d for _, d in parts]).double()
        gradient_a = (outputs @ lora_b.double()).mT @ inputs
        gradient_b = outputs.mT @ (inputs @ lora_a.double().mT)
        squared = torch.sum((outputs @ outputs.mT) * (inputs @ inputs.mT))  # |d^T x|^2
        return ClosedForms(
            abs(scaling) * float(gradient_a.norm()),
            abs(scaling) * float(gradient_b.norm()),
            float(squared.clamp(min=0.0).sqrt()),
        )

    def forget(self) -> None:
        """Begin a new step."""
        for parts in self._parts.values():
            parts.clear()

    def close(self) -> None:
        """Stop listening."""
        for handle in self._handles:
            handle.remove()
        self.forget()

    def _listen(self, name: str, layer: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        if not torch.is_grad_enabled() or not output.requires_grad:
            return
        inputs = arguments[0].detach().flatten(0, -2)
        output.register_hook(
            lambda gradient: self._parts[name].append((inputs, gradient.detach().flatten(0, -2)))
        )
