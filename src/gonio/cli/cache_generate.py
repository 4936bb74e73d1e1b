"""``gonio cache generate``: continue a text through a compressed cache, as it comes."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from gonio.cli.output import Output, output_options, progress_bar, refuse_existing

if TYPE_CHECKING:
    from gonio.records import Record

__all__ = ["generate"]


@click.command("generate")
@click.argument("model")
@click.option(
    "--codec",
    "codec_file",
    type=click.Path(path_type=Path),
    help="Codec file; without it transformers' dynamic cache runs, to compare.",
)
@click.option("--prompt", help="Text to continue.")
@click.option(
    "--prompt-file",
    type=click.File("r", encoding="utf-8"),
    help="File with the text to continue; - for standard input.",
)
@click.option("--chat", is_flag=True, help="Put the prompt into the model's chat template.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="0: always the most likely token; above it: sampling.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of sampling.")
@click.option(
    "--prefill-chunk",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="Tokens of the prompt read at a time; later chunks read what the cache has stored.",
)
@click.option(
    "--scratch",
    "scratch_mib",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="MiB of decoded tokens to keep beside the cache, which saves time.",
)
@click.option(
    "--save-cache",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep the cache of the prompt in a file, to continue from later or elsewhere.",
)
@click.option(
    "--load-cache",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Start from such a file; a prompt must begin alike, and without one its own is continued.",
)
@click.option("--stats", is_flag=True, help="Print speed and memory to standard error.")
@output_options
def generate(
    model: str,
    codec_file: Path | None,
    prompt: str | None,
    prompt_file: IO[str] | None,
    chat: bool,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    prefill_chunk: int,
    scratch_mib: float,
    save_cache: Path | None,
    load_cache: Path | None,
    stats: bool,
    output: Output,
    overwrite: bool,
) -> None:
    """Continue a text with MODEL, its cache stored by a codec, and stream it as it comes.

    Text goes to standard output, or with --json or --csv the record of what it took. The first
    chunk of a prompt is attended to exactly; all that follows reads what the codec stored.
    Interrupting (Ctrl-C) ends the text where it is.

    \b
    Example:
      gonio cache generate smollm2-135m --codec c4.safetensors --stats \\
        --chat --prompt "Name three uses of a spoon."
      gonio cache generate smollm2-135m --codec c4.safetensors \\
        --prompt-file report.txt --save-cache report.cache
      gonio cache generate smollm2-135m --codec c4.safetensors \\
        --load-cache report.cache
    """
    from gonio.files import require_writable
    from gonio.kvcache import load_codec
    from gonio.pipelines.cache_generate import generate_text, open_model
    from gonio.pipelines.generation_record import GenerationSettings

    if prompt is not None and prompt_file is not None:
        raise click.UsageError("--prompt and --prompt-file exclude each other")
    if prompt is None and prompt_file is None and load_cache is None:
        raise click.UsageError("nothing to continue: give --prompt, --prompt-file or --load-cache")
    if prompt_file is not None:
        prompt = prompt_file.read()
    if save_cache is not None:
        refuse_existing(save_cache, overwrite)
        require_writable(save_cache.absolute().parent)
    settings = GenerationSettings(
        max_new_tokens, temperature, seed, prefill_chunk, chat, int(scratch_mib * 2**20)
    )
    codec = None if codec_file is None else load_codec(codec_file)
    is_text = output.form == "text" and output.path is None
    with ExitStack() as stack:
        progress = stack.enter_context(progress_bar("loading the model"))

        def write(text: str) -> None:
            stack.close()  # the bar ends where the text begins
            _write(text)

        found = generate_text(
            open_model(model),
            prompt,
            codec,
            settings,
            load=load_cache,
            save=save_cache,
            write=write if is_text else None,
            progress=progress,
        )
    if is_text:
        click.echo()
    else:
        output.write(found)
    if save_cache is not None:
        click.echo(f"wrote {save_cache}", err=True)
    if stats or found.record.settings["stopped"] == "interrupted":
        click.echo(_stats(found.record), err=True)


def _write(text: str) -> None:
    click.echo(text, nl=False)


def _stats(record: Record) -> str:
    """What it took, a line per fact."""
    numbers = {each.name: each.value for each in record.values}

    def number(name: str) -> float:
        value = numbers[name]
        return float(value) if value is not None else float("nan")

    mib = 2.0**20
    reused = int(number("reused_tokens"))
    lines = {
        "prompt": f"{numbers['prompt_tokens']} tokens"
        + (f", {reused} of them from the loaded cache" if reused else ""),
        "prefill": f"{number('prefill_seconds'):.3g} s",
        "generated": f"{numbers['new_tokens']} tokens, {number('tokens_per_second'):.3g} a second"
        f" ({record.settings['stopped']})",
        "cache": f"{number('cache_bytes') / mib:.4g} MiB for {numbers['cached_tokens']} tokens; "
        f"in 16 bits {number('raw_bytes') / mib:.4g} MiB ({number('compression_ratio'):.3g} times)",
        "scratch": f"{number('scratch_bytes') / mib:.4g} MiB of decoded tokens kept beside it",
        "side data": f"{number('side_bytes') / mib:.4g} MiB, fixed",
        "bits": f"keys {number('key_bits'):.4g}, values {number('value_bits'):.4g}",
        "time": f"{number('attention_share'):.0%} in attention with its projections, "
        f"{number('cache_share'):.0%} storing and decoding",
    }
    return "\n".join(f"{name:<10} {fact}" for name, fact in lines.items())
