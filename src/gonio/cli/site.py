"""``gonio site``: pages out of records."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["site"]


@click.group("site")
def site() -> None:
    """Build a site that works from disk out of records.

    \b
    Example:
      gonio site build --from gonio-demo --out gonio-demo/site
    """


@site.command("build")
@click.option(
    "--from",
    "sources",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    metavar="RESULTS",
    help="Folder of records, searched at any depth, or a file written with --json --output.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Folder of the site: new, empty, or a site built before, which is replaced.",
)
@click.argument("more", type=click.Path(path_type=Path), nargs=-1, metavar="[RESULTS]...")
def build(sources: tuple[Path, ...], out: Path, more: tuple[Path, ...]) -> None:
    """Build pages, charts and downloads from every record in RESULTS.

    RESULTS are folders of records, searched at any depth, and files that commands wrote with
    --json --output FILE. The pages open from disk, without a server and without a network.
    Prints the page to open.

    \b
    Example:
      gonio site build --from gonio-demo --out gonio-demo/site
      gonio site build --from spectrum.json caches.json --out site
    """
    from gonio.site import build_site

    click.echo(build_site([*sources, *more], out))
