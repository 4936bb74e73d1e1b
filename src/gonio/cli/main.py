"""The ``gonio`` command: nouns loaded on use, errors printed once, exit codes 0, 1 and 2."""

from __future__ import annotations

import os
import sys
from importlib import import_module

import click

from gonio import __version__
from gonio.errors import GonioError

__all__ = ["cli", "main"]

# Noun -> one line of help. Written here so that `gonio --help` imports no command module.
_NOUNS = {
    "adapter": "Measure, compare, resize and merge LoRA adapters.",
    "cache": "Observe, compress and evaluate the attention key cache.",
    "demo": "Measure, train, compress and check everything on a small real model.",
    "model": "List, fetch and describe models.",
    "study": "Run grids of trainings and draw conclusions from them.",
    "site": "Build a site that works from disk out of records.",
    "theorem": "List, show and check the statements the numbers rest on.",
    "train": "Train LoRA adapters with DPO or causal language modeling.",
    "weights": "Measure weight matrices under one bit, and rotate them.",
}


_INTERRUPTED = 130  # what shells report for a process ended by Ctrl-C


class _NounGroup(click.Group):
    """A group whose commands are modules of :mod:`gonio.cli`, imported when first used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_NOUNS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _NOUNS:
            return None
        command = getattr(import_module(f"gonio.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_NOUNS.items()))

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except GonioError as error:
            raise _BadInputError(str(error)) from error
        except KeyboardInterrupt:
            click.echo("Interrupted. What was finished is kept.", err=True)
            ctx.exit(_INTERRUPTED)
        except BrokenPipeError:
            # The reader of our output went away (`gonio ... | head`): not an error of ours.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)


class _BadInputError(click.ClickException):
    exit_code = 2


@click.group(cls=_NounGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gonio")
def cli() -> None:
    """Measure and turn the geometry of language models.

    Data goes to standard output, progress to standard error. Exit codes: 0 done, 1 a check
    failed, 2 bad input (one message says what, where and the cure).

    \b
    Example:
      gonio demo --quick --out gonio-demo
      gonio adapter inspect runs/dpo-7
    """


def main() -> None:
    """Entry point of the ``gonio`` console script."""
    cli(prog_name="gonio")
