"""``gonio adapter resize | merge | rescale | compose | select | advise``: acting on adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gonio.cli.adapter_views import advice_view, reshape_view
from gonio.cli.output import Output, output_options, progress_bar

__all__ = ["ACTIONS"]

_OUT = click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder to create; PEFT loads it.",
)
_BASE = click.option(
    "--base", metavar="MODEL", help="Base model; needed for DoRA and for a whole tuned model."
)


@click.command("resize")
@click.argument("folder", type=click.Path(path_type=Path))
@_OUT
@click.option("--rank", type=click.IntRange(min=1), help="Largest rank of every module.")
@click.option("--energy", type=float, help="Share of each module's energy to keep.")
@click.option(
    "--parameters", type=click.IntRange(min=1), help="Parameters in all; ranks are allocated."
)
@_BASE
@click.option(
    "--weigh-by-inputs",
    "text",
    metavar="TEXT",
    help="Least error of the outputs on a text (bundled, a file, or a data set); needs --base.",
)
@click.option(
    "--tokens", type=click.IntRange(min=512), default=4096, show_default=True, help="Of the text."
)
@output_options
def resize(
    folder: Path,
    out: Path,
    rank: int | None,
    energy: float | None,
    parameters: int | None,
    base: str | None,
    text: str | None,
    tokens: int,
    output: Output,
    overwrite: bool,
) -> None:
    """Shrink FOLDER's ranks after training, losing as little as can be.

    One rank for all, the energy to keep in each module, or a budget of parameters for which the
    ranks are chosen to discard the least energy in all. Prints the loss the spectrum predicts and
    the loss of the folder as read back. A whole tuned model becomes the best LoRA of these ranks.
    A rank chosen after training is not the rank that training would have needed.

    With --weigh-by-inputs the error of the modules' outputs on a text is minimised instead, and
    both errors are printed, on that text and on a part of it that was held out.

    \b
    Example:
      gonio adapter resize runs/dpo --rank 4 --out runs/dpo-r4
      gonio adapter resize runs/dpo --energy 0.95 --out runs/dpo-e95
    """
    rules: dict[str, Any] = {"rank": rank, "energy": energy, "parameters": parameters}
    if text is None:
        from gonio.pipelines.reshape import resize_adapter

        found = resize_adapter(folder, out, base=base, overwrite=overwrite, **rules)
    else:
        from gonio.pipelines.adapter_weighted import resize_adapter_by_inputs
        from gonio.pipelines.bench import TokenBudget

        if base is None:
            raise click.UsageError("--weigh-by-inputs needs --base MODEL")
        budget = TokenBudget(tokens, max(512, tokens // 2))
        with progress_bar("loading the model") as progress:
            found = resize_adapter_by_inputs(
                folder,
                out,
                base,
                text,
                budget=budget,
                overwrite=overwrite,
                progress=progress,
                **rules,
            )
    output.write(found, [("By projection", reshape_view(found.tables["modules"]))])


@click.command("merge")
@click.argument("folders", type=click.Path(path_type=Path), nargs=-1, required=True)
@_OUT
@click.option(
    "--method",
    type=click.Choice(["linear", "svd", "ties", "dare", "dare-ties"]),
    default="linear",
    show_default=True,
)
@click.option("--weight", "weights", type=float, multiple=True, help="One per folder; default 1.")
@click.option("--rank", type=click.IntRange(min=1), help="Largest rank to keep; all by default.")
@click.option("--density", type=float, help="Share of entries that ties and dare keep.")
@click.option("--seed", default=0, show_default=True, help="Seed of what dare drops.")
@output_options
def merge(
    folders: tuple[Path, ...],
    out: Path,
    method: Any,
    weights: tuple[float, ...],
    rank: int | None,
    density: float | None,
    seed: int,
    output: Output,
    overwrite: bool,
) -> None:
    """Add FOLDERS into one adapter: the exact weighted sum, or its best approximation.

    Adapters may differ in rank, scaling and target modules. Without --rank nothing is lost; with
    it, the best approximation of the sum of that rank is written. ties and dare act on the
    entries of the updates, not of their factors, and need --rank and --density.

    \b
    Example:
      gonio adapter merge runs/dpo runs/clm --out runs/both
      gonio adapter merge runs/dpo runs/clm --rank 16 --out runs/mix
    """
    from gonio.pipelines.reshape import merge_adapters

    found = merge_adapters(
        folders,
        out,
        method=method,
        weights=weights or None,
        rank=rank,
        density=density,
        seed=seed,
        overwrite=overwrite,
    )
    output.write(found, [("By projection", reshape_view(found.tables["modules"]))])


@click.command("rescale")
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


@click.command("compose")
@click.argument("folders", type=click.Path(path_type=Path), nargs=-1, required=True)
@_OUT
@click.option("--name", "names", multiple=True, help="One per folder; by default their own.")
@click.option("--weight", "weights", type=float, multiple=True, help="One per folder; default 1.")
@output_options
def compose(
    folders: tuple[Path, ...],
    out: Path,
    names: tuple[str, ...],
    weights: tuple[float, ...],
    output: Output,
    overwrite: bool,
) -> None:
    """Put FOLDERS into one bundle, from which any weighted subset can be loaded.

    Every member stays a PEFT folder of its own, so PEFT and servers load it as before; `gonio
    adapter select` writes a subset as one adapter of the summed rank, exactly. Prints how much
    the members share, since shared directions are where they interfere.

    \b
    Example:
      gonio adapter compose runs/dpo runs/clm --out runs/bundle
      gonio adapter select runs/bundle dpo=1 clm=0.5 --out runs/mix
    """
    from gonio.pipelines.adapter_compose import compose_adapters

    with progress_bar("comparing") as progress:
        found = compose_adapters(
            folders,
            out,
            names=names or None,
            weights=weights or None,
            overwrite=overwrite,
            progress=progress,
        )
    members = found.tables["members"].drop(columns="vllm_problems")
    output.write(found, [("Members", members)])


@click.command("select")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("choices", metavar="[NAME=WEIGHT]...", nargs=-1)
@_OUT
@click.option(
    "--layout",
    type=click.Choice(["peft", "vllm"]),
    default="peft",
    show_default=True,
    help="vllm: one rank for all modules, as it needs; PEFT loads both.",
)
@output_options
def select(
    bundle: Path,
    choices: tuple[str, ...],
    out: Path,
    layout: Any,
    output: Output,
    overwrite: bool,
) -> None:
    """Write members of BUNDLE, added with weights, as one adapter; all by default.

    \b
    Example:
      gonio adapter select runs/bundle dpo=1 clm=0.5 --out runs/mix
      gonio adapter select runs/bundle dpo --out runs/dpo-again
    """
    from gonio.pipelines.adapter_compose import select_adapters

    weights = dict(map(_choice, choices)) or None
    found = select_adapters(bundle, out, weights, layout=layout, overwrite=overwrite)
    output.write(found)


@click.command("advise")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--energy", default=0.95, show_default=True, help="Share of energy to keep.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the resized adapter here.")
@_BASE
@click.option("--seed", default=0, show_default=True, help="Seed of the chance draws.")
@output_options
def advise(
    folder: Path,
    energy: float,
    out: Path | None,
    base: str | None,
    seed: int,
    output: Output,
    overwrite: bool,
) -> None:
    """Which rank each module of FOLDER fills, and what shrinking to it would save.

    The rank that keeps --energy of a module, beside the spectrum of random factors of its shape:
    a spectrum as flat as theirs says nothing about a needed rank. A rank found after training is
    how much of this update fits into it, not the rank training would have needed.

    \b
    Example:
      gonio adapter advise runs/dpo
      gonio adapter advise runs/dpo --energy 0.9 --out runs/dpo-small
    """
    from gonio.pipelines.adapter_advice import advise_adapter

    with progress_bar("reading the adapter") as progress:
        found = advise_adapter(
            folder,
            base,
            energy=energy,
            out=out,
            seed=seed,
            overwrite=overwrite,
            progress=progress,
        )
    if out is None:
        view = [("By projection (means over modules)", advice_view(found.tables["advice"]))]
    else:
        view = [("By projection", reshape_view(found.tables["modules"]))]
    output.write(found, view)


ACTIONS = (advise, compose, merge, rescale, resize, select)


def _choice(text: str) -> tuple[str, float]:
    """``NAME`` or ``NAME=WEIGHT``."""
    name, equals, weight = text.partition("=")
    try:
        return name, float(weight) if equals else 1.0
    except ValueError:
        raise click.UsageError(f"{text!r} is not NAME=WEIGHT with a number as weight") from None
