"""``gonio study``: a grid of trainings, measured, evaluated and concluded from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gonio.cli.output import Output, output_options, plot_option, progress_bar, refuse_existing

if TYPE_CHECKING:
    from gonio.pipelines.study import StudyRun
    from gonio.pipelines.study_spec import StudySpec

__all__ = ["study"]

_ENGINE = click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="This machine, or a Ray cluster (RAY_ADDRESS, else a local one).",
)
_WORKERS = click.option(
    "--workers", type=click.IntRange(min=1), help="Cells at a time; 1 unless given."
)


@click.group()
def study() -> None:
    """Run grids of trainings: models, objectives and seeds, from one file to tables and figures.

    Kill it whenever you like: what is finished is kept, and run or resume goes on from there.

    \b
    Example:
      gonio study run small --out studies/small
      gonio study run my.toml --out studies/mine --engine ray
      gonio study show studies/mine
      gonio study verify studies/mine
    """


@study.command("run")
@click.argument("spec")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the study.")
@_ENGINE
@_WORKERS
@output_options
def run(
    spec: str,
    out: Path,
    engine: str,
    workers: int | None,
    output: Output,
) -> None:
    """Run the study of a TOML file (or another study's study.json), or a preset: small.

    Everything that can be wrong is refused before a weight is read. A cell that fails is reported
    and the others go on; then the exit code is 1.

    \b
    Example:
      gonio study run small --out studies/small --workers 2
    """
    from gonio.pipelines.study_spec import preset_study, read_study

    path = Path(spec)
    is_file = path.suffix or path.exists()
    chosen = read_study(path) if is_file else preset_study(spec)
    _run(chosen, out, engine, workers, output)


@study.command("resume")
@click.argument("out", type=click.Path(path_type=Path))
@_ENGINE
@_WORKERS
@output_options
def resume(out: Path, engine: str, workers: int | None, output: Output) -> None:
    """Go on with the study in the folder OUT.

    \b
    Example:
      gonio study resume studies/small
    """
    from gonio.pipelines.study import open_study

    _run(open_study(out), out, engine, workers, output)


@study.command("show")
@click.argument("out", type=click.Path(path_type=Path))
@output_options
@plot_option
def show(out: Path, output: Output) -> None:
    """Cells of the study in the folder OUT, how they ended, and what they say together.

    \b
    Example:
      gonio study show studies/small
      gonio study show studies/small --json --output conclusions.json
      gonio study show studies/small --plot widths.svg
    """
    _write_status(out, output)


@study.command("verify")
@click.argument("out", type=click.Path(path_type=Path))
@output_options
def verify(out: Path, output: Output) -> None:
    """Hash every file of the study in the folder OUT again and name what drifted.

    Exit code 1 if anything did: edited, missing or added files, or other model files than the
    cells were computed from.

    \b
    Example:
      gonio study verify studies/small
    """
    from gonio.pipelines.study_verify import verify_study

    found = verify_study(out)
    drift = found.tables["drift"]
    views = [
        (str(what).capitalize(), rows[["path"]]) for what, rows in drift.groupby("what", sort=False)
    ]
    output.write(found, views)
    if len(drift):
        raise click.exceptions.Exit(1)


@study.command("export")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--out",
    "archive",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="FILE",
    help="Archive to write, .tar.gz.",
)
@click.option("--force", "overwrite", is_flag=True, help="Replace a file that exists.")
def export(folder: Path, archive: Path, overwrite: bool) -> None:
    """Pack the study in FOLDER without weights; the same study gives the same bytes.

    \b
    Example:
      gonio study export studies/small --out small.tar.gz
    """
    from gonio.pipelines.study_verify import export_study

    refuse_existing(archive, overwrite)
    click.echo(f"{export_study(folder, archive)} files in {archive}")


def _run(spec: StudySpec, out: Path, engine: str, workers: int | None, output: Output) -> None:
    from gonio.pipelines.study import run_study

    with progress_bar("checking the study") as progress:
        found: StudyRun = run_study(
            spec,
            out,
            engine=engine,  # type: ignore[arg-type]  # click checked the choice
            workers=workers,
            progress=progress,
        )
    click.echo(f"{len(found.ran)} of {len(found.states)} cells ran", err=True)
    _write_status(out, output)
    if found.failed:
        raise click.exceptions.Exit(1)


def _write_status(out: Path, output: Output) -> None:
    from gonio.cli.study_views import study_summary, study_views
    from gonio.pipelines.study import study_status

    found = study_status(out)
    table = found.tables["cells"]
    views = [("Cells", table[["cell", "status", "seconds"]])]
    failed = table.loc[table["status"] == "failed", ["cell", "reason"]]
    if len(failed):
        views.append(("Failed", failed))
    views += study_views(found.tables)
    if "missing" in found.tables:
        views.append(("Not concluded", found.tables["missing"]))
    output.write(study_summary(found) if output.form == "text" else found, views)
