"""Attention over keys and values as they are: the sinks and the last tokens of a cache."""

from __future__ import annotations

import torch
from torch import Tensor

from gonio.errors import ShapeError
from gonio.kernels.attend import Parts, check_mask, empty_parts, mask_place
from gonio.kernels.native import LEVELS, REFERENCE, TRITON, compute_level, native_call, ready
from gonio.kernels.reference import reference_raw_attention

__all__ = ["attend_raw"]

F32 = torch.float32
_DTYPES = {torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}  # as in csrc/gonio_kernels.h


def attend_raw(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    mask: Tensor | None = None,
    first: int = 0,
    softcap: float = 0.0,
    level: str = "auto",
) -> Parts:
    """Attention of scaled queries over a few raw tokens, in float32 and one thread.

    Args:
        query: ``(batch, heads, rows, dim)``.
        keys: ``(batch, heads, tokens, dim)``.
        values: ``(batch, heads, tokens, value_dim)``, of the keys' dtype.
        mask: ``(batch, mask_rows, stored)``, added to scores after the soft cap; row r of a query
            reads mask row ``r % mask_rows``.
        first: Which entry of the mask is the first token's.
        softcap: Scores become ``softcap * tanh(score / softcap)``; 0 for none.
        level: What computes, see :mod:`gonio.kernels.ops`.

    Raises:
        ShapeError: The shapes do not fit one another.
        SettingError: The level cannot run here.
    """
    batch, heads, rows, dim = query.shape
    tokens, value_dim = values.shape[-2:]
    if keys.shape != (batch, heads, tokens, dim) or values.shape[:2] != (batch, heads):
        raise ShapeError(
            f"queries {tuple(query.shape)}, keys {tuple(keys.shape)} and values "
            f"{tuple(values.shape)} do not fit"
        )
    if mask is not None:
        check_mask(mask, query, first, tokens)
    chosen = compute_level(level, query)
    if chosen in (REFERENCE, TRITON):
        part = None if mask is None else mask[:, :, first : first + tokens]
        return reference_raw_attention(query.to(F32), keys, values, part, softcap)
    dtype = keys.dtype if keys.dtype in _DTYPES else F32
    query, keys, values = ready(query, F32), ready(keys, dtype), ready(values, dtype)
    mask = None if mask is None else ready(mask, F32)
    out, lse = empty_parts(batch, heads, rows, value_dim)
    native_call(
        "gonio_raw_attention",
        *(keys.data_ptr(), values.data_ptr(), _DTYPES[dtype], batch, heads, tokens, dim, value_dim),
        *(query.data_ptr(), rows, *mask_place(mask, first), softcap, LEVELS.index(chosen)),
        *(out.data_ptr(), lse.data_ptr()),
    )
    return out, lse
