"""``gonio cache calibrate | fold``: commands that make a codec, or a model that fits one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gonio.cli.output import Output, output_options, progress_bar, refuse_existing

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["calibrate", "fold"]

_TEXT = click.option(
    "--text", default="bundled", show_default=True, help="bundled, docstrings, or a file."
)
_WINDOW = click.option("--window", type=click.IntRange(min=16), default=512, show_default=True)
_SEED = click.option("--seed", default=0, show_default=True)
_TOKENS = click.option(
    "--calibration-tokens", type=click.IntRange(min=16), default=4096, show_default=True
)
_METHODS = ("sign", "residual_sign", "scalar", "affine", "transform", "entropy", "lossless")


@click.command("calibrate")
@click.argument("model")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Codec file to write (.safetensors).",
)
@click.option("--method", type=click.Choice(_METHODS), default="sign", show_default=True)
@click.option("--bits", type=float, help="Bits per key code, or residual stages; 1 for sign.")
@click.option("--value-method", type=click.Choice(_METHODS), help="Values are raw unless given.")
@click.option("--value-bits", type=float, help="Bits per value code; affine unless named.")
@click.option("--sinks", type=click.IntRange(min=0), default=0, help="First tokens kept raw.")
@click.option("--recent", type=click.IntRange(min=0), default=0, help="Last tokens kept raw.")
@click.option(
    "--rotation",
    type=click.Choice(["none", "haar", "hadamard", "learned"]),
    help="learned for signs, haar for scalar.",
)
@click.option(
    "--centering", type=click.Choice(["none", "channel", "token_dc"]), help="What is subtracted."
)
@click.option("--iterations", type=click.IntRange(min=1), help="Steps of a learned rotation.")
@click.option("--correction-rank", type=click.IntRange(min=1), help="Rank of a residual basis.")
@click.option("--exceptions", type=click.IntRange(min=1), help="Coordinates exact per token.")
@_TEXT
@_TOKENS
@_WINDOW
@_SEED
@output_options
def calibrate(
    model: str,
    out: Path,
    method: str,
    bits: float | None,
    value_method: str | None,
    value_bits: float | None,
    sinks: int,
    recent: int,
    rotation: str | None,
    centering: str | None,
    iterations: int | None,
    correction_rank: int | None,
    exceptions: int | None,
    text: str,
    calibration_tokens: int,
    window: int,
    seed: int,
    output: Output,
    overwrite: bool,
) -> None:
    """Calibrate a codec for MODEL's cache and write it to one safetensors file.

    Keys by --method and --bits; values stay as they are unless --value-bits or --value-method is
    given. Prints bits per element with every stored byte counted.

    \b
    Example:
      gonio cache calibrate smollm2-135m --out smollm2-1bit.safetensors
      gonio cache calibrate MODEL --method affine --bits 4 --value-bits 4 --out c4
    """
    from gonio.files import require_writable
    from gonio.pipelines.bench import TokenBudget, open_bench
    from gonio.pipelines.cache_calibrate import calibrate_cache

    refuse_existing(out, overwrite)
    require_writable(out.absolute().parent)
    chosen: dict[str, Any] = {
        "method": method,
        "bits": 1.0 if bits is None and method == "sign" else bits,
        "value_method": value_method,
        "value_bits": value_bits,
        "sinks": sinks,
        "recent": recent,
        "rotation": rotation,
        "centering": centering,
        "iterations": iterations,
        "correction_rank": correction_rank,
        "exceptions": exceptions,
    }
    options = {name: value for name, value in chosen.items() if value is not None}
    with progress_bar("loading the model") as progress:
        bench = open_bench(model, text, TokenBudget(calibration_tokens, 0, window))
        codec, found = calibrate_cache(bench, options=options, seed=seed, progress=progress)
    codec.save(out)
    click.echo(f"wrote {out}", err=True)
    output.write(found, [("By context length", _lengths_view(found.tables["lengths"]))])


@click.command("fold")
@click.argument("model")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Model folder to create."
)
@click.option("--values/--no-values", default=True, show_default=True, help="Rotate values too.")
@click.option("--evaluation-tokens", type=click.IntRange(min=16), default=3072, show_default=True)
@_TEXT
@_TOKENS
@_WINDOW
@_SEED
@output_options
def fold(
    model: str,
    out: Path,
    values: bool,
    evaluation_tokens: int,
    text: str,
    calibration_tokens: int,
    window: int,
    seed: int,
    output: Output,
    overwrite: bool,
) -> None:
    """Write MODEL with rotations folded into its attention: same logits, rotated cache.

    Keys get the best rotation that commutes with rotary embedding, which turns only the pairs of
    coordinates that it turns itself; values any rotation. The folder is read back and its logits
    compared before it takes its place.

    \b
    Example:
      gonio cache fold smollm2-135m --out smollm2-folded
    """
    from gonio.pipelines.bench import TokenBudget, open_bench
    from gonio.pipelines.cache_fold import fold_cache

    with progress_bar("loading the model") as progress:
        budget = TokenBudget(calibration_tokens, evaluation_tokens, window)
        bench = open_bench(model, text, budget)
        found = fold_cache(
            bench, out, values=values, seed=seed, overwrite=overwrite, progress=progress
        )
    output.write(found)


def _lengths_view(lengths: pd.DataFrame) -> pd.DataFrame:
    names = {
        "seq_len": "tokens",
        "bits_per_element": "key_bits",
        "side_bits_per_element": "side_bits",
        "key_compression_ratio": "key_ratio",
        "value_bits_per_element": "value_bits",
        "value_compression_ratio": "value_ratio",
    }
    return lengths[list(names)].rename(columns=names)
