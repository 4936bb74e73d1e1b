"""``gonio adapter bounds``: complexity bounds, parameters and bytes of a LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gonio.cli.output import Output, output_options, progress_bar

__all__ = ["bounds"]


@click.command("bounds")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--base", metavar="MODEL", help="Base model: take the inputs it gives on a text.")
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Number of inputs, without --base.",
)
@click.option(
    "--input-norm",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Largest length of an input, without --base.",
)
@click.option("--text", default="bundled", show_default=True, help="Text, with --base.")
@click.option(
    "--tokens",
    type=click.IntRange(min=64),
    default=4096,
    show_default=True,
    help="Of the text, with --base.",
)
@click.option(
    "--optimizer",
    type=click.Choice(["adamw", "sgd", "momentum"]),
    default="adamw",
    show_default=True,
    help="Whose states are counted.",
)
@output_options
def bounds(folder: Path, base: str | None, output: Output, **options: Any) -> None:
    """Rademacher complexity, parameters and training memory of the LoRA in FOLDER.

    Upper bounds for the classes of matrices that share a module's rank and a norm, on inputs of a
    bounded length or, with --base, on those of a text; beside them the bounds a well-known essay
    prints, which leave out norms and data and are not valid. Bytes are of weights, gradients and
    optimizer states; activations are not counted.

    \b
    Example:
      gonio adapter bounds runs/dpo --samples 1000 --input-norm 10
      gonio adapter bounds runs/dpo --base smollm2-135m
    """
    from gonio.pipelines.adapter_bounds import adapter_bounds

    with progress_bar("reading the adapter") as progress:
        found = adapter_bounds(folder, base, progress=progress, **options)
    names = ["method", "precision", "weights", "master", "gradients", "optimizer", "total"]
    memory = found.tables["memory"][names].copy()
    for name in names[2:]:
        memory[name] = memory[name] / 2**20
    modules = found.tables["modules"].groupby("projection", sort=False)
    columns = ["input_length", "spectral_radius", "spectral_bound", "frobenius_bound"]
    view = modules[columns].mean().reset_index()
    view = view.rename(columns={"spectral_radius": "norm", "projection": "module"})
    output.write(found, [("By projection (means)", view), ("Training memory in MiB", memory)])
