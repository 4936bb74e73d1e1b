"""``gonio adapter``: measure adapters and compare them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gonio.cli.output import Output, output_options, progress_bar

if TYPE_CHECKING:
    import pandas as pd

    from gonio.records import Measurement

__all__ = ["adapter"]

_SEED = click.option(
    "--seed", default=0, show_default=True, help="Seed of the chance draws and the bootstrap."
)


@click.group()
def adapter() -> None:
    """Measure, compare, resize and merge LoRA adapters.

    Every number stands beside what chance gives. Folders are read as PEFT reads them; pickled
    weights are never opened, and the product of the factors is never formed.

    \b
    Example:
      gonio adapter inspect runs/dpo-7
      gonio adapter compare runs/dpo-7 runs/sft-7
      gonio adapter compare runs/dpo-7 --base smollm2-135m
    """


@adapter.command("inspect")
@click.argument("folder", type=click.Path(path_type=Path))
@_SEED
@output_options
def inspect(folder: Path, seed: int, output: Output) -> None:
    """Spectrum of every LoRA update in FOLDER.

    Stable rank, effective rank and the directions that hold 90% and 99% of the energy, beside
    what random factors of the same shapes give. Summaries per projection and layer; --csv and
    --json give every module.

    \b
    Example:
      gonio adapter inspect runs/dpo-7
      gonio adapter inspect runs/dpo-7 --csv > modules.csv
    """
    from gonio.pipelines.adapters import inspect_adapter

    with progress_bar("reading the adapter") as progress:
        found = inspect_adapter(folder, seed=seed, progress=progress)
    tables = [
        ("By projection (means over modules)", _spectrum_view(found.tables["projections"])),
        ("By layer (means over modules)", _spectrum_view(found.tables["layers"])),
    ]
    output.write(found, [*tables, *_footnotes(found)])


@adapter.command("compare")
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path), required=False)
@click.option("--base", metavar="MODEL", help="Base model: a bundled name, a folder or a hub id.")
@click.option(
    "-k",
    "ks",
    type=click.IntRange(min=1),
    multiple=True,
    default=(5, 10, 20),
    show_default=True,
    help="Number of top directions; may be given several times.",
)
@_SEED
@output_options
def compare(
    first: Path,
    second: Path | None,
    base: str | None,
    ks: tuple[int, ...],
    seed: int,
    output: Output,
) -> None:
    """Compare the adapter FIRST with the adapter SECOND, or with the model --base.

    Overlap of the top directions of the updates (left: outputs, right: inputs) beside the
    overlap of random subspaces. A k above the numerical rank of an update is left out. Beside a
    base model also the share of each update that no rescaling of its columns or rows explains.

    \b
    Example:
      gonio adapter compare runs/dpo-7 runs/sft-7
      gonio adapter compare runs/dpo-7 --base smollm2-135m -k 1 -k 4
    """
    from gonio.pipelines.adapters import compare_adapter_with_base, compare_two_adapters

    if (second is None) == (base is None):
        raise click.UsageError("give one of SECOND and --base MODEL")
    with progress_bar("comparing") as progress:
        if second is not None:
            found = compare_two_adapters(first, second, ks, seed=seed, progress=progress)
            adaptive = "numerical rank"
        else:
            assert base is not None
            found = compare_adapter_with_base(first, base, ks, seed=seed, progress=progress)
            adaptive = "rounded stable rank"
    title = (
        "By projection: overlap, its ratio to chance, its z-score (means over modules)\n"
        f"k with ~ is the mean of each update's own k, its {adaptive}"
    )
    view = _overlap_view(found.tables["projections"])
    output.write(found, [(title, view), *_footnotes(found)])


_OUT = click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder to create; PEFT loads it.",
)


@adapter.command("resize")
@click.argument("folder", type=click.Path(path_type=Path))
@_OUT
@click.option("--rank", type=click.IntRange(min=1), help="Largest rank of every module.")
@click.option("--energy", type=float, help="Share of each module's energy to keep.")
@click.option(
    "--parameters", type=click.IntRange(min=1), help="Parameters in all; ranks are allocated."
)
@output_options
def resize(
    folder: Path,
    out: Path,
    rank: int | None,
    energy: float | None,
    parameters: int | None,
    output: Output,
    overwrite: bool,
) -> None:
    """Shrink FOLDER's ranks after training, losing as little as can be.

    One rank for all, the energy to keep in each module, or a budget of parameters for which the
    ranks are chosen to discard the least energy in all. Prints the loss the spectrum predicts and
    the loss of the folder as read back. A rank chosen after training is not the rank that
    training would have needed.

    \b
    Example:
      gonio adapter resize runs/dpo --rank 4 --out runs/dpo-r4
      gonio adapter resize runs/dpo --energy 0.95 --out runs/dpo-e95
    """
    from gonio.pipelines.reshape import resize_adapter

    found = resize_adapter(
        folder, out, rank=rank, energy=energy, parameters=parameters, overwrite=overwrite
    )
    output.write(found, [("By projection", _reshape_view(found.tables["modules"]))])


@adapter.command("merge")
@click.argument("folders", type=click.Path(path_type=Path), nargs=-1, required=True)
@_OUT
@click.option("--weight", "weights", type=float, multiple=True, help="One per folder; default 1.")
@click.option("--rank", type=click.IntRange(min=1), help="Largest rank to keep; all by default.")
@output_options
def merge(
    folders: tuple[Path, ...],
    out: Path,
    weights: tuple[float, ...],
    rank: int | None,
    output: Output,
    overwrite: bool,
) -> None:
    """Add FOLDERS into one adapter: the exact weighted sum, or its best approximation.

    Adapters may differ in rank, scaling and target modules. Without --rank nothing is lost; with
    it, the best approximation of the sum of that rank is written.

    \b
    Example:
      gonio adapter merge runs/dpo runs/clm --out runs/both
      gonio adapter merge runs/dpo runs/clm --rank 16 --out runs/mix
    """
    from gonio.pipelines.reshape import merge_adapters

    found = merge_adapters(folders, out, weights=weights or None, rank=rank, overwrite=overwrite)
    output.write(found, [("By projection", _reshape_view(found.tables["modules"]))])


@adapter.command("rescale")
@click.argument("folder", type=click.Path(path_type=Path))
@_OUT
@click.option("--alpha", type=float, help="New lora_alpha; by default every scaling becomes 1.")
@click.option("--rslora/--no-rslora", "use_rslora", default=None, help="Scale by alpha / sqrt(r).")
@output_options
def rescale(
    folder: Path,
    out: Path,
    alpha: float | None,
    use_rslora: bool | None,
    output: Output,
    overwrite: bool,
) -> None:
    """Write FOLDER's update under another alpha, or from LoRA to rsLoRA and back.

    \b
    Example:
      gonio adapter rescale runs/dpo --rslora --alpha 16 --out runs/dpo-rs
    """
    from gonio.pipelines.reshape import rescale_adapter

    found = rescale_adapter(folder, out, alpha=alpha, use_rslora=use_rslora, overwrite=overwrite)
    output.write(found)


def _reshape_view(modules: pd.DataFrame) -> pd.DataFrame:
    """Mean ranks and the share of energy lost, per projection."""
    groups = modules.groupby("projection", sort=False)
    view = groups.agg(
        n=("module", "size"), rank_before=("rank_before", "mean"), rank_after=("rank_after", "mean")
    )
    energy = groups["energy"].sum()
    view["discarded"] = groups["discarded_energy"].sum() / energy
    view["measured"] = groups["discarded_energy_measured"].sum() / energy
    return view.reset_index()


def _spectrum_view(summary: pd.DataFrame) -> pd.DataFrame:
    """The columns that fit 80 characters, each ratio beside its chance level."""
    names = {
        "projection": "projection",
        "layer": "layer",
        "modules": "n",
        "stable_rank": "stable_rank",
        "stable_rank_chance": "chance",
        "effective_rank": "effective",
        "effective_rank_chance": "chance ",
        "k90": "k90",
        "frobenius_norm": "norm",
    }
    view = summary[[name for name in names if name in summary]].rename(columns=names)
    return _short_projections(view)


def _overlap_view(summary: pd.DataFrame) -> pd.DataFrame:
    """One row per projection and choice of k, the left and the right side beside each other."""
    import pandas as pd

    keys = ["projection", "k_from", "k"]
    sides = {}
    for side in ("left", "right"):
        part = summary[summary["side"] == side].set_index(keys)
        sides[side] = part["overlap"].map(_three_digits)
        sides[f"/chance {side[0]}"] = part["overlap_ratio"].map(_three_digits)
        sides[f"z {side[0]}"] = part["z_score"].round(1)
    view = pd.DataFrame(sides).reset_index()
    view["k"] = [
        f"{k:.0f}" if source == "fixed" else f"~{k:.3g}"
        for k, source in zip(view["k"], view["k_from"], strict=True)
    ]
    return _short_projections(view.drop(columns="k_from"))


def _short_projections(view: pd.DataFrame) -> pd.DataFrame:
    """Last components of the projections, where they still tell them apart."""
    if "projection" not in view:
        return view
    short = view["projection"].str.rpartition(".")[2]
    is_clear = short.nunique() == view["projection"].nunique()
    return view.assign(projection=short) if is_clear else view


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}")


def _footnotes(found: Measurement) -> list[tuple[str, pd.DataFrame]]:
    """What was not measured, condensed to reasons and counts."""
    notes = []
    for name, title in (
        ("unused", "Tensors in no update"),
        ("left_out", "Left out"),
        ("unshared", "Modules only one adapter changes"),
    ):
        if name in found.tables:
            column = {"unshared": "adapter"}.get(name, "reason")
            counts = found.tables[name][column].value_counts().rename("count").reset_index()
            notes.append((title, counts))
    return notes
