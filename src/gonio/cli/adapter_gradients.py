"""``gonio adapter dynamics``: gradients of LoRA factors by rank and scaling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gonio.cli.output import Output, output_options, progress_bar

__all__ = ["dynamics"]


@click.command("dynamics")
@click.argument("model")
@click.option(
    "--data",
    required=True,
    metavar="DATA",
    help="'bundled', a text file or folder, a .jsonl file of pairs, or a hub data set.",
)
@click.option(
    "--kind", type=click.Choice(["dpo", "clm"]), default="clm", show_default=True, help="Of loss."
)
@click.option(
    "--rank",
    "ranks",
    type=click.IntRange(min=1),
    multiple=True,
    default=(1, 4, 16, 64),
    show_default=True,
    help="May be given several times.",
)
@click.option("--steps", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--preset", default="small", show_default=True, help="Recipe to start from.")
@click.option(
    "--recipe",
    "recipe_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="TOML file of settings, instead of a preset.",
)
@click.option("--alpha", "lora_alpha", type=float, help="LoRA alpha, the same at every rank.")
@click.option("--lr", "learning_rate", type=float, help="Peak learning rate.")
@click.option("--batch-size", type=int, help="Pairs per step.")
@click.option("--max-length", type=int, help="Tokens per sequence.")
@click.option("--seed", type=int, help="Seed of data, initialization and order.")
@output_options
def dynamics(
    model: str,
    data: str,
    kind: Any,
    ranks: tuple[int, ...],
    preset: str,
    recipe_file: Path | None,
    output: Output,
    **settings: Any,
) -> None:
    """Gradients of both factors and growth of the update in MODEL, by rank and scaling.

    Trains a few steps at every rank under alpha / r and alpha / sqrt(r) and keeps nothing. At the
    start B = 0, so the gradient of A is exactly zero and that of B is scaling G A^T; by step,
    B^T grad_B = grad_A A^T holds up to rounding (imbalance). Exponents are powers of r.

    \b
    Example:
      gonio adapter dynamics smollm2-135m --data bundled --steps 3
      gonio adapter dynamics smollm2-135m --data bundled --rank 2 --rank 32
    """
    from gonio.pipelines.gradient_dynamics import gradient_dynamics
    from gonio.training.recipes import preset_recipe, read_recipe

    if recipe_file is not None:
        recipe: Any = read_recipe(kind, recipe_file, **settings)
    else:
        recipe = preset_recipe(kind, preset, **settings)
    with progress_bar("loading the model") as progress:
        found = gradient_dynamics(model, data, recipe, ranks, progress=progress)
    names = {
        "scaling_rule": "rule",
        "rank": "rank",
        "scaling": "scaling",
        "gradient_b_at_start": "grad B, start",
        "descent_norm_at_start": "descent",
        "update_norm_first_step": "update, step 1",
        "update_norm": "last",
    }
    view = found.tables["growth"][list(names)].rename(columns=names)
    output.write(found, [("Norms over all modules", view)])
