"""``gonio theorem``: the statements the numbers rest on, and their executable checks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gonio.cli.output import Output, output_options, plot_option, progress_bar, refuse_existing
from gonio.cli.theorem_lean import lean
from gonio.cli.theorem_status import counts, status

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["theorem"]

_family_option = click.option(
    "--family", metavar="LETTER", help="Only the statements of one family (A to J)."
)


@click.group()
def theorem() -> None:
    """List, show and check the statements the numbers rest on.

    \b
    Example:
      gonio theorem list --family A
      gonio theorem show stableRank_le_rank
      gonio theorem check --examples 200
      gonio theorem status
      gonio theorem errata
    """


@theorem.command("list")
@_family_option
@click.option("--status", metavar="WORD", help="Only statements of this status (proved, open ...).")
@click.option("--source", metavar="NAME", help="Only statements of this source (moe-gauge ...).")
@output_options
def list_theorems(
    family: str | None, status: str | None, source: str | None, output: Output
) -> None:
    """Every statement, with the status its locked proof supports, and how many there are.

    \b
    Example:
      gonio theorem list
      gonio theorem list --family C --source moe-gauge
      gonio theorem list --status refuted
    """
    from gonio.theorems.tables import summarize, theorem_table

    table = theorem_table(family, status, source)
    if output.form == "text":  # the longest names leave no room for longer headings
        table = table.rename(columns={"source_status": "source says"})
    columns = ["name", "family", "status", "source says"]
    note = "status from the proofs alone; `gonio theorem check` runs the checks"
    output.write_table(f"{summarize(table)}\n{note}", table, columns)


@theorem.command("show")
@click.argument("name")
@output_options
def show(name: str, output: Output) -> None:
    """One statement: what it says, what was wrong with it, its proof and its uses.

    \b
    Example:
      gonio theorem show srht_achieves_isotropic_floor
    """
    from gonio.theorems.tables import theorem_card

    output.write_table(name, theorem_card(name))


@theorem.command("check")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@_family_option
@click.option("--examples", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@output_options
@plot_option
@click.pass_context
def check(
    ctx: click.Context,
    names: tuple[str, ...],
    family: str | None,
    examples: int,
    seed: int,
    output: Output,
) -> None:
    """Look for counterexamples to the statements called NAME, or to all of them.

    The worst margin is dimensionless: below 0 the statement is broken, 0 is an inequality that
    was attained, 1 an equality met exactly. Every check must also reject a slightly wrong
    statement, its mutant. Exits with 1 if a check fails.

    \b
    Example:
      gonio theorem check
      gonio theorem check zero_init --examples 1000
      gonio theorem check --family B --json
    """
    from gonio.pipelines.theorems import check_theorems

    with progress_bar("checking statements") as progress:
        measurement = check_theorems(names, family, examples=examples, seed=seed, progress=progress)
    table = measurement.tables["checks"]
    output.write(
        measurement,
        [
            ("Checks", table[["name", "status", "examples", "worst_margin"]]),
            ("What was tried", table[["name", "tried"]]),
        ],
    )
    if _report_failures(table):
        ctx.exit(1)


@theorem.command("errata")
@click.option(
    "--output",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write to FILE instead of standard output.",
    metavar="FILE",
)
@click.option("--force", "overwrite", is_flag=True, help="Replace files that exist.")
def errata(path: Path | None, overwrite: bool) -> None:
    """Where the sources are wrong, vacuous or ambiguous, and what holds instead, as Markdown.

    \b
    Example:
      gonio theorem errata --output docs/errata.md --force
    """
    from gonio.files import write_text
    from gonio.theorems.errata import errata_page

    refuse_existing(path, overwrite)
    if path is None:
        click.echo(errata_page(), nl=False)
    else:
        write_text(path, errata_page())


def _report_failures(table: pd.DataFrame) -> bool:
    """Print what broke to standard error; whether anything did."""
    failed = table[table["status"] == "failed"]
    for row in failed.to_dict("records"):
        if row["passed"] is False:
            problem = f"smallest counterexample: {row['counterexample']}"
        elif row["mutant_rejected"] is False:
            problem = f"the check cannot tell it from a wrong statement: {row['mutant']}"
        else:
            problem = "its proof is unsound"
        click.echo(f"{row['name']} failed\n  {problem}", err=True)
    return not failed.empty


for command in (counts, lean, status):
    theorem.add_command(command)
