"""``gonio weights``: weight matrices under one bit, and models with rotated weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gonio.cli.output import Output, output_options, plot_option, progress_bar

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["weights"]

_SEED = click.option("--seed", default=0, show_default=True, help="Seed of everything random.")


@click.group()
def weights() -> None:
    """Measure weight matrices under one bit, and rotate them.

    The vectors are the rows of a matrix: one of dimension in_features per output.

    \b
    Example:
      gonio weights measure smollm2-135m --layers 0,15,29
      gonio weights rotate smollm2-135m --out smollm2-rotated
    """


@weights.command("measure")
@click.argument("model")
@click.option("--layers", help="Layers to measure, such as 0,4-7; all unless given.")
@click.option(
    "--vectors",
    type=click.Choice(["rows", "columns"]),
    default="rows",
    show_default=True,
    help="What gets one scale: rows or columns.",
)
@click.option(
    "--share",
    type=click.Choice(["matrix", "input"]),
    default="matrix",
    show_default=True,
    help="One learned rotation per matrix, or per input.",
)
@click.option(
    "--max-dim",
    type=click.IntRange(min=0),
    default=1024,
    show_default=True,
    help="Leave out O(n^3) work above this n.",
)
@click.option(
    "--iterations",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Steps of the learned rotation.",
)
@click.option(
    "--rank",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Rank of the residual correction.",
)
@_SEED
@output_options
@plot_option
def measure(
    model: str,
    layers: str | None,
    vectors: Any,
    share: Any,
    max_dim: int,
    iterations: int,
    rank: int,
    seed: int,
    output: Output,
) -> None:
    """1-bit cosine, beta and stored bits of MODEL's projection matrices.

    cosine: mean over rows of the cosine with their signs. beta: share of the energy that the
    code keeps. Each under no, random, Hadamard and learned rotation, two centers, and signs plus
    a low-rank correction. A learned rotation is fitted on half of the rows and judged on the
    others; the column fitted is the cosine on its own half, and null that of random rows. Models
    with experts get a second table: each expert's own rotation against a shared one.

    \b
    Example:
      gonio weights measure smollm2-135m --layers 0,15,29
      gonio weights measure smollm2-135m --max-dim 0 --csv > weights.csv
    """
    from gonio.pipelines.weights import measure_weights
    from gonio.weights import SignSettings

    settings = SignSettings(iterations=iterations, rank=rank, max_dim=max_dim, seed=seed)
    wanted = _parse_layers(layers)
    with progress_bar("reading the weights") as progress:
        found = measure_weights(
            model, settings, layers=wanted, vectors=vectors, share=share, progress=progress
        )
    tables = _projection_views(found.tables["projections"])
    if "experts" in found.tables:
        tables += _expert_views(found.tables["experts"])
    if len(found.tables["left_out"]):
        tables.append(("Left out, and why", _reasons_view(found.tables["left_out"])))
    output.write(found, tables, main_table="matrices")


@weights.command("rotate")
@click.argument("model")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder to write, a transformers model.",
)
@click.option(
    "--rotation",
    type=click.Choice(["hadamard", "haar", "learned"]),
    default="hadamard",
    show_default=True,
)
@click.option(
    "--iterations",
    type=click.IntRange(min=1),
    default=30,
    show_default=True,
    help="Steps of the learned rotation.",
)
@_SEED
@output_options
def rotate(
    model: str,
    out: Path,
    rotation: Any,
    iterations: int,
    seed: int,
    output: Output,
    overwrite: bool,
) -> None:
    """Write MODEL with its residual stream rotated; it computes the same.

    Norm gains are folded into the matrices that read them, tied embeddings are untied, and the
    logits of the folder as read back are compared with the original's: where they differ,
    nothing is written. For RMS-norm decoders; others are refused by name.

    \b
    Example:
      gonio weights rotate smollm2-135m --out smollm2-rotated
      gonio weights rotate smollm2-135m --out turned --rotation learned
    """
    from gonio.pipelines.weight_rotation import rotate_weights

    with progress_bar("loading the model") as progress:
        found = rotate_weights(
            model,
            out,
            rotation=rotation,
            iterations=iterations,
            seed=seed,
            overwrite=overwrite,
            progress=progress,
        )
    click.echo(f"wrote {out}", err=True)
    output.write(found, [("Mean 1-bit cosine", _stages_view(found.tables["matrices"]))])


def _parse_layers(text: str | None) -> list[int] | None:
    """``0,4-7`` as [0, 4, 5, 6, 7]."""
    if text is None:
        return None
    layers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise click.BadParameter(f"{text!r} is not a list such as 0,4-7", param_hint="--layers")
        layers.update(range(int(first), int(last or first) + 1))
    if not layers:
        raise click.BadParameter(f"{text!r} names no layer", param_hint="--layers")
    return sorted(layers)


def _projection_views(means: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    names = {
        "choice": "choice",
        "cosine": "cosine",
        "cosine_chance": "chance",
        "beta": "beta",
        "beta_chance": "by chance",
        "cosine_train": "fitted",
        "cosine_train_chance": "null",
        "bits_per_weight": "bits",
    }
    views = []
    for projection, group in means.groupby("projection", sort=False):
        count = int(group["matrices"].max())
        view = group[list(names)].rename(columns=names)
        view["choice"] = view["choice"].str.replace("_", " ")
        views.append((f"{projection}, mean of {count} matrices", view))
    return views


def _expert_views(experts: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Own against shared rotations by projection: on held-out rows, then on the fitted ones."""
    held_out = {
        "beta_own": "own",
        "beta_shared": "shared",
        "beta_others": "others",
        "gap": "gap",
        "null_gap": "null gap",
    }
    fitted = {"gap_train": "gap", "null_gap_train": "null gap"}
    views = []
    for title, columns in (
        ("Own against shared rotation of experts, beta of held-out rows", held_out),
        ("The same on the rows the rotations were fitted on", fitted),
    ):
        means = experts.groupby("projection", sort=False)[list(columns)].mean()
        views.append((title, means.rename(columns=columns).reset_index()))
    return views


def _reasons_view(left_out: pd.DataFrame) -> pd.DataFrame:
    """Reasons and how many tensors or choices they concern; the record names each."""
    return left_out.groupby("reason", sort=False).size().rename("count").reset_index()


def _stages_view(matrices: pd.DataFrame) -> pd.DataFrame:
    columns = [f"cosine_{stage}" for stage in ("stored", "folded", "rotated", "chance")]
    means = matrices.groupby(["projection", "side"], sort=False)[columns].mean()
    return means.rename(columns=lambda name: name.removeprefix("cosine_")).reset_index()
