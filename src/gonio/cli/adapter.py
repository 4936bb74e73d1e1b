"""``gonio adapter inspect | compare``: commands that measure adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gonio.cli.adapter_actions import ACTIONS
from gonio.cli.adapter_bounds import bounds
from gonio.cli.adapter_gradients import dynamics
from gonio.cli.adapter_prune import PRUNING
from gonio.cli.adapter_serve import SERVING
from gonio.cli.adapter_sweep import sweep
from gonio.cli.adapter_views import fleet_view, footnotes, overlap_view, spectrum_view
from gonio.cli.output import Output, output_options, plot_option, progress_bar

__all__ = ["adapter"]

_SEED = click.option(
    "--seed", default=0, show_default=True, help="Seed of the chance draws and the bootstrap."
)


@click.group()
def adapter() -> None:
    """Measure, compare, resize and merge LoRA adapters.

    Every number stands beside what chance gives. Folders are read as PEFT reads them; pickled
    weights are never opened, and the product of the factors is never formed.

    \b
    Example:
      gonio adapter inspect runs/dpo-7
      gonio adapter compare runs/dpo-7 runs/sft-7
      gonio adapter compare runs/dpo-7 --base smollm2-135m
    """


@adapter.command("inspect")
@click.argument("folders", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "--base", metavar="MODEL", help="Base model; needed for DoRA and for a whole tuned model."
)
@click.option(
    "--fleet", is_flag=True, help="Measure every adapter and checkpoint below the FOLDERS."
)
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Adapters at a time; by CPU count, locally one below 1,000 adapters.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Keep a fleet's record here; a second run continues it.",
)
@_SEED
@output_options
@plot_option
def inspect(
    folders: tuple[Path, ...],
    base: str | None,
    fleet: bool,
    engine: Any,
    workers: int | None,
    out: Path | None,
    seed: int,
    output: Output,
) -> None:
    """Spectrum of every update in FOLDERS: one adapter, a tuned model, or a fleet.

    Stable rank, effective rank and the directions that hold 90% and 99% of the energy, beside
    what random factors of the same shapes give. Summaries per projection and layer; --csv and
    --json give every module. Several FOLDERS, or --fleet, give one table of many adapters, with
    checkpoints by step and intervals over runs that differ in their seed.

    \b
    Example:
      gonio adapter inspect runs/dpo-7
      gonio adapter inspect runs/dpo-7 --plot spectrum.svg
      gonio adapter inspect runs --fleet --csv > modules.csv
    """
    if fleet or len(folders) > 1:
        if base is not None:
            raise click.UsageError("--base belongs to a single adapter")
        _inspect_fleet(folders, engine, workers, out, seed, output)
        return
    if engine != "local" or workers is not None or out is not None:
        raise click.UsageError("--engine, --workers and --out belong to --fleet")
    from gonio.pipelines.adapters import inspect_adapter

    with progress_bar("reading the adapter") as progress:
        found = inspect_adapter(folders[0], base, seed=seed, progress=progress)
    tables = [
        ("By projection (means over modules)", spectrum_view(found.tables["projections"])),
        ("By layer (means over modules)", spectrum_view(found.tables["layers"])),
    ]
    output.write(found, [*tables, *footnotes(found)])


def _inspect_fleet(
    folders: tuple[Path, ...],
    engine: Any,
    workers: int | None,
    out: Path | None,
    seed: int,
    output: Output,
) -> None:
    from gonio.pipelines.fleet import inspect_fleet

    with progress_bar("reading adapters") as progress:
        found = inspect_fleet(
            folders, engine=engine, workers=workers, seed=seed, progress=progress, out=out
        )
    output.write(found, [("Adapters", fleet_view(found.tables["adapters"])), *footnotes(found)])
    if "failed" in found.tables:
        for row in found.tables["failed"].to_dict(orient="records"):
            click.echo(f"not measured: {row['adapter']}: {row['reason']}", err=True)
        click.get_current_context().exit(1)


@adapter.command("compare")
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path), required=False)
@click.option("--base", metavar="MODEL", help="Base model: a bundled name, a folder or a hub id.")
@click.option(
    "-k",
    "ks",
    type=click.IntRange(min=1),
    multiple=True,
    default=(5, 10, 20),
    show_default=True,
    help="Number of top directions; may be given several times.",
)
@click.option(
    "--intruders", is_flag=True, help="Count intruder dimensions too (decomposes every weight)."
)
@_SEED
@output_options
@plot_option
def compare(
    first: Path,
    second: Path | None,
    base: str | None,
    ks: tuple[int, ...],
    intruders: bool,
    seed: int,
    output: Output,
) -> None:
    """Compare the adapter FIRST with the adapter SECOND, or with the model --base.

    Overlap of the top directions of the updates (left: outputs, right: inputs) beside the
    overlap of random subspaces. A k above the numerical rank of an update is left out. Beside a
    base model also the share of each update that no rescaling of its columns or rows explains,
    norms relative to the base, and whether the base's subspaces are certified.

    \b
    Example:
      gonio adapter compare runs/dpo-7 runs/sft-7
      gonio adapter compare runs/dpo-7 --base smollm2-135m -k 1 -k 4
    """
    from gonio.pipelines.adapter_compare import compare_adapter_with_base, compare_two_adapters

    if (second is None) == (base is None):
        raise click.UsageError("give one of SECOND and --base MODEL")
    if intruders and base is None:
        raise click.UsageError("--intruders needs --base MODEL")
    with progress_bar("comparing") as progress:
        if second is not None:
            found = compare_two_adapters(first, second, ks, seed=seed, progress=progress)
            adaptive = "numerical rank"
        else:
            assert base is not None
            found = compare_adapter_with_base(
                first, base, ks, intruders=intruders, seed=seed, progress=progress
            )
            adaptive = "rounded stable rank"
    title = (
        "By projection: overlap, its ratio to chance, its z-score (means over modules)\n"
        f"k with ~ is the mean of each update's own k, its {adaptive}"
    )
    view = overlap_view(found.tables["projections"])
    output.write(found, [(title, view), *footnotes(found)])


for _command in (*ACTIONS, *PRUNING, *SERVING, bounds, dynamics, sweep):
    adapter.add_command(_command)
