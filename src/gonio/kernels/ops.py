"""The kernels as torch operators: registered, with shapes known to fake tensors.

``gonio::encode``, ``gonio::decode``, ``gonio::scores`` and ``gonio::attention`` take packed codes
``(batch, blocks, bytes)`` uint8 and the tensors of a :class:`CodePlan`. Queries are in the
coordinates of the keys; coordinates without bits count as zero (their constants are the caller's
to add). ``level`` names what computes: ``auto``, ``reference`` (torch), ``portable``, ``avx2``,
``avxvnni``, ``avx512`` or ``neon``. Work is spread over ``torch.get_num_threads()`` threads by
ranges of blocks.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from gonio.errors import ShapeError
from gonio.kernels.attend import CodeRun, attend, check_codes, check_query
from gonio.kernels.layout import BLOCK, CodePlan, PlanKind
from gonio.kernels.native import (
    LEVELS,
    TRITON,
    compute_level,
    native_call,
    plan_pointer,
    pointer,
)
from gonio.kernels.reference import reference_decode, reference_encode, reference_scores
from gonio.kernels.threads import block_ranges, run_together

__all__ = ["attention", "decode", "encode", "scores", "scores_into"]

F32 = torch.float32


@torch.library.custom_op("gonio::encode", mutates_args=())
def encode(
    rows: Tensor,
    plan: list[Tensor],
    is_keys: bool,
    batch: int,
    skip: int,
    block_bytes: int,
    level: str,
) -> Tensor:
    """Pack new tokens: float32 ``(heads * dim, batch * tokens)`` to ``(batch, blocks, bytes)``.

    The first ``skip`` tokens of the blocks have codes of zero, so that they can be joined with
    the incomplete last block of earlier codes by a bitwise or. ``block_bytes`` is the plan's.
    """
    codes, tokens = _plan(plan, is_keys), rows.shape[1] // batch
    if len(rows) != codes.widths.numel() or rows.shape[1] != batch * tokens or skip < 0:
        raise ShapeError(f"coordinates {tuple(rows.shape)} do not fit the plan, batch {batch}")
    chosen = compute_level(level, rows)
    if chosen == "reference":
        return reference_encode(rows, codes, batch, skip)
    if chosen == TRITON:
        from gonio.kernels.triton_kernels import triton_encode

        return triton_encode(rows, codes, batch, skip)
    rows = rows.to(F32).contiguous()
    data = torch.zeros((batch, -(-(skip + tokens) // BLOCK), block_bytes), dtype=torch.uint8)
    packed = plan_pointer(codes)
    native_call(
        "gonio_encode",
        *(packed, int(is_keys), pointer(data, torch.uint8), batch, data.shape[1]),
        *(skip, tokens, pointer(rows, F32), pointer(codes.edges, F32)),
        *(pointer(codes.widths, torch.int32), codes.edges.shape[1], LEVELS.index(chosen)),
    )
    return data


@encode.register_fake
def _(
    rows: Tensor,
    plan: list[Tensor],
    is_keys: bool,
    batch: int,
    skip: int,
    block_bytes: int,
    level: str,
) -> Tensor:
    blocks = (skip + rows.shape[1] // batch + BLOCK - 1) // BLOCK
    return rows.new_empty((batch, blocks, block_bytes), dtype=torch.uint8)


@torch.library.custom_op("gonio::decode", mutates_args=())
def decode(data: Tensor, plan: list[Tensor], is_keys: bool, tokens: int, level: str) -> Tensor:
    """Levels of every coordinate, constants included: float32 ``(heads * dim, batch * tokens)``."""
    codes = _plan(plan, is_keys)
    check_codes(data, codes, len(data), tokens)
    if compute_level(level, data) not in LEVELS:
        return reference_decode(data, codes, tokens)
    data = data.contiguous()
    rows = codes.constants.flatten()[:, None].repeat(1, len(data) * tokens)
    packed = plan_pointer(codes)
    native_call(
        "gonio_decode",
        *(packed, int(is_keys), pointer(data, torch.uint8), *data.shape[:2], tokens),
        pointer(rows, F32),
    )
    return rows


@decode.register_fake
def _(data: Tensor, plan: list[Tensor], is_keys: bool, tokens: int, level: str) -> Tensor:
    return data.new_empty((plan[-1].numel(), data.shape[0] * tokens), dtype=F32)


@torch.library.custom_op("gonio::scores", mutates_args=())
def scores(
    query: Tensor, data: Tensor, plan: list[Tensor], tokens: int, precise: bool, level: str
) -> Tensor:
    """Scores of float32 queries ``(batch, heads, rows, dim)``: ``(batch, heads, rows, tokens)``.

    Tables hold 8-bit numbers, or 16-bit ones if ``precise``; ``reference`` computes in float32.
    """
    codes = _plan(plan, True)
    check_query(query, codes)
    check_codes(data, codes, len(query), tokens)
    if compute_level(level, query) not in LEVELS:
        return reference_scores(query.to(F32), data, codes, tokens)
    out = torch.empty((*query.shape[:3], tokens), dtype=F32)
    scores_into(out, query, data, codes, precise=precise, level=level)
    return out


@scores.register_fake
def _(
    query: Tensor, data: Tensor, plan: list[Tensor], tokens: int, precise: bool, level: str
) -> Tensor:
    return query.new_empty((*query.shape[:3], tokens), dtype=F32)


def scores_into(
    out: Tensor,
    query: Tensor,
    data: Tensor,
    plan: CodePlan,
    *,
    precise: bool = False,
    level: str = "auto",
) -> None:
    """``gonio::scores`` by compiled kernels, into a tensor that is there."""
    tokens, blocks = out.shape[-1], data.shape[1]
    check_query(query, plan)
    check_codes(data, plan, len(query), tokens)
    if out.shape != (*query.shape[:3], tokens):
        raise ShapeError(f"scores {tuple(out.shape)} do not fit queries {tuple(query.shape)}")
    query, data = query.to(F32).contiguous(), data.contiguous()
    number = LEVELS.index(compute_level(level, query))
    packed = plan_pointer(plan)

    def part(first: int, last: int) -> None:
        native_call(
            "gonio_scores",
            *(packed, pointer(data, torch.uint8), len(data), blocks, tokens),
            *(pointer(query, F32), query.shape[2], first, last),
            *(int(precise), number, pointer(out, F32)),
        )

    ranges = block_ranges(-(-tokens // BLOCK), plan.heads * len(data))
    run_together([partial(part, *each) for each in ranges])


@torch.library.custom_op("gonio::attention", mutates_args=())
def attention(
    query: Tensor,
    key_data: Tensor,
    value_data: Tensor,
    key_plan: list[Tensor],
    value_plan: list[Tensor],
    bias: Tensor | None,
    mask: Tensor | None,
    softcap: float,
    tokens: int,
    precise: bool,
    level: str,
) -> tuple[Tensor, Tensor]:
    """:func:`gonio.kernels.attend.attend` as an operator."""
    plans = (_plan(key_plan, True), _plan(value_plan, False))
    return attend(
        query,
        [CodeRun(key_data, value_data, tokens)],
        plans,
        bias=bias,
        mask=mask,
        softcap=softcap,
        precise=precise,
        level=level,
    )


@attention.register_fake
def _(
    query: Tensor,
    key_data: Tensor,
    value_data: Tensor,
    key_plan: list[Tensor],
    value_plan: list[Tensor],
    bias: Tensor | None,
    mask: Tensor | None,
    softcap: float,
    tokens: int,
    precise: bool,
    level: str,
) -> tuple[Tensor, Tensor]:
    out = query.new_empty((*query.shape[:3], value_plan[-1].shape[1]), dtype=F32)
    return out, query.new_empty(query.shape[:3], dtype=F32)


def _plan(tensors: list[Tensor], is_keys: bool) -> CodePlan:
    kind: PlanKind = "keys" if is_keys else "values"
    return CodePlan.from_tensors(kind, tensors)
