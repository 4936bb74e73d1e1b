"""``gonio cache compare``: gonio's methods and other packages by one protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gonio.cli.output import Output, output_options, plot_option, progress_bar

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["compare"]

_SCORED = {
    "method": "method",
    "key_bits": "K bits",
    "value_bits": "V bits",
    "held": "held",
    "perplexity_ratio": "x full",
    "interval": "95 %",
    "logit_kl": "KL",
}


def _words(_context: click.Context, _option: click.Parameter, text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


@click.command("compare")
@click.argument("model")
@click.option(
    "--codec",
    "codecs",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Codec file to compare too; may be given several times.",
)
@click.option(
    "--methods",
    default="all",
    show_default=True,
    callback=_words,
    help="gonio's methods: all, none, or beginnings of names: affine,entropy 1.",
)
@click.option(
    "--peers",
    default="all",
    show_default=True,
    callback=_words,
    help="Packages: all, none, or names: quanto,hqq.",
)
@click.option(
    "--peer-folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where packages are installed; gonio's cache folder unless given.",
)
@click.option("--install", is_flag=True, help="Install the chosen packages first, versions pinned.")
@click.option(
    "--protocol",
    "protocols",
    type=click.Choice(["teacher-forced", "cache"]),
    multiple=True,
    default=("teacher-forced", "cache"),
    show_default=True,
)
@click.option(
    "--text", default="bundled", show_default=True, help="bundled, docstrings, or a file."
)
@click.option("--windows", type=click.IntRange(min=1), default=6, show_default=True)
@click.option("--window", type=click.IntRange(min=16), default=512, show_default=True)
@click.option("--prefill", type=click.IntRange(min=1), default=256, show_default=True)
@click.option("--chunk", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--calibration-tokens", type=click.IntRange(min=16), default=4096, show_default=True)
@click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where finished scores are kept between runs; gonio's cache folder unless given.",
)
@click.option("--seed", default=0, show_default=True)
@output_options
@plot_option
def compare(
    model: str,
    codecs: tuple[Path, ...],
    methods: tuple[str, ...],
    peers: tuple[str, ...],
    peer_folder: Path | None,
    install: bool,
    protocols: tuple[Any, ...],
    text: str,
    windows: int,
    window: int,
    prefill: int,
    chunk: int,
    calibration_tokens: int,
    work: Path | None,
    seed: int,
    output: Output,
) -> None:
    """Score gonio's methods and other packages on MODEL's cache: bits, bytes, predictions.

    Every key (and value) of a window goes through each method; packages run in processes of their
    own. Bits count codes and scales at 4,096 tokens; held bits count the memory that is really
    kept. What fails, or is not installed, is a row that says so. Finished scores are kept, so a
    run that was stopped goes on where it was.

    \b
    Example:
      gonio cache compare smollm2-135m --install
      gonio cache compare smollm2-135m --methods entropy --peers quanto,turbokv
    """
    from gonio.kvcache import load_codec
    from gonio.pipelines.bench import TokenBudget, open_bench, reserved_tokens
    from gonio.pipelines.cache_compare import CacheComparison, compare_caches
    from gonio.pipelines.compare_methods import select_methods, select_peers
    from gonio.pipelines.peers.install import install_peer, peers_folder

    stems = [path.stem for path in codecs]
    loaded = {
        path.stem if stems.count(path.stem) == 1 else str(path): load_codec(path) for path in codecs
    }
    chosen, root = select_peers(peers), peer_folder or peers_folder()
    plan = CacheComparison(
        methods=select_methods(methods),
        codecs=loaded,
        peers=chosen,
        protocols=protocols,
        prefill=prefill,
        chunk=chunk,
        peers_root=root,
        work=work,
        seed=seed,
    )
    learned = max(calibration_tokens, reserved_tokens(loaded.values(), text))
    with progress_bar("loading the model") as progress:
        for done, peer in enumerate(chosen if install else ()):
            progress(f"installing {peer.name}", done, len(chosen))
            install_peer(peer, root)
        bench = open_bench(model, text, TokenBudget(learned, windows * window, window))
        found = compare_caches(bench, plan, progress=progress)
    output.write(found, _views(found.tables["methods"]), main_table="methods")


def _views(methods: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Scores by protocol and parts, then what came to nothing."""
    views = []
    scored = methods[(methods["status"] == "ok") & (methods["origin"] != "full")]
    for (protocol, parts), group in scored.groupby(["protocol", "parts"], sort=False):
        view = group.sort_values(["bits", "held_bits"])
        what = "keys, values exact" if parts == "keys" else "keys and values"
        mark = "; * frontier" if view["is_frontier"].any() else ""
        views.append((f"{protocol}: {what}{mark}", _scored(view)))
    rest = methods[methods["status"] != "ok"]
    if len(rest):
        told = rest.rename(columns={"origin": "package"})[["package", "status", "message"]]
        views.append(("Without scores", told.drop_duplicates()))
    return views


def _scored(rows: pd.DataFrame) -> pd.DataFrame:
    """Columns that hold something, rounded so that they fit 80 characters."""
    both = (rows["held_key_bits"] + rows["held_value_bits"]) / 2
    held = rows["held_key_bits"].where(rows["parts"] == "keys", both)
    star = rows["is_frontier"].map({True: " *", False: ""})
    lows, highs = rows["perplexity_ratio_low"], rows["perplexity_ratio_high"]
    shown = rows.assign(
        method=rows["method"] + star,
        held=rows["held_bits"].where(rows["protocol"] == "cache", held),
        value_bits=rows["value_bits"].where(rows["parts"] == "both"),
        interval=[f"{low:.3g}..{high:.3g}" for low, high in zip(lows, highs, strict=True)],
    )
    columns = [name for name in _SCORED if not shown[name].isna().all()]
    numbers = shown[columns].select_dtypes("number").columns
    return shown[columns].round(dict.fromkeys(numbers, 3)).rename(columns=_SCORED)
