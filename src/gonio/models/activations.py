"""Second moments of what linear layers read, streamed over windows of text.

``C = E[x x^T]`` of a layer with n inputs is an n x n matrix: 8 n^2 bytes in float64, 2.7 MB at
n = 576, 134 MB at 4096 and 970 MB at 11008, plus 4 n^2 for one window's product in float32. Layers
that read the same tensor share one matrix. A 7B model has about 35 GB of them: ask for a few
layers at a time, each call repeats the forward passes.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gonio.errors import ModelError, SettingError, ShapeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Moments", "input_second_moments"]


@dataclass(frozen=True)
class Moments:
    """The uncentered second moment of a layer's inputs.

    Attributes:
        count: Tokens summed.
        matrix: ``sum x x^T / count``, symmetric, float64, shape ``(in_features, in_features)``;
            the same tensor for layers that read the same input.
        read_by: Every layer asked for that reads this input.
    """

    count: int
    matrix: Tensor
    read_by: tuple[str, ...]


@torch.no_grad()
def input_second_moments(
    model: PreTrainedModel,
    windows: Tensor,
    modules: Collection[str],
    *,
    skip: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Moments]:
    """Run windows of text through a model and sum the outer products of layers' inputs.

    A window's product is taken in float32 and added up in float64; memory is one matrix for each
    distinct input and one window of activations, however many windows there are.

    Args:
        model: A decoder in evaluation mode, on any device; the matrices are kept on the CPU.
        windows: Token ids ``(num_windows, window_length)``, without padding.
        modules: Names of ``nn.Linear`` or ``Conv1D`` layers: a weight's name without ``.weight``.
        skip: First tokens of each window to leave out. In some models their activations are so
            much larger than all others that they decide the moment alone (arXiv:2402.17762).
        progress: Called with (what, windows done, windows).

    Returns:
        Moments of every module, in the order asked for.

    Raises:
        ModelError: A module does not exist, is no linear layer (an embedding reads token ids),
            or did not run; or the model is in training mode.
        ShapeError: ``windows`` is not two-dimensional.
        SettingError: No window or no module is given, or ``skip`` leaves no token.
    """
    if windows.ndim != 2:
        raise ShapeError(f"windows must be (num_windows, length), found {tuple(windows.shape)}")
    if len(windows) == 0 or not modules:
        raise SettingError(f"{len(windows)} windows and {len(modules)} modules: nothing to observe")
    if not 0 <= skip < windows.shape[1]:
        raise SettingError(f"skip must be in [0, {windows.shape[1]}), found {skip}")
    if model.training:
        raise ModelError("the model is in training mode; call model.eval() first")
    layers = {name: _layer(model, name) for name in modules}
    sums = _Sums(windows.shape[1], skip)
    prefix = f"{model.base_model_prefix}."
    # The output head would need logits of every position; without it they are not computed.
    runner = model.base_model if all(name.startswith(prefix) for name in layers) else model
    with _hooked(layers, sums):
        for index, window in enumerate(windows):
            runner(input_ids=window[None].to(model.device), use_cache=False)
            sums.forget()
            if progress is not None:
                progress("observing inputs", index + 1, len(windows))
    return sums.moments(tuple(layers))


class _Sums:
    """Sums of outer products, one for each distinct input.

    Layers that read one input run one after the other, so a layer whose input is the very tensor
    the hooked layer before it was given follows that layer. Only that one tensor is held on to.
    """

    def __init__(self, length: int, skip: int) -> None:
        self._length, self._skip = length, skip
        self._leaders: dict[str, str] = {}
        self._totals: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._last: tuple[str, Tensor] | None = None

    def add(self, name: str, inputs: Tensor) -> None:
        before = self._last
        leader = before[0] if before is not None and before[1] is inputs else name
        known = self._leaders.setdefault(name, leader)
        if known != leader:
            raise ModelError(
                f"{name} reads the input of {leader} in one pass and of {known} in another\n"
                "Observe these layers in separate calls."
            )
        if leader != name:
            return
        self._last = (name, inputs)
        if self._skip and inputs.shape[-2] != self._length:
            raise ModelError(
                f"{name} reads {inputs.shape[-2]} rows in a window of {self._length} tokens: "
                "which are the first tokens is unknown\nObserve it with skip=0."
            )
        rows = inputs[..., self._skip :, :].flatten(0, -2).float()
        product = (rows.mT @ rows).cpu()
        if name in self._totals:
            self._totals[name] += product
        else:
            self._totals[name] = product.double()
        self._counts[name] = self._counts.get(name, 0) + rows.shape[0]

    def forget(self) -> None:
        """End a forward pass: release the held input."""
        self._last = None

    def moments(self, names: tuple[str, ...]) -> dict[str, Moments]:
        idle = [name for name in names if name not in self._leaders]
        if idle:
            raise ModelError(f"the model never ran {idle[0]} on these windows")
        shared: dict[str, Moments] = {}
        for leader, total in self._totals.items():
            count = self._counts[leader]
            if count == 0 or not bool(torch.isfinite(total).all()):
                what = "no token" if count == 0 else "NaN or infinite inputs"
                raise ModelError(f"{leader} read {what} on these windows")
            total += total.mT.clone()
            total /= 2 * count
            readers = tuple(name for name in names if self._leaders[name] == leader)
            shared[leader] = Moments(count, total, readers)
        return {name: shared[self._leaders[name]] for name in names}


@contextmanager
def _hooked(layers: dict[str, nn.Module], sums: _Sums) -> Iterator[None]:
    """Hand every layer's input to ``sums``; the hooks are gone afterwards, also after an error."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def observe(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            sums.add(name, args[0] if args else next(iter(kwargs.values())))

        return observe

    handles = []
    try:
        for name, layer in layers.items():
            handles.append(layer.register_forward_pre_hook(hook(name), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layer(model: nn.Module, name: str) -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    known = dict(model.named_modules())
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise ModelError(f"the model has no module {name}; nearest: {near[0] if near else 'none'}")
    layer = known[name]
    if isinstance(layer, nn.Embedding):
        raise ModelError(
            f"{name} is an embedding: it reads token ids, whose second moment is the diagonal of "
            "token frequencies\nLeave it out."
        )
    if not isinstance(layer, nn.Linear | Conv1D):
        raise ModelError(f"{name} is a {type(layer).__name__}, expected a Linear or Conv1D layer")
    return layer
