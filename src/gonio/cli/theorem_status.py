"""``gonio theorem status`` and ``counts``: what is proved, by whom, resting on what."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from gonio.cli.output import Output, output_options, progress_bar, refuse_existing

if TYPE_CHECKING:
    import pandas as pd

    from gonio.pipelines.theorem_status import ProofMode
    from gonio.theorems.status_file import TheoremStatusFile

__all__ = ["counts", "status"]


@click.command("status")
@click.option(
    "--rocq",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="FOLDER",
    help="The Rocq project; `rocq` where gonio stands, if it is there.",
)
@click.option(
    "--proofs",
    "mode",
    type=click.Choice(["auto", "compile", "lock"]),
    default="auto",
    show_default=True,
    help="Ask the prover, or believe the lock; auto asks where there is a prover.",
)
@click.option("--coqchk", is_flag=True, help="Also recheck the compiled library with coqchk.")
@click.option("--no-checks", is_flag=True, help="Leave the executable checks out.")
@click.option("--examples", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--url-base", metavar="URL", help="Address of FOLDER on the web, for links to lines.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("theorem-status.json"),
    show_default=True,
    metavar="FILE",
    help="The status file to write.",
)
@click.option("--schema", is_flag=True, help="Print the JSON schema of the status file and stop.")
@click.option(
    "--write-lock",
    is_flag=True,
    help="First accept what compiles here as reviewed, by writing the lock again.",
)
@click.pass_context
@output_options
def status(
    ctx: click.Context,
    rocq: Path | None,
    mode: str,
    coqchk: bool,
    no_checks: bool,
    examples: int,
    seed: int,
    url_base: str | None,
    out: Path,
    schema: bool,
    write_lock: bool,
    output: Output,
    overwrite: bool,
) -> None:
    """Compile the proofs, ask the prover what each rests on, run the checks, write it all down.

    Writes FILE (--out) and prints the counts. Exits with 1 if a declaration vanished, changed its
    statement, gained an axiom or was given up since the lock was reviewed, if a proof is unsound,
    or if a check fails. Without a prover the lock is believed, and the file says so.

    \b
    Example:
      gonio theorem status
      gonio theorem status --proofs compile --coqchk --force
      gonio theorem status --proofs lock --no-checks --json
    """
    from gonio.errors import SettingError
    from gonio.files import write_text
    from gonio.pipelines.theorem_status import theorem_status
    from gonio.pipelines.theorems import CheckSettings
    from gonio.theorems import rocq as proofs
    from gonio.theorems.status_file import status_schema

    if schema:
        click.echo(status_schema())
        return
    refuse_existing(out, overwrite)
    folder = rocq or _default_project()
    if write_lock:
        if folder is None:
            raise SettingError("there is nothing to compile: name the Rocq project with --rocq")
        proofs.write_lock(folder)
    with progress_bar("asking the prover") as progress:
        found = theorem_status(
            folder,
            mode=cast("ProofMode", mode),
            with_library=coqchk,
            checks=None if no_checks else CheckSettings(examples, seed),
            url_base=url_base,
            progress=progress,
        )
    write_text(out, found.model_dump_json(indent=1) + "\n")
    _print(found, out, output)
    _report(found)
    if found.is_red:
        ctx.exit(1)


@click.command("counts")
@click.option(
    "--into",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write them between the marks of a Markdown FILE.",
)
def counts(into: Path | None) -> None:
    """How many statements have which status, by family, as the locked proofs support it.

    \b
    Example:
      gonio theorem counts
      gonio theorem counts --into README.md
    """
    from gonio.theorems.counts import counts_block, update_counts

    if into is None:
        click.echo(counts_block())
    else:
        click.echo(f"{into} " + ("was updated" if update_counts(into) else "is up to date"))


def _default_project() -> Path | None:
    """The project in the current folder, or beside the sources gonio runs from."""
    for folder in (Path("rocq"), Path(__file__).resolve().parents[3] / "rocq"):
        if (folder / "_CoqProject").is_file():
            return folder
    return None


def _print(found: TheoremStatusFile, out: Path, output: Output) -> None:
    from gonio.files import write_text

    if output.form == "json":
        text = found.model_dump_json(indent=1) + "\n"
        if output.path is None:
            click.echo(text, nl=False)
        else:
            write_text(output.path, text)
        return
    table = _table(found)
    columns = ["name", "status", "axioms", "check"]
    output.write_table(f"{_summary(found)}\nWritten to {out}\n", table, columns)


def _table(found: TheoremStatusFile) -> pd.DataFrame:
    import pandas as pd

    rows = [
        {
            "name": row.name,
            "family": row.family,
            "status": row.status,
            "axioms": "" if row.axioms is None else str(len(row.axioms)),
            "check": {True: "passed", False: "failed", None: ""}[row.check_passed],
            "kind": row.kind,
            "file": row.file,
            "line": row.line,
            "source_url": row.source_url,
            "statement": row.statement,
            "axiom_names": "; ".join(row.axioms or ()),
            "gap": row.gap,
        }
        for row in found.theorems
    ]
    return pd.DataFrame(rows)


def _summary(found: TheoremStatusFile) -> str:
    words = ", ".join(f"{n} {word}" for word, n in found.counts.items() if word != "statements")
    lines = [f"{found.counts['statements']} statements: {words}"]
    origin = found.proofs
    if origin.method == "compiled":
        lines.append(f"Proofs: compiled from {origin.digest[:12]}, judged by Rocq {origin.prover}.")
    else:
        lines.append(
            f"Proofs: read from the lock of Rocq {origin.prover}, not compiled here "
            f"(sources: {origin.sources})."
        )
    if origin.library is not None:
        library = origin.library
        lines.append(
            f"coqchk: {library.modules} modules in {library.seconds:.0f} s; "
            f"{len(library.own)} axioms of their own, {len(library.axioms)} in the libraries."
        )
    if found.checks is None:
        lines.append("Checks: not run.")
    return "\n".join(lines)


def _report(found: TheoremStatusFile) -> None:
    """Say on standard error what makes the result red."""
    for change in found.drift:
        click.echo(f"drift: {change}", err=True)
    for row in found.theorems:
        if row.status == "failed":
            reasons = [f"{p.name}: {'; '.join(p.reasons)}" for p in row.declarations if p.reasons]
            if row.check_passed is False:
                reasons.append(f"its check failed; run `gonio theorem check {row.name}`")
            click.echo(f"{row.name} failed\n  " + "\n  ".join(reasons), err=True)
    library = found.proofs.library
    for name in library.own if library else ():
        click.echo(f"coqchk: the library assumes {name}", err=True)
    if found.drift:
        click.echo("Review the change, then accept it with --write-lock.", err=True)
