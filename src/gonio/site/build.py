"""From records to a folder of pages: whole or absent, and the same bytes for the same records."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from gonio.errors import OutputError, SettingError
from gonio.files import replace_folder
from gonio.records import Measurement
from gonio.site.collection import Collection, collect
from gonio.site.dependencies import require_site_packages
from gonio.site.environment import make_environment, render
from gonio.site.interchange import to_json
from gonio.site.pages import Built, make_pages
from gonio.site.reference_pages import PUBLISHED_FILE, published_text
from gonio.site.status_export import STATUS_FILE, status_file, status_text

__all__ = ["MARKER", "build_site"]

MARKER = ".gonio-site"
_ASSETS = (
    "site.css",
    "dark.css",
    "site.js",
    "theme.js",
    "explorer.css",
    "explorer.js",
    "downloads.js",
    "THIRD-PARTY.txt",
)


def build_site(
    sources: Sequence[Measurement | Path | str], out: Path | str, *, commit: str = ""
) -> Path:
    """Build the site: pages, charts, records as JSON; readable from disk, offline.

    Args:
        sources: Measurements, folders that hold records at any depth, JSON files written with
            ``--json --output FILE``, and at most one file of ``gonio theorem status``. No source
            at all gives pages whose sections say which command fills them.
        out: Folder of the site. It may be new, empty, or a site built before, which is replaced.
        commit: Commit of the sources that the pages name, for example of the proofs.

    The same sources and commit give the same bytes: every date is that of a record. A site without
    any takes its date from ``SOURCE_DATE_EPOCH``, and has none where that is not set.

    Returns:
        The page to open, ``OUT/index.html``.

    Raises:
        MissingDependencyError: The ``site`` extra is not installed.
        RecordError: A source is missing or holds no record, or a record is broken.
        SettingError: ``SOURCE_DATE_EPOCH`` is needed and not a number of seconds.
        OutputError: ``out`` holds something that is not a site, or cannot be written.
    """
    require_site_packages()
    folder = Path(out).resolve()
    _require_replaceable(folder, sources)
    collection = collect(sources)
    files_of_site = _render(collection, Built(collection.newest or _source_date(), commit))
    with replace_folder(folder) as staging:
        try:
            _write(staging, files_of_site, collection)
        except OSError as error:
            raise OutputError(
                f"cannot write the site to {folder}: {error.strerror or error}"
            ) from error
    return folder / "index.html"


def _require_replaceable(folder: Path, sources: Sequence[Measurement | Path | str]) -> None:
    """Refuse to delete what we did not write.

    Raises:
        OutputError: The folder is a file, holds anything but a site, or holds a source.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"cannot build the site in {folder}: a file is there")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARKER).is_file():
        raise OutputError(
            f"cannot build the site in {folder}: the folder holds something else\n"
            f"  expected a new or empty folder, or a site built before (with {MARKER})\n"
            "Choose another place with --out."
        )
    for source in sources:
        if isinstance(source, Measurement):
            continue
        if folder.is_dir() and Path(source).resolve().is_relative_to(folder):
            raise OutputError(
                f"cannot build the site in {folder}: it would replace the records in {source}\n"
                "Choose another place with --out."
            )


def _source_date() -> str:
    """The date that a reproducible build is given, empty without one.

    Raises:
        SettingError: It is not a number of seconds.
    """
    seconds = os.environ.get("SOURCE_DATE_EPOCH", "")
    try:
        return datetime.fromtimestamp(int(seconds), UTC).isoformat() if seconds else ""
    except (ValueError, OverflowError, OSError) as error:
        raise SettingError(
            f"SOURCE_DATE_EPOCH is {seconds!r}, expected seconds since 1970"
        ) from error


def _render(collection: Collection, built: Built) -> dict[str, str]:
    """Every page and the status file, by file name."""
    from gonio.theorems import load_families

    environment = make_environment()
    contexts = make_pages(collection, load_families(), built)
    pages = {name: render(environment, name, context) for name, context in contexts.items()}
    statuses = status_file(collection, contexts["theorems.html"]["cards"])
    return {**pages, STATUS_FILE: status_text(statuses)}


def _write(folder: Path, texts: Mapping[str, str], collection: Collection) -> None:
    (folder / MARKER).write_text("built by gonio site build\n", encoding="utf-8")
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    _write_assets(folder / "assets")
    _write_records(folder / "records", collection)


def _write_assets(folder: Path) -> None:
    import altair
    import vl_convert

    folder.mkdir()
    source = files("gonio.site") / "assets"
    for name in _ASSETS:
        (folder / name).write_bytes((source / name).read_bytes())
    (folder / PUBLISHED_FILE).write_text(published_text(), encoding="utf-8", newline="\n")
    version = ".".join(altair.SCHEMA_VERSION.lstrip("v").split(".")[:2])  # what specs are made for
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", version)
    (folder / "vega.js").write_text(bundle, encoding="utf-8")


def _write_records(folder: Path, collection: Collection) -> None:
    folder.mkdir()
    for entry in collection.records:
        path = folder / f"{entry.identifier}.json"
        path.write_text(to_json(entry.measurement), encoding="utf-8", newline="\n")
