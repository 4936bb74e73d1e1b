"""Queries, keys and values as attention sees them, of any model that uses transformers' interface.

For one block of code a model computes attention through a function of ours, which hands on what it
is given and then does what the model did before. Keys before rotary embedding are those the same
module makes when its cosines are one and its sines zero, so every convention of it (partial,
interleaved, scaled, none in some layers, norms before or after) is the model's own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from gonio.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["AttentionCall", "captured_attention"]


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """What one layer's attention was given in one forward pass.

    Attributes:
        layer: Index of the layer.
        query: After RoPE and norms, ``(batch, num_heads, tokens, head_dim)``.
        key: After RoPE and norms, ``(batch, num_kv_heads, tokens, head_dim)``.
        key_pre: The same without RoPE; None unless asked for and the layer is given one.
        value: ``(batch, num_kv_heads, tokens, value_dim)``.
        visible: Which keys each query may attend to, bool ``(tokens, tokens)``.
        weights: From indices of query tokens ``(rows,)`` to the model's own attention weights
            ``(batch, num_heads, rows, tokens)``, soft caps and learned sinks included.
        scale: What products of queries and keys are multiplied by.
        softcap: Scores are ``softcap * tanh(score / softcap)``; None for scores as they are.
        sinks: A learned score per head that takes weight and gives no value, ``(num_heads,)``.
    """

    layer: int
    query: Tensor
    key: Tensor
    key_pre: Tensor | None
    value: Tensor
    visible: Tensor
    weights: Callable[[Tensor], Tensor]
    scale: float
    softcap: float | None = None
    sinks: Tensor | None = None


@contextmanager
def captured_attention(
    model: PreTrainedModel, receive: Callable[[AttentionCall], None], *, pre_rope: bool = False
) -> Iterator[None]:
    """Hand every attention call inside the block to ``receive``; all is as before afterwards.

    The model must be run without a cache and without padding.

    Args:
        model: A decoder of transformers.
        receive: Called once per layer and forward pass, in the order of the layers.
        pre_rope: Whether to make keys before RoPE too, at the cost of each layer's projections
            once more.

    Raises:
        ModelError: The model's attention does not go through transformers' ``AttentionInterface``.
    """
    if not model._can_set_attn_implementation():
        raise ModelError(
            f"{type(model).__name__}: its attention does not go through transformers' "
            "AttentionInterface, so queries and keys cannot be observed"
        )
    configs: dict[int, Any] = {
        id(m.config): m.config for m in (model, *model.modules()) if hasattr(m, "config")
    }
    before = [(config, config._attn_implementation) for config in configs.values()]
    name = f"gonio_capture_{id(receive)}"
    capture = _Capture(receive, model.config.get_text_config(decoder=True)._attn_implementation)
    handles = []
    try:
        AttentionInterface.register(name, capture.attend)
        # Without a mask function of its own name an implementation gets no mask at all.
        AttentionMaskInterface.register(name, eager_mask)
        for config, _ in before:
            config._attn_implementation = name
        if pre_rope:
            for module in model.modules():
                if hasattr(module, "layer_idx"):
                    hook = module.register_forward_pre_hook(capture.note, with_kwargs=True)
                    handles.append(hook)
        yield
    finally:
        for handle in handles:
            handle.remove()
        for config, implementation in before:
            config._attn_implementation = implementation
        for interface in (AttentionInterface, AttentionMaskInterface):
            interface._global_mapping.pop(name, None)  # the interfaces offer no way to unregister


class _KeysSeen(Exception):  # noqa: N818 - not an error: ends a pass that was run for its keys
    def __init__(self, key: Tensor) -> None:
        super().__init__()
        self.key = key


class _Capture:
    """The attention function, and the arguments of the module that is about to call it."""

    def __init__(self, receive: Callable[[AttentionCall], None], implementation: str) -> None:
        self._receive = receive
        self._implementation = implementation
        self._pending: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self._is_probing = False

    def note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if kwargs.get("position_embeddings") is not None:
            self._pending[module] = (args, kwargs)

    def attend(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> Any:
        if self._is_probing:
            raise _KeysSeen(key)
        if attention_mask is None:
            raise ModelError(f"{type(module).__name__} was given no attention mask to read")
        mask = attention_mask[:, :, :, : key.shape[-2]]

        def weights(rows: Tensor) -> Tensor:
            rows = rows.to(query.device)
            some = (query[:, :, rows], key, value, mask[:, :, rows])
            found: Tensor = _eager(module)(module, *some, **kwargs)[1]
            return found

        key_pre = self._key_without_rope(module)
        visible = mask[0, 0] > torch.finfo(mask.dtype).min / 2
        layer = int(module.layer_idx)
        scale = kwargs.get("scaling")
        scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
        rule = (scale, kwargs.get("softcap"), kwargs.get("s_aux"))
        self._receive(AttentionCall(layer, query, key, key_pre, value, visible, weights, *rule))
        # Fused kernels but sdpa take other kinds of mask; the eager function stands for them.
        through = (
            ALL_ATTENTION_FUNCTIONS["sdpa"] if self._implementation == "sdpa" else _eager(module)
        )
        return through(module, query, key, value, mask, **kwargs)

    def _key_without_rope(self, module: nn.Module) -> Tensor | None:
        args, kwargs = self._pending.pop(module, (None, None))
        if args is None or kwargs is None:
            return None
        still = {"position_embeddings": _no_rotation(kwargs["position_embeddings"])}
        self._is_probing = True
        try:
            module.forward(*args, **{**kwargs, **still})
        except _KeysSeen as seen:
            return seen.key
        finally:
            self._is_probing = False
        raise ModelError(f"{type(module).__name__} made no keys when run without rotary embedding")


def _no_rotation(embeddings: Any) -> Any:
    """Position embeddings that turn nothing: cosines one and sines zero, or complex ones."""
    if isinstance(embeddings, Tensor):
        return torch.ones_like(embeddings)
    cos, sin = embeddings
    return torch.ones_like(cos), torch.zeros_like(sin)


def _eager(module: nn.Module) -> Callable[..., Any]:
    code = sys.modules[type(module).__module__]
    found: Callable[..., Any] | None = getattr(code, "eager_attention_forward", None)
    if found is None:
        raise ModelError(f"{type(module).__name__}: no eager attention function beside it")
    return found
