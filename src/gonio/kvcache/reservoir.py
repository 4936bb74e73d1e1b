"""A uniform sample of a stream of tokens, the same tokens for every layer and kind of vector."""

from __future__ import annotations

import torch
from torch import Tensor

from gonio.errors import SettingError

__all__ = ["TokenReservoir"]


class TokenReservoir:
    """Which tokens of a stream are kept, and where.

    After any number of tokens each of them is among the kept ones with the same probability; a
    stream no longer than the capacity is kept whole, in order.

    Source: Vitter 1985 (doi:10.1145/3147.3165), algorithm R.
    """

    def __init__(self, capacity: int, seed: int) -> None:
        if capacity < 1:
            raise SettingError(f"a sample must hold at least 1 token, found {capacity}")
        self.capacity = capacity
        self.seen = 0
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def kept(self) -> int:
        """Tokens held now."""
        return min(self.seen, self.capacity)

    def take(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Read the next tokens of the stream.

        Args:
            tokens: How many.

        Returns:
            Indices into these tokens, and the distinct slots in ``[0, capacity)`` they go to,
            both int64 ``(taken,)``. Earlier holders of a slot are overwritten.
        """
        number = torch.arange(self.seen, self.seen + tokens)
        draw = torch.rand(tokens, generator=self._generator, dtype=torch.float64)
        slot = torch.where(number < self.capacity, number, (draw * (number + 1)).long())
        self.seen += tokens
        # Of two tokens that go to one slot the later stays.
        holder = {int(s): index for index, s in enumerate(slot.tolist()) if s < self.capacity}
        return torch.tensor(list(holder.values()), dtype=torch.long), torch.tensor(
            list(holder), dtype=torch.long
        )
