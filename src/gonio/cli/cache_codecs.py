"""``gonio cache calibrate | fold``: commands that make a codec, or a model that fits one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gonio.cli.cache_budget import accept_target
from gonio.cli.output import Output, output_options, plot_option, progress_bar, refuse_existing

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
    "--centering", type=click.Choice(["none", "channel", "token"]), help="What is subtracted."
)
@click.option("--iterations", type=click.IntRange(min=1), help="Steps of a learned rotation.")
@click.option("--correction-rank", type=click.IntRange(min=1), help="Rank of a residual basis.")
@click.option("--exceptions", type=click.IntRange(min=1), help="Coordinates exact per token.")
@click.option(
    "--metric",
    type=click.Choice(["joined", "local", "fisher", "plain"]),
    help="Which errors of transform and entropy count.  [joined]",
)
@click.option(
    "--budget",
    type=click.Choice(["shared", "equal"]),
    help="Their bits: shared by need, or equal in every head.  [shared]",
)
@click.option(
    "--span",
    type=click.Choice(["head", "layer"]),
    help="Coordinates of each head, or of all together.  [layer; with --states 1 head]",
)
@click.option("--floor", type=float, help="Least eigenvalue of a metric over their mean.  [0.001]")
@click.option("--dead-zone", type=float, help="Squared steps a bit of entropy is worth.  [0.15]")
@click.option(
    "--stage",
    type=click.Choice(["pre_rope", "post_rope"]),
    help="Keys coded before RoPE, for all positions, or after it.  [before where it can be]",
)
@click.option("--states", type=int, help="Of the trellis of transform; 1 for none.  [16]")
@click.option(
    "--spread",
    type=click.IntRange(min=0),
    default=0,
    help="Spread the calibration windows over that many first tokens of the text.",
)
@click.option(
    "--context",
    type=click.IntRange(min=0),
    default=0,
    help="Positions to spread the windows over: as many as the cache is to hold.  [--window]",
)
@click.option(
    "--held-out-tokens",
    type=click.IntRange(min=0),
    default=2048,
    show_default=True,
    help="Last tokens of the text that set transform and entropy beside their limits.",
)
@_TEXT
@_TOKENS
@_WINDOW
@_SEED
@accept_target
@output_options
@plot_option
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
    spread: int,
    context: int,
    held_out_tokens: int,
    text: str,
    calibration_tokens: int,
    window: int,
    seed: int,
    output: Output,
    overwrite: bool,
    **weighted: Any,
) -> None:
    """Calibrate a codec for MODEL's cache and write it to one safetensors file.

    Keys by --method and --bits; values stay as they are unless --value-bits or --value-method is
    given. Prints bits per element with every stored byte counted. --metric, --budget, --span,
    --floor, --dead-zone and --states are for transform and entropy, for keys and values alike;
    their record says by layer how far errors on held-out text are above the limits of
    rate-distortion theory.

    By transform and entropy keys are coded as before rotary embedding, where the model's is known:
    one codec serves all positions. With --states 1, which attention reads as it lies, and with
    --stage post_rope a codec serves the positions it was calibrated at, and says which: for
    contexts longer than --window give --context.

    \b
    Example:
      gonio cache calibrate smollm2-135m --out smollm2-1bit.safetensors
      gonio cache calibrate MODEL --method affine --bits 4 --value-bits 4 --out c4
      gonio cache calibrate MODEL --method entropy --bits 1.5 \\
        --value-method entropy --value-bits 2.15 --spread 65536 --out e2
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
    options |= _weighted_options(method, value_method, weighted)
    needs_limits = bool({method, value_method} & {"transform", "entropy"})
    held_out = held_out_tokens if needs_limits else 0
    budget = TokenBudget(calibration_tokens, held_out, window, spread, context)
    with progress_bar("loading the model") as progress:
        bench = open_bench(model, text, budget)
        codec, found = calibrate_cache(
            bench, options=options, seed=seed, held_out=bench.evaluation, progress=progress
        )
    codec.save(out)
    click.echo(f"wrote {out}", err=True)
    views = [("By context length", _lengths_view(found.tables["lengths"]))]
    if "limits" in found.tables:
        views.append(("Over the limits, dB", _limits_view(found.tables["limits"])))
    output.write(found, views)


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


def _weighted_options(
    method: str, value_method: str | None, chosen: dict[str, Any]
) -> dict[str, Any]:
    """Options of the transform methods for keys, and under ``value_options`` for values."""
    from gonio.errors import SettingError
    from gonio.kvcache.options import option_names

    given = {name: value for name, value in chosen.items() if value is not None}
    for_keys, for_values = set(option_names(method)), set(option_names(value_method, "values"))
    for name in given:
        if name not in for_keys | for_values:
            raise SettingError(
                f"--{name.replace('_', '-')} is not for keys by {method!r}"
                + (f" and values by {value_method!r}" if value_method else "")
            )
    options = {name: value for name, value in given.items() if name in for_keys}
    values = {name: value for name, value in given.items() if name in for_values}
    return options | ({"value_options": values} if values else {})


def _limits_view(limits: pd.DataFrame) -> pd.DataFrame:
    names = ["part", "layer", "bits", "over_gaussian", "over_shannon"]
    return limits[names]


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
