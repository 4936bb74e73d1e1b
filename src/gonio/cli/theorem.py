"""``gonio theorem``: the statements the numbers rest on, and their executable checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gonio.cli.output import Output, output_options, progress_bar

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
    """


@theorem.command("list")
@_family_option
@output_options
def list_theorems(family: str | None, output: Output) -> None:
    """Every statement, with the status its locked proof supports.

    \b
    Example:
      gonio theorem list
    """
    from gonio.theorems.tables import theorem_table

    columns = ["name", "family", "status", "source_status"]
    output.write_table(
        "Statements; status from the proofs alone (`gonio theorem check` runs the checks)",
        theorem_table(family),
        columns,
    )


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
