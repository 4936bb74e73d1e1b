"""What a model's attention reads on some text: moments and a sample, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import pandas as pd
import torch
from torch import Tensor

from gonio.errors import ModelError, SettingError, ShapeError
from gonio.kvcache.capture import AttentionCall, captured_attention
from gonio.kvcache.moments import HeadMoments, MomentSums
from gonio.kvcache.reservoir import TokenReservoir
from gonio.kvcache.sinks import SinkFinder, SinkSettings
from gonio.models.attention import AttentionLayout, attention_layout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["STAGES", "Observation", "ObservationSettings", "Stage", "observe_attention"]

Stage = Literal["key_post", "key_pre", "value", "query"]
STAGES: tuple[Stage, ...] = get_args(Stage)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ObservationSettings:
    """What to keep.

    Attributes:
        stages: Kinds of vectors: ``key_post`` and ``key_pre`` (after and before RoPE), ``value``,
            ``query`` (after RoPE, by the key-value head they read).
        sampled: Kinds of which a sample of tokens is kept; moments are kept of all stages.
        samples: Tokens in the sample. Memory is layers x samples x 4 bytes x the elements of one
            token's sampled vectors in a layer.
        skip: First tokens of each window to leave out of moments and sample, such as sinks.
        sinks: What counts as a sink; None to look for none.
        seed: Seed of the sample.
    """

    stages: tuple[Stage, ...] = STAGES
    sampled: tuple[Stage, ...] = STAGES
    samples: int = 4096
    skip: int = 0
    sinks: SinkSettings | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = sorted({*self.stages, *self.sampled} - set(STAGES))
        if unknown or not self.stages or not set(self.sampled) <= set(self.stages):
            raise SettingError(
                f"stages must be some of {', '.join(STAGES)} and hold those sampled, found stages "
                f"{self.stages}, sampled {self.sampled}"
            )
        if self.samples < 1:
            raise SettingError(f"samples must be at least 1, found {self.samples}")


@dataclass(frozen=True, eq=False)
class Observation:
    """Moments of every token and a uniform sample of tokens, of each kind of vector.

    Attributes:
        layout: Attention shape of the model.
        moments: Per stage and layer. ``key_pre`` is missing when the model has no RoPE.
        samples: Per stage and layer, float32 ``(num_kv_heads, n, dim)``; of queries
            ``(num_kv_heads, n, num_heads / num_kv_heads, head_dim)``. The n tokens are the same
            everywhere.
        windows: Window of each sampled token, int64 ``(n,)``.
        positions: Its position in the window, int64 ``(n,)``.
        sinks: Table of :meth:`gonio.kvcache.sinks.SinkFinder.table`; None if not looked for.
        leading_tokens: Table of its ``leading_table``, likewise.
    """

    layout: AttentionLayout
    moments: Mapping[Stage, tuple[HeadMoments, ...]]
    samples: Mapping[Stage, tuple[Tensor, ...]]
    windows: Tensor
    positions: Tensor
    sinks: pd.DataFrame | None = None
    leading_tokens: pd.DataFrame | None = None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages observed."""
        return tuple(self.moments)


@torch.no_grad()
def observe_attention(
    model: PreTrainedModel,
    windows: Tensor,
    settings: ObservationSettings | None = None,
    *,
    progress: Progress | None = None,
) -> Observation:
    """Run windows of text through a model and keep moments and a sample of what attention reads.

    Memory is that of the moments, the sample and one forward pass, however many windows there are.

    Args:
        model: A decoder in evaluation mode whose attention uses transformers' interface.
        windows: Token ids ``(num_windows, window_length)``, without padding.
        settings: What to keep; everything unless given.
        progress: Called with (what, windows done, windows).

    Raises:
        ShapeError: ``windows`` is not two-dimensional.
        SettingError: There is no window, or ``skip`` leaves no token.
        ModelError: The model's attention is not supported, or the model is in training mode.
    """
    settings = settings or ObservationSettings()
    if windows.ndim != 2:
        raise ShapeError(f"windows must be (num_windows, length), found {tuple(windows.shape)}")
    if len(windows) == 0 or not 0 <= settings.skip < windows.shape[1]:
        raise SettingError(
            f"nothing to observe: {len(windows)} windows of {windows.shape[1]} tokens of which "
            f"{settings.skip} are skipped"
        )
    if model.training:
        raise ModelError("the model is in training mode; call model.eval() first")
    watcher = _Watcher(attention_layout(model.config), settings)
    with captured_attention(model, watcher.receive, pre_rope="key_pre" in settings.stages):
        for index, window in enumerate(windows):
            watcher.start_window(window)
            model(input_ids=window[None].to(model.device), use_cache=False, logits_to_keep=1)
            watcher.end_window(model)
            if progress is not None:
                progress("observing attention", index + 1, len(windows))
    return watcher.observation()


class _Watcher:
    """Adds up what every layer's attention is given."""

    def __init__(self, layout: AttentionLayout, settings: ObservationSettings) -> None:
        self._layout, self._settings = layout, settings
        self._reservoir = TokenReservoir(settings.samples, settings.seed)
        self._finder = None if settings.sinks is None else SinkFinder(settings.sinks)
        self._sums: dict[Stage, dict[int, MomentSums]] = {stage: {} for stage in settings.stages}
        self._kept: dict[Stage, dict[int, Tensor]] = {stage: {} for stage in settings.sampled}
        self._places = torch.zeros((2, settings.samples), dtype=torch.long)  # window, position
        self._window = torch.empty(0, dtype=torch.long)
        self._index = -1
        self._seen: set[int] = set()

    def start_window(self, window: Tensor) -> None:
        self._window, self._seen = window, set()
        self._index += 1
        self._taken, self._slots = self._reservoir.take(len(window) - self._settings.skip)
        self._places[0, self._slots] = self._index
        self._places[1, self._slots] = self._taken + self._settings.skip
        if self._finder is not None:
            self._finder.start_window()

    def receive(self, call: AttentionCall) -> None:
        self._seen.add(call.layer)
        for stage in self._settings.stages:
            vectors = self._vectors(call, stage)
            if vectors is not None:
                self._add(stage, call.layer, vectors[:, :, self._settings.skip :])
        if self._finder is not None:
            self._finder.add(call, self._window)

    def end_window(self, model: PreTrainedModel) -> None:
        missing = sorted(set(range(self._layout.num_layers)) - self._seen)
        name = type(model).__name__
        if missing:
            raise ModelError(
                f"{name}: attention of layer {missing[0]} does not go through transformers' "
                "AttentionInterface; queries and keys cannot be observed"
            )
        if "key_pre" in self._sums:
            have = len(self._sums["key_pre"])
            rotary = any("rotary" in type(m).__name__.lower() for m in model.modules())
            if have < self._layout.num_layers and (have or rotary):
                raise ModelError(
                    f"{name}: keys before RoPE cannot be had in every layer\n"
                    "Leave the stage key_pre out."
                )

    def observation(self) -> Observation:
        layers, kept = range(self._layout.num_layers), self._reservoir.kept
        return Observation(
            self._layout,
            {s: tuple(sums[i].moments() for i in layers) for s, sums in self._sums.items() if sums},
            {s: tuple(x[i][:, :kept] for i in layers) for s, x in self._kept.items() if x},
            self._places[0, :kept],
            self._places[1, :kept],
            None if self._finder is None else self._finder.table(),
            None if self._finder is None else self._finder.leading_table(),
        )

    def _vectors(self, call: AttentionCall, stage: Stage) -> Tensor | None:
        """Vectors of the only sequence, ``(num_kv_heads, group, tokens, dim)``."""
        if stage == "query":
            query: Tensor = call.query[0].unflatten(0, (call.key.shape[1], -1))
            return query
        found = {"key_post": call.key, "key_pre": call.key_pre, "value": call.value}[stage]
        return None if found is None else found[0][:, None]

    def _add(self, stage: Stage, layer: int, vectors: Tensor) -> None:
        heads, group, _, dim = vectors.shape
        self._sums[stage].setdefault(layer, MomentSums(heads, dim)).add(vectors)
        if stage not in self._kept or not len(self._slots):
            return
        shape = (heads, self._settings.samples, *((group,) if stage == "query" else ()), dim)
        if layer not in self._kept[stage]:
            self._kept[stage][layer] = torch.empty(shape)
        some = vectors[:, :, self._taken.to(vectors.device)].transpose(1, 2).float().cpu()
        self._kept[stage][layer][:, self._slots] = some if stage == "query" else some[:, :, 0]
