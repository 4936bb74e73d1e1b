"""``gonio cache allocate``, and ``cache calibrate --target-ppl-ratio``: bits shared by search."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gonio.cli.output import Output, output_options, plot_option, progress_bar, refuse_existing

if TYPE_CHECKING:
    import pandas as pd

    from gonio.pipelines.cache_allocate import AllocationPlan

__all__ = ["accept_target", "allocate"]

_POLICIES = ("uniform", "collapse-angle", "shared", "metric", "searched")
_TIERS = {"transform": "fixed", "entropy": "entropy"}  # by method
_CALIBRATION = 6144  # two thirds of it fit codecs, the rest is held out
_EVALUATION = 3072
_OWN = ("bits", "value_method", "value_bits", "rotation", "centering", "iterations")
_WEIGHTED = ("metric", "budget", "span", "floor", "dead_zone", "states", "stage", "held_out_tokens")
_REFUSED = (*_OWN, "correction_rank", "exceptions", "recent", *_WEIGHTED, "spread")
_TARGET = click.FloatRange(min=1, min_open=True)


@click.command("allocate")
@click.argument("model")
@click.option("--bits", type=float, help="Mean bits per element, keys and values together.")
@click.option(
    "--target-ppl-ratio",
    type=_TARGET,
    help="Instead: about the fewest bits whose perplexity is at most this many times the full one.",
)
@click.option(
    "--tier",
    type=click.Choice(["fixed", "entropy"]),
    default="fixed",
    show_default=True,
    help="Whole bits per coordinate, or entropy-coded blocks.",
)
@click.option("--policy", type=click.Choice(_POLICIES), default="searched", show_default=True)
@click.option("--compare", is_flag=True, help="Score every policy at the same bits.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Codec file to write (.safetensors).",
)
@click.option("--sinks", type=click.IntRange(min=0), default=4, show_default=True)
@click.option("--text", default="bundled", show_default=True, help="bundled, docstrings, a file.")
@click.option(
    "--calibration-tokens", type=click.IntRange(min=32), default=_CALIBRATION, show_default=True
)
@click.option(
    "--evaluation-tokens", type=click.IntRange(min=16), default=_EVALUATION, show_default=True
)
@click.option("--window", type=click.IntRange(min=16), default=512, show_default=True)
@click.option(
    "--context",
    type=click.IntRange(min=0),
    default=0,
    help="Positions to spread the calibration windows over: as many as the cache is to hold.  "
    "[--window]",
)
@click.option("--seed", default=0, show_default=True)
@output_options
@plot_option
def allocate(
    model: str,
    bits: float | None,
    target_ppl_ratio: float | None,
    tier: Any,
    policy: Any,
    compare: bool,
    out: Path | None,
    sinks: int,
    text: str,
    calibration_tokens: int,
    evaluation_tokens: int,
    window: int,
    context: int,
    seed: int,
    output: Output,
    overwrite: bool,
) -> None:
    """Share bits over the layers of MODEL's cache, keys against values, by trying on its output.

    Equal bits are the start; departures from them (keys against values, layers by the metric,
    first and last layer) are kept where held-out text says they help. Every trial is kept
    beside --out (in c.points.json for c.safetensors): after Ctrl-C the same command goes on.

    Give --bits, or --target-ppl-ratio for about the fewest bits that reach a quality: searched on
    held-out calibration windows (the upper end of the ratio's interval counts), reported on
    evaluation windows that nothing was chosen on. The codec is an ordinary one.

    Keys are coded before rotary embedding where the model's turns are known, and serve all
    positions. With --context, what codecs are fitted to and searched on is read at positions all
    over it, as models whose turns are not known need; what is reported is read from the start.

    \b
    Example:
      gonio cache allocate smollm2-135m --bits 1.75 --compare
      gonio cache allocate MODEL --target-ppl-ratio 1.05 --out c.safetensors
    """
    from gonio.pipelines.cache_allocate import AllocationPlan

    if (bits is None) == (target_ppl_ratio is None):
        raise click.UsageError("give either --bits or --target-ppl-ratio")
    plan = AllocationPlan(
        bits=bits,
        target=target_ppl_ratio,
        tier=tier,
        policy=policy,
        compare=compare,
        sinks=sinks,
        seed=seed,
    )
    sizes = (calibration_tokens, evaluation_tokens, window, 0, context)
    _run(model, plan, text, sizes, out, output, overwrite)


def accept_target(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give ``cache calibrate`` the option ``--target-ppl-ratio``; place it above its outputs."""

    @click.option(
        "--target-ppl-ratio",
        type=_TARGET,
        help="Find the fewest bits of this quality, keys and values, shared by search "
        "(methods transform and entropy; see `cache allocate`).",
    )
    @wraps(command)
    def wrapper(*args: Any, target_ppl_ratio: float | None, **kwargs: Any) -> Any:
        if target_ppl_ratio is None:
            return command(*args, **kwargs)
        return _calibrate_to_target(*args, target=target_ppl_ratio, **kwargs)

    return wrapper


@output_options
@plot_option
def _calibrate_to_target(
    model: str, out: Path, target: float, output: Output, overwrite: bool, **chosen: Any
) -> None:
    """``cache calibrate`` with a target: bits, parts and their split are found."""
    from gonio.pipelines.cache_allocate import AllocationPlan

    context = click.get_current_context()

    def given(name: str) -> bool:
        source = context.get_parameter_source(name)
        return source is not click.core.ParameterSource.DEFAULT

    refused = [name for name in _REFUSED if name in chosen and given(name)]
    if refused:
        option = refused[0].replace("_", "-")
        raise click.UsageError(f"--target-ppl-ratio chooses for itself: leave out --{option}")
    method = chosen["method"] if given("method") else "transform"
    if method not in _TIERS:
        raise click.UsageError(
            f"--target-ppl-ratio needs --method transform or entropy, not {method}"
        )
    tier: Any = _TIERS[method]
    sinks = {"sinks": chosen["sinks"]} if given("sinks") else {}
    tokens = chosen["calibration_tokens"] if given("calibration_tokens") else _CALIBRATION
    plan = AllocationPlan(target=target, tier=tier, seed=chosen["seed"], **sinks)
    sizes = (tokens, max(_EVALUATION, chosen["window"]), chosen["window"], 0, chosen["context"])
    _run(model, plan, chosen["text"], sizes, out, output, overwrite)


def _run(
    model: str,
    plan: AllocationPlan,
    text: str,
    sizes: tuple[int, int, int, int, int],
    out: Path | None,
    output: Output,
    overwrite: bool,
) -> None:
    """Allocate, write the codec, print the record."""
    from gonio.files import require_writable
    from gonio.pipelines.bench import TokenBudget, open_bench
    from gonio.pipelines.cache_allocate import allocate_cache

    if out is not None:
        refuse_existing(out, overwrite)
        require_writable(out.absolute().parent)
    with progress_bar("loading the model") as progress:
        bench = open_bench(model, text, TokenBudget(*sizes))
        points = None if out is None else out.with_suffix(".points.json")
        codec, found = allocate_cache(bench, plan, points=points, progress=progress)
    if out is not None:
        codec.save(out)
        click.echo(f"wrote {out}", err=True)
    views = [("Policies, on evaluation windows", _policies_view(found.tables["policies"]))]
    if "search" in found.tables:
        views.append(("Search, on held-out calibration windows", found.tables["search"]))
    views.append((f"Bits by layer, {plan.policy}", _units_view(found.tables["units"], plan.policy)))
    output.write(found, views)


def _policies_view(policies: pd.DataFrame) -> pd.DataFrame:
    names = {
        "method": "policy",
        "key_bits": "K bits",
        "value_bits": "V bits",
        "perplexity": "perplexity",
        "perplexity_ratio": "x full",
        "perplexity_ratio_low": "low",
        "perplexity_ratio_high": "high",
        "logit_kl": "KL",
    }
    return policies[list(names)].rename(columns=names)


def _units_view(units: pd.DataFrame, policy: str) -> pd.DataFrame:
    mine = units[units["policy"] == policy]
    wide = mine.pivot_table(index="layer", columns="part", values="bits")
    return wide[["keys", "values"]].reset_index()
