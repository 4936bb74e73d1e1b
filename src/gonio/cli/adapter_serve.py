"""``gonio adapter serve | interference``: several adapters of one model at a time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gonio.cli.output import Output, output_options, progress_bar

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SERVING"]

_ADAPTER = click.option(
    "--adapter",
    "adapters",
    metavar="NAME=FOLDER",
    multiple=True,
    help="An adapter and the name requests give it; may be given several times.",
)
_BUNDLE = click.option(
    "--bundle", type=click.Path(path_type=Path), help="Add all members of a bundle."
)
_DEVICE = click.option("--device", default="cpu", show_default=True, help="Where the model runs.")


@click.command("serve")
@click.argument("model")
@_ADAPTER
@_BUNDLE
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="0 for any free one.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Most requests decoded together.",
)
@click.option(
    "--max-prompt-tokens", type=click.IntRange(min=1), help="Longest prompt; the model's own limit."
)
@click.option(
    "--max-waiting",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Most requests in the queue.",
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    help="Seconds for what runs when the server is stopped.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16", "float64"]),
    default="float32",
    show_default=True,
    help="Precision in memory.",
)
@_DEVICE
@output_options
def serve(
    model: str,
    adapters: tuple[str, ...],
    bundle: Path | None,
    host: str,
    port: int,
    max_batch: int,
    max_prompt_tokens: int | None,
    max_waiting: int,
    grace: float,
    dtype: str,
    device: str,
    output: Output,
) -> None:
    """Serve MODEL, each request with its own subset of the adapters.

    OpenAI's /v1/completions and /v1/chat/completions with one more field: "adapters", a list of
    names or an object name -> weight. Requests with different subsets run in one batch; the
    model's weights are never changed. Ctrl-C stops: what runs is finished, then a record of what
    was served is printed. There is no authentication; the default address is this machine's own.

    \b
    Example:
      gonio adapter serve MODEL --adapter dpo=runs/dpo --adapter sft=runs/sft
      curl localhost:8000/v1/completions -H 'content-type: application/json' \\
        -d '{"prompt": "Once", "adapters": {"dpo": 1, "sft": 0.5}}'
    """
    import torch

    from gonio.pipelines.adapter_serve import named_folders, serve_adapters
    from gonio.serving import EngineLimits
    from gonio.serving.server import is_loopback

    folders = named_folders(named(adapters, "adapter", "FOLDER"), bundle)

    def announce(url: str) -> None:
        names = ", ".join(folders) or "none"
        click.echo(f"Serving {model} on {url}, adapters: {names}. Ctrl-C stops.", err=True)
        if not is_loopback(host):
            click.echo(
                "Warning: other machines can reach this server, and it asks nobody for a password.",
                err=True,
            )

    limits = EngineLimits(max_batch, max_prompt_tokens, max_waiting)
    found = serve_adapters(
        model,
        folders,
        host=host,
        port=port,
        limits=limits,
        grace=grace,
        dtype=getattr(torch, dtype),
        device=device,
        on_start=announce,
    )
    output.write(found, [("Adapters", found.tables["adapters"])])


@click.command("interference")
@click.argument("model")
@_ADAPTER
@_BUNDLE
@click.option(
    "--text",
    "texts",
    metavar="[NAME=]TEXT",
    multiple=True,
    help="Text of one adapter, or of all that have none of their own; default bundled.",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=2),
    default=2048,
    show_default=True,
    help="Tokens of each text.",
)
@click.option(
    "--window",
    type=click.IntRange(min=2),
    default=256,
    show_default=True,
    help="Tokens read together.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the bootstrap.")
@_DEVICE
@output_options
def interference(
    model: str,
    adapters: tuple[str, ...],
    bundle: Path | None,
    texts: tuple[str, ...],
    tokens: int,
    window: int,
    seed: int,
    device: str,
    output: Output,
) -> None:
    """What each adapter loses on its own text when another is added.

    The change of the loss is measured on MODEL, beside what the factors alone predict: twice by
    a quadratic model of the loss around the adapter, once for a curvature equal in all
    directions, once for one along the inputs the adapter reads.

    \b
    Example:
      gonio adapter interference MODEL --adapter a=runs/a --adapter b=runs/b
      gonio adapter interference MODEL --bundle runs/bundle --text dpo=dpo.txt
    """
    from gonio.pipelines.adapter_interference import measure_interference
    from gonio.pipelines.adapter_serve import named_folders

    folders = named_folders(named(adapters, "adapter", "FOLDER"), bundle)
    default = [text for text in texts if "=" not in text]
    if len(default) > 1:
        raise click.UsageError(f"two texts without a name: {', '.join(default)}")
    own = named([text for text in texts if "=" in text], "text", "TEXT")
    with progress_bar("measuring") as progress:
        found = measure_interference(
            model,
            folders,
            own,
            default_text=default[0] if default else "bundled",
            tokens=tokens,
            window=window,
            seed=seed,
            device=device,
            progress=progress,
        )
    output.write(found, [("Loss on each adapter's text, nats", _pair_view(found.tables["pairs"]))])


def named(arguments: tuple[str, ...] | list[str], option: str, what: str) -> dict[str, str]:
    """``NAME=VALUE`` arguments as a mapping."""
    found: dict[str, str] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not name or not equals or not value:
            raise click.UsageError(f"--{option} {argument!r} is not NAME={what}")
        if name in found:
            raise click.UsageError(f"--{option} names {name!r} twice")
        found[name] = value
    return found


def _pair_view(pairs: pd.DataFrame) -> pd.DataFrame:
    shown = ["text_of", "added", "loss_alone", "change", "predicted_even", "predicted_inputs"]
    return pairs[[*shown, "cosine"]]


SERVING = (interference, serve)
