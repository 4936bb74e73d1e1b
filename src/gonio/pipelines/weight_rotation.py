"""A model written again with its residual stream rotated, and checked to compute the same.

The folder is read back and its logits compared with the original's before it takes its place.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor

from gonio.errors import ModelError
from gonio.files import replace_folder, require_writable
from gonio.linalg.chance import sign_cosine_of_random_direction
from gonio.linalg.resampling import bootstrap_interval
from gonio.models import load_model, open_weights, resolve_source
from gonio.pipelines.adapters import Progress
from gonio.pipelines.rewritten_model import (
    compared_logits,
    logits_of,
    probe_tokens,
    refuse_target,
)
from gonio.quant import population_beta, sign_cosine
from gonio.records import Measurement, Value, file_input, make_measurement, make_value
from gonio.weights import (
    Rotation,
    StreamMatrix,
    random_direction_beta,
    require_rotatable,
    rotate_stream,
    stream_matrices,
    stream_rotation,
)

if TYPE_CHECKING:
    pass

__all__ = ["rotate_weights"]

_STAGES = ("stored", "folded", "rotated")


def rotate_weights(
    source: str | Path,
    out: str | Path,
    *,
    rotation: Rotation = "hadamard",
    iterations: int = 30,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Measurement:
    """Write a model whose residual stream is rotated, in float32, with the same logits.

    Args:
        source: Model source of an architecture of :data:`gonio.weights.FAMILIES`.
        out: Folder to create, a transformers model with its tokenizer.
        rotation: ``hadamard``, ``haar`` or ``learned``.
        iterations: Steps of the learned rotation.
        seed: Seed of the rotation and of the random tokens whose logits are compared.
        overwrite: Replace a folder that is not empty.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        Kind ``weight-rotation``; table ``matrices``: cosine and beta of the rows of every matrix
        that touches the residual stream as stored, with gains folded, and rotated. Rows a
        learned rotation was fitted on are not among them.

    Raises:
        ModelError: The source cannot be read, its architecture is not supported, or the folder
            read back gives other logits (nothing is written then).
        SettingError: ``out`` is the source itself, or a setting is out of range.
        OutputError: ``out`` is not empty or cannot be written.
    """
    folder, target = resolve_source(source).folder(), Path(out)
    refuse_target(folder, target, overwrite)
    require_rotatable(_family(folder))
    require_writable(target.absolute().parent)
    with open_weights(source) as weights:
        inputs = [file_input(path, f"{source}/{path.name}") for path in weights.files]
    step = _steps(progress)
    model, tokenizer = load_model(source)
    tokens = probe_tokens(model, seed)
    logits = logits_of(model, tokens)
    step("choosing the rotation")
    turn, fitted = stream_rotation(model, rotation, iterations=iterations, seed=seed)
    step("measuring as stored")
    stages = {
        "stored": _figures(stream_matrices(model), fitted),
        "folded": _figures(stream_matrices(model), fitted, folded=True),
    }
    step("rotating")
    rotate_stream(model, turn)
    stages["rotated"] = _figures(stream_matrices(model), fitted)
    step("writing and reading back")
    with replace_folder(target) as staging:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        del model
        same_function = compared_logits(staging, tokens, logits, str(source))
    matrices = _stage_table(stages)
    return make_measurement(
        "weight-rotation",
        f"{source} with its residual stream rotated ({rotation})",
        settings={
            "model": str(source),
            "out": str(out),
            "rotation": rotation,
            "iterations": iterations if rotation == "learned" else None,
            "probe_tokens": tokens.numel(),
        },
        values=[*same_function, *_stage_values(matrices, seed)],
        tables={"matrices": matrices},
        inputs=inputs,
        seed=seed,
    )


def _family(folder: Path) -> str:
    """Model type by the configuration, before the weights are loaded."""
    path = folder / "config.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"cannot read the model type from {path}: {error}") from error


def _steps(progress: Progress | None) -> Callable[[str], None]:
    """Counts the steps of the whole; the first is loading the model."""
    done = 0

    def step(what: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(what, done, 4)

    return step


def _figures(
    matrices: Sequence[StreamMatrix], fitted: Mapping[str, Tensor], *, folded: bool = False
) -> dict[str, dict[str, object]]:
    """Cosine and beta by matrix, on the rows that no rotation was fitted on."""
    found: dict[str, dict[str, object]] = {}
    for matrix in matrices:
        rows = matrix.rows(folded=folded)
        if matrix.name in fitted:
            is_free = torch.ones(len(rows), dtype=torch.bool)
            is_free[fitted[matrix.name]] = False
            rows = rows[is_free]
        rows = rows[rows.abs().amax(dim=1) > 0]
        if len(rows) == 0:
            raise ModelError(f"{matrix.name} is zero: it has no signs to measure")
        found[matrix.name] = {
            "matrix": matrix.name,
            "layer": matrix.layer,
            "projection": matrix.projection,
            "side": matrix.side,
            "rows": len(rows),
            "dimension": rows.shape[1],
            "cosine": sign_cosine(rows).mean().item(),
            "beta": population_beta(rows).item(),
        }
    return found


def _stage_table(stages: Mapping[str, Mapping[str, dict[str, object]]]) -> pd.DataFrame:
    """One row per matrix, figures of every stage side by side with chance."""
    table = pd.DataFrame(stages["stored"].values()).drop(columns=["cosine", "beta"])
    for quantity, chance in (
        ("cosine", sign_cosine_of_random_direction),
        ("beta", random_direction_beta),
    ):
        for stage in _STAGES:
            figures = pd.DataFrame(stages[stage].values())
            table[f"{quantity}_{stage}"] = figures[quantity]
        table[f"{quantity}_chance"] = [chance(n) for n in table["dimension"]]
    return table


def _stage_values(matrices: pd.DataFrame, seed: int) -> list[Value]:
    values = []
    note = "mean over matrices and interval over them; chance: rows in random directions"
    for side, group in matrices.groupby("side", sort=False):
        for quantity in ("cosine", "beta"):
            for stage in _STAGES:
                found = group[f"{quantity}_{stage}"]
                values.append(
                    make_value(
                        f"{quantity}_{side}_{stage}",
                        float(found.mean()),
                        chance=float(group[f"{quantity}_chance"].mean()),
                        interval=bootstrap_interval(found.tolist(), seed=seed)
                        if len(found) > 1
                        else None,
                        note=f"matrices whose {'input' if side == 'reads' else 'output'} is the "
                        f"residual stream, {stage}; {note}",
                    )
                )
    return values
