"""``W0 + sum_k w_k scaling_k B_k A_k`` with other weights in every row of a batch, W0 untouched.

The factors of all adapters of a module lie stacked, ``(R, in_features)`` and ``(out_features, R)``
with R the sum of their ranks. A forward pass gathers those of the adapters that its rows use,
multiplies ``A x`` by each row's weights and adds ``B`` times that to the layer's output. Ranks may
differ between adapters and modules without padding, and an adapter that a row does not use is
multiplied by zero in that row. Reading each used factor once per pass is what matters while one
token is decoded at a time; a kernel that gathers per row would read it once per row (Punica,
arXiv:2310.18547; S-LoRA, arXiv:2311.03285).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gonio.adapters import Adapter, LoraUpdate
from gonio.adapters.keys import PREFIX
from gonio.errors import AdapterError, SettingError, ShapeError

__all__ = ["AdapterMixture", "MixtureBytes", "RowWeights"]

_BASE_LAYER = ".base_layer."

RowWeights = Mapping[str, float]  # adapter name -> weight in one row of a batch


@dataclass(frozen=True)
class MixtureBytes:
    """What K adapters take in memory beside one base model, and what the alternatives take.

    Attributes:
        factors: All factors, as held: ``sum_k sum_modules r_k (m + n)`` numbers. Rows that use
            only some adapters hold a copy of theirs while they run, always fewer.
        merged_weights: The changed weights whole, once for each adapter.
        merged_models: All parameters of the model, once for each adapter.
    """

    factors: int
    merged_weights: int
    merged_models: int


class _Stack(NamedTuple):
    """The stacked factors of one module."""

    lora_a: Tensor  # (R, in_features)
    lora_b: Tensor  # (out_features, R)
    owners: Tensor  # (R,), index of the adapter each rank direction belongs to
    scalings: Tensor  # (R,), float64


class _Gathered(NamedTuple):
    """What one forward pass needs of a module."""

    lora_a: Tensor  # (U, in_features), of the adapters some row uses
    lora_b: Tensor  # (out_features, U)
    weights: Tensor  # (rows, 1, U), weight times scaling; 0 where a row does not use an adapter


class AdapterMixture:
    """A model whose linear layers take a weighted choice of adapters per row of a batch.

    Entering attaches a hook to every changed layer, leaving removes all of them; weights are never
    written. Outside :meth:`rows` the model answers as the base. An output head that is tied to the
    input embedding changes as a head only, as in PEFT before merging.

    Args:
        model: A model of linear layers (``nn.Linear`` or GPT-2's ``Conv1D``); its dtype and device
            are those of the factors.
        adapters: Name -> LoRA adapter of that model.

    Raises:
        AdapterError: An adapter is not plain LoRA on linear layers, holds tensors beside its
            factors, or does not fit the model.
        SettingError: There is no adapter.

    Example:
        >>> with AdapterMixture(model, {"dpo": one, "sft": two}) as mixture:  # doctest: +SKIP
        ...     with mixture.rows([{"dpo": 1.0}, {"dpo": 0.5, "sft": 1.0}, {}]):
        ...         logits = model(input_ids).logits  # three rows, three subsets
    """

    def __init__(self, model: nn.Module, adapters: Mapping[str, Adapter]) -> None:
        if not adapters:
            raise SettingError("a mixture needs at least one adapter")
        for adapter in adapters.values():
            _require_plain(adapter, model)
        self.model = model
        self.names = tuple(adapters)
        self._num_parameters_bytes = sum(p.nbytes for p in model.parameters())
        layers = dict(model.named_modules())
        parts: dict[str, list[tuple[int, LoraUpdate]]] = {}
        for index, adapter in enumerate(adapters.values()):
            for update in adapter.updates.values():
                parts.setdefault(_locate(layers, update, adapter), []).append((index, update))
        self._layers = {module: layers[module] for module in parts}
        self._stacks = {module: _stack(self._layers[module], parts[module]) for module in parts}
        self._merged_bytes = sum(
            _weight(self._layers[module]).nbytes * len(terms) for module, terms in parts.items()
        )
        self._gathered: dict[str, _Gathered] = {}
        self._num_rows = 0
        self._last: tuple[list[dict[str, float]], dict[str, _Gathered]] | None = None
        self._open: ExitStack | None = None

    @property
    def bytes(self) -> MixtureBytes:
        """Bytes of the factors, and of the same adapters merged."""
        factors = sum(s.lora_a.nbytes + s.lora_b.nbytes for s in self._stacks.values())
        whole = self._num_parameters_bytes * len(self.names)
        return MixtureBytes(factors, self._merged_bytes, whole)

    def __enter__(self) -> AdapterMixture:
        if self._open is not None:
            raise SettingError("the mixture is attached already")
        with ExitStack() as stack:
            for module, layer in self._layers.items():
                stack.callback(layer.register_forward_hook(self._hook(module)).remove)
            self._open = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        opened, self._open, self._last = self._open, None, None
        if opened is not None:
            opened.close()

    @contextmanager
    def rows(self, weights: Sequence[RowWeights]) -> Iterator[None]:
        """Choose the adapters of every row of the forward passes inside.

        Args:
            weights: One mapping per row of the batch, adapter name -> finite weight; an empty
                mapping is the base model.

        Raises:
            SettingError: The mixture is not attached, an adapter is unknown or a weight is not
                finite.
        """
        if self._open is None:
            raise SettingError("enter the mixture before choosing rows: with mixture: ...")
        previous = self._gathered, self._num_rows
        self._gathered, self._num_rows = self._gather(weights), len(weights)
        try:
            yield
        finally:
            self._gathered, self._num_rows = previous

    def _gather(self, weights: Sequence[RowWeights]) -> dict[str, _Gathered]:
        """Module -> its factors for these rows; the last ones are kept for the next token."""
        rows = [dict(chosen) for chosen in weights]
        if self._last is None or self._last[0] != rows:
            table = self._weight_table(rows)
            used = table.ne(0).any(dim=0)
            found = {m: _gather(stack, table, used) for m, stack in self._stacks.items()}
            self._last = rows, {m: one for m, one in found.items() if one is not None}
        return self._last[1]

    def _weight_table(self, weights: Sequence[RowWeights]) -> Tensor:
        """Weights as a float64 matrix ``(rows, adapters)``."""
        table = torch.zeros(len(weights), len(self.names), dtype=torch.float64)
        for row, chosen in enumerate(weights):
            for name, weight in chosen.items():
                if name not in self.names:
                    raise SettingError(f"no adapter {name!r}; there are {', '.join(self.names)}")
                if not abs(weight) < float("inf"):
                    raise SettingError(f"the weight of {name} must be finite, found {weight}")
                table[row, self.names.index(name)] = weight
        return table

    def _hook(self, module: str) -> _Hook:
        return _Hook(self, module)

    def change(self, module: str, inputs: Tensor) -> Tensor | None:
        """What the chosen adapters add to a layer's output, None where they add nothing.

        Args:
            module: Name of a changed layer.
            inputs: What the layer reads, shape ``(rows, ..., in_features)``.

        Raises:
            ShapeError: The inputs have another number of rows than were chosen.
        """
        found = self._gathered.get(module)
        if found is None:
            return None
        if inputs.ndim < 2 or inputs.shape[0] != self._num_rows:
            raise ShapeError(
                f"{module} reads a batch {tuple(inputs.shape)}, and weights were chosen for "
                f"{self._num_rows} rows\nLayers that mix rows (routed experts) cannot be served."
            )
        flat = inputs.reshape(self._num_rows, -1, inputs.shape[-1])  # (rows, positions, in)
        hidden = nn.functional.linear(flat, found.lora_a) * found.weights
        change = nn.functional.linear(hidden, found.lora_b)
        return change.reshape(*inputs.shape[:-1], found.lora_b.shape[0])


class _Hook:
    """The forward hook of one layer."""

    def __init__(self, mixture: AdapterMixture, module: str) -> None:
        self._mixture, self._module = mixture, module

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        change = self._mixture.change(self._module, inputs[0])
        return output if change is None else output + change


def _require_plain(adapter: Adapter, model: nn.Module) -> None:
    others = [u for u in adapter.updates.values() if u.kind != "linear"]
    beside = [one for one in adapter.unused if not _is_base_copy(adapter, one.key, model)]
    if adapter.kind != "lora":
        found = f"found a {adapter.kind} adapter"
    elif others:
        found = f"{others[0].module} is a change of kind {others[0].kind}"
    elif beside:
        found = f"{beside[0].key} is in no update: {beside[0].reason}"
    else:
        return
    raise AdapterError(
        f"cannot mix {adapter.path} per request: {found}\n"
        "Only LoRA on linear layers can be. Merge this adapter into the base, or give it as a "
        "plain LoRA (gonio adapter resize)."
    )


def _is_base_copy(adapter: Adapter, key: str, model: nn.Module) -> bool:
    """Whether a tensor is the base's own, which PEFT saves beside the factors of an output head."""
    name = key.removeprefix(PREFIX).replace(_BASE_LAYER, ".")
    own = model.state_dict().get(name) if _BASE_LAYER in key else None
    saved = adapter.beside.get(key)
    if own is None or saved is None or own.shape != saved.shape:
        return False
    return torch.equal(saved.to(own), own)


def _locate(layers: Mapping[str, nn.Module], update: LoraUpdate, adapter: Adapter) -> str:
    """The layer of an update: of its name, or the only one whose name ends in it."""
    name = update.module
    if name not in layers:
        near = [other for other in layers if other.endswith(f".{name}")]
        shorter = name.partition(".")[2]
        near += [shorter] if shorter.count(".") and shorter in layers else []
        if len(near) != 1:
            raise AdapterError(
                f"{adapter.path} does not fit the model: it has no layer {name}\n"
                "Give the model the adapter was trained on."
            )
        name = near[0]
    layer = layers[name]
    if not isinstance(layer, nn.Linear | Conv1D):
        raise AdapterError(
            f"{adapter.path} changes {name}, a {type(layer).__name__}; expected a linear layer"
        )
    weight = _weight(layer)
    shape = tuple(weight.shape) if isinstance(layer, nn.Linear) else tuple(weight.mT.shape)
    if shape != update.shape:
        raise AdapterError(
            f"{adapter.path} does not fit the model: the update of {name} is {update.shape}, the "
            f"layer {shape} (out_features, in_features)\nGive the model it was trained on."
        )
    return name


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def _stack(layer: nn.Module, terms: Sequence[tuple[int, LoraUpdate]]) -> _Stack:
    """Factors one below the other, in the layer's dtype and on its device."""
    weight = _weight(layer)
    ranks = torch.tensor([update.rank for _, update in terms])
    scalings = torch.tensor([update.scaling for _, update in terms], dtype=torch.float64)
    owners = torch.tensor([index for index, _ in terms])
    return _Stack(
        torch.cat([update.lora_a.to(weight) for _, update in terms], dim=0),
        torch.cat([update.lora_b.to(weight) for _, update in terms], dim=1),
        owners.repeat_interleave(ranks),
        scalings.repeat_interleave(ranks),
    )


def _gather(stack: _Stack, table: Tensor, used: Tensor) -> _Gathered | None:
    """The factors of the adapters that some row uses; all of them without a copy."""
    picked = used[stack.owners].nonzero().flatten()
    if picked.numel() == 0:
        return None
    lora_a, lora_b = stack.lora_a, stack.lora_b
    if picked.numel() < stack.owners.numel():
        at = picked.to(lora_a.device)
        lora_a, lora_b = lora_a.index_select(0, at), lora_b.index_select(1, at)
    weights = table[:, stack.owners[picked]] * stack.scalings[picked]
    return _Gathered(lora_a, lora_b, weights.unsqueeze(1).to(lora_a))
