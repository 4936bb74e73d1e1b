"""``gonio adapter sweep``: how performance depends on the rank, and which rank is enough."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gonio.cli.output import Output, output_options, plot_option, progress_bar

if TYPE_CHECKING:
    import pandas as pd

    from gonio.records import Measurement

__all__ = ["sweep"]

_TRAINING_ONLY = ("seeds", "preset", "recipe_file", "keep_scaling", "steps", "learning_rate")
_TRUNCATION_ONLY = ("data_seed",)


@click.command("sweep")
@click.argument("model")
@click.option(
    "--truncate",
    "adapter",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Truncate this trained adapter.",
)
@click.option("--train", "kind", type=click.Choice(["dpo", "clm"]), help="Train at every rank.")
@click.option(
    "--rank",
    "ranks",
    type=click.IntRange(min=1),
    multiple=True,
    required=True,
    help="Give several times.",
)
@click.option(
    "--metric",
    type=click.Choice(["margin", "response-loss", "text-loss"]),
    default="margin",
    show_default=True,
    help="Of held-out pairs, of their chosen responses, or of a text.",
)
@click.option("--data", default="bundled", show_default=True, help="Pairs, as for training.")
@click.option("--held-out", type=click.IntRange(min=2), default=32, show_default=True)
@click.option("--max-length", type=click.IntRange(min=2), help="Tokens per sequence.")
@click.option("--text", default="docstrings", show_default=True, help="Text of text-loss.")
@click.option("--tokens", type=click.IntRange(min=4), default=4096, show_default=True)
@click.option("--window", type=click.IntRange(min=2), default=256, show_default=True)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.05,
    show_default=True,
    help="Share of the best gain that the recommended rank may give up.",
)
@click.option(
    "--seed", "seeds", type=int, multiple=True, help="Training seeds; give several times."
)
@click.option("--data-seed", type=int, help="Seed of the split of the pairs, with --truncate.")
@click.option("--preset", help="Recipe to start from, with --train [small].")
@click.option(
    "--recipe",
    "recipe_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="TOML file of settings, instead of a preset.",
)
@click.option("--steps", type=int, help="Optimizer steps.")
@click.option("--lr", "learning_rate", type=float, help="Peak learning rate.")
@click.option("--keep-scaling", is_flag=True, default=None, help="Let alpha grow with the rank.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the runs; needed to train.")
@output_options
@plot_option
def sweep(
    model: str,
    adapter: Path | None,
    kind: Any,
    output: Output,
    **options: Any,
) -> None:
    """Performance of MODEL with adapters of several ranks, and the smallest that is enough.

    --truncate cuts one trained adapter to every rank, exactly, beside the error its spectrum
    predicts. --train trains a recipe at every rank and seed; run it again with the same --out to
    go on after an interruption. Both fit a + c / log r (no value at r = 1, which it leaves out),
    a + c r^-b and a + c exp(-r / s), say whether the data can tell them apart, and recommend the
    smallest rank within a tolerance of the best.

    \b
    Example:
      gonio adapter sweep smollm2-135m --truncate runs/dpo --rank 1 --rank 4
      gonio adapter sweep MODEL --train dpo --rank 2 --rank 8 --out runs/sweep
    """
    if (adapter is None) == (kind is None):
        raise click.UsageError("give one of --truncate FOLDER and --train dpo or clm")
    foreign = _TRAINING_ONLY if kind is None else _TRUNCATION_ONLY
    given = [name for name in foreign if options.pop(name) not in (None, ())]
    if given:
        raise click.UsageError(
            f"{', '.join(given)}: only with {'--train' if kind is None else '--truncate'}"
        )
    with progress_bar("reading") as progress:
        if adapter is not None:
            from gonio.pipelines.adapter_sweep import truncate_sweep

            found = truncate_sweep(model, adapter, progress=progress, **options)
        else:
            found = _train(kind, model, progress, **options)
    output.write(found, [("By rank", _ranks_view(found)), ("Curves", _curves_view(found))])


def _train(
    kind: Any,
    model: str,
    progress: Any,
    *,
    seeds: tuple[int, ...],
    preset: str | None,
    recipe_file: Path | None,
    steps: int | None,
    learning_rate: float | None,
    max_length: int | None,
    keep_scaling: bool | None,
    out: Path | None,
    **options: Any,
) -> Measurement:
    from gonio.pipelines.sweep_training import train_sweep
    from gonio.training.recipes import preset_recipe, read_recipe

    if out is None:
        raise click.UsageError("--train needs --out FOLDER for its runs")
    changes = {"steps": steps, "learning_rate": learning_rate, "max_length": max_length}
    if recipe_file is not None:
        recipe: Any = read_recipe(kind, recipe_file, **changes)
    else:
        recipe = preset_recipe(kind, preset or "small", **changes)
    return train_sweep(
        *(kind, model, options.pop("data"), recipe, options.pop("ranks"), out),
        seeds=seeds or (recipe.seed,),
        keep_scaling=bool(keep_scaling),
        progress=progress,
        **options,
    )


def _ranks_view(found: Measurement) -> pd.DataFrame:
    table = found.tables["ranks"]
    names = {
        "rank": "rank",
        "value": str(found.record.settings["metric"]),
        "gain": "gain",
        "gain_low": "95% low",
        "gain_high": "high",
        "chosen_share": "chosen",
        "relative_error": "error",
        "parameters": "parameters",
    }
    return table[[name for name in names if name in table]].rename(columns=names)


def _curves_view(found: Measurement) -> pd.DataFrame:
    table = found.tables["curves"]
    names = {
        "formula": "curve",
        "limit": "a",
        "limit_low": "95% low",
        "limit_high": "high",
        "shape": "b or s",
        "aicc": "AICc",
        "left_out_error": "left-out error",
    }
    return table[[name for name in names if name in table]].rename(columns=names)
