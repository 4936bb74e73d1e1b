"""``gonio train``: train LoRA adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gonio.cli.output import Output, output_options, progress_bar

if TYPE_CHECKING:
    import pandas as pd

    from gonio.training import TrainingKind

__all__ = ["train"]

_SHOWN_STEPS = 10


@click.group()
def train() -> None:
    """Train LoRA adapters with DPO or causal language modeling.

    The result is a PEFT folder (safetensors) with its log and recipe; it is whole or absent,
    also when the run is interrupted. Needs the extra: pip install 'gonio[train]'.

    \b
    Example:
      gonio train dpo smollm2-135m --data bundled --out runs/dpo
      gonio train clm smollm2-135m --data bundled --out runs/clm
    """


def _training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Model, data, folder and the settings of a recipe; an option not given keeps the preset's."""
    options: list[Callable[[Callable[..., Any]], Callable[..., Any]]] = [
        click.argument("model"),
        click.option(
            "--data",
            required=True,
            metavar="DATA",
            help="'bundled', a text file or folder, a .jsonl file of prompt, chosen and rejected, "
            "or a hub data set.",
        ),
        click.option(
            "--out", required=True, type=click.Path(path_type=Path), help="Folder to create."
        ),
        click.option("--preset", default="small", show_default=True, help="Recipe to start from."),
        click.option("--steps", type=int, help="Optimizer steps."),
        click.option("--batch-size", type=int, help="Pairs per step."),
        click.option("--max-length", type=int, help="Tokens per sequence."),
        click.option("--lr", "learning_rate", type=float, help="Peak learning rate."),
        click.option("--r", type=int, help="Rank of the update."),
        click.option("--alpha", "lora_alpha", type=float, help="LoRA alpha."),
        click.option("--rslora", "use_rslora", is_flag=True, default=None, help="Use rsLoRA."),
        click.option(
            "--targets",
            "target_modules",
            help="Module names with commas between, or all-linear.",
        ),
        click.option("--seed", type=int, help="Seed of data, initialization and order."),
        click.option(
            "--held-out",
            type=click.IntRange(min=2),
            default=16,
            show_default=True,
            help="Pairs kept for the evaluation.",
        ),
        click.option("--device", default="cpu", show_default=True, help="Where to train."),
        output_options,
    ]
    for option in reversed(options):
        command = option(command)
    return command


@train.command("dpo")
@_training_options
@click.option("--beta", type=float, help="Pull towards the base model.")
def dpo(output: Output, overwrite: bool, **options: Any) -> None:
    """Prefer the chosen responses: direct preference optimization.

    From a text, the chosen response is the true continuation of a passage and the rejected one a
    continuation from elsewhere in the text.

    \b
    Example:
      gonio train dpo smollm2-135m --data bundled --out runs/dpo
      gonio train dpo smollm2-135m --data pairs.jsonl --out runs/dpo --r 8
    """
    _run("dpo", output, overwrite, **options)


@train.command("clm")
@_training_options
def clm(output: Output, overwrite: bool, **options: Any) -> None:
    """Imitate the chosen responses: causal language modeling, prompts not scored.

    \b
    Example:
      gonio train clm smollm2-135m --data bundled --out runs/clm
      gonio train clm smollm2-135m --data notes.txt --out runs/clm
    """
    _run("clm", output, overwrite, **options)


def _run(
    kind: TrainingKind,
    output: Output,
    overwrite: bool,
    *,
    model: str,
    data: str,
    out: Path,
    preset: str,
    held_out: int,
    device: str,
    target_modules: str | None,
    **settings: Any,
) -> None:
    from gonio.training.recipes import parse_targets, preset_recipe

    targets = None if target_modules is None else parse_targets(target_modules)
    recipe = preset_recipe(kind, preset, target_modules=targets, **settings)
    from gonio.pipelines.training import train_adapter

    with progress_bar("preparing") as progress:
        found = train_adapter(
            kind,
            model,
            data,
            recipe,
            out,
            held_out=held_out,
            device=device,
            overwrite=overwrite,
            progress=progress,
        )
    output.write(found, [("Training log", _log_view(found.tables["log"]))])


def _log_view(log: pd.DataFrame) -> pd.DataFrame:
    """At most ten steps, first and last among them, in columns that fit 80 characters."""
    last = len(log) - 1
    count = min(_SHOWN_STEPS, len(log))
    rows = sorted({round(index * last / max(1, count - 1)) for index in range(count)})
    names = {
        "step": "step",
        "loss": "loss",
        "reward_margin": "margin",
        "preference_accuracy": "accuracy",
        "token_accuracy": "token_accuracy",
        "grad_norm": "grad_norm",
        "learning_rate": "learning_rate",
    }
    return log.iloc[rows][[name for name in names if name in log]].rename(columns=names)
