"""``gonio cache``: observe keys, calibrate codecs, evaluate them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gonio.cli.cache_budget import allocate
from gonio.cli.cache_certify import certify
from gonio.cli.cache_codecs import calibrate, fold
from gonio.cli.cache_compare import compare
from gonio.cli.cache_generate import generate
from gonio.cli.lengths import LENGTHS
from gonio.cli.output import Output, output_options, plot_option, progress_bar

if TYPE_CHECKING:
    pass

__all__ = ["cache"]

_ROTATION = click.Choice(["none", "haar", "hadamard", "learned"])
_SEED = click.option("--seed", default=0, show_default=True, help="Seed of everything random.")
_TEXT = click.option(
    "--text",
    default="bundled",
    show_default=True,
    help="Text: bundled, docstrings, a file, a folder or a datasets name.",
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
@plot_option
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
    """Geometry of MODEL's keys, before and after RoPE, and values, per layer and head.

    1-bit cosine and beta raw, without each token's mean coordinate, without the mean of each
    channel, and under a random, a Hadamard and a learned rotation, beside chance; collapse,
    tails, spectra and attention sinks. What is learned comes from the calibration tokens,
    everything is measured on the evaluation tokens.

    \b
    Example:
      gonio cache observe smollm2-135m
      gonio cache observe smollm2-135m --csv > heads.csv --plot cosines.html
    """
    from gonio.cli.observe_views import observation_views
    from gonio.pipelines.bench import TokenBudget, open_bench
    from gonio.pipelines.cache_observe import observe_cache

    budget = TokenBudget(calibration_tokens, evaluation_tokens, window)
    with progress_bar("loading the model") as progress:
        bench = open_bench(model, text, budget)
        found = observe_cache(bench, iterations=iterations, seed=seed, progress=progress)
    output.write(found, observation_views(found.tables), main_table="heads")


@cache.command("evaluate")
@click.argument("model")
@click.option(
    "--codec",
    "codecs",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="Codec file; may be given several times, and all pairs are compared.",
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
@click.option(
    "--lengths",
    type=LENGTHS,
    default="",
    help="More context lengths, for example 1024,2048: the same tokens in longer windows.",
)
@click.option(
    "--recall",
    type=LENGTHS,
    help="Context lengths of the recall probe, or none; unless given 1024, or all evaluation "
    "tokens where there are fewer.",
)
@click.option(
    "--allocation-tokens",
    type=click.IntRange(min=0),
    default=4096,
    show_default=True,
    help="Tokens of the cache whose bytes are measured; 0 to leave it out.",
)
@_with(_TEXT, _EVALUATION, _WINDOW, _SEED)
@output_options
@plot_option
def evaluate(
    model: str,
    codecs: tuple[Path, ...],
    protocols: tuple[Any, ...],
    prefill: int,
    chunk: int,
    lengths: tuple[int, ...],
    recall: tuple[int, ...] | None,
    allocation_tokens: int,
    text: str,
    evaluation_tokens: int,
    window: int,
    seed: int,
    output: Output,
) -> None:
    """Predictions, memory and recall of codecs on MODEL, beside exact caches and zeros.

    teacher-forced: every key and value a window reads has been through the codec. cache: a
    prefill, then chunks that read what is stored. Recall: a passage of random words, hidden in
    the context, is read a second time. The evaluation text is taken from the back of --text and
    never overlaps the tokens a codec was calibrated on; --text docstrings is a second text.

    \b
    Example:
      gonio cache evaluate smollm2-135m --codec smollm2-1bit.safetensors
      gonio cache evaluate smollm2-135m --codec one.safetensors \\
        --codec two.safetensors --lengths 1024,2048 --text docstrings
    """
    from gonio.cli.cache_views import evaluation_views
    from gonio.kvcache import load_codec
    from gonio.kvcache.recall import RecallSettings
    from gonio.pipelines.bench import TokenBudget, open_bench, reserved_tokens
    from gonio.pipelines.cache_evaluate import CacheEvaluation, evaluate_cache

    stems = Counter(path.stem for path in codecs)
    loaded = {
        path.stem if stems[path.stem] == 1 else str(path): load_codec(path) for path in codecs
    }
    if recall is None:
        recall = (min(1024, evaluation_tokens // window * window),)
    plan = CacheEvaluation(
        protocols=protocols,
        prefill=prefill,
        chunk=chunk,
        lengths=lengths,
        allocation=allocation_tokens,
        recall=RecallSettings(lengths=recall) if recall else None,
        seed=seed,
    )
    reserved = reserved_tokens(loaded.values(), text)
    with progress_bar("loading the model") as progress:
        bench = open_bench(model, text, TokenBudget(reserved, evaluation_tokens, window))
        found = evaluate_cache(bench, loaded, plan, progress=progress)
    output.write(found, evaluation_views(found.tables))


for _command in (calibrate, fold, certify, compare, allocate, generate):
    cache.add_command(_command)
