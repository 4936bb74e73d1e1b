"""``gonio site``: pages, and what papers need, out of records."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["site"]


@click.group("site")
def site() -> None:
    """Build a site that works from disk out of records, or the tables of a paper.

    \b
    Example:
      gonio site build --from gonio-demo --out gonio-demo/site
      gonio site export-tex --from gonio-demo --out paper/gonio
    """


_FROM = click.option(
    "--from",
    "sources",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    metavar="RESULTS",
    help="Folder of records, searched at any depth, or a file written with --json --output.",
)
_MORE = click.argument("more", type=click.Path(path_type=Path), nargs=-1, metavar="[RESULTS]...")


@site.command("build")
@_FROM
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Folder of the site: new, empty, or a site built before, which is replaced.",
)
@click.option("--commit", default="", help="Commit of the sources, to be named on the pages.")
@_MORE
def build(sources: tuple[Path, ...], out: Path, commit: str, more: tuple[Path, ...]) -> None:
    """Build pages, charts and downloads from every record in RESULTS.

    RESULTS are folders of records, searched at any depth, files that commands wrote with
    --json --output FILE, and the file of gonio theorem status. The pages open from disk, without
    a server and without a network; the same RESULTS give the same bytes. Prints the page to open.

    \b
    Example:
      gonio site build --from gonio-demo --out gonio-demo/site
      gonio site build --from spectrum.json caches.json --out site
    """
    from gonio.site import build_site

    click.echo(build_site([*sources, *more], out, commit=commit))


@site.command("export-tex")
@_FROM
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Folder to write: new or empty.",
)
@click.option("--force", "overwrite", is_flag=True, help="Replace an export that exists.")
@_MORE
def export_tex(
    sources: tuple[Path, ...], out: Path, overwrite: bool, more: tuple[Path, ...]
) -> None:
    """Write every table of RESULTS as LaTeX and CSV, and every number as a macro.

    A paper loads DIR/gonio.sty and the files it needs, then says tables/NAME.tex for a table and
    \\gonio{RECORD/QUANTITY} or \\gonio{RECORD/TABLE/ROW/COLUMN} for a number; the first column
    of the CSV files holds these names. A name that no record defines is an error when compiled.
    Export again with --force to rebuild the paper from new records. Prints a document that shows
    the values and the shorter tables.

    \b
    Example:
      gonio site export-tex --from gonio-demo --out paper/gonio
    """
    from gonio.site.export_tex import export_tex as export

    click.echo(export([*sources, *more], out, overwrite=overwrite))
