"""``gonio cache``: observe keys, calibrate codecs, evaluate them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gonio.cli.output import Output, output_options, progress_bar, refuse_existing

if TYPE_CHECKING:
    import pandas as pd

    from gonio.kvcache import CacheCodec

__all__ = ["cache"]

_ROTATION = click.Choice(["none", "haar", "hadamard", "learned"])
_SEED = click.option("--seed", default=0, show_default=True, help="Seed of everything random.")
_TEXT = click.option(
    "--text",
    default="bundled",
    show_default=True,
    help="Text: bundled, a file, a folder or a datasets name.",
)
_CALIBRATION = click.option(
    "--calibration-tokens", type=click.IntRange(min=1), default=4096, show_default=True
)
_EVALUATION = click.option(
    "--evaluation-tokens", type=click.IntRange(min=1), default=3072, show_default=True
)
_WINDOW = click.option(
    "--window", type=click.IntRange(min=2), default=512, show_default=True, help="Tokens a window."
)
_ITERATIONS = click.option(
    "--iterations",
    type=click.IntRange(min=0),
    default=50,
    show_default=True,
    help="Steps of the learned rotation.",
)


def _with(*options: Callable[..., Any]) -> Callable[..., Any]:
    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@click.group()
def cache() -> None:
    """Observe, compress and evaluate the attention key cache.

    Bits per element count every stored byte. Evaluation scores only tokens whose attention reads
    decoded keys, always beside full precision and a cache of zeros.

    \b
    Example:
      gonio cache observe smollm2-135m
      gonio cache calibrate smollm2-135m --out smollm2-1bit.safetensors
      gonio cache evaluate smollm2-135m --codec smollm2-1bit.safetensors
    """


@cache.command("observe")
@click.argument("model")
@_with(_TEXT, _CALIBRATION, _EVALUATION, _WINDOW, _ITERATIONS, _SEED)
@output_options
def observe(
    model: str,
    text: str,
    calibration_tokens: int,
    evaluation_tokens: int,
    window: int,
    iterations: int,
    seed: int,
    output: Output,
) -> None:
    """1-bit cosine of MODEL's keys under four rotations, beside chance, per layer and head.

    The learned rotation is fitted on the calibration tokens and measured on the evaluation
    tokens.

    \b
    Example:
      gonio cache observe smollm2-135m
      gonio cache observe smollm2-135m --csv > heads.csv
    """
    from gonio.pipelines.bench import TokenBudget, open_bench
    from gonio.pipelines.cache import observe_cache

    budget = TokenBudget(calibration_tokens, evaluation_tokens, window)
    with progress_bar("loading the model") as progress:
        bench = open_bench(model, text, budget)
        found = observe_cache(bench, iterations=iterations, seed=seed, progress=progress)
    table = _layers_view(found.tables["heads"])
    output.write(found, [("Mean 1-bit cosine by layer", table)], main_table="heads")


@cache.command("calibrate")
@click.argument("model")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Codec file to write (.safetensors).",
)
@click.option("--method", type=click.Choice(["sign"]), default="sign", show_default=True)
@click.option("--rotation", type=_ROTATION, default="learned", show_default=True)
@_with(_TEXT, _CALIBRATION, _WINDOW, _ITERATIONS, _SEED)
@output_options
def calibrate(
    model: str,
    out: Path,
    method: str,
    rotation: Any,
    text: str,
    calibration_tokens: int,
    window: int,
    iterations: int,
    seed: int,
    output: Output,
    overwrite: bool,
) -> None:
    """Calibrate a key codec for MODEL and write it to one safetensors file.

    \b
    Example:
      gonio cache calibrate smollm2-135m --out smollm2-1bit.safetensors
    """
    from gonio.files import require_writable
    from gonio.pipelines.bench import TokenBudget, open_bench
    from gonio.pipelines.cache import calibrate_cache

    refuse_existing(out, overwrite)
    require_writable(out.absolute().parent)
    with progress_bar("loading the model") as progress:
        bench = open_bench(model, text, TokenBudget(calibration_tokens, 0, window))
        codec, found = calibrate_cache(
            bench, rotation=rotation, iterations=iterations, seed=seed, progress=progress
        )
    codec.save(out)
    click.echo(f"wrote {out}", err=True)
    output.write(found, [("By context length", found.tables["lengths"])])


@cache.command("evaluate")
@click.argument("model")
@click.option(
    "--codec",
    "codecs",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="Codec file; may be given several times.",
)
@click.option(
    "--protocol",
    "protocols",
    type=click.Choice(["teacher-forced", "cache"]),
    multiple=True,
    default=("teacher-forced", "cache"),
    show_default=True,
)
@click.option("--prefill", type=click.IntRange(min=1), default=256, show_default=True)
@click.option("--chunk", type=click.IntRange(min=1), default=32, show_default=True)
@_with(_TEXT, _EVALUATION, _WINDOW, _SEED)
@output_options
def evaluate(
    model: str,
    codecs: tuple[Path, ...],
    protocols: tuple[Any, ...],
    prefill: int,
    chunk: int,
    text: str,
    evaluation_tokens: int,
    window: int,
    seed: int,
    output: Output,
) -> None:
    """Perplexity, KL to full precision and top-1 agreement of codecs on MODEL.

    teacher-forced: every key a window reads has been through the codec. cache: a prefill, then
    chunks that read the stored keys. The evaluation text is taken from the back of --text and
    never overlaps the tokens a codec was calibrated on.

    \b
    Example:
      gonio cache evaluate smollm2-135m --codec smollm2-1bit.safetensors
    """
    from gonio.kvcache import load_codec
    from gonio.pipelines.bench import TokenBudget, open_bench
    from gonio.pipelines.cache import evaluate_cache

    stems = Counter(path.stem for path in codecs)
    loaded = {
        path.stem if stems[path.stem] == 1 else str(path): load_codec(path) for path in codecs
    }
    reserved = _reserved_tokens(loaded, text)
    with progress_bar("loading the model") as progress:
        bench = open_bench(model, text, TokenBudget(reserved, evaluation_tokens, window))
        found = evaluate_cache(
            bench,
            loaded,
            protocols=protocols,
            prefill=prefill,
            chunk=chunk,
            seed=seed,
            progress=progress,
        )
    output.write(found, [("Methods", _methods_view(found.tables["methods"]))])


def _reserved_tokens(codecs: dict[str, CacheCodec], text: str) -> int:
    """Tokens at the front of the text that some codec was calibrated on."""
    from gonio.models import load_text

    sha256 = load_text(text).sha256
    facts = [codec.provenance for codec in codecs.values()]
    return max(
        [int(f["calibration_tokens"]) for f in facts if f.get("text_sha256") == sha256], default=0
    )


def _layers_view(heads: pd.DataFrame) -> pd.DataFrame:
    table = heads.pivot_table(index="layer", columns="transform", values="mean_cosine")
    order = [name for name in ("none", "haar", "hadamard", "learned") if name in table.columns]
    return table[order].assign(chance=heads.groupby("layer")["chance"].first()).reset_index()


def _methods_view(methods: pd.DataFrame) -> pd.DataFrame:
    names = {
        "protocol": "protocol",
        "method": "method",
        "bits_per_element": "bits",
        "perplexity": "perplexity",
        "perplexity_low": "low",
        "perplexity_high": "high",
        "logit_kl": "KL",
        "same_top1": "top1",
    }
    return methods[list(names)].rename(columns=names)
