"""Completions of many requests in one batch, each with its own adapters.

One thread owns the model. Before every token it lets waiting requests join the batch and finished
ones leave, so a short answer never waits for a long one.
"""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gonio.adapters import Adapter
from gonio.errors import RequestError, SettingError
from gonio.serving.admission import Admission, EngineLimits
from gonio.serving.answer_text import AnswerText
from gonio.serving.batch import DecodingBatch
from gonio.serving.mixture import AdapterMixture
from gonio.serving.requests import Completion, CompletionRequest, FinishReason, Ticket
from gonio.serving.sampling import TokenPicker

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["CompletionEngine", "EngineStats"]


@dataclass(frozen=True)
class EngineStats:
    """What an engine is doing and has done.

    Attributes:
        waiting: Requests in the queue.
        running: Requests in the batch.
        finished: Answers given.
        largest_batch: Most requests that were decoded together.
        tokens: Tokens generated.
    """

    waiting: int
    running: int
    finished: int
    largest_batch: int
    tokens: int


class _Row:
    """A request in the batch."""

    def __init__(self, ticket: Ticket, tokenizer: PreTrainedTokenizerBase) -> None:
        request = ticket.request
        self.ticket = ticket
        self.picker = TokenPicker(request.sampling)
        self.text = AnswerText(tokenizer, request.prompt, request.stop)
        self.tokens: list[int] = []

    def take(self, logits: Tensor, ends: frozenset[int]) -> FinishReason | None:
        """Add the next token; why the answer ends with it, if it does."""
        token = self.picker.pick(logits)
        if token in ends:
            return "stop"
        self.tokens.append(token)
        self._tell(self.text.push(token))
        if self.text.is_stopped:
            return "stop"
        return "length" if len(self.tokens) == self.ticket.request.max_tokens else None

    def finish(self, reason: FinishReason) -> None:
        """Give the answer."""
        self._tell(self.text.finish())
        prompt = len(self.ticket.request.prompt)
        answer = Completion(self.text.text, tuple(self.tokens), reason, prompt)
        self.ticket.future.set_result(answer)

    def _tell(self, piece: str) -> None:
        if piece and self.ticket.on_text is not None:
            try:
                self.ticket.on_text(piece)
            except Exception:  # the listener went away: its request ends, the others go on
                self.ticket.cancel()


class CompletionEngine:
    """Answers completion requests; entering starts its thread, leaving ends it.

    Greedy answers are those of the merged model: equal tokens wherever the two largest logits
    differ by more than rounding.

    Args:
        model: A decoder whose layers keep the keys and values of every token.
        tokenizer: Its tokenizer.
        adapters: Name -> adapter that requests may choose.
        limits: What is accepted.

    Raises:
        AdapterError: An adapter cannot be mixed per request; see :class:`AdapterMixture`.

    Example:
        >>> with CompletionEngine(model, tokenizer, {"dpo": adapter}) as engine:  # doctest: +SKIP
        ...     engine.complete("Once upon a time", {"dpo": 0.5}, max_tokens=8).text
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        adapters: Mapping[str, Adapter] | None = None,
        *,
        limits: EngineLimits = EngineLimits(),  # noqa: B008 - frozen
    ) -> None:
        self.mixture = AdapterMixture(model, adapters) if adapters else None
        self.adapters = tuple(adapters or ())
        self.limits = limits
        self.admission = Admission(model, tokenizer, self.adapters, limits)
        self._decoder = copy.deepcopy(tokenizer)  # fast tokenizers must not meet between threads
        self._ends = _end_tokens(model, tokenizer)
        self._batch = DecodingBatch(model, self.mixture)
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._running: list[_Row] = []
        self._joining = 0  # taken from the queue, not yet in the batch
        self._accepts = False
        self._ended = False
        self._thread: threading.Thread | None = None
        self._finished = self._largest = self._tokens = 0

    def __enter__(self) -> CompletionEngine:
        if self._thread is not None:
            raise SettingError("an engine is started once")
        if self.mixture is not None:
            self.mixture.__enter__()
        self._accepts = True
        self._thread = threading.Thread(target=self._run, name="gonio-completions", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def accepts(self) -> bool:
        """Whether new requests are taken."""
        return self._accepts

    @property
    def stats(self) -> EngineStats:
        """What the engine is doing and has done."""
        with self._changed:
            running = len(self._running) + self._joining
            return EngineStats(
                len(self._waiting), running, self._finished, self._largest, self._tokens
            )

    def submit(
        self, request: CompletionRequest, on_text: Callable[[str], None] | None = None
    ) -> Ticket:
        """Queue a request.

        Args:
            request: What to complete.
            on_text: Called from the engine's thread with each new piece of text; the pieces,
                joined, are the answer's text.

        Raises:
            RequestError: An adapter is unknown, the prompt is empty or too long, a setting is out
                of range, the queue is full, or the engine takes no requests.
        """
        self.admission.check(request)
        ticket = Ticket(request, on_text)
        with self._changed:
            if not self._accepts:
                raise RequestError("the server is stopping", code="stopping", status=503)
            if len(self._waiting) >= self.limits.max_waiting:
                raise RequestError(
                    f"{len(self._waiting)} requests are waiting; try again later",
                    code="overloaded",
                    status=503,
                )
            self._waiting.append(ticket)
            self._changed.notify_all()
        return ticket

    def complete(
        self, prompt: str, adapters: Mapping[str, float] | None = None, **settings: Any
    ) -> Completion:
        """Complete one prompt and wait for the answer.

        Args:
            prompt: The text to continue.
            adapters: Name -> weight.
            settings: Further fields of :class:`CompletionRequest`.

        Raises:
            RequestError: As :meth:`submit` and :meth:`Ticket.result`.
        """
        request = CompletionRequest(self.admission.encode(prompt), dict(adapters or {}), **settings)
        return self.submit(request).result()

    def drain(self) -> None:
        """Take no more requests and refuse those that wait; running ones go on."""
        with self._changed:
            self._accepts = False
            refused, self._waiting = list(self._waiting), deque()
        for ticket in refused:
            _refuse_stopping(ticket)

    def close(self) -> None:
        """Drop what runs, end the thread and give the model back as it was; idempotent."""
        self.drain()
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        if self.mixture is not None:
            self.mixture.__exit__(None, None, None)

    def _run(self) -> None:
        """The thread: one token for everybody, then leave and join, until closed."""
        try:
            while self._await_work():
                self._drop_cancelled()
                self._step()
                self._admit()
        finally:  # also after an error nobody foresaw: no request waits for ever
            self.drain()
            stopped = list(self._running)
            self._leave(stopped)
            for row in stopped:
                _refuse_stopping(row.ticket)

    def _await_work(self) -> bool:
        """Wait for a request; False once the engine is closed."""
        with self._changed:
            while not (self._ended or self._waiting or self._running):
                self._changed.wait()
            return not self._ended

    def _drop_cancelled(self) -> None:
        gone = {row for row in self._running if row.ticket.is_cancelled}
        for row in gone:
            _refuse_cancelled(row.ticket)
        self._leave(gone)

    def _step(self) -> None:
        """One token of every running request."""
        if not self._running:
            return
        try:
            logits = self._batch.step([row.tokens[-1] for row in self._running])
        except Exception as error:  # these requests fail, the server goes on
            self._fail(self._running, error)
        else:
            self._take(self._running, logits)

    def _admit(self) -> None:
        """Let waiting requests join."""
        with self._changed:
            room = self.limits.max_batch - len(self._running)
            tickets = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
            self._joining = len(tickets)
        rows = []
        for ticket in tickets:
            if ticket.is_cancelled:
                _refuse_cancelled(ticket)
            else:
                rows.append(_Row(ticket, self._decoder))
        if rows:
            self._join(rows)
        with self._changed:
            self._joining = 0

    def _join(self, rows: Sequence[_Row]) -> None:
        requests = [row.ticket.request for row in rows]
        try:
            logits = self._batch.join([r.prompt for r in requests], [r.adapters for r in requests])
        except Exception as error:  # the cache may be half joined: nobody in it can go on
            self._fail([*self._running, *rows], error)
            return
        with self._changed:
            self._running = [*self._running, *rows]
            self._joining = 0
        self._largest = max(self._largest, len(self._running))
        self._take(rows, logits)

    def _take(self, rows: Sequence[_Row], logits: Tensor) -> None:
        """Give rows their next token and let the finished ones leave."""
        ended: dict[_Row, FinishReason] = {}
        for row, own in zip(rows, logits, strict=True):
            before = len(row.tokens)
            try:
                reason = row.take(own, self._ends)
            except Exception as error:  # this request's own numbers: the others go on
                self._fail([row], error)
                continue
            self._tokens += len(row.tokens) - before
            if reason is not None:
                ended[row] = reason
        self._finished += len(ended)
        self._leave(ended.keys())
        for row, reason in ended.items():
            row.finish(reason)

    def _leave(self, gone: Collection[_Row]) -> None:
        if gone:
            kept = [at for at, row in enumerate(self._running) if row not in gone]
            self._batch.keep(kept)
            with self._changed:
                self._running = [self._running[at] for at in kept]

    def _fail(self, rows: Sequence[_Row], error: Exception) -> None:
        """Resolve requests to a failure of the server."""
        self._leave(rows)
        message = f"the server failed: {type(error).__name__}: {error}"
        for row in rows:
            row.ticket.refuse(message, code="internal_error", status=500)


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    found: set[int] = set()
    for owner in (model.generation_config, model.config, tokenizer):
        value = getattr(owner, "eos_token_id", None)
        found |= set(value) if isinstance(value, list) else set() if value is None else {value}
    return frozenset(found)


def _refuse_stopping(ticket: Ticket) -> None:
    ticket.refuse("the server stopped before the answer was done", code="stopping", status=503)


def _refuse_cancelled(ticket: Ticket) -> None:
    ticket.refuse("the request was cancelled", code="cancelled", status=499)
