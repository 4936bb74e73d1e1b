"""A recipe trained at several ranks and seeds; what is finished is not trained again."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gonio.errors import RecordError, SettingError
from gonio.files import file_sha256, require_writable
from gonio.models import load_model, open_weights
from gonio.pipelines.adapter_sweep import check_ranks, summarize_sweep
from gonio.pipelines.sweep_judge import (
    Progress,
    SweepMetric,
    TextUnits,
    gains_of_pairs,
    judge_text,
)
from gonio.pipelines.training import HELD_OUT_PAIRS, train_adapter
from gonio.records import InputFile, Measurement, file_input, read_measurement, write_measurement
from gonio.training import LoraRecipe, TrainingKind
from gonio.training.sources import load_split

__all__ = ["recipe_at_rank", "train_sweep"]


def train_sweep(
    kind: TrainingKind,
    model: str | Path,
    data: str,
    recipe: LoraRecipe,
    ranks: Sequence[int],
    out: str | Path,
    *,
    seeds: Sequence[int] = (0,),
    keep_scaling: bool = False,
    metric: SweepMetric = "margin",
    held_out: int = HELD_OUT_PAIRS,
    text: str = "docstrings",
    tokens: int = 4096,
    window: int = 256,
    tolerance: float = 0.05,
    progress: Progress | None = None,
) -> Measurement:
    """Train a recipe at every rank and seed and judge all on the same held-out units.

    Every run has its folder ``rank-R-seed-S`` below ``out``, with the adapter and its record,
    which is written last. A run whose record agrees with the recipe, the data and the model is
    finished; anything else in its place is trained anew.

    Args:
        kind: ``dpo`` or ``clm``.
        model: Model source.
        data: Pairs, as for training; they are split by the recipe's own seed at every seed.
        recipe: The settings; rank and seed are replaced.
        ranks: Distinct ranks.
        out: Folder of all runs.
        seeds: Distinct seeds of order and initialization.
        keep_scaling: Let alpha grow with the rank so that the scaling stays the recipe's;
            otherwise alpha stays and the scaling falls as 1 / r, or 1 / sqrt(r) with rsLoRA.
        metric: What is judged.
        held_out: Held-out pairs.
        text: Text of ``text-loss``.
        tokens: Its last tokens that are scored.
        window: Tokens per window.
        tolerance: Share of the best gain that the recommended rank may give up.
        progress: Called as ``progress(what, runs done, runs)``.

    Returns:
        Kind ``adapter-sweep``; tables ``ranks``, ``curves``, ``units``.

    Raises:
        GonioError: The model, the data, the recipe or a setting is refused.
    """
    ranks = check_ranks(ranks)
    inputs = _inputs(model, data, recipe, seeds, held_out)
    place = Path(out)
    require_writable(place)
    runs = [(rank, seed) for seed in seeds for rank in ranks]
    found = []
    for done, (rank, seed) in enumerate(runs):
        if progress is not None:
            progress(f"rank {rank}, seed {seed}", done, len(runs))
        settings = recipe_at_rank(recipe, rank, seed, keep_scaling=keep_scaling)
        folder = place / f"rank-{rank}-seed-{seed}"
        found.append(_trained(kind, model, data, settings, recipe.seed, held_out, folder, inputs))
    folders = [place / f"rank-{rank}-seed-{seed}" for rank, seed in runs]
    about: dict[str, Any] = {}
    if metric == "text-loss":
        about = {"text": text, "tokens": tokens, "window": window}
        judged, source_text = _judged_on_text(model, folders, **about)
        inputs.append(source_text)
    else:
        judged = [gains_of_pairs(each.tables["held_out"], metric) for each in found]
    units = [t.assign(rank=r, seed=s) for t, (r, s) in zip(judged, runs, strict=True)]
    about |= {"mode": "train", "kind": kind, "model": str(model), "data": data}
    about |= {"held_out": held_out, "recipe": recipe.model_dump(mode="json", exclude={"r"})}
    about |= {"ranks": ranks, "seeds": list(seeds), "keep_scaling": keep_scaling}
    title = f"{kind} training of {model}"
    table = pd.concat(units, ignore_index=True)
    return summarize_sweep(
        table, title, metric, about, inputs, tolerance=tolerance, seed=recipe.seed
    )


def _inputs(
    model: str | Path, data: str, recipe: LoraRecipe, seeds: Sequence[int], held_out: int
) -> list[InputFile]:
    """Data and weights, hashed, after the settings are checked."""
    if not seeds or len(set(seeds)) != len(seeds):
        raise SettingError(f"give distinct seeds, at least one, found {list(seeds)}")
    if not isinstance(recipe, LoraRecipe):
        raise SettingError(f"a {type(recipe).__name__} has no rank to sweep")
    source = load_split(data, train=recipe.num_examples, held_out=held_out, seed=recipe.seed)
    with open_weights(model) as weights:
        base = [file_input(path, f"base/{path.name}") for path in weights.files]
    return [InputFile(name=f"data/{source.name}", sha256=source.sha256), *base]


def _judged_on_text(
    model: str | Path, folders: Sequence[Path], *, text: str, tokens: int, window: int
) -> tuple[list[pd.DataFrame], InputFile]:
    network, tokenizer = load_model(model)
    units = TextUnits.of(network, tokenizer, text, tokens=tokens, window=window)
    tables = [
        judge_text(network, folder / "adapter", units, kept=folder / "text.parquet")
        for folder in folders
    ]
    return tables, units.text


def recipe_at_rank(
    recipe: LoraRecipe, rank: int, seed: int, *, keep_scaling: bool = False
) -> LoraRecipe:
    """The recipe with another rank and seed, alpha as before or in step with the scaling."""
    growth = math.sqrt(rank / recipe.r) if recipe.use_rslora else rank / recipe.r
    alpha = recipe.lora_alpha * growth if keep_scaling else recipe.lora_alpha
    changed = {"r": rank, "seed": seed, "lora_alpha": alpha}
    return type(recipe).model_validate({**recipe.model_dump(), **changed})


def _trained(
    kind: TrainingKind,
    model: str | Path,
    data: str,
    recipe: LoraRecipe,
    data_seed: int,
    held_out: int,
    folder: Path,
    inputs: Sequence[InputFile],
) -> Measurement:
    """The measurement of one run: read where it is finished, trained where it is not."""
    wanted: dict[str, Any] = {
        "kind": kind,
        "model": str(model),
        "data": data,
        "data_seed": data_seed,
        "recipe": recipe.model_dump(mode="json"),
        "held_out": held_out,
    }
    done = _finished(folder, wanted, inputs)
    if done is not None:
        return done
    if folder.exists():
        shutil.rmtree(folder)
    found = train_adapter(
        kind,
        model,
        data,
        recipe,
        folder / "adapter",
        held_out=held_out,
        data_seed=data_seed,
        overwrite=True,
    )
    write_measurement(found, folder / "record")
    return found


def _finished(
    folder: Path, wanted: dict[str, Any], inputs: Sequence[InputFile]
) -> Measurement | None:
    """A run's measurement if its settings, inputs and adapter are the ones wanted."""
    try:
        found = read_measurement(folder / "record")
    except RecordError:
        return None
    record = found.record
    hashes = {item.name: item.sha256 for item in record.inputs}
    adapter = folder / "adapter" / "adapter_model.safetensors"
    agrees = (
        record.kind == "training"
        and all(record.settings.get(name) == value for name, value in wanted.items())
        and all(hashes.get(item.name) == item.sha256 for item in inputs)
        and adapter.is_file()
        and hashes.get(f"adapter/{adapter.name}") == file_sha256(adapter)
    )
    return found if agrees else None
