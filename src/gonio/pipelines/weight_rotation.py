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

from gonio.errors import ModelError, OutputError, SettingError
from gonio.files import replace_folder, require_writable
from gonio.linalg.chance import sign_cosine_of_random_direction
from gonio.linalg.resampling import bootstrap_interval
from gonio.models import load_model, open_weights, resolve_source
from gonio.pipelines.adapters import Progress
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
    from transformers import PreTrainedModel

__all__ = ["LARGEST_DIFFERENCE", "rotate_weights"]

# Of logits, relative to the largest. float32 rounding through 30 layers stays some ten times below;
# a gain folded wrongly lies above 0.01.
LARGEST_DIFFERENCE = 1e-4
_PROBE_SHAPE = (2, 64)  # windows and tokens whose logits are compared
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
    _refuse_target(folder, target, overwrite)
    require_rotatable(_family(folder))
    require_writable(target.absolute().parent)
    with open_weights(source) as weights:
        inputs = [file_input(path, f"{source}/{path.name}") for path in weights.files]
    step = _steps(progress)
    model, tokenizer = load_model(source)
    tokens = _probe_tokens(model, seed)
    logits = _logits(model, tokens)
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
        same_function = _compared_logits(staging, tokens, logits, str(source))
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


def _compared_logits(folder: Path, tokens: Tensor, logits: Tensor, source: str) -> list[Value]:
    """How far the logits of a written model are from those wanted; an error beyond rounding."""
    model, _ = load_model(folder)
    found = _logits(model, tokens)
    difference = float((found - logits).abs().max() / logits.abs().max())
    if not difference <= LARGEST_DIFFERENCE:
        raise ModelError(
            f"the rotated {source} computes something else: its logits differ by "
            f"{difference:.1e} of the largest\n"
            f"  expected at most {LARGEST_DIFFERENCE:.0e}; nothing was written"
        )
    same = float((found.argmax(dim=-1) == logits.argmax(dim=-1)).double().mean())
    note = "of the folder as read back, relative to the largest logit; random tokens"
    return [
        make_value("largest_logit_difference", difference, note=note),
        make_value("same_top1", same, note="share of positions with the same next token"),
    ]


def _family(folder: Path) -> str:
    """Model type by the configuration, before the weights are loaded."""
    path = folder / "config.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"cannot read the model type from {path}: {error}") from error


def _refuse_target(folder: Path, target: Path, overwrite: bool) -> None:
    if target.resolve() == folder.resolve():
        raise SettingError(f"{target} is the model itself; give another folder to write to")
    if target.is_file():
        raise OutputError(f"cannot write {target}: it is a file, expected a folder to create")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise OutputError(f"{target} is not empty and is not replaced; give --force to replace it.")


def _steps(progress: Progress | None) -> Callable[[str], None]:
    """Counts the steps of the whole; the first is loading the model."""
    done = 0

    def step(what: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(what, done, 4)

    return step


def _probe_tokens(model: PreTrainedModel, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(int(model.config.vocab_size), _PROBE_SHAPE, generator=generator)


@torch.no_grad()
def _logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    logits: Tensor = model(tokens, use_cache=False).logits.float()
    return logits


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
