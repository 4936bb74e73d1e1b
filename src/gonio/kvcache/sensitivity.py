"""How much a model's predictions depend on errors of its keys and values: one metric per head.

Two views are joined. The *local* one knows only the layer: queries for keys (``E[q q^T]`` summed
over the group), the output projection for values (``W_o^T W_o``). The *Fisher* one knows the whole
model: ``E[g g^T]`` with g the gradient at a key or value of the log-likelihood of a token drawn
from the model's own prediction, which is the curvature of the divergence that errors cause. Half
of each gives the shape, and a head weighs the geometric mean of both: the Fisher weight alone
holds for small errors only, and heads it calls idle are not once all of them are coarse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gonio.errors import ModelError, ShapeError
from gonio.kvcache.capture import AttentionCall, captured_attention
from gonio.kvcache.positions import check_context, window_positions
from gonio.kvcache.rotary import Rotary, model_rotary
from gonio.kvcache.samples import CacheSamples
from gonio.models.attention import AttentionLayout, attention_layout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["MetricKind", "MetricSamples", "collect_metrics", "joined_metrics"]

_PROJECTIONS = ("o_proj", "out_proj", "dense", "c_proj", "wo")
MetricKind = Literal["joined", "local", "fisher", "plain"]


@dataclass(frozen=True)
class MetricSamples(CacheSamples):
    """Keys and values of every token, and what errors of them cost.

    Attributes:
        key_local: Per layer ``E[q q^T]`` in squared units of attention scores, float64
            ``(num_kv_heads, head_dim, head_dim)``.
        value_local: Per layer ``W_o^T W_o`` summed over the group.
        key_fisher: Per layer ``E[g g^T]`` of keys.
        value_fisher: The same of values.
        rotary: The turns of each layer where keys, ``key_local`` and ``key_fisher`` are those
            before RoPE; empty where they are those after it.
    """

    key_local: tuple[Tensor, ...]
    value_local: tuple[Tensor, ...]
    key_fisher: tuple[Tensor, ...]
    value_fisher: tuple[Tensor, ...]
    rotary: tuple[Rotary, ...] = ()

    def metrics(self, part: Literal["keys", "values"], kind: MetricKind) -> list[Tensor]:
        """One metric per layer, ``(num_kv_heads, dim, dim)``; their traces average to dim."""
        pairs = {
            "keys": (self.key_local, self.key_fisher),
            "values": (self.value_local, self.value_fisher),
        }
        local, fisher = pairs[part]
        if kind == "joined":
            found = joined_metrics(local, fisher)
        elif kind == "plain":
            found = [torch.eye(x.shape[-1], dtype=x.dtype).expand_as(x) for x in local]
        else:
            found = list(local if kind == "local" else fisher)
        mean = torch.stack([_trace(x) for x in found]).mean() / found[0].shape[-1]
        return [x / mean.where(mean > 0, 1) for x in found]


def joined_metrics(local: tuple[Tensor, ...], fisher: tuple[Tensor, ...]) -> list[Tensor]:
    """Half of each shape, weighted by the geometric mean of their traces.

    A head without a Fisher metric (no gradient reaches it) gets the shape of the local one and
    a thousandth of the mean weight.
    """
    weights = torch.stack(
        [(_trace(a) * _trace(b)).sqrt() for a, b in zip(local, fisher, strict=True)]
    )
    weights = weights.clamp(min=1e-3 * weights.mean().item())
    return [
        (_unit(a) + _unit(b)) / 2 * weight[:, None, None]
        for a, b, weight in zip(local, fisher, weights, strict=True)
    ]


def collect_metrics(
    model: PreTrainedModel,
    windows: Tensor,
    *,
    skip: int = 4,
    context: int = 0,
    pre_rope: bool = False,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> MetricSamples:
    """Run windows forward and backward; keep keys, values and both metrics.

    Args:
        model: A decoder in evaluation mode whose attention uses transformers' interface.
        windows: Token ids ``(num_windows, window_length)``.
        skip: First tokens of a window left out of the metrics: sinks.
        context: Positions the windows are spread over; 0 leaves all at the start.
        pre_rope: Whether to turn keys back to before RoPE, with what errors of them cost there:
            gradients turned back likewise, queries by the position of a key they read, drawn
            evenly from those before them (from ``context`` positions where that is more).
        seed: Seed of the tokens drawn from the model's predictions.
        progress: Called with (what, windows done, windows).

    Raises:
        ShapeError: ``windows`` is not two-dimensional, or no longer than ``skip``.
        SettingError: The model has no positions for this context.
        ModelError: The model's attention is not supported, its output projection not found, or
            keys before RoPE are wanted and not known.
    """
    if windows.ndim != 2 or windows.shape[1] <= skip:
        raise ShapeError(
            f"windows must be (num_windows, length > {skip}), found {tuple(windows.shape)}"
        )
    check_context(model.config, context)
    layout = attention_layout(model.config)
    projections = _projection_metrics(model, layout)  # fails before the model runs
    rotary = model_rotary(model) if pre_rope else ()
    sums = _Sums(layout, windows.shape, skip, rotary, context, seed)
    generator = torch.Generator().manual_seed(seed)
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        places = window_positions(windows.shape[0], windows.shape[1], context)
        for index, (window, place) in enumerate(zip(windows, places, strict=True)):
            sums.add(index, _gradients(model, window, place, generator), place)
            if progress is not None:
                progress("observing what errors cost", index + 1, len(windows))
    finally:
        for parameter, had in wanted:
            parameter.requires_grad_(had)
    count = len(windows) * (windows.shape[1] - skip)
    average = {name: tuple(x / count for x in each) for name, each in sums.metrics.items()}
    return MetricSamples(
        layout,
        tuple(sums.keys),
        torch.arange(windows.shape[1]),
        tuple(sums.values),
        value_local=projections,
        rotary=rotary,
        **average,
    )


def _gradients(
    model: PreTrainedModel, window: Tensor, place: Tensor | None, generator: torch.Generator
) -> list[AttentionCall]:
    """Attention calls of one window whose keys and values hold the gradient."""
    calls: list[AttentionCall] = []

    def receive(call: AttentionCall) -> None:
        for tensor in (call.key, call.value):
            tensor.requires_grad_(True) if tensor.is_leaf else None
            tensor.retain_grad()
        calls.append(call)

    with torch.enable_grad(), captured_attention(model, receive):
        embedded = model.get_input_embeddings()(window[None].to(model.device))
        embedded = embedded.detach().requires_grad_(True)
        at = {} if place is None else {"position_ids": place.to(model.device)}
        logits = model(inputs_embeds=embedded, use_cache=False, **at).logits[0].float()
        shares = logits.detach().softmax(dim=-1).cpu()
        drawn = torch.multinomial(shares, 1, generator=generator)[:, 0].to(logits.device)
        cross_entropy(logits, drawn, reduction="sum").backward()
    return calls


class _Sums:
    """Keys and values window by window, and sums of outer products."""

    def __init__(
        self,
        layout: AttentionLayout,
        shape: torch.Size,
        skip: int,
        rotary: tuple[Rotary, ...] = (),
        context: int = 0,
        seed: int = 0,
    ) -> None:
        self._layout, self._skip = layout, skip
        self._rotary, self._context = rotary, context
        self._generator = torch.Generator().manual_seed(seed)
        heads, layers = layout.num_kv_heads, range(layout.num_layers)
        dims = {"keys": layout.head_dim, "values": layout.value_dim}
        self.keys, self.values = (
            [torch.empty((shape[0], heads, shape[1], dim)) for _ in layers] for dim in dims.values()
        )
        self.metrics = {
            name: [torch.zeros((heads, dim, dim), dtype=torch.float64) for _ in layers]
            for name, dim in (
                ("key_local", dims["keys"]),
                ("key_fisher", dims["keys"]),
                ("value_fisher", dims["values"]),
            )
        }

    def add(self, index: int, calls: list[AttentionCall], place: Tensor | None = None) -> None:
        found = sorted(call.layer for call in calls)
        if found != list(range(self._layout.num_layers)):
            raise ModelError(f"attention was observed in layers {found}, expected each once")
        for call in calls:
            key, gradient = call.key.detach(), call.key.grad
            query = call.query.detach()[0].unflatten(0, (call.key.shape[1], -1)) * call.scale
            if self._rotary:
                key, gradient, query = self._turned_back(call.layer, key, gradient, query, place)
            self.keys[call.layer][index] = key[0]
            self.values[call.layer][index] = call.value.detach()[0]
            each = {
                "key_local": query,
                "key_fisher": gradient,
                "value_fisher": call.value.grad,
            }
            for name, vectors in each.items():
                if vectors is None:  # nothing the model predicts depends on this layer
                    continue
                rows = vectors.reshape(*query.shape[:1], -1, *vectors.shape[-2:])
                rows = rows[:, :, self._skip :].flatten(1, 2).double().cpu()
                self.metrics[name][call.layer] += rows.mT @ rows

    def _turned_back(
        self,
        layer: int,
        key: Tensor,
        gradient: Tensor | None,
        query: Tensor,
        place: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Keys and gradients before RoPE, and queries as a key they read sees them there."""
        rotary, count = self._rotary[layer], key.shape[-2]
        within = torch.arange(count)
        places = within if place is None else place[0].cpu()
        span = (within + 1).clamp(min=self._context, max=self._layout.window_of(layer))
        distance = (torch.rand(count, generator=self._generator) * span).long()
        back, read = (
            rotary.phases(each.to(key.device)).conj() for each in (places, places - distance)
        )
        turned = None if gradient is None else rotary.turn(gradient.float(), back)
        return rotary.turn(key.float(), back), turned, rotary.turn(query.float(), read)


def _projection_metrics(model: PreTrainedModel, layout: AttentionLayout) -> tuple[Tensor, ...]:
    """``W_o^T W_o`` of each key-value head, summed over its group."""
    width = layout.num_heads * layout.value_dim
    found: dict[int, Tensor] = {}
    for module in model.modules():
        layer = getattr(module, "layer_idx", None)
        if not isinstance(layer, int):
            continue
        for name in _PROJECTIONS:
            weight = getattr(getattr(module, name, None), "weight", None)
            if weight is None or width not in weight.shape:
                continue
            # Conv1D keeps (in, out); a square weight of it is named c_proj.
            matrix = weight.detach().double().cpu()
            matrix = matrix if name != "c_proj" and matrix.shape[1] == width else matrix.mT
            blocks = matrix.unflatten(1, (layout.num_kv_heads, -1, layout.value_dim))
            rows = blocks.permute(1, 2, 0, 3).flatten(1, 2)
            found[layer] = rows.mT @ rows
    missing = [layer for layer in range(layout.num_layers) if layer not in found]
    if missing:
        raise ModelError(
            f"{type(model).__name__}: no output projection of attention in layers {missing}, so "
            f"what errors of values cost is not known\nExpected a module {', '.join(_PROJECTIONS)} "
            f"whose weight takes {width} features, in a module with a layer_idx."
        )
    return tuple(found[layer] for layer in range(layout.num_layers))


def _trace(x: Tensor) -> Tensor:
    return x.diagonal(dim1=-2, dim2=-1).sum(dim=-1)


def _unit(x: Tensor) -> Tensor:
    """The metric with trace 1; zero stays zero."""
    trace = _trace(x)
    return x / trace.where(trace > 0, 1)[:, None, None]
