"""The HTTP side of a completion engine: OpenAI's completions with a field ``adapters``.

There is no authentication: the server is for this machine, or for behind a proxy that has it.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from gonio.errors import MissingDependencyError, RequestError
from gonio.serving.engine import CompletionEngine
from gonio.serving.protocol import ChatBody, CompletionBody, SharedBody, answer_body, error_body
from gonio.serving.requests import Completion, Ticket

try:
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, Response, StreamingResponse
    from starlette.exceptions import HTTPException
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from gonio.serving.body import StrictRoute
except ModuleNotFoundError as missing:
    raise MissingDependencyError(
        f"serving needs the package {missing.name}, which is not installed\n"
        "Install it with: pip install 'gonio[serve]'"
    ) from missing

__all__ = ["build_app"]

_LOOPBACK_NAMES = ["127.0.0.1", "localhost"]
_POLL = 0.25  # seconds between looks at whether the client is still there


def build_app(engine: CompletionEngine, model_name: str, *, local: bool = True) -> FastAPI:
    """The application: ``/v1/models``, ``/v1/completions``, ``/v1/chat/completions``, ``/health``.

    Args:
        engine: A started engine.
        model_name: What the base model is called.
        local: Answer only requests made to this machine's own name, so that a web page opened
            beside the server cannot reach it under another name.
    """
    app = FastAPI(title="gonio", docs_url=None, redoc_url=None, openapi_url=None)
    app.router.route_class = StrictRoute
    if local:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=_LOOPBACK_NAMES)
    _add_errors(app)
    routes = _Routes(engine, model_name)
    app.add_api_route("/health", routes.health, methods=["GET"])
    app.add_api_route("/v1/models", routes.models, methods=["GET"])
    app.add_api_route("/v1/completions", routes.complete, methods=["POST"], response_model=None)
    app.add_api_route("/v1/chat/completions", routes.chat, methods=["POST"], response_model=None)
    return app


class _Routes:
    """The handlers of one engine."""

    def __init__(self, engine: CompletionEngine, model_name: str) -> None:
        self._engine = engine
        self._name = model_name
        self._started = int(time.time())

    async def health(self) -> JSONResponse:
        """Whether requests are taken, and what is going on."""
        accepts = self._engine.accepts
        content = {"status": "ok" if accepts else "stopping", **vars(self._engine.stats)}
        return JSONResponse(content, status_code=200 if accepts else 503)

    async def models(self) -> dict[str, Any]:
        """The base model and every adapter."""
        head = {"object": "model", "created": self._started, "owned_by": "gonio"}
        base = {**head, "id": self._name, "parent": None}
        adapters = [{**head, "id": n, "parent": self._name} for n in self._engine.adapters]
        return {"object": "list", "data": [base, *adapters]}

    async def complete(self, body: CompletionBody, request: Request) -> Response:
        """Continue a prompt."""
        weights = body.weights(self._name, self._engine.adapters)
        given = body.prompt
        prompt = self._engine.admission.encode(given) if isinstance(given, str) else tuple(given)
        return await self._answer(body, prompt, weights, request, "text_completion")

    async def chat(self, body: ChatBody, request: Request) -> Response:
        """Answer the last message of a conversation."""
        weights = body.weights(self._name, self._engine.adapters)
        if body.max_completion_tokens is not None:
            body = body.model_copy(update={"max_tokens": body.max_completion_tokens})
        messages = [message.model_dump(exclude_none=True) for message in body.messages]
        prompt = self._engine.admission.encode_chat(messages)
        return await self._answer(body, prompt, weights, request, "chat.completion")

    async def _answer(
        self,
        body: SharedBody,
        prompt: tuple[int, ...],
        weights: dict[str, float],
        request: Request,
        kind: str,
    ) -> Response:
        head = {
            "id": f"{'chatcmpl' if kind == 'chat.completion' else 'cmpl'}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": body.model or self._name,
        }
        asked = body.request(prompt, weights)
        if not body.stream:
            answer = await _wait(self._engine.submit(asked), request)
            return JSONResponse(answer_body(head, answer, weights))
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(piece: str | None) -> None:
            with suppress(RuntimeError):  # the server stopped first: nobody listens
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        ticket = self._engine.submit(asked, tell)
        ticket.future.add_done_callback(lambda _: tell(None))
        return StreamingResponse(_events(head, ticket, pieces), media_type="text/event-stream")


async def _wait(ticket: Ticket, request: Request) -> Completion:
    """The answer; the request is dropped when its client goes away."""
    answer = asyncio.wrap_future(ticket.future)
    try:
        while not answer.done():
            await asyncio.wait([answer], timeout=_POLL)
            if not answer.done() and await request.is_disconnected():
                ticket.cancel()
        return answer.result()
    finally:
        ticket.cancel()


async def _events(
    head: Mapping[str, Any], ticket: Ticket, pieces: asyncio.Queue[str | None]
) -> AsyncIterator[str]:
    """Server-sent events: every piece, why the answer ended, and ``[DONE]``."""
    is_chat = head["object"] == "chat.completion"
    chunk = {**head, "object": "chat.completion.chunk"} if is_chat else dict(head)
    try:
        while (piece := await pieces.get()) is not None:
            said = {"delta": {"content": piece}} if is_chat else {"text": piece}
            yield _event({**chunk, "choices": [_choice(said, None)]})
        try:
            reason = ticket.result(0).finish_reason
        except RequestError as error:
            yield _event(error_body(str(error), error.code, error.status))
        else:
            last: dict[str, Any] = {"delta": {}} if is_chat else {"text": ""}
            yield _event({**chunk, "choices": [_choice(last, reason)]})
            yield "data: [DONE]\n\n"
    finally:
        ticket.cancel()


def _choice(said: Mapping[str, Any], reason: str | None) -> dict[str, Any]:
    return {"index": 0, **said, "logprobs": None, "finish_reason": reason}


def _event(content: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def _add_errors(app: FastAPI) -> None:
    """Every refusal as OpenAI's error object."""

    async def refused(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestError)
        content = error_body(str(error), error.code, error.status)
        # Whoever still sends an oversized body is hung up on.
        headers = {"connection": "close"} if error.status == 413 else None
        return JSONResponse(content, status_code=error.status, headers=headers)

    async def malformed(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            message = f"the body is not JSON this server reads: {first['ctx']['error']}"
        else:
            place = ".".join(str(part) for part in first["loc"] if part != "body")
            message = f"{place}: {first['msg']}" if place else str(first["msg"])
        return JSONResponse(error_body(message, "invalid_request", 400), status_code=400)

    async def other(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code = HTTPStatus(error.status_code).name.lower()
        content = error_body(str(error.detail), code, error.status_code)
        return JSONResponse(content, status_code=error.status_code, headers=error.headers)

    app.add_exception_handler(RequestError, refused)
    app.add_exception_handler(RequestValidationError, malformed)
    app.add_exception_handler(HTTPException, other)
