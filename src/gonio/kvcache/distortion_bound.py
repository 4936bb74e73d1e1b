"""How far a head's output can move when its keys and values are read through a codec.

Four bounds on the same quantity, each a theorem, from what little must be known to what much::

    norms    the largest query norm and key error of the text: holds for every such query
    queries  each query's norm, and the key errors among the tokens it sees
    scores   how far its attention scores moved, up to a shift, which softmax ignores
    weights  how far its attention weights moved

Each is at most the one before, and all are at least the measured error. With ``m`` the bound on
the total movement of the weights (2 at most), coordinate j of the output moves by at most::

    m / 2 * range(V_j) + max |V_j - V'_j|        over the tokens the query sees

A soft cap moves no two scores further apart. A learned sink is one more token whose score never
moves and whose value is zero. Everything is computed in float64, from keys, values and queries in
whatever dtype they were made; bounds include what rounding can do to these computations. What
rounding does inside the model, in its own dtype, is not part of the error.

Theorems: ``attention_output_distortion``, ``softmax_linf_l1_lipschitz``,
``softmax_shift_invariance``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from gonio.errors import ShapeError

__all__ = [
    "RUNGS",
    "AttentionInputs",
    "OutputDistortion",
    "Rung",
    "attention_weights",
    "output_bound",
    "output_distortion",
]

Rung = Literal["norms", "queries", "scores", "weights"]
RUNGS: tuple[Rung, ...] = get_args(Rung)  # from the loosest to the tightest

_EPS = torch.finfo(torch.float64).eps
_ROWS = 32  # queries whose visible values are looked at together where masks are not causal


@dataclass(frozen=True, eq=False)
class AttentionInputs:
    """What the attention of one layer reads in one sequence.

    Attributes:
        query: After RoPE and norms, ``(num_heads, tokens, head_dim)``.
        key: After RoPE and norms, ``(num_kv_heads, tokens, head_dim)``; each serves
            ``num_heads / num_kv_heads`` consecutive query heads.
        value: ``(num_kv_heads, tokens, value_dim)``.
        visible: Which tokens each query sees, at least one, bool ``(tokens, tokens)``.
        scale: What products of queries and keys are multiplied by.
        softcap: Scores are ``softcap * tanh(score / softcap)``; None for scores as they are.
        sinks: A learned score per head that takes weight and gives no value, ``(num_heads,)``.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    visible: Tensor
    scale: float
    softcap: float | None = None
    sinks: Tensor | None = None

    def __post_init__(self) -> None:
        heads, tokens, _ = self.query.shape
        kv_heads = self.key.shape[0]
        fits = self.key.shape[1:] == self.query.shape[1:] and not heads % kv_heads
        fits = fits and self.value.shape[:2] == (kv_heads, tokens)
        if not fits or self.visible.shape != (tokens, tokens):
            raise ShapeError(
                f"queries {tuple(self.query.shape)}, keys {tuple(self.key.shape)}, values "
                f"{tuple(self.value.shape)} and a mask {tuple(self.visible.shape)} do not go "
                "together\nExpected (num_heads, tokens, dim), the same for both with "
                "num_kv_heads, and (tokens, tokens)."
            )

    @property
    def group(self) -> int:
        """Query heads that read one key-value head."""
        return self.query.shape[0] // self.key.shape[0]


@dataclass(frozen=True, eq=False)
class OutputDistortion:
    """Measured errors of outputs and the bounds on them, per head and query, float64.

    Attributes:
        error: Largest error of a coordinate of the output, ``(num_heads, tokens)``.
        bounds: By rung, the bound on that error, ``(num_heads, tokens)``.
        value_error: Largest error of a value that the query sees, a part of every bound.
        value_range: Range of the head's values, the largest of a coordinate, ``(num_heads,)``;
            their largest magnitude where all are equal.
    """

    error: Tensor
    bounds: Mapping[Rung, Tensor]
    value_error: Tensor
    value_range: Tensor


def output_bound(movement: Tensor, spread: Tensor, value_error: Tensor) -> Tensor:
    """Bound on the largest movement of an output coordinate.

    ``max_j movement / 2 * spread_j + value_error_j``. The half is the best constant: weight that
    leaves one token arrives at another, so it is counted twice in the movement.

    Args:
        movement: Bound on the L1 distance of the attention weights, in [0, 2], ``(...)``.
        spread: Range of each coordinate of the values, ``(..., value_dim)``.
        value_error: Largest error of each coordinate, ``(..., value_dim)``.

    Theorem: ``attention_output_distortion``.
    """
    return (0.5 * movement[..., None] * spread + value_error).amax(dim=-1)


def output_distortion(inputs: AttentionInputs, key: Tensor, value: Tensor) -> OutputDistortion:
    """The errors of every head and query when ``key`` and ``value`` stand in for the exact ones.

    Args:
        inputs: What attention reads in full precision.
        key: Keys as decoded, the shape of ``inputs.key``.
        value: Values as decoded, the shape of ``inputs.value``.

    Raises:
        ShapeError: The decoded tensors have other shapes.
    """
    if key.shape != inputs.key.shape or value.shape != inputs.value.shape:
        raise ShapeError(
            f"decoded keys {tuple(key.shape)} and values {tuple(value.shape)} stand in for "
            f"{tuple(inputs.key.shape)} and {tuple(inputs.value.shape)}"
        )
    key, value = key.double(), value.double()
    heads = [
        _head_distortion(inputs, kv_head, key[kv_head], value[kv_head])
        for kv_head in range(inputs.key.shape[0])
    ]
    return OutputDistortion(
        error=torch.cat([head.error for head in heads]),
        bounds={rung: torch.cat([head.bounds[rung] for head in heads]) for rung in RUNGS},
        value_error=torch.cat([head.value_error for head in heads]),
        value_range=torch.cat([head.value_range for head in heads]),
    )


def attention_weights(inputs: AttentionInputs, head: int, key: Tensor | None = None) -> Tensor:
    """Attention weights of a query head in float64, ``(tokens, tokens)``; a sink's left out.

    Args:
        inputs: What attention reads.
        head: Index of the query head.
        key: Keys ``(tokens, head_dim)`` to read instead.
    """
    found = inputs.key[head // inputs.group] if key is None else key
    return _softmax(inputs, head, _scores(inputs, head, found.double()))[:, : found.shape[0]]


def _head_distortion(
    inputs: AttentionInputs, kv_head: int, key: Tensor, value: Tensor
) -> OutputDistortion:
    """The distortion of the query heads that read one key-value head."""
    exact_key, exact_value = inputs.key[kv_head].double(), inputs.value[kv_head].double()
    low, high = _seen_extremes(exact_value, inputs.visible)
    if inputs.sinks is not None:
        low, high = low.clamp(max=0), high.clamp(min=0)
    spread = high - low
    value_error = _seen_extremes((value - exact_value).abs(), inputs.visible)[1]
    key_error = (key - exact_key).norm(dim=-1, keepdim=True)
    seen_key_error = _seen_extremes(key_error, inputs.visible)[1][:, 0]
    whole = high.amax(dim=0) - low.amin(dim=0)
    errors, bounds = [], []
    for head in range(kv_head * inputs.group, (kv_head + 1) * inputs.group):
        norms = abs(inputs.scale) * inputs.query[head].double().norm(dim=-1)
        before, after = (_scores(inputs, head, each) for each in (exact_key, key))
        weights, turned = (_softmax(inputs, head, each) for each in (before, after))
        tokens = len(exact_key)
        error = (turned[:, :tokens] @ value - weights[:, :tokens] @ exact_value).abs()
        errors.append(error.amax(dim=-1))
        allowance = _allowance(inputs, head, exact_key, key, torch.stack([exact_value, value]))
        every = {
            "norms": output_bound(
                (norms.max() * key_error.max()).clamp(max=2).expand_as(norms),
                whole,
                value_error.amax(dim=0),
            ),
            "queries": output_bound((norms * seen_key_error).clamp(max=2), spread, value_error),
            "scores": output_bound(_shift(inputs, before, after), spread, value_error),
            "weights": output_bound((turned - weights).abs().sum(dim=-1), spread, value_error),
        }
        bounds.append({rung: bound + allowance for rung, bound in every.items()})
    reference = whole.max() if whole.max() > 0 else exact_value.abs().max()
    return OutputDistortion(
        error=torch.stack(errors),
        bounds={rung: torch.stack([each[rung] for each in bounds]) for rung in RUNGS},
        value_error=value_error.amax(dim=-1).expand(inputs.group, -1),
        value_range=reference.expand(inputs.group),
    )


def _scores(inputs: AttentionInputs, head: int, key: Tensor) -> Tensor:
    """Scores before the mask, ``(tokens, tokens)``."""
    scores = inputs.scale * inputs.query[head].double() @ key.mT
    if inputs.softcap is not None:
        scores = inputs.softcap * (scores / inputs.softcap).tanh()
    return scores


def _softmax(inputs: AttentionInputs, head: int, scores: Tensor) -> Tensor:
    """Weights of the visible tokens, and of the sink in a last column where there is one."""
    scores = scores.masked_fill(~inputs.visible, -torch.inf)
    if inputs.sinks is not None:
        sink = inputs.sinks[head].double().expand(len(scores), 1)
        scores = torch.cat([scores, sink], dim=-1)
    return scores.softmax(dim=-1)


def _shift(inputs: AttentionInputs, before: Tensor, after: Tensor) -> Tensor:
    """Bound on the movement of the weights from that of the scores: half the latter's range.

    Softmax ignores a shift, and the best one leaves half the range as the largest movement.
    """
    moved = after - before
    low = moved.masked_fill(~inputs.visible, torch.inf).amin(dim=-1)
    high = moved.masked_fill(~inputs.visible, -torch.inf).amax(dim=-1)
    if inputs.sinks is not None:  # its score does not move
        low, high = low.clamp(max=0), high.clamp(min=0)
    return ((high - low) / 2).clamp(max=2)


def _allowance(
    inputs: AttentionInputs, head: int, before: Tensor, after: Tensor, values: Tensor
) -> Tensor:
    """What rounding can do to a computed error or bound of a head.

    A score is off by ``(head_dim + 4) eps |q| |k|``; that moves weights by twice as much, relative
    to their size, and softmax and the sum over tokens add ``2 tokens + 8`` roundings. Eight times
    the sum covers two outputs, the weights' movement and the scores'.
    """
    tokens, dim = inputs.query.shape[1:]
    largest = torch.stack([before, after]).norm(dim=-1).max()
    norm = abs(inputs.scale) * inputs.query[head].double().norm(dim=-1).max()
    allowance: Tensor = 2 * (dim + 4) * norm * largest + 2 * tokens + 8
    return 8 * _EPS * allowance * values.abs().max()


def _seen_extremes(x: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest of each column of ``x`` among the rows each query sees, ``(tokens, n)``."""
    if torch.equal(visible, torch.ones_like(visible).tril()):
        return x.cummin(dim=0).values, x.cummax(dim=0).values
    low, high = torch.empty_like(x), torch.empty_like(x)
    for start in range(0, len(x), _ROWS):
        hidden = ~visible[start : start + _ROWS, :, None]
        low[start : start + _ROWS] = x.masked_fill(hidden, torch.inf).amin(dim=1)
        high[start : start + _ROWS] = x.masked_fill(hidden, -torch.inf).amax(dim=1)
    return low, high
