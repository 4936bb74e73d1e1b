"""Lists of context lengths as one option: ``512,2048,8192``."""

from __future__ import annotations

import click

__all__ = ["LENGTHS"]


class _Lengths(click.ParamType[tuple[int, ...]]):
    """Comma-separated numbers of tokens; empty or ``none`` for none."""

    name = "LENGTHS"

    def convert(
        self,
        value: str | tuple[int, ...],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):  # click converts defaults once more
            return value
        if value in ("", "none"):
            return ()
        try:
            lengths = tuple(int(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of lengths like 512,2048", param, ctx)
        if min(lengths) < 2:
            self.fail(f"a context has at least 2 tokens, found {min(lengths)}", param, ctx)
        return lengths


LENGTHS = _Lengths()
