"""Options of ``gonio train dpo | clm`` for variants of LoRA, and ``gonio train variants``."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gonio.cli.output import Output, output_options, progress_bar

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["variant_options", "variants"]

_OPTIONS = {
    "stages": (int, "stacked: pairs of factors, one after the other."),
    "density": (float, "sparse: share of each factor's entries kept at the end."),
    "threshold": (float, "dynamic: singular values up to this share of the largest go."),
    "relative_to": (str, "dynamic: the largest of the module or of the model."),
    "every": (int, "sparse, dynamic: steps between prunings or truncations."),
    "start_rank": (int, "adalora: rank at the start; --r is the mean at the end."),
    "scale_learning_rate": (float, "scaled: learning rate of the numbers."),
}


def variant_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--variant`` and the settings of variants; the command receives ``variant``."""

    @wraps(command)
    def wrapper(*args: Any, variant: str | None, overwrite: bool, **options: Any) -> Any:
        given = {name: options.pop(name) for name in _OPTIONS}
        given = {name: value for name, value in given.items() if value is not None}
        if given and variant is None:
            name = next(iter(given)).replace("_", "-")
            raise click.UsageError(f"--{name} needs --variant")
        chosen = None if variant is None else {"name": variant, **given}
        return command(*args, variant=chosen, overwrite=overwrite, **options)

    for name, (kind, text) in reversed(_OPTIONS.items()):
        wrapper = click.option(f"--{name.replace('_', '-')}", name, type=kind, help=text)(wrapper)
    return click.option(
        "--variant",
        type=click.Choice(["stacked", "sparse", "dynamic", "adalora", "scaled"]),
        help="Another way to train the factors; the folder is a plain LoRA.",
    )(wrapper)


@click.command("variants")
@click.argument("model")
@click.option("--data", required=True, metavar="DATA", help="As for training.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="One folder each.")
@click.option("--only", multiple=True, help="A variant to train; repeatable, all unless given.")
@click.option("--preset", default="small", show_default=True, help="Recipe to start from.")
@click.option("--steps", type=click.IntRange(min=2), help="Optimizer steps.")
@click.option("--r", type=click.IntRange(min=1), help="Rank.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Examples per step.")
@click.option("--max-length", type=click.IntRange(min=2), help="Tokens per sequence.")
@click.option("--seed", type=int, help="Seed of data, initialization and order.")
@click.option("--held-out", type=click.IntRange(min=2), default=16, show_default=True)
@output_options
def variants(
    model: str,
    data: str,
    out: Path,
    only: tuple[str, ...],
    preset: str,
    held_out: int,
    output: Output,
    overwrite: bool,
    **settings: Any,
) -> None:
    """Train MODEL with every variant from one recipe, and compare them.

    The same data, seed and steps for all: the loss on held-out responses before and after, the
    ranks, what is stored, and the time. A folder that is there is not trained again.

    \b
    Example:
      gonio train variants smollm2-135m --data bundled --out runs/variants
      gonio train variants smollm2-135m --data bundled --out v --only stacked
    """
    from gonio.pipelines.train_variants import compare_variants
    from gonio.training.recipes import preset_recipe

    recipe = preset_recipe("clm", preset, **settings)
    with progress_bar("loading the model") as progress:
        found = compare_variants(
            model,
            data,
            recipe,
            out,
            only=only,
            held_out=held_out,
            overwrite=overwrite,
            progress=progress,
        )
    output.write(found, [("Variants", _view(found.tables["variants"]))])


def _view(table: pd.DataFrame) -> pd.DataFrame:
    columns = ["variant", "loss_before", "loss_after", "mean_rank", "factor_bytes", "cpu_seconds"]
    return table[columns]
