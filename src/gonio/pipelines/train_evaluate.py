"""Evaluate what a folder holds that `gonio train` (or PEFT) wrote, on held-out pairs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from gonio.errors import AdapterError, SettingError
from gonio.models import load_model, load_tokenizer, open_weights, resolve_source
from gonio.pipelines.behavior import behavior_table, behavior_values, open_trained
from gonio.records import InputFile, Measurement, file_input, make_measurement, make_value
from gonio.training import keep_fitting, pairs_sha256
from gonio.training.sources import PairSource, load_split

__all__ = ["evaluate_training"]

_MAX_LENGTH = 512


def evaluate_training(
    model: str | Path,
    folder: Path,
    data: str,
    *,
    held_out: int = 64,
    max_length: int | None = None,
    beta: float | None = None,
    seed: int | None = None,
    batch_size: int = 8,
    device: str = "cpu",
    parts: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Measurement:
    """Margins, accuracy, divergence from the base and log-ratio on held-out pairs.

    The pairs are split as in training; whether these are the folder's training pairs is checked.

    Args:
        model: The base model.
        folder: What was trained.
        data: ``bundled``, a text, a ``.jsonl`` file of pairs or a hub data set.
        held_out: Pairs to evaluate on, at least 2.
        max_length: Tokens per sequence; that of the recipe, else 512.
        beta: DPO's beta; that of the recipe, if any.
        seed: Seed of the split and the bootstrap; that of the recipe, else 0.
        batch_size: Sequences per forward pass.
        device: Where to run.
        parts: File that keeps finished pairs; none unless given.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        Kind ``training-behavior`` with the table ``pairs``.

    Raises:
        GonioError: The model, the folder, the data or a setting is refused.
    """
    if held_out < 2:
        raise SettingError(f"held_out must be at least 2 pairs, found {held_out}")
    facts = _facts(folder)
    recipe = facts.get("recipe", {})
    max_length = max_length or recipe.get("max_length", _MAX_LENGTH)
    seed = recipe.get("seed", 0) if seed is None else seed
    beta = recipe.get("beta") if beta is None else beta
    resolve_source(model)
    source = load_split(data, train=_num_train(facts), held_out=held_out, seed=seed)
    tokenizer = load_tokenizer(model)
    pairs, left_out = keep_fitting(tokenizer, source.split.held_out, max_length)
    network, tokenizer = load_model(model, device=torch.device(device))
    with open_trained(network, folder) as trained:
        table = behavior_table(
            *(trained, tokenizer, pairs),
            max_length=max_length,
            batch_size=batch_size,
            parts=parts,
            progress=progress,
        )
        weights = trained.weights
    return make_measurement(
        "training-behavior",
        f"Behavior of {folder.name} on {source.name}",
        settings={
            "model": str(model),
            "adapter": str(folder),
            "data": data,
            "pairs": source.nature,
            "held_out": held_out,
            "max_length": max_length,
            "disjoint_from_training": _disjoint(facts, tokenizer, source, max_length),
        },
        values=[
            *behavior_values(table, beta=recipe.get("beta") if beta is None else beta, seed=seed),
            make_value("left_out_pairs", left_out, note="their prompt alone fills max_length"),
        ],
        tables={"pairs": table},
        inputs=_inputs(model, source.name, source.sha256, weights),
        seed=seed,
        dtype=network.dtype,
        device=network.device.type,
    )


def _disjoint(
    facts: dict[str, Any], tokenizer: PreTrainedTokenizerBase, source: PairSource, length: int
) -> str:
    """Whether these are the training pairs the folder names, which the split keeps apart."""
    seen = keep_fitting(tokenizer, source.split.train, length)[0] if facts else ()
    is_known = facts.get("pairs", {}).get("sha256") == pairs_sha256(seen)
    return "checked" if is_known else "unknown: the folder names other training pairs"


def _facts(folder: Path) -> dict[str, Any]:
    """What `gonio train` wrote beside the weights; nothing for a folder of PEFT's own."""
    path = folder / "training.json"
    if not folder.is_dir():
        raise AdapterError(f"no folder at {folder}")
    if not path.is_file():
        return {}
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise AdapterError(f"cannot read {path}: {error}") from error
    if not isinstance(facts, dict) or not isinstance(facts.get("recipe", {}), dict):
        raise AdapterError(f"{path} is not what `gonio train` writes: no object with a recipe")
    return facts


def _num_train(facts: dict[str, Any]) -> int:
    recipe = facts.get("recipe", {})
    if recipe.get("samples"):
        return int(recipe["samples"])
    steps, batch = recipe.get("steps", 1), recipe.get("batch_size", 1)
    return int(steps * batch * recipe.get("gradient_accumulation", 1))


def _inputs(model: str | Path, name: str, sha256: str, weights: Path) -> list[InputFile]:
    with open_weights(model) as reader:
        base = [file_input(path, f"base/{path.name}") for path in reader.files]
    return [
        InputFile(name=f"data/{name}", sha256=sha256),
        *base,
        file_input(weights, f"adapter/{weights.name}"),
    ]
