"""Triton kernels for packed codes on GPUs: the layout of the C kernels, sums in float32.

Every coordinate has a place (:mod:`gonio.kernels.places`): a word or plane, a shift, a mask, its
levels. A program of attention reads the blocks of one split of the tokens for one key-value head
and a tile of query rows, few in a decode step, many of a prompt; splits are joined by their
log-sum-exp. The kernels are plain functions until they are first used, so that this module can be
imported without Triton. With ``TRITON_INTERPRET=1`` Triton runs them on the CPU, which is how
they are tested; none has been timed on a GPU.

Source: Dao et al. 2022 (arXiv:2205.14135), section 3.1, and the split of keys of FlashDecoding.
"""

# Kernels have Triton's types, which no annotation names; capitals are constants of a compilation.
# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# ruff: noqa: N803

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from gonio.kernels.layout import BLOCK, CodePlan

try:
    import triton
    import triton.language as tl
except ImportError:  # an extra of its own: gonio[triton]
    triton = tl = None

__all__ = ["triton_attention", "triton_encode", "why_no_triton"]

F32 = torch.float32
DECODE_ROWS, PREFILL_ROWS = 16, 64  # query rows of a program; tl.dot wants 16 at least
PROGRAMS = 512  # that a GPU can keep busy; more splits are not worth their merging
LEAST_BLOCKS = 4  # of a split


def why_no_triton(device: torch.device) -> str:
    """Why Triton cannot compute on a device; empty where it can."""
    if triton is None:
        return "Triton is not installed (pip install 'gonio[triton]')"
    if device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1":
        return ""
    return f"Triton runs on GPUs, not on {device}; TRITON_INTERPRET=1 interprets it, slowly"


def triton_encode(rows: Tensor, plan: CodePlan, batch: int, skip: int) -> Tensor:
    """Blocks of codes of ``rows`` (heads * dim, batch * tokens); see ``gonio::encode``."""
    tokens, places = rows.shape[1] // batch, plan.places.to(rows.device)
    blocks = -(-(skip + tokens) // BLOCK)
    data = torch.zeros((batch, blocks, plan.block_bytes), dtype=torch.uint8, device=rows.device)
    if data.numel():
        units = data.view(torch.int32) if plan.kind == "keys" else data
        edges = plan.edges.to(rows.device)
        _jit(_encode)[(len(places.unit_at), blocks, batch)](
            *(rows.to(F32).contiguous(), edges, places.unit_dims, places.unit_shifts),
            *(places.unit_at, units, tokens, skip, edges.shape[1], blocks, batch),
            units.shape[2],
            EDGES=_power(edges.shape[1]),
            SLOTS=places.unit_dims.shape[1],
        )
    return data


def triton_attention(
    query: Tensor,
    data: tuple[Tensor, Tensor],
    plans: tuple[CodePlan, CodePlan],
    bias: Tensor | None,
    mask: Tensor | None,
    softcap: float,
    tokens: int,
) -> list[tuple[Tensor, Tensor]]:
    """Of each split of the tokens what ``gonio::attention`` gives of all; see there."""
    batch, heads, rows, dim = query.shape
    blocks, value_dim = -(-tokens // BLOCK), plans[1].dim
    tile = DECODE_ROWS if rows <= DECODE_ROWS else PREFILL_ROWS
    tiles = -(-rows // tile)
    splits = min(-(-blocks // LEAST_BLOCKS), -(-PROGRAMS // max(batch * heads * tiles, 1)))
    splits = max(splits, 1)
    shape = (splits, batch, heads, rows)
    out = query.new_zeros((*shape, value_dim), dtype=F32)
    lse = query.new_full(shape, -torch.inf, dtype=F32)
    keys, values = (plan.places.to(query.device) for plan in plans)
    key_data, value_data = (_units(*each) for each in zip(data, plans, strict=True))
    if rows and blocks:
        _jit(_attend)[(batch * heads, tiles, splits)](
            *(query.to(F32).contiguous(), key_data, value_data),
            *(keys.at, keys.shift, keys.mask, keys.levels),
            *(values.at, values.shift, values.mask, values.levels),
            *(_numbers(bias, query), _numbers(mask, query), out, lse),
            *(tokens, rows, batch * heads * rows, heads, data[0].shape[1], blocks),
            *(-(-blocks // splits), key_data.shape[2], value_data.shape[2]),
            *(1 if mask is None else mask.shape[1], softcap),
            DIM=dim,
            VALUE_DIM=value_dim,
            D=max(_power(dim), 16),
            E=max(_power(value_dim), 16),
            R=tile,
            KEY_WIDTH=keys.levels.shape[1],
            VALUE_WIDTH=values.levels.shape[1],
            HAS_BIAS=bias is not None,
            HAS_MASK=mask is not None,
            HAS_CAP=softcap > 0,
        )
    return list(zip(out, lse, strict=True))


def _units(data: Tensor, plan: CodePlan) -> Tensor:
    """Words or planes; one of zeros where no coordinate has bits."""
    if plan.block_bytes == 0:
        data = data.new_zeros((*data.shape[:2], 4 * BLOCK))
    return data.contiguous().view(torch.int32) if plan.kind == "keys" else data.contiguous()


def _numbers(tensor: Tensor | None, query: Tensor) -> Tensor:
    """Float32 and contiguous; a kernel that does not read it gets the query."""
    return query if tensor is None else tensor.to(F32).contiguous()


def _power(count: int) -> int:
    """The next power of two."""
    return 1 << max(count - 1, 0).bit_length()


@cache
def _jit(kernel: Callable[..., None]) -> Any:
    return triton.jit(kernel)


def _encode(
    rows,
    edges,
    unit_dims,
    unit_shifts,
    unit_at,
    data,
    tokens,
    skip,
    count,
    blocks,
    batch,
    per_block,
    EDGES: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """One word or plane of 64 tokens: the codes of all coordinates in it."""
    unit, block, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    place = tl.arange(0, 64)
    token = block * 64 + place - skip
    exists = (token >= 0) & (token < tokens)
    e = tl.arange(0, EDGES)
    word = tl.zeros([64], dtype=tl.int32)
    for slot in range(SLOTS):
        dim = tl.load(unit_dims + unit * SLOTS + slot)
        shift = tl.load(unit_shifts + unit * SLOTS + slot)
        there = exists & (dim + 0 * place >= 0)  # as long as `exists`
        dim = tl.maximum(dim, 0)
        y = tl.load(rows + (dim * batch + sequence) * tokens + token, mask=there, other=0.0)
        edge = tl.load(edges + dim * count + e, mask=e < count, other=float("inf"))
        code = tl.sum((y[:, None] >= edge[None, :]).to(tl.int32), axis=1)
        word = word | (tl.where(there, code, 0) << shift)
    at = tl.load(unit_at + unit)
    tl.store(data + (sequence * blocks + block) * per_block + at + place, word)


# fmt: off
def _attend(
    query, keys, values, key_at, key_shift, key_mask, key_levels,
    value_at, value_shift, value_mask, value_levels, bias, mask, out, lse_out,
    tokens, rows, all_rows, heads, stored, blocks, per_split, key_words, value_bytes, mask_rows,
    softcap, DIM: tl.constexpr, VALUE_DIM: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    R: tl.constexpr, KEY_WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_CAP: tl.constexpr,
):
    # fmt: on
    """Running softmax of some rows of one head over the blocks of one split."""
    pair, split = tl.program_id(0), tl.program_id(2)
    head, sequence = pair % heads, pair // heads
    row = tl.program_id(1) * R + tl.arange(0, R)
    is_row = row < rows
    d, e, place = tl.arange(0, D), tl.arange(0, E), tl.arange(0, 64)
    is_dim, is_value = d < DIM, e < VALUE_DIM
    q = tl.load(
        query + (pair * rows + row[:, None]) * DIM + d[None, :],
        mask=is_row[:, None] & is_dim[None, :],
        other=0.0,
    )
    at = tl.load(key_at + head * DIM + d, mask=is_dim, other=0)
    shift = tl.load(key_shift + head * DIM + d, mask=is_dim, other=0)
    bits = tl.load(key_mask + head * DIM + d, mask=is_dim, other=0)
    value_place = tl.load(value_at + head * VALUE_DIM + e, mask=is_value, other=0)
    value_low = tl.load(value_shift + head * VALUE_DIM + e, mask=is_value, other=0)
    value_bits = tl.load(value_mask + head * VALUE_DIM + e, mask=is_value, other=0)
    most = tl.full([R], float("-inf"), dtype=tl.float32)
    total = tl.zeros([R], dtype=tl.float32)
    sums = tl.zeros([R, E], dtype=tl.float32)
    for block in range(split * per_split, tl.minimum((split + 1) * per_split, blocks)):
        start = (sequence * stored + block).to(tl.int64)
        word = tl.load(keys + start * key_words + at[None, :] + place[:, None])
        code = (word >> shift[None, :]) & bits[None, :]
        level = tl.load(
            key_levels + (head * DIM + d)[None, :] * KEY_WIDTH + code,
            mask=is_dim[None, :],
            other=0.0,
        )
        score = tl.dot(q, tl.trans(level), input_precision="ieee")
        if HAS_BIAS:
            score += tl.load(bias + pair * rows + row, mask=is_row, other=0.0)[:, None]
        if HAS_CAP:
            score = softcap * (2 * tl.sigmoid(2 * score / softcap) - 1)
        token = block * 64 + place
        exists = token < tokens
        if HAS_MASK:
            own = sequence * mask_rows + row % mask_rows
            score += tl.load(
                mask + own[:, None] * tokens + token[None, :],
                mask=is_row[:, None] & exists[None, :],
                other=0.0,
            )
        score = tl.where(exists[None, :], score, float("-inf"))
        now = tl.maximum(most, tl.max(score, axis=1))
        base = tl.where(now > float("-inf"), now, 0.0)
        weight = tl.exp(score - base[:, None])
        factor = tl.exp(most - base)
        plane = tl.load(values + start * value_bytes + value_place[None, :] + place[:, None])
        code = (plane.to(tl.int32) >> value_low[None, :]) & value_bits[None, :]
        level = tl.load(
            value_levels + (head * VALUE_DIM + e)[None, :] * VALUE_WIDTH + code,
            mask=is_value[None, :],
            other=0.0,
        )
        sums = sums * factor[:, None] + tl.dot(weight, level, input_precision="ieee")
        total = total * factor + tl.sum(weight, axis=1)
        most = now
    where = split * all_rows + pair * rows + row
    total = tl.where(total > 0, total, 1.0)  # where nothing is visible, most is -infinity
    tl.store(lse_out + where, most + tl.log(total), mask=is_row)
    tl.store(
        out + where[:, None] * VALUE_DIM + e[None, :],
        sums / total[:, None],
        mask=is_row[:, None] & is_value[None, :],
    )
