"""Bodies of requests before they are JSON: of a bounded size, every key once, text that is text."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

from gonio.errors import RequestError

__all__ = ["MAX_BODY_BYTES", "StrictRoute"]

MAX_BODY_BYTES = 16 * 2**20  # a megabyte of text is some 250 thousand tokens


class StrictRoute(APIRoute):
    """A route whose requests are read by :class:`_StrictRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, behind a stricter reading of the body."""
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handle(await _StrictRequest.read(request))

        return strict


class _StrictRequest(Request):
    """A request whose body was read up to the largest size, and whose JSON is unambiguous."""

    @classmethod
    async def read(cls, request: Request) -> _StrictRequest:
        """Read the body of a request.

        Raises:
            RequestError: It has more than :data:`MAX_BODY_BYTES`.
        """
        announced = request.headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > MAX_BODY_BYTES:
            raise _too_large()
        strict = cls(request.scope, request.receive)
        parts, size = [], 0
        async for part in strict.stream():
            parts.append(part)
            size += len(part)
            if size > MAX_BODY_BYTES:
                raise _too_large()
        strict._body = b"".join(parts)  # where starlette itself keeps a body that was read
        return strict

    async def json(self) -> Any:
        """The body as JSON.

        Raises:
            JSONDecodeError: It is not UTF-8 or not JSON, a key is given twice, or a string holds
                half of a surrogate pair, which no text does.
        """
        try:
            text = (await self.body()).decode("utf-8")
            found = json.loads(text, object_pairs_hook=_unique)
            json.dumps(found, ensure_ascii=False).encode("utf-8")
        except json.JSONDecodeError:
            raise
        except (ValueError, RecursionError) as error:  # UnicodeError is a ValueError
            raise json.JSONDecodeError(str(error), "", 0) from error
        return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is given twice")
        found[key] = value
    return found


def _too_large() -> RequestError:
    return RequestError(
        f"the body has more than {MAX_BODY_BYTES} bytes", code="body_too_large", status=413
    )
