"""``gonio theorem lean``: what the text of a Lean 4 project proves, leaves out and assumes."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gonio.cli.output import Output, output_options

if TYPE_CHECKING:
    import pandas as pd

    from gonio.theorems.lean import LeanReport

__all__ = ["lean"]

_WIDTH = 80
_NAME_WIDTH = 40


@click.command("lean")
@click.argument("project", type=click.Path(path_type=Path), metavar="PATH")
@click.option("--url-base", metavar="URL", help="Address of PATH on the web, for links to lines.")
@click.option(
    "--build",
    is_flag=True,
    help="Also run lake build, which executes the project, and ask Lean for axioms. "
    "This way was only tested on recorded output of Lean.",
)
@click.option(
    "--against",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="A report written before with --json --output; exits with 1 if anything changed.",
)
@output_options
@click.pass_context
def lean(
    ctx: click.Context,
    project: Path,
    url_base: str | None,
    build: bool,
    against: Path | None,
    output: Output,
) -> None:
    """Theorems, holes and axioms of the Lean 4 project, or file, PATH.

    Reads text and needs no toolchain: nothing is executed without --build. A theorem is
    proven-by-text when its own text has no hole; what text cannot see is printed with the result.
    Exits with 1 if --against finds a declaration added, vanished or changed.

    \b
    Example:
      gonio theorem lean lean
      gonio theorem lean lean --json --output lean.json
      gonio theorem lean lean --against lean.json
    """
    from gonio.theorems.catalogue import load_catalogue
    from gonio.theorems.lean import read_lean_project, read_lean_report
    from gonio.theorems.lean_build import ask_lean
    from gonio.theorems.lean_drift import find_drift

    reviewed = None if against is None else read_lean_report(against)
    families = {entry.name: entry.family for entry in load_catalogue()}
    report = read_lean_project(project, url_base=url_base, families=families)
    if build:
        report = ask_lean(report, project)
    drift = [] if reviewed is None else find_drift(reviewed, report)
    _write(report, output)
    for change in drift:
        click.echo(change, err=True)
    if drift:
        ctx.exit(1)


def _write(report: LeanReport, output: Output) -> None:
    from gonio.files import write_text

    if output.form == "json":
        text = report.model_dump_json(indent=2) + "\n"
        if output.path is None:
            click.echo(text, nl=False)
        else:
            write_text(output.path, text)
    elif output.form == "csv":
        output.write_table("", _rows(report))
    else:
        output.write_table(_summary(report), _condensed(report))


def _rows(report: LeanReport) -> pd.DataFrame:
    import pandas as pd

    from gonio.theorems.lean import LeanEntry

    rows = [
        {key: _cell(value) for key, value in entry.model_dump().items()}
        for entry in report.declarations
    ]
    return pd.DataFrame(rows, columns=list(LeanEntry.model_fields))


def _cell(value: object) -> object:
    return "; ".join(value) if isinstance(value, tuple) else value


def _summary(report: LeanReport) -> str:
    """What was read, how, with which counts, and what that cannot see."""
    way = "by text alone" if report.method == "text" else "by lake build and #print axioms"
    counts = [f"{word.replace('_', ' ')} {count}" for word, count in report.counts.items()]
    lines = [f"Read {way}: files {len(report.source_files)}, {', '.join(counts)}."]
    lines += [f"Found: {finding}" for finding in report.findings]
    lines += [f"Not seen: {'; '.join(report.unseen)}."]
    return "\n".join(textwrap.fill(line, _WIDTH, subsequent_indent="  ") for line in lines) + "\n"


def _condensed(report: LeanReport) -> pd.DataFrame:
    """Theorems and the definitions with holes, under the file they stand in."""
    import pandas as pd

    shown = [*report.theorems, *(e for e in report.definitions if e.status == "sorry")]
    rows: list[tuple[str, str, str, str]] = []
    for file in report.source_files:
        here = sorted((e for e in shown if e.file == file), key=lambda entry: entry.line)
        if here:
            rows.append((_fold(file), "", "", ""))
            rows += [(_fold(f"  {e.name}"), e.kind, e.status, str(e.line)) for e in here]
    return pd.DataFrame(rows, columns=["name", "kind", "status", "line"])


def _fold(text: str) -> str:
    """Break what is too long for its column, so that no name is cut short."""
    return "\n".join(text[i : i + _NAME_WIDTH] for i in range(0, len(text), _NAME_WIDTH))
