"""The next token out of a row of logits: the largest, or a draw from the model's distribution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gonio.errors import ModelError, RequestError

__all__ = ["Sampling", "TokenPicker"]

_MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 takes the largest logit; above 0 logits are divided by it. At most 100.
        top_p: Draw from the fewest tokens whose probabilities reach this sum, in (0, 1].
        seed: Of this request's own draws; None for a different one each time.

    Raises:
        RequestError: A value is out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise _invalid("temperature", self.temperature, "a number from 0 to 100")
        if not 0 < self.top_p <= 1:
            raise _invalid("top_p", self.top_p, "a number in (0, 1]")
        if self.seed is not None and not 0 <= self.seed <= _MAX_SEED:
            raise _invalid("seed", self.seed, f"a whole number from 0 to {_MAX_SEED}")


class TokenPicker:
    """Chooses one request's tokens; its draws depend on its seed and logits only.

    Args:
        sampling: The request's settings.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def pick(self, logits: Tensor) -> int:
        """The next token.

        Args:
            logits: Shape ``(vocabulary,)``.

        Raises:
            ModelError: They are not finite numbers.
        """
        if not torch.isfinite(logits.max()):  # NaN where any logit is
            raise ModelError("the logits are not finite; an adapter's weight may be too large")
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        scaled = logits.to("cpu", torch.float64)
        scaled = (scaled - scaled.max()) / self._sampling.temperature  # at most 0: no overflow
        probabilities, tokens = scaled.softmax(dim=-1).sort(descending=True, stable=True)
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.where(before < self._sampling.top_p, 0.0)
        drawn = torch.multinomial(probabilities, 1, generator=self._generator)
        return int(tokens[drawn])


def _invalid(name: str, value: object, expected: str) -> RequestError:
    return RequestError(f"{name} is {value}, expected {expected}", code=f"invalid_{name}")
