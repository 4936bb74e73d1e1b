"""Bodies of the OpenAI-compatible requests, and of the answers.

A field that OpenAI knows and this server does not implement is accepted at the value that asks for
nothing, and refused at any other; unknown fields are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gonio.errors import RequestError
from gonio.serving.requests import Completion, CompletionRequest
from gonio.serving.sampling import Sampling

__all__ = ["ChatBody", "CompletionBody", "Message", "SharedBody", "answer_body", "error_body"]


class SharedBody(BaseModel):
    """What both kinds of request have.

    Attributes:
        model: The base model's name, or that of an adapter, which is then chosen with weight 1.
        adapters: Names, or name -> weight; none is the base model.
        max_tokens: Longest answer.
        temperature: 0 is greedy.
        top_p: Share of the probability to draw from.
        seed: Of the draws.
        stop: String or strings that end the answer.
        stream: Whether the answer comes in pieces, as server-sent events.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str | None = None
    adapters: list[str] | dict[str, float] | None = None
    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    stream: bool = False
    user: str | None = None
    n: Literal[1] | None = 1
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, given: Any) -> Any:
        """A null asks for the default, as at OpenAI."""
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None}

    def weights(self, base: str, known: Sequence[str]) -> dict[str, float]:
        """The adapters that are asked for.

        Args:
            base: The base model's name.
            known: Names of the adapters.

        Raises:
            RequestError: ``model`` is neither the base nor an adapter, an adapter is named twice,
                or both fields choose adapters.
        """
        if self.model not in (None, base, *known):
            names = ", ".join([base, *known])
            message = f"no model {self.model!r}; there are: {names}"
            raise RequestError(message, code="model_not_found", status=404)
        by_model = {} if self.model in (None, base) else {str(self.model): 1.0}
        if self.adapters is None:
            return by_model
        if by_model:
            message = f"model {self.model!r} chooses an adapter; give model {base!r} with adapters"
            raise RequestError(message, code="invalid_adapters")
        if isinstance(self.adapters, dict):
            return self.adapters
        chosen = dict.fromkeys(self.adapters, 1.0)
        if len(chosen) < len(self.adapters):
            raise RequestError("an adapter is named twice; give weights", code="invalid_adapters")
        return chosen

    def request(self, prompt: tuple[int, ...], weights: dict[str, float]) -> CompletionRequest:
        """The request for an engine.

        Raises:
            RequestError: A setting is out of range.
        """
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        sampling = Sampling(self.temperature, self.top_p, self.seed)
        return CompletionRequest(prompt, weights, self.max_tokens, sampling, stop)


class CompletionBody(SharedBody):
    """``POST /v1/completions``.

    Attributes:
        prompt: A text, or token ids.
    """

    prompt: str | list[Annotated[int, Field(strict=True)]]
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    logprobs: None = None
    suffix: None = None


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: str
    content: str
    name: str | None = None


class ChatBody(SharedBody):
    """``POST /v1/chat/completions``.

    Attributes:
        messages: The conversation so far.
        max_completion_tokens: OpenAI's newer name of max_tokens.
    """

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = None
    logprobs: Literal[False] | None = None


def answer_body(head: dict[str, Any], answer: Completion, weights: dict[str, float]) -> Any:
    """The body of a whole answer.

    Args:
        head: ``id``, ``object``, ``created`` and ``model``.
        answer: The engine's answer.
        weights: The adapters that gave it.
    """
    is_chat = head["object"] == "chat.completion"
    said: dict[str, Any] = {"text": answer.text}
    if is_chat:
        said = {"message": {"role": "assistant", "content": answer.text}}
    choice = {"index": 0, **said, "logprobs": None, "finish_reason": answer.finish_reason}
    generated = len(answer.tokens)
    usage = {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": generated,
        "total_tokens": answer.prompt_tokens + generated,
    }
    return {**head, "choices": [choice], "usage": usage, "adapters": weights}


def error_body(message: str, code: str, status: int) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
