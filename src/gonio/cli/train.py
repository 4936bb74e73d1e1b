"""``gonio train``: train LoRA adapters or biases, and evaluate what that did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gonio.cli.output import Output, output_options, plot_option, progress_bar
from gonio.cli.train_variants import variant_options, variants

if TYPE_CHECKING:
    import pandas as pd

    from gonio.training import TrainingKind

__all__ = ["train"]

_SHOWN_STEPS = 10


@click.group()
def train() -> None:
    """Train LoRA adapters with DPO or causal language modeling, or biases with DPO.

    The result is a PEFT folder (safetensors) with its log and recipe; it is whole or absent,
    also when the run is interrupted. Needs the extra: pip install 'gonio[train]'.

    \b
    Example:
      gonio train dpo smollm2-135m --data bundled --out runs/dpo
      gonio train evaluate smollm2-135m runs/dpo --data bundled
      accelerate launch -m gonio train dpo MODEL --data pairs.jsonl --out runs/dpo
    """


_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Model, data, folder and the settings of every recipe; what is not given is the preset's."""
    options: list[_Decorator] = [
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
        click.option(
            "--recipe",
            "recipe_file",
            type=click.Path(path_type=Path, dir_okay=False),
            help="TOML file of settings, instead of a preset; options replace its settings.",
        ),
        click.option("--steps", type=int, help="Optimizer steps."),
        click.option("--batch-size", type=int, help="Pairs per step."),
        click.option("--max-length", type=int, help="Tokens per sequence."),
        click.option("--lr", "learning_rate", type=float, help="Peak learning rate."),
        click.option("--warmup-steps", type=int, help="Steps of linear warm-up."),
        click.option("--schedule", help="constant, linear or cosine."),
        click.option("--gradient-accumulation", type=int, help="Batches per step."),
        click.option("--samples", type=int, help="Training pairs drawn from the data."),
        click.option("--precision", help="auto, fp32, bf16 or fp16."),
        click.option(
            "--gradient-checkpointing", is_flag=True, default=None, help="Less memory, slower."
        ),
        click.option(
            "--report-to", multiple=True, help="Tracker, for example tensorboard; repeatable."
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
        plot_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _lora_options(command: Callable[..., Any]) -> Callable[..., Any]:
    options: list[_Decorator] = [
        click.option("--r", type=int, help="Rank of the update."),
        click.option("--alpha", "lora_alpha", type=float, help="LoRA alpha."),
        click.option("--rslora", "use_rslora", is_flag=True, default=None, help="Use rsLoRA."),
        click.option(
            "--targets",
            "target_modules",
            help="Module names with commas between, or all-linear.",
        ),
        click.option("--dropout", type=float, help="Dropout on the input of the adapter."),
        click.option(
            "--init",
            help="Start of the factors: kaiming, gaussian, zero-a, orthogonal, mica, pissa, "
            "pissa_niter_4 or olora.",
        ),
        click.option(
            "--spectrum-every",
            type=click.IntRange(min=1),
            help="Steps between measurements of the update's geometry.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


_BETA = click.option("--beta", type=float, help="Pull towards the base model.")


@train.command("dpo")
@_training_options
@_lora_options
@_BETA
@variant_options
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
@_lora_options
@variant_options
def clm(output: Output, overwrite: bool, **options: Any) -> None:
    """Imitate the chosen responses: causal language modeling, prompts not scored.

    \b
    Example:
      gonio train clm smollm2-135m --data bundled --out runs/clm
      gonio train clm smollm2-135m --data notes.txt --out runs/clm
      gonio train clm smollm2-135m --data bundled --out s --variant stacked
    """
    _run("clm", output, overwrite, **options)


@train.command("bitfit")
@_training_options
@_BETA
def bitfit(output: Output, overwrite: bool, **options: Any) -> None:
    """Prefer the chosen responses by changing biases alone, every weight frozen.

    Refused for models without biases, such as Llama.

    \b
    Example:
      gonio train bitfit EleutherAI/pythia-70m --data pairs.jsonl --out runs/b
    """
    _run("bitfit", output, overwrite, **options)


@train.command("evaluate")
@click.argument("model")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--data", required=True, metavar="DATA", help="As for training.")
@click.option("--held-out", type=click.IntRange(min=2), default=64, show_default=True)
@click.option("--max-length", type=click.IntRange(min=2), help="The recipe's unless given.")
@click.option("--beta", type=float, help="The recipe's unless given.")
@click.option("--seed", type=int, help="Of the split; the recipe's unless given.")
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option(
    "--keep",
    "parts",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Parquet file of finished pairs: run again to go on after an interruption.",
)
@output_options
def evaluate(model: str, folder: Path, output: Output, overwrite: bool, **options: Any) -> None:
    """Evaluate what training wrote to FOLDER against MODEL on held-out pairs.

    Reward margin, preference accuracy, divergence from the base model over the whole vocabulary
    (nats per token, both directions) and, apart from it, the log-ratio of the responses.

    \b
    Example:
      gonio train evaluate smollm2-135m runs/dpo --data bundled
      gonio train evaluate smollm2-135m runs/dpo --data pairs.jsonl --keep p
    """
    from gonio.pipelines.train_evaluate import evaluate_training

    with progress_bar("loading the model") as progress:
        found = evaluate_training(model, folder, progress=progress, **options)
    columns = ["pair", "chosen_tokens", "margin", "chosen_kl_to_base", "rejected_kl_to_base"]
    shown = found.tables["pairs"][columns].head(_SHOWN_STEPS)
    output.write(found, [("Pairs, the first ones", shown)])


train.add_command(variants)


def _run(
    kind: TrainingKind,
    output: Output,
    overwrite: bool,
    *,
    model: str,
    data: str,
    out: Path,
    preset: str,
    recipe_file: Path | None,
    held_out: int,
    device: str,
    report_to: tuple[str, ...],
    target_modules: str | None = None,
    spectrum_every: int | None = None,
    **settings: Any,
) -> None:
    from gonio.training.recipes import parse_targets, preset_recipe, read_recipe

    settings["report_to"] = report_to or None
    if target_modules is not None:
        settings["target_modules"] = parse_targets(target_modules)
    if recipe_file is not None:
        recipe = read_recipe(kind, recipe_file, **settings)
    else:
        recipe = preset_recipe(kind, preset, **settings)
    from gonio.pipelines.training import train_adapter
    from gonio.training.backend import is_main_process

    with progress_bar("preparing") as progress:
        found = train_adapter(
            kind,
            model,
            data,
            recipe,
            out,
            held_out=held_out,
            device=device,
            spectrum_every=spectrum_every,
            overwrite=overwrite,
            progress=progress,
        )
    if is_main_process():
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
