"""The kernels in torch: the same results, exact where the compiled ones round their tables.

What runs where there is no compiler, and what the compiled kernels are tested against.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gonio.kernels.layout import BLOCK, CodePlan

__all__ = [
    "reference_attention",
    "reference_decode",
    "reference_encode",
    "reference_merge",
    "reference_raw_attention",
    "reference_scores",
]


def reference_encode(rows: Tensor, plan: CodePlan, batch: int, skip: int) -> Tensor:
    """Blocks of codes of ``rows`` (heads * dim, batch * tokens); see ``gonio::encode``."""
    tokens = rows.shape[1] // batch
    blocks = -(-(skip + tokens) // BLOCK)
    codes = torch.searchsorted(plan.edges.to(rows.device), rows.contiguous(), right=True)
    padded = rows.new_zeros((len(rows), batch, blocks * BLOCK), dtype=torch.int64)
    padded[:, :, skip : skip + tokens] = codes.view(len(rows), batch, tokens)
    padded = padded.view(plan.heads, plan.dim, batch, blocks, BLOCK)
    parts = [_encode_head(plan, head, padded[head]) for head in range(plan.heads)]
    padding = rows.new_zeros((batch, blocks, plan.block_bytes), dtype=torch.uint8)
    used = sum(part.shape[2] for part in parts)
    return torch.cat([*parts, padding[:, :, used:]], dim=2).contiguous()


def reference_decode(data: Tensor, plan: CodePlan, tokens: int) -> Tensor:
    """Levels of every coordinate, (heads * dim, batch * tokens); see ``gonio::decode``."""
    batch, blocks, _ = data.shape
    rows = plan.constants.to(data.device).flatten()[:, None, None]
    rows = rows.repeat(1, batch, blocks * BLOCK)
    for head in range(plan.heads):
        own = rows[head * plan.dim : (head + 1) * plan.dim]
        for nibble, table, dims in _narrow(plan, head, data):
            for slot, dim in enumerate(dims):
                own[dim] = table[slot].to(data.device)[nibble.long()]
        for codes, table, dim in _wide(plan, head, data):
            own[dim] = table.to(data.device)[codes.long()]
    return rows[:, :, :tokens].reshape(len(rows), -1)


def reference_scores(query: Tensor, data: Tensor, plan: CodePlan, tokens: int) -> Tensor:
    """Scores (batch, heads, rows, tokens) in float32; see ``gonio::scores``."""
    rows = _without_constants(reference_decode(data, plan, tokens), plan)
    keys = rows.view(plan.heads, plan.dim, len(data), tokens)
    found: Tensor = torch.einsum("bhrd,hdbt->bhrt", query, keys)
    return found


def reference_attention(
    query: Tensor,
    data: tuple[Tensor, Tensor],
    plans: tuple[CodePlan, CodePlan],
    bias: Tensor | None,
    mask: Tensor | None,
    softcap: float,
    tokens: int,
) -> tuple[Tensor, Tensor]:
    """Outputs and log-sum-exp of the scores; see ``gonio::attention``."""
    scores = reference_scores(query, data[0], plans[0], tokens)
    if bias is not None:
        scores = scores + bias[..., None]
    rows = _without_constants(reference_decode(data[1], plans[1], tokens), plans[1])
    values = rows.view(plans[1].heads, plans[1].dim, len(data[1]), tokens)
    return _attention(scores, values.permute(2, 0, 3, 1), mask, softcap)


def _attention(
    scores: Tensor, values: Tensor, mask: Tensor | None, softcap: float
) -> tuple[Tensor, Tensor]:
    """Scores ``(batch, heads, rows, tokens)`` to outputs and their log-sum-exp."""
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores + mask.repeat(1, scores.shape[2] // mask.shape[1], 1)[:, None]
    nothing = scores.new_full((*scores.shape[:-1], 1), -torch.inf)  # logsumexp needs an entry
    lse = torch.cat([scores, nothing], dim=-1).logsumexp(dim=-1)
    weights = (scores - lse.where(lse > -torch.inf, 0)[..., None]).exp()
    return weights @ values, lse


def reference_raw_attention(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, softcap: float
) -> tuple[Tensor, Tensor]:
    """Outputs and log-sum-exp of the scores; see :func:`gonio.kernels.attend_raw`."""
    return _attention(query @ keys.float().mT, values.float(), mask, softcap)


def reference_merge(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """See :func:`gonio.kernels.merge_attention`."""
    out, lse = (torch.stack(each) for each in zip(*parts, strict=True))
    most = lse.amax(dim=0)
    share = (lse - most.where(most > -torch.inf, 0)).exp()
    total = share.sum(dim=0)
    merged = (out * (share / total.where(total > 0, 1))[..., None]).sum(dim=0)
    return merged, most + total.log()


def _without_constants(rows: Tensor, plan: CodePlan) -> Tensor:
    """Rows whose coordinates without bits are zero: their constants are the caller's to add."""
    return rows - plan.constants.to(rows.device).flatten()[:, None]


def _encode_head(plan: CodePlan, head: int, codes: Tensor) -> Tensor:
    """Bytes ``(batch, blocks, bytes)`` of one head's codes ``(dim, batch, blocks, 64)``."""
    first, nibbles, first_wide, wides, _ = plan.head[head].tolist()
    units: list[Tensor] = []
    per_unit = 8 if plan.kind == "keys" else 2
    for start in range(first, first + nibbles, per_unit):
        unit = torch.zeros_like(codes[0])
        for n in range(start, start + per_unit):
            for slot, dim in enumerate(plan.dims[n].tolist()):
                if dim >= 0:
                    shift = 4 * (n - start) + int(plan.shifts[n, slot])
                    unit |= codes[dim] << shift
        units.append(unit)
    per_unit = 4 if plan.kind == "keys" else 1
    for start in range(first_wide, first_wide + wides, per_unit):
        unit = torch.zeros_like(codes[0])
        for place, dim in enumerate(plan.wide_dims[start : start + per_unit].tolist()):
            if dim >= 0:
                unit |= codes[dim] << (8 * place)
        units.append(unit)
    if not units:
        return torch.zeros((*codes.shape[1:3], 0), dtype=torch.uint8, device=codes.device)
    whole = torch.stack(units, dim=2)  # (batch, blocks, units, 64)
    if plan.kind == "keys":
        whole = torch.stack([(whole >> (8 * byte)) & 255 for byte in range(4)], dim=-1)
    return whole.to(torch.uint8).flatten(2)


def _units(plan: CodePlan, head: int, data: Tensor) -> Tensor:
    """Words or planes of one head, int64 ``(batch, blocks, units, 64)``."""
    _, nibbles, _, wides, offset = plan.head[head].tolist()
    part = data[:, :, offset : offset + BLOCK * (nibbles // 2 + wides)].long()
    if plan.kind == "values":
        planes: Tensor = part.unflatten(2, (-1, BLOCK))
        return planes
    weights = torch.tensor([1, 1 << 8, 1 << 16, 1 << 24], device=data.device)
    words: Tensor = (part.unflatten(2, (-1, BLOCK, 4)) * weights).sum(dim=-1)
    return words


def _narrow(plan: CodePlan, head: int, data: Tensor) -> list[tuple[Tensor, Tensor, list[int]]]:
    """Of each nibble: its values ``(batch, tokens)``, tables and coordinates."""
    units = _units(plan, head, data)
    first, nibbles, *_ = plan.head[head].tolist()
    per_unit = 8 if plan.kind == "keys" else 2
    return [
        (
            ((units[:, :, n // per_unit] >> (4 * (n % per_unit))) & 15).flatten(1),
            plan.levels[first + n],
            [dim for dim in plan.dims[first + n].tolist() if dim >= 0],
        )
        for n in range(nibbles)
    ]


def _wide(plan: CodePlan, head: int, data: Tensor) -> list[tuple[Tensor, Tensor, int]]:
    """Of each coordinate of 5 to 8 bits: its codes ``(batch, tokens)``, table and place."""
    units = _units(plan, head, data)
    _, nibbles, first, wides, _ = plan.head[head].tolist()
    per_unit, narrow = (4, nibbles // 8) if plan.kind == "keys" else (1, nibbles // 2)
    found = []
    for w in range(wides):
        dim = int(plan.wide_dims[first + w])
        if dim >= 0:
            codes = (units[:, :, narrow + w // per_unit] >> (8 * (w % per_unit))) & 255
            found.append((codes.flatten(1), plan.wide_levels[first + w], dim))
    return found
