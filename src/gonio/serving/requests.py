"""What a completion engine is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal

from gonio.errors import RequestError
from gonio.serving.sampling import Sampling

__all__ = ["Completion", "CompletionRequest", "FinishReason", "Ticket"]

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class CompletionRequest:
    """A prompt to continue.

    Attributes:
        prompt: Token ids.
        adapters: Name -> weight of the adapters added to the base; none for the base itself.
        max_tokens: Longest answer, in tokens.
        sampling: How tokens are chosen; the largest logit unless given.
        stop: Strings that end the answer and are not part of it.
    """

    prompt: tuple[int, ...]
    adapters: Mapping[str, float] = field(default_factory=dict)
    max_tokens: int = 16
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Completion:
    """A whole answer.

    Attributes:
        text: Decoded, without what ended it.
        tokens: Generated token ids, without the end token.
        finish_reason: ``stop`` for an end token or a stop string, ``length`` for max_tokens.
        prompt_tokens: Tokens of the prompt.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int


class Ticket:
    """A request that was accepted.

    Attributes:
        request: What was asked.
        future: Resolves to the answer, or to why there is none; cancel through the ticket.
    """

    def __init__(
        self, request: CompletionRequest, on_text: Callable[[str], None] | None = None
    ) -> None:
        self.request = request
        self.future: Future[Completion] = Future()
        self.future.set_running_or_notify_cancel()  # only the engine resolves it
        self.on_text = on_text
        self._is_cancelled = False

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self._is_cancelled

    def cancel(self) -> None:
        """Ask the engine to drop the request at its next token."""
        self._is_cancelled = True

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the answer.

        Args:
            timeout: Seconds; None for as long as it takes.

        Raises:
            RequestError: The request was cancelled, or the engine stopped before it was done.
            TimeoutError: It took longer.
        """
        return self.future.result(timeout)

    def refuse(self, message: str, *, code: str, status: int) -> None:
        """Resolve to an error."""
        self.future.set_exception(RequestError(message, code=code, status=status))
