"""What a completion engine takes: prompts as tokens, and a clear refusal of all that cannot run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gonio.errors import RequestError, SettingError
from gonio.serving.requests import CompletionRequest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Admission", "EngineLimits"]

_DEFAULT_CONTEXT = 4096  # tokens, for models that name no longest sequence


@dataclass(frozen=True)
class EngineLimits:
    """What an engine accepts.

    Attributes:
        max_batch: Most requests decoded together.
        max_prompt_tokens: Longest prompt; the model's longest sequence unless given.
        max_waiting: Most requests in the queue.
    """

    max_batch: int = 16
    max_prompt_tokens: int | None = None
    max_waiting: int = 256

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise SettingError(f"{name} must be at least 1, found {value}")


class Admission:
    """Encodes prompts and checks requests before they wait for anything.

    Args:
        model: The model that will answer.
        tokenizer: Its tokenizer.
        adapters: Names that requests may choose.
        limits: What is accepted.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        adapters: Collection[str],
        limits: EngineLimits,
    ) -> None:
        context = getattr(model.config, "max_position_embeddings", None)
        self.context_length = int(context or _DEFAULT_CONTEXT)
        asked = limits.max_prompt_tokens or self.context_length
        self.max_prompt_tokens = min(asked, self.context_length)
        self._adapters = tuple(adapters)
        self._tokenizer = tokenizer
        self._vocabulary = int(model.config.vocab_size)
        longest_token = max((len(token) for token in tokenizer.get_vocab()), default=1)
        self._max_characters = longest_token * self.max_prompt_tokens  # more cannot fit

    def encode(self, prompt: str) -> tuple[int, ...]:
        """A prompt's tokens, special ones included as the tokenizer adds them.

        Raises:
            RequestError: It has too many characters to fit.
        """
        return self._tokens(prompt, special=True)

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> tuple[int, ...]:
        """The tokens of a conversation in the model's own format, up to its next turn.

        Args:
            messages: ``role`` and ``content`` of every turn.

        Raises:
            RequestError: The tokenizer has no chat template, it refuses the messages, or they
                have too many characters to fit.
        """
        if not self._tokenizer.chat_template:
            raise RequestError(
                "this model has no chat template; ask for /v1/completions with the whole prompt",
                code="no_chat_template",
            )
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # templates are programs: they raise what they like
            raise RequestError(
                f"the model's chat template refuses the messages: {error}", code="invalid_messages"
            ) from error
        return self._tokens(str(text), special=False)  # the template writes the special ones

    def check(self, request: CompletionRequest) -> None:
        """Refuse what cannot be answered.

        Raises:
            RequestError: An adapter is unknown, the prompt is empty or too long, or a setting is
                out of range.
        """
        unknown = [name for name in request.adapters if name not in self._adapters]
        if unknown:
            there = ", ".join(self._adapters) or "none"
            message = f"unknown adapter {unknown[0]!r}; there are: {there}"
            raise RequestError(message, code="unknown_adapter")
        if not all(abs(weight) < float("inf") for weight in request.adapters.values()):
            raise RequestError("adapter weights must be finite", code="invalid_adapters")
        if not request.prompt:
            raise RequestError("the prompt has no tokens", code="empty_prompt")
        if not all(0 <= token < self._vocabulary for token in request.prompt):
            message = f"a token is unknown; token ids go from 0 to {self._vocabulary - 1}"
            raise RequestError(message, code="invalid_prompt")
        if request.max_tokens < 1:
            message = f"max_tokens is {request.max_tokens}, expected at least 1"
            raise RequestError(message, code="invalid_max_tokens")
        if any(not stop for stop in request.stop):
            raise RequestError("a stop string is empty", code="invalid_stop")
        length = len(request.prompt)
        if length > self.max_prompt_tokens:
            raise self._too_long(f"{length} tokens")
        if length + request.max_tokens > self.context_length:
            raise RequestError(
                f"{length} prompt tokens and max_tokens {request.max_tokens} are more than the "
                f"model's {self.context_length} positions; ask for fewer",
                code="context_length_exceeded",
            )

    def _tokens(self, text: str, *, special: bool) -> tuple[int, ...]:
        if len(text) > self._max_characters:
            raise self._too_long(f"{len(text)} characters")
        found = self._tokenizer(text, add_special_tokens=special, verbose=False)
        return tuple(found["input_ids"])

    def _too_long(self, found: str) -> RequestError:
        return RequestError(
            f"the prompt has {found}, this server takes at most {self.max_prompt_tokens} tokens",
            code="prompt_too_long",
        )
