"""Tokens to text as they come: whole characters only, and nothing past a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["AnswerText"]

_PARTIAL = "\ufffd"  # what decoders give for the bytes of an unfinished character


class AnswerText:
    """The text of an answer, grown token by token.

    What :meth:`push` and :meth:`finish` return, joined, is :attr:`text` at the end: a piece is held
    back while it may be the beginning of a stop string or of a character.

    Args:
        tokenizer: The model's tokenizer.
        prompt: The prompt's tokens; decoders drop the space before a first word, so an answer is
            decoded behind the last tokens of its prompt.
        stop: Strings that end the answer and are not part of it.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], stop: Sequence[str]
    ) -> None:
        self._tokenizer = tokenizer
        self._context = list(prompt[-4:])
        self._start = len(self._decode([]))
        self._stop = tuple(stop)
        self._tokens: list[int] = []
        self._told = 0
        self.text = ""
        self.is_stopped = False

    def push(self, token: int) -> str:
        """Add a token.

        Returns:
            The text that is certain now and was not returned before.
        """
        self._tokens.append(token)
        self.text = self._decode(self._tokens)[self._start :]
        ends = [at for stop in self._stop if (at := self.text.find(stop)) >= 0]
        if ends:
            self.text = self.text[: min(ends)]
            self.is_stopped = True
        certain = len(self.text) if self.is_stopped else self._certain()
        return self._tell(certain)

    def finish(self) -> str:
        """The text held back, when no token follows."""
        return self._tell(len(self.text))

    def _decode(self, tokens: list[int]) -> str:
        whole = self._context + tokens
        text = self._tokenizer.decode(
            whole, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text

    def _certain(self) -> int:
        """Characters that no later token can change or turn into a stop string."""
        whole = len(self.text.rstrip(_PARTIAL))
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(self.text)), 0, -1):
                if self.text.endswith(stop[:size]):
                    whole = min(whole, len(self.text) - size)
                    break
        return whole

    def _tell(self, upto: int) -> str:
        piece = self.text[self._told : upto]
        self._told = max(self._told, upto)
        return piece
