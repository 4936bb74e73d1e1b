"""Attention over packed keys and values, by the compiled kernels or by torch."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from gonio.errors import ShapeError
from gonio.kernels.frame import Frame
from gonio.kernels.layout import BLOCK, CodePlan
from gonio.kernels.native import (
    LEVELS,
    REFERENCE,
    TRITON,
    compute_level,
    native_call,
    plan_pointer,
    ready,
)
from gonio.kernels.reference import reference_attention, reference_merge
from gonio.kernels.threads import block_ranges, run_together

__all__ = [
    "CodeRun",
    "Parts",
    "attend",
    "check_codes",
    "check_mask",
    "check_query",
    "empty_parts",
    "mask_place",
    "merge_attention",
]

Parts = tuple[Tensor, Tensor]
"""Outputs ``(batch, heads, rows, value_dim)`` and the log-sum-exp of the scores ``(batch, heads,
rows)``: 0 and -infinity where no token is visible. Together they can be merged."""

F32 = torch.float32


class CodeRun(NamedTuple):
    """Packed keys and values of the same tokens.

    Attributes:
        keys: uint8 ``(batch, blocks, bytes)``.
        values: Likewise.
        tokens: Tokens stored.
    """

    keys: Tensor
    values: Tensor
    tokens: int


def attend(
    query: Tensor,
    runs: Sequence[CodeRun],
    plans: tuple[CodePlan, CodePlan],
    *,
    frame: Frame | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    first: int = 0,
    softcap: float = 0.0,
    precise: bool = False,
    level: str = "auto",
) -> Parts:
    """Attention of scaled queries over packed codes, in one pass over all runs.

    Args:
        query: ``(batch, heads, rows, dim)``, in the coordinates of the keys; vectors where a
            frame is given.
        runs: The tokens, in order.
        plans: Of keys and of values. Coordinates without bits count as zero.
        frame: From vectors to coordinates of keys, and from coordinates of values to vectors.
        bias: ``(batch, heads, rows)``, added to the scores of every token.
        mask: ``(batch, mask_rows, stored)``, added to scores after the soft cap; row r of a query
            reads mask row ``r % mask_rows``.
        first: Which entry of the mask is the first token's.
        softcap: Scores become ``softcap * tanh(score / softcap)``; 0 for none.
        precise: 16-bit tables for scores and float32 values, in place of 8 bits.
        level: What computes, see :mod:`gonio.kernels.ops`.

    Returns:
        Outputs in the coordinates of the values, or vectors where a frame is given; and their
        log-sum-exp.

    Raises:
        ShapeError: The shapes do not fit one another.
        SettingError: The level cannot run here.
    """
    _check(query, runs, plans, frame, bias, mask, first)
    chosen = compute_level(level, query)
    if chosen in (REFERENCE, TRITON):
        part = None if mask is None else mask[:, :, first : first + _tokens(runs)]
        return _attend_apart(query, runs, plans, frame, bias, part, softcap, chosen)
    query = ready(query, F32)
    batch, heads, rows, _ = query.shape
    stored = [
        (ready(run.keys, torch.uint8), ready(run.values, torch.uint8), run.tokens) for run in runs
    ]
    bias = None if bias is None else ready(bias, F32)
    mask = None if mask is None else ready(mask, F32)
    ranges = block_ranges(sum(-(-run.tokens // BLOCK) for run in runs), heads * batch)
    parts = [empty_parts(batch, heads, rows, plans[1].dim) for _ in ranges]
    arguments = (
        *map(plan_pointer, plans),
        None if frame is None else frame.pointer,
        (_Run * len(stored))(
            *(_Run(k.data_ptr(), v.data_ptr(), k.shape[1], count) for k, v, count in stored)
        ),
        *(len(stored), batch, query.data_ptr(), rows),
        None if bias is None else bias.data_ptr(),
        *mask_place(mask, first),
        softcap,
    )
    mode = (int(precise), LEVELS.index(chosen))
    run_together(
        [
            partial(
                native_call,
                *("gonio_attention", *arguments, *blocks, *mode),
                *(out.data_ptr(), lse.data_ptr()),
            )
            for blocks, (out, lse) in zip(ranges, parts, strict=True)
        ]
    )
    return merge_attention(parts)


def _tokens(runs: Sequence[CodeRun]) -> int:
    return sum(run.tokens for run in runs)


def _check(
    query: Tensor,
    runs: Sequence[CodeRun],
    plans: tuple[CodePlan, CodePlan],
    frame: Frame | None,
    bias: Tensor | None,
    mask: Tensor | None,
    first: int,
) -> None:
    """Refuse arguments of :func:`attend` that do not fit one another."""
    if not runs:
        raise ShapeError("attention needs at least one run of tokens")
    check_query(query, plans[0])
    for run in runs:
        check_codes(run.keys, plans[0], len(query), run.tokens)
        check_codes(run.values, plans[1], len(query), run.tokens)
    if mask is not None:
        check_mask(mask, query, first, _tokens(runs))
    if bias is not None and bias.shape != query.shape[:3]:
        raise ShapeError(f"bias {tuple(bias.shape)} does not fit queries {tuple(query.shape)}")
    if frame is not None:
        frame.check(plans)


class _Run(ctypes.Structure):
    """``code_run`` of csrc/gonio_kernels.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
        *((name, ctypes.c_int64) for name in ("blocks", "tokens")),
    )


def _attend_apart(
    query: Tensor,
    runs: Sequence[CodeRun],
    plans: tuple[CodePlan, CodePlan],
    frame: Frame | None,
    bias: Tensor | None,
    mask: Tensor | None,
    softcap: float,
    level: str,
) -> Parts:
    """The same by torch or by Triton, run by run."""
    query = query.to(F32)
    if frame is not None:
        offset = (query @ frame.key_offset[..., None])[..., 0]
        bias = offset if bias is None else bias + offset
        query = query @ frame.key_basis
    parts, start = [], 0
    for run in runs:
        part = None if mask is None else mask[:, :, start : start + run.tokens]
        start += run.tokens
        arguments = (query, (run.keys, run.values), plans, bias, part, softcap, run.tokens)
        if level == TRITON:
            from gonio.kernels.triton_kernels import triton_attention

            parts += triton_attention(*arguments)
        else:
            parts.append(reference_attention(*arguments))
    out, lse = merge_attention(parts)
    if frame is None:
        return out, lse
    seen = (lse != -torch.inf)[..., None]
    return (out @ frame.value_basis + frame.value_offset[:, None]).where(seen, 0), lse


def empty_parts(batch: int, heads: int, rows: int, dim: int) -> Parts:
    """Memory of :data:`Parts`, with whatever is in it.

    Given strides, torch runs through half as much code.
    """
    strides = (heads * rows, rows, 1)
    out = torch.empty_strided(
        (batch, heads, rows, dim), (*(dim * s for s in strides), 1), dtype=F32
    )
    return out, torch.empty_strided((batch, heads, rows), strides, dtype=F32)


def merge_attention(parts: Sequence[Parts]) -> Parts:
    """Attention over several parts of the tokens, from what :func:`attend` gives of each.

    Source: Dao et al. 2022 (arXiv:2205.14135), section 3.1.
    """
    if len(parts) == 1:
        return parts[0]
    first = parts[0][0]
    if compute_level("auto", first) not in LEVELS:
        return reference_merge(parts)
    batch, heads, rows, dim = first.shape
    ready_parts = [(ready(out, F32), ready(lse, F32)) for out, lse in parts]
    pointers = ctypes.c_void_p * len(parts)
    outs, lses = (
        pointers(*(each.data_ptr() for each in side)) for side in zip(*ready_parts, strict=True)
    )
    out, lse = empty_parts(batch, heads, rows, dim)
    size = (len(parts), batch * heads * rows, dim)
    native_call("gonio_merge", outs, lses, *size, out.data_ptr(), lse.data_ptr())
    return out, lse


def check_codes(data: Tensor, plan: CodePlan, batch: int, tokens: int) -> None:
    """Refuse packed codes that are not of this plan, batch and length.

    Raises:
        ShapeError: They are not.
    """
    shape = data.shape
    if len(shape) != 3 or (shape[0], shape[2]) != (batch, plan.block_bytes):
        raise ShapeError(
            f"packed codes {tuple(shape)} do not fit a batch of {batch} and blocks of "
            f"{plan.block_bytes} bytes"
        )
    if not 0 <= tokens <= shape[1] * BLOCK:
        raise ShapeError(f"{tokens} tokens asked of {shape[1]} blocks of {BLOCK}")


def check_query(query: Tensor, plan: CodePlan) -> None:
    """Refuse queries that are not of this plan.

    Raises:
        ShapeError: They are not.
    """
    shape = query.shape
    if len(shape) != 4 or (shape[1], shape[3]) != (plan.heads, plan.dim):
        raise ShapeError(
            f"queries {tuple(shape)} do not fit {plan.heads} heads of {plan.dim}, expected "
            "(batch, heads, rows, dim)"
        )


def check_mask(mask: Tensor, query: Tensor, first: int, tokens: int) -> None:
    """Refuse a mask that does not cover the tokens from ``first`` on, for rows of a query.

    Raises:
        ShapeError: It does not.
    """
    shape, (batch, _, rows, _) = mask.shape, query.shape
    if len(shape) != 3 or shape[0] != batch or not shape[1] or rows % shape[1]:
        raise ShapeError(f"mask {tuple(shape)} does not fit {batch} x {rows} x {tokens}")
    if not 0 <= first <= shape[2] - tokens:
        raise ShapeError(f"mask {tuple(shape)} does not cover {tokens} tokens from {first}")


def mask_place(mask: Tensor | None, first: int) -> tuple[int | None, int, int]:
    """Address of a mask's entry for the first token, its rows, and how far these lie apart."""
    if mask is None:
        return None, 0, 0
    return mask.data_ptr() + first * mask.element_size(), mask.shape[1], mask.shape[2]
