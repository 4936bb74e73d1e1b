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
    pointer,
)
from gonio.kernels.reference import reference_attention
from gonio.kernels.threads import block_ranges, run_together

__all__ = ["Parts", "attend", "check_codes", "check_query", "merge_attention"]

Parts = tuple[Tensor, Tensor, Tensor]
"""Sums of ``exp(score - largest)`` times the value ``(batch, heads, rows, value_dim)``, the largest
score and the sum of the weights ``(batch, heads, rows)``."""

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
    """Attention of scaled queries over packed codes, before the division by the sum.

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
    batch, heads, rows = query.shape[:3]
    check_query(query, keys)
    for each, plan in zip(data, plans, strict=True):
        check_codes(each, plan, batch, tokens)
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
    query, data = query.to(F32).contiguous(), (data[0].contiguous(), data[1].contiguous())
    bias, mask = (None if x is None else x.to(F32).contiguous() for x in (bias, mask))
    ranges = block_ranges(-(-tokens // BLOCK), heads * batch)
    out = torch.empty((len(ranges), batch, heads, rows, values.dim), dtype=F32)
    most, total = (torch.empty((len(ranges), batch, heads, rows), dtype=F32) for _ in range(2))
    packed = plan_pointer(keys), plan_pointer(values)

    def part(index: int) -> None:
        native_call(
            "gonio_attention",
            *(*packed, *(pointer(each, torch.uint8) for each in data)),
            *(batch, data[0].shape[1], tokens, pointer(query, F32), rows),
            *(pointer(bias, F32), pointer(mask, F32), 0 if mask is None else mask.shape[1]),
            *(softcap, *ranges[index], int(precise), LEVELS.index(chosen)),
            *(pointer(each[index], F32) for each in (out, most, total)),
        )

    run_together([partial(part, index) for index in range(len(ranges))])
    return merge_attention(list(zip(out, most, total, strict=True)))


def merge_attention(parts: Sequence[Parts]) -> Parts:
    """Attention over several parts of the tokens, from what :func:`attend` gives of each.

    Source: Dao et al. 2022 (arXiv:2205.14135), section 3.1.
    """
    if len(parts) == 1:
        return parts[0]
    out, most, total = (torch.stack(each) for each in zip(*parts, strict=True))
    largest = most.amax(dim=0)
    shift = largest.where(largest > -torch.inf, 0)
    factor = (most - shift).exp()
    return (out * factor[..., None]).sum(dim=0), largest, (total * factor).sum(dim=0)


def check_codes(data: Tensor, plan: CodePlan, batch: int, tokens: int) -> None:
    """Refuse packed codes that are not of this plan, batch and length.

    Raises:
        ShapeError: They are not.
    """
    if data.ndim != 3 or data.shape[::2] != (batch, plan.block_bytes):
        raise ShapeError(
            f"packed codes {tuple(data.shape)} do not fit a batch of {batch} and blocks of "
            f"{plan.block_bytes} bytes"
        )
    if not 0 <= tokens <= data.shape[1] * BLOCK:
        raise ShapeError(f"{tokens} tokens asked of {data.shape[1]} blocks of {BLOCK}")


def check_query(query: Tensor, plan: CodePlan) -> None:
    """Refuse queries that are not of this plan.

    Raises:
        ShapeError: They are not.
    """
    if query.ndim != 4 or query.shape[1::2] != (plan.heads, plan.dim):
        raise ShapeError(
            f"queries {tuple(query.shape)} do not fit {plan.heads} heads of {plan.dim}, expected "
            "(batch, heads, rows, dim)"
        )
