"""Attention over packed keys and values, by the compiled kernels or by torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from gonio.errors import ShapeError
from gonio.kernels.layout import BLOCK, CodePlan
from gonio.kernels.native import (
    LEVELS,
    TRITON,
    compute_level,
    native_call,
    plan_pointer,
    ready,
)
from gonio.kernels.reference import reference_attention
from gonio.kernels.threads import block_ranges, run_together

__all__ = ["Parts", "attend", "check_codes", "check_query", "merge_attention"]

Parts = tuple[Tensor, Tensor]
"""Outputs ``(batch, heads, rows, value_dim)`` and the log-sum-exp of the scores ``(batch, heads,
rows)``: 0 and -infinity where no token is visible. Together they can be merged."""

F32 = torch.float32


def attend(
    query: Tensor,
    data: tuple[Tensor, Tensor],
    plans: tuple[CodePlan, CodePlan],
    tokens: int,
    *,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    softcap: float = 0.0,
    precise: bool = False,
    level: str = "auto",
) -> Parts:
    """Attention of scaled queries over packed codes.

    Args:
        query: ``(batch, heads, rows, dim)``, in the coordinates of the keys.
        data: Packed keys and values of the same tokens, uint8 ``(batch, blocks, bytes)``.
        plans: Of keys and of values. Coordinates without bits count as zero.
        tokens: Tokens stored.
        bias: ``(batch, heads, rows)``, added to the scores of every token.
        mask: ``(batch, mask_rows, tokens)``, added to scores after the soft cap; row r of a query
            reads mask row ``r % mask_rows``.
        softcap: Scores become ``softcap * tanh(score / softcap)``; 0 for none.
        precise: 16-bit tables for scores and float32 values, in place of 8 bits.
        level: What computes, see :mod:`gonio.kernels.ops`.

    Raises:
        ShapeError: The shapes do not fit one another.
        SettingError: The level cannot run here.
    """
    keys, values = plans
    check_query(query, keys)
    batch, heads, rows, _ = query.shape
    check_codes(data[0], keys, batch, tokens)
    check_codes(data[1], values, batch, tokens)
    if mask is not None and (mask.shape[::2] != (batch, tokens) or rows % mask.shape[1]):
        raise ShapeError(f"mask {tuple(mask.shape)} does not fit {batch} x {rows} x {tokens}")
    if bias is not None and bias.shape != query.shape[:3]:
        raise ShapeError(f"bias {tuple(bias.shape)} does not fit queries {tuple(query.shape)}")
    chosen = compute_level(level, query)
    if chosen == "reference":
        return reference_attention(query.to(F32), data, plans, bias, mask, softcap, tokens)
    if chosen == TRITON:
        from gonio.kernels.triton_kernels import triton_attention

        return merge_attention(triton_attention(query, data, plans, bias, mask, softcap, tokens))
    query = ready(query, F32)
    key_data, value_data = ready(data[0], torch.uint8), ready(data[1], torch.uint8)
    bias = None if bias is None else ready(bias, F32)
    mask = None if mask is None else ready(mask, F32)
    ranges = block_ranges(-(-tokens // BLOCK), heads * batch)
    parts = [_empty_parts(batch, heads, rows, values.dim) for _ in ranges]
    arguments = (
        *(plan_pointer(keys), plan_pointer(values), key_data.data_ptr(), value_data.data_ptr()),
        *(batch, key_data.shape[1], tokens, query.data_ptr(), rows),
        None if bias is None else bias.data_ptr(),
        *((None, 0) if mask is None else (mask.data_ptr(), mask.shape[1])),
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


def _empty_parts(batch: int, heads: int, rows: int, dim: int) -> Parts:
    """Memory of outputs and log-sum-exp; given strides, torch runs through half as much code."""
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
    out, lse = (torch.stack(each) for each in zip(*parts, strict=True))
    most = lse.amax(dim=0)
    share = (lse - most.where(most > -torch.inf, 0)).exp()
    total = share.sum(dim=0)
    merged = (out * (share / total.where(total > 0, 1))[..., None]).sum(dim=0)
    return merged, most + total.log()


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
