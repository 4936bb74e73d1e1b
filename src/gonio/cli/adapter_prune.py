"""``gonio adapter prune | unpack``: adapters with few nonzero entries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gonio.cli.output import Output, output_options, progress_bar

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PRUNING"]

_OUT = click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder to create."
)


@click.command("prune")
@click.argument("folder", type=click.Path(path_type=Path))
@_OUT
@click.option("--density", type=float, required=True, help="Share of the entries to keep.")
@click.option("--product", is_flag=True, help="Prune the products of the factors instead.")
@click.option(
    "--rank", type=click.IntRange(min=1), help="Write the best approximation of this rank."
)
@output_options
def prune(
    folder: Path,
    out: Path,
    density: float,
    product: bool,
    rank: int | None,
    output: Output,
    overwrite: bool,
) -> None:
    """Keep the largest entries of FOLDER's factors, or of their products.

    Pruned factors are a PEFT folder as before, no smaller for its zeros; the values and their
    places alone lie beside it in sparse_factors.safetensors. A pruned product has no small rank:
    it is written exactly as sparse changes of the weights, which PEFT cannot load, or with --rank
    as the best LoRA of that rank, its error measured.

    \b
    Example:
      gonio adapter prune runs/clm --density 0.25 --out runs/pruned
      gonio adapter prune runs/clm --density 0.01 --product --out runs/delta
      gonio adapter prune runs/clm --density 0.01 --product --rank 16 --out p
    """
    from gonio.pipelines.adapter_prune import prune_adapter

    if rank is not None and not product:
        raise click.UsageError("--rank belongs to --product; pruned factors keep their rank")
    with progress_bar("pruning") as progress:
        found = prune_adapter(
            folder,
            out,
            density,
            product=product,
            rank=rank,
            overwrite=overwrite,
            progress=progress,
        )
    output.write(found, [("By projection", _view(found.tables["modules"]))])


@click.command("unpack")
@click.argument("folder", type=click.Path(path_type=Path))
@_OUT
@output_options
def unpack(folder: Path, out: Path, output: Output, overwrite: bool) -> None:
    """Write the PEFT folder that the sparse factors in FOLDER stand for, entry for entry.

    FOLDER needs adapter_config.json and sparse_factors.safetensors alone.

    \b
    Example:
      gonio adapter unpack runs/pruned --out runs/whole
    """
    import pandas as pd

    from gonio.adapters.sparse import unpack_factors

    unpack_factors(folder, out, overwrite=overwrite)
    rows = [(path.name, path.stat().st_size) for path in sorted(out.iterdir())]
    output.write_table(f"Files in {out}", pd.DataFrame(rows, columns=["file", "bytes"]))


def _view(table: pd.DataFrame) -> pd.DataFrame:
    """Means by projection, in columns that fit 80 characters."""
    groups = table.groupby("projection", sort=False)
    shown = groups[["entries", "nonzero", "plain_bytes", "sparse_bytes"]].sum()
    names = [n for n in ("relative_error", "rank_error") if n in table]
    return shown.join(groups[names].mean()).reset_index()


PRUNING = (prune, unpack)
