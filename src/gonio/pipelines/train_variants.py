"""Every variant of LoRA trained from one recipe and compared on held-out responses."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gonio.adapters import Adapter, load_adapter
from gonio.adapters.resize import stored_parameters
from gonio.errors import OutputError, SettingError
from gonio.files import write_text
from gonio.linalg.resampling import bootstrap_interval
from gonio.models import load_model, load_skeleton, open_weights
from gonio.pipelines.behavior import open_trained
from gonio.pipelines.training import check_trainable
from gonio.records import InputFile, Measurement, file_input, make_measurement, make_value
from gonio.training import (
    ClmRecipe,
    PreferencePair,
    Recipe,
    keep_fitting,
    make_recipe,
    response_log_probs,
    tokenize_pair,
    train_clm,
)
from gonio.training.backend import require_datasets, require_trl
from gonio.training.sources import PairSource, load_split
from gonio.training.variants.sparse import SPARSE_FACTORS_NAME

__all__ = ["VARIANTS", "compare_variants", "variant_recipe"]

Progress = Callable[[str, int, int], None]

_COST_NAME = "cost.json"

# what each changes of the recipe
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "stacked": {"variant": {"name": "stacked"}},
    "sparse": {"variant": {"name": "sparse"}},
    "dynamic": {"variant": {"name": "dynamic"}},
    "adalora": {"variant": {"name": "adalora"}},
    "scaled": {"variant": {"name": "scaled"}},
    "gaussian": {"init": "gaussian"},
    "zero-a": {"init": "zero-a"},
    "orthogonal": {"init": "orthogonal"},
    "mica": {"init": "mica"},
    "pissa": {"init": "pissa_niter_4"},
    "olora": {"init": "olora"},
}


def variant_recipe(name: str, recipe: Recipe) -> ClmRecipe:
    """A CLM recipe changed into a variant's.

    Raises:
        SettingError: There is no such variant, the recipe is not for CLM or has a variant already,
            or the change is refused.
    """
    if name not in VARIANTS:
        raise SettingError(f"no variant {name!r}; there are {', '.join(VARIANTS)}")
    if not isinstance(recipe, ClmRecipe) or recipe.variant is not None:
        raise SettingError("variants are compared from a plain CLM recipe")
    changed = make_recipe("clm", **{**recipe.model_dump(), **VARIANTS[name]})
    assert isinstance(changed, ClmRecipe)
    return changed


def compare_variants(
    model: str | Path,
    data: str,
    recipe: Recipe,
    out: str | Path,
    *,
    only: Sequence[str] = (),
    held_out: int = 16,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Measurement:
    """Train variants one after the other, each into its own folder.

    A folder whose recipe is the wanted one is read instead of trained again.

    Args:
        model: Model source.
        data: As for training.
        recipe: A CLM recipe; what a variant needs is changed.
        out: Folder of the folders.
        only: Variants to train; all of :data:`VARIANTS` unless given.
        held_out: Pairs whose chosen responses are scored.
        overwrite: Train again what was trained from another recipe.
        progress: Called as ``progress(variant, done, total)``.

    Returns:
        Kind ``training-variants``; table ``variants`` with ``variant, loss_before, loss_after,
        loss_low, loss_high`` (nats per token, the central 95% of the mean change over resampled
        pairs added to the loss before)``, mean_rank, max_rank, factor_bytes`` (stored numbers)``,
        file_bytes, sparse_bytes, trained_parameters, seconds`` and ``cpu_seconds``, of all threads.

    Raises:
        GonioError: The model, the data, the recipe or a folder is refused.
    """
    names = list(only) or list(VARIANTS)
    recipes = {name: variant_recipe(name, recipe) for name in names}
    require_datasets()
    require_trl()
    out = Path(out)
    todo = {name for name in names if _is_missing(out / name, recipes[name], overwrite)}
    check_trainable(load_skeleton(model), recipe)
    source = load_split(data, train=recipe.num_examples, held_out=held_out, seed=recipe.seed)
    bench = _Bench.of(model, source, recipe)
    rows = []
    for done, name in enumerate(names):
        if progress is not None:
            progress(name, done, len(names))
        if name in todo:
            bench.train(recipes[name], out / name, str(model))
        rows.append({"variant": name, **bench.losses(out / name), **_storage(out / name)})
    table = pd.DataFrame(rows)
    return make_measurement(
        "training-variants",
        f"Variants of LoRA trained on {model} with {source.name}",
        settings={
            "model": str(model),
            "data": data,
            "variants": names,
            "recipe": recipe.model_dump(mode="json"),
            "held_out": held_out,
        },
        values=[
            make_value("held_out_pairs", len(bench.responses)),
            make_value("held_out_tokens", bench.num_tokens),
            make_value("loss_before", float(table["loss_before"].iloc[0]), unit="nats"),
        ],
        tables={"variants": table},
        inputs=[InputFile(name=f"data/{source.name}", sha256=source.sha256), *_inputs(model)],
        seed=recipe.seed,
        dtype=bench.network.dtype,
        device=bench.network.device.type,
    )


def _is_missing(folder: Path, recipe: ClmRecipe, overwrite: bool) -> bool:
    """Whether a variant has to be trained.

    Raises:
        OutputError: The folder holds something else.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return True
    try:
        stored = json.loads((folder / "training.json").read_text(encoding="utf-8"))["recipe"]
        json.loads((folder / _COST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError):
        stored = None
    if stored == recipe.model_dump(mode="json"):
        return False
    if overwrite:
        return True
    raise OutputError(f"{folder} holds something else than this training; give --force")


@dataclass(frozen=True)
class _Bench:
    """A model, what it is trained on, and the held-out responses it is judged by.

    Attributes:
        network: The base model.
        tokenizer: Its tokenizer.
        pairs: Training pairs.
        responses: Prompt and chosen response of every held-out pair, in tokens.
        before: Log-probability of every response under the base model, nats.
    """

    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    pairs: tuple[PreferencePair, ...]
    responses: tuple[tuple[Sequence[int], Sequence[int]], ...]
    before: Tensor

    @classmethod
    def of(cls, model: str | Path, source: PairSource, recipe: Recipe) -> _Bench:
        """Load a model and score it."""
        network, tokenizer = load_model(model)
        pairs, _ = keep_fitting(tokenizer, source.split.train, recipe.max_length)
        judged, _ = keep_fitting(tokenizer, source.split.held_out, recipe.max_length)
        tokens = [tokenize_pair(tokenizer, pair, recipe.max_length) for pair in judged]
        responses = tuple((pair.prompt, pair.chosen) for pair in tokens)
        before = response_log_probs(network, responses)
        return cls(network, tokenizer, tuple(pairs), responses, before)

    @property
    def num_tokens(self) -> int:
        """Tokens of all responses."""
        return sum(len(response) for _, response in self.responses)

    def train(self, recipe: ClmRecipe, folder: Path, base_name: str) -> None:
        """Train into a folder, and note the processor time beside."""
        started = time.process_time()
        train_clm(
            *(self.network, self.tokenizer, self.pairs, recipe, folder),
            base_name=base_name,
            overwrite=True,
        )
        cost = {"cpu_seconds": time.process_time() - started}
        write_text(folder / _COST_NAME, json.dumps(cost) + "\n")

    def losses(self, folder: Path) -> dict[str, float]:
        """Loss per token over all responses; the interval of its change is over the pairs."""
        with open_trained(self.network, folder) as trained:
            after = response_log_probs(trained.model, self.responses)
        # so weighted, the mean over pairs is the one over tokens
        change = (self.before - after) * len(self.responses) / self.num_tokens
        interval = bootstrap_interval(change.numpy())
        start = -float(self.before.sum()) / self.num_tokens
        return {
            "loss_before": start,
            "loss_after": -float(after.sum()) / self.num_tokens,
            "loss_low": start + interval.low,
            "loss_high": start + interval.high,
        }


def _storage(folder: Path) -> dict[str, float | int | None]:
    adapter: Adapter = load_adapter(folder)
    updates = list(adapter.updates.values())
    about = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    sparse = folder / SPARSE_FACTORS_NAME
    return {
        "mean_rank": sum(u.rank for u in updates) / len(updates),
        "max_rank": max(u.rank for u in updates),
        "factor_bytes": sum(stored_parameters(u) * u.lora_a.element_size() for u in updates),
        "file_bytes": (folder / "adapter_model.safetensors").stat().st_size,
        "sparse_bytes": sparse.stat().st_size if sparse.exists() else None,
        "trained_parameters": about["num_trainable"],
        "seconds": about["seconds"],
        "cpu_seconds": json.loads((folder / _COST_NAME).read_text(encoding="utf-8"))["cpu_seconds"],
    }


def _inputs(model: str | Path) -> list[InputFile]:
    with open_weights(model) as weights:
        return [file_input(path, f"base/{path.name}") for path in weights.files]
