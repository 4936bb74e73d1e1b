"""``gonio cache certify``: bounds on attention outputs, and bits spent until they hold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gonio.cli.output import Output, output_options, plot_option, progress_bar, refuse_existing

if TYPE_CHECKING:
    import pandas as pd

    from gonio.records import Measurement

__all__ = ["certify"]

_SHOWN = 10  # heads of the table for people


@click.command("certify")
@click.argument("model")
@click.option(
    "--codec", "codec_file", type=click.Path(path_type=Path), required=True, help="Codec file."
)
@click.option(
    "--text",
    default="bundled",
    show_default=True,
    help="Text: bundled, docstrings, a file, a folder or a datasets name.",
)
@click.option("--evaluation-tokens", type=click.IntRange(min=2), default=1024, show_default=True)
@click.option(
    "--window", type=click.IntRange(min=2), default=512, show_default=True, help="Tokens a window."
)
@click.option(
    "--budget",
    type=float,
    default=0.05,
    show_default=True,
    help="Largest bound allowed, over the range of a head's values.",
)
@click.option(
    "--rung",
    type=click.Choice(["norms", "queries", "scores", "weights"]),
    default="weights",
    show_default=True,
    help="Which bound the budget is for, from the loosest to the tightest.",
)
@click.option("--guarantee", is_flag=True, help="Spend bits until the budget is met; needs --out.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Codec file that meets it."
)
@click.option(
    "--calibration-tokens",
    type=click.IntRange(min=16),
    help="Tokens at the front of the text, 1024 unless given: --guarantee fits codecs and meets "
    "the budget on them; without it they are left out.",
)
@output_options
@plot_option
def certify(
    model: str,
    codec_file: Path,
    text: str,
    evaluation_tokens: int,
    window: int,
    budget: float,
    rung: Any,
    guarantee: bool,
    out: Path | None,
    calibration_tokens: int | None,
    output: Output,
    overwrite: bool,
) -> None:
    """Bound how far MODEL's attention outputs move when its cache is read through a codec.

    Four bounds per layer and head, beside the measured error and its slack. Three need nothing
    that is not measured on the text, so they hold for that text; the loosest holds for every
    query as long as its longest. With --guarantee, heads over the budget get more bits until
    the bound holds on the calibration text, and for that text only.

    Exits with 1 if an error exceeds its bound, which would be a mistake of the bound.

    \b
    Example:
      gonio cache certify smollm2-135m --codec c4.safetensors
      gonio cache certify smollm2-135m --codec c4.safetensors --budget 0.2 \\
        --guarantee --out c4-bounded.safetensors
    """
    from gonio.files import require_writable
    from gonio.kvcache import load_codec
    from gonio.kvcache.guarantee import Budget
    from gonio.pipelines.bench import TokenBudget, open_bench
    from gonio.pipelines.cache_certify import certify_cache, guarantee_cache

    if guarantee != (out is not None):
        raise click.UsageError("--guarantee writes the codec it makes to --out FILE: give both")
    allowed = Budget(budget, rung)
    codec = load_codec(codec_file)
    reserved = calibration_tokens or 1024
    if out is None:
        reserved = calibration_tokens or _calibration_tokens(codec.provenance, text)
    else:
        refuse_existing(out, overwrite)
        require_writable(out.absolute().parent)
    with progress_bar("loading the model") as progress:
        bench = open_bench(model, text, TokenBudget(reserved, evaluation_tokens, window))
        if out is None:
            found = certify_cache(bench, codec, allowed, progress=progress)
        else:
            made, found = guarantee_cache(bench, codec, allowed, progress=progress)
            made.save(out)
    if out is not None:
        click.echo(
            f"wrote {out}: the bound from {rung} is at most {budget:g} of the values' range on "
            f"the {bench.calibration.numel()} calibration tokens of {bench.text_name}, and is "
            "promised nowhere else",
            err=True,
        )
    output.write(found, _views(found), main_table="heads")
    if found.record.value("bound_violations").value:
        raise click.exceptions.Exit(1)


def _calibration_tokens(facts: dict[str, Any], text: str) -> int:
    """Tokens at the front of the text that the codec was calibrated on."""
    from gonio.models import load_text

    same = facts.get("text_sha256") == load_text(text).sha256
    return int(facts["calibration_tokens"]) if same else 0


def _views(found: Measurement) -> list[tuple[str, pd.DataFrame]]:
    tables = found.tables
    views = []
    names = {
        "rung": "bound from",
        "largest": "largest",
        "mean": "mean",
        "median_slack": "slack",
        "heads_over_budget": "over budget",
        "heads": "heads",
    }
    for (codec, text), rows in tables["rungs"].groupby(["codec", "text"], sort=False):
        title = f"Bounds over the range of values: {codec} codec, {text} tokens"
        views.append((title, rows[list(names)].rename(columns=names)))
    columns = {
        "layer": "layer",
        "head": "head",
        "relative_error": "error",
        "bound_norms": "norms",
        "bound_queries": "queries",
        "bound_scores": "scores",
        "bound_weights": "weights",
        "queries_over_budget": "queries over",
    }
    heads = tables["heads"]
    last = heads[(heads["codec"] == heads["codec"].iloc[-1])]
    last = last[last["text"] == last["text"].iloc[0]]
    worst = last.sort_values("relative_bound", ascending=False).head(_SHOWN).copy()
    for name in columns:
        if name.startswith("bound_"):
            worst[name] = worst[name] / worst["value_range"]
    title = f"The {len(worst)} heads of the largest bounds, over the range of their values"
    views.append((title, worst[list(columns)].rename(columns=columns)))
    if "spending" in tables:
        spent = tables["spending"]
        spent = spent[spent["steps"] > 0]
        shown = {
            "layer": "layer",
            "keys_to": "keys",
            "key_bits_after": "K bits",
            "values_to": "values",
            "value_bits_after": "V bits",
            "bound_before": "bound",
            "bound_after": "now",
        }
        views.append(("Layers that were given bits", spent[list(shown)].rename(columns=shown)))
    return views
