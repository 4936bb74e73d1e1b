"""Weight matrices under one bit, and models with a rotated residual stream, end to end.

Intervals are bootstrap intervals over the matrices (or experts) of the model at hand.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal

import pandas as pd
import torch

from gonio.errors import ZeroMatrixError
from gonio.linalg.resampling import bootstrap_interval
from gonio.models import WeightReader, open_weights
from gonio.pipelines.adapters import Progress
from gonio.records import Measurement, Value, file_input, make_measurement, make_value
from gonio.weights import (
    SignFigure,
    SignSettings,
    StoredMatrix,
    WeightSigns,
    expert_gaps,
    input_groups,
    list_matrices,
    read_matrices,
)

__all__ = ["measure_weights"]

_FIGURES = (
    "cosine",
    "cosine_chance",
    "beta",
    "beta_chance",
    "cosine_train",
    "cosine_train_chance",
    "beta_train",
    "bits_per_weight",
)
_OVER_MATRICES = "mean over matrices; interval over matrices of this model"


def measure_weights(
    source: str | Path,
    settings: SignSettings | None = None,
    *,
    layers: Collection[int] | None = None,
    vectors: Literal["rows", "columns"] = "rows",
    share: Literal["matrix", "input"] = "matrix",
    progress: Progress | None = None,
) -> Measurement:
    """1-bit cosine, beta and stored bits of every projection matrix of a model, expert by expert.

    Args:
        source: Model source, read tensor by tensor.
        settings: What is measured on every matrix.
        layers: Numbers of the layers; all unless given.
        vectors: ``rows`` (one vector of R^in per output) or ``columns`` of the matrices.
        share: What one learned rotation serves: one matrix, or all matrices that read the same
            input (q, k and v; gate and up). Sharing by input needs rows.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        Kind ``weight-signs``; tables ``matrices`` (first; one row per matrix and choice),
        ``projections`` (means over layers and experts), of models with experts ``experts``, and
        ``left_out`` (what, reason).

    Raises:
        ModelError: The source cannot be read, is packed, or has no such layer.
        SettingError: A setting is out of range.
    """
    settings = settings or SignSettings()
    with open_weights(source) as weights:
        matrices, left_out = list_matrices(weights, layers)
        is_shared = share == "input" and vectors == "rows"
        groups = input_groups(matrices) if is_shared else [[one] for one in matrices]
        table, missing = _measure_groups(weights, groups, settings, vectors, progress)
        gaps, unfit = _expert_table(weights, matrices, settings, vectors, progress)
        inputs = [file_input(path, f"{source}/{path.name}") for path in weights.files]
    tables = {"matrices": table, "projections": _projection_means(table)}
    if len(gaps):
        tables["experts"] = gaps
    reasons = pd.DataFrame([*left_out, *missing, *unfit], columns=["what", "reason"])
    return make_measurement(
        "weight-signs",
        f"Weights of {source} under one bit, {vectors} as vectors",
        settings={
            "model": str(source),
            "layers": None if layers is None else sorted(layers),
            "vectors": vectors,
            "share": "input" if is_shared else "matrix",
            **vars(settings),
        },
        values=[*_sign_values(table, settings.seed), *_gap_values(gaps, settings.seed)],
        tables=tables | {"left_out": reasons},
        inputs=inputs,
        seed=settings.seed,
    )


def _measure_groups(
    weights: WeightReader,
    groups: list[list[StoredMatrix]],
    settings: SignSettings,
    vectors: str,
    progress: Progress | None,
) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """Figures of every matrix, and (matrix: choice, reason) of what was left out."""
    signs = WeightSigns(settings)
    rows, left_out, done = [], [], 0
    total = sum(len(group) for group in groups)
    # One iterator for all: experts fused in one tensor follow each other and read it once.
    tensors = read_matrices(weights, [matrix for group in groups for matrix in group])
    for group in groups:
        pairs = [next(tensors) for _ in group]
        nonzero = [(matrix, tensor) for matrix, tensor in pairs if bool(tensor.any())]
        left_out += [(one.name, "zero") for one, tensor in pairs if not bool(tensor.any())]
        if nonzero:
            turned = [t.mT.contiguous() if vectors == "columns" else t for _, t in nonzero]
            figures, missing = signs.measure(turned)
            for (matrix, _), found, reasons in zip(nonzero, figures, missing, strict=True):
                rows += [_row(matrix, figure) for figure in found]
                left_out += [(f"{matrix.name}: {choice}", why) for choice, why in reasons]
        done += len(group)
        if progress is not None:
            progress(f"signs of layer {group[0].layer}", done, total)
    if not rows:
        raise ZeroMatrixError(f"every projection matrix in {weights.folder} is zero")
    return pd.DataFrame(rows), left_out


def _row(matrix: StoredMatrix, figure: SignFigure) -> dict[str, object]:
    return {
        "matrix": matrix.name,
        "layer": matrix.layer,
        "projection": matrix.projection,
        "expert": matrix.expert,
        "out_features": matrix.shape[0],
        "in_features": matrix.shape[1],
        "choice": figure.choice,
        **{name: getattr(figure, name) for name in _FIGURES},
    }


def _projection_means(table: pd.DataFrame) -> pd.DataFrame:
    """Means over layers and experts."""
    groups = table.groupby(["projection", "choice"], sort=False)
    means = groups[list(_FIGURES)].mean()
    means.insert(0, "matrices", groups.size())
    return means.reset_index()


def _place(choice: object) -> tuple[int, str]:
    """Order of choices in a summary: plain ones first, corrected ones last."""
    plain = ("none", "haar", "hadamard", "column_centered", "row_centered", "learned")
    return plain.index(str(choice)) if choice in plain else len(plain), str(choice)


def _expert_table(
    weights: WeightReader,
    matrices: Iterable[StoredMatrix],
    settings: SignSettings,
    vectors: str,
    progress: Progress | None,
) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """Own against shared rotations, for every projection of every layer with experts."""
    layers: dict[tuple[int, str], list[StoredMatrix]] = {}
    for matrix in matrices:
        if matrix.expert is not None:
            layers.setdefault((matrix.layer, matrix.projection), []).append(matrix)
    frames, left_out = [], []
    for done, ((layer, projection), experts) in enumerate(layers.items(), start=1):
        n = experts[0].shape[1 if vectors == "rows" else 0]
        count = experts[0].shape[0 if vectors == "rows" else 1]
        name = f"experts of layer {layer}, {projection}"
        if n > settings.max_dim:
            left_out.append((name, f"dimension {n} above the limit of {settings.max_dim}"))
        elif len(experts) < 2 or count < 2:
            left_out.append((name, f"{len(experts)} expert(s) of {count} row(s): nothing to split"))
        else:
            stack = torch.stack([tensor for _, tensor in read_matrices(weights, experts)])
            rows = stack if vectors == "rows" else stack.mT.contiguous()
            try:
                found = expert_gaps(rows, iterations=settings.iterations, seed=settings.seed)
            except ZeroMatrixError as error:
                left_out.append((name, str(error)))
            else:
                frames.append(found.assign(layer=layer, projection=projection))
        if progress is not None:
            progress("rotations of experts", done, len(layers))
    if not frames:
        return pd.DataFrame(), left_out
    table = pd.concat(frames, ignore_index=True)
    keys = ["layer", "projection", "expert"]
    return table[keys + [name for name in table.columns if name not in keys]], left_out


def _sign_values(table: pd.DataFrame, seed: int) -> list[Value]:
    values = [make_value("matrices", int(table["matrix"].nunique()))]
    for choice, group in sorted(table.groupby("choice"), key=lambda item: _place(item[0])):
        note = "chance: rows in random directions"
        if choice == "learned":
            note = "rows the rotation was not fitted on; chance: rows in random directions"
        for name in ("cosine", "beta"):
            chance = group[f"{name}_chance"]
            values.append(_mean_value(f"{name}_{choice}", group[name], chance, seed, note))
        if group["cosine_train"].notna().any():
            note = "rows the rotation was fitted on; chance: the same fit to as many random rows"
            chance = group["cosine_train_chance"]
            values.append(
                _mean_value(f"cosine_train_{choice}", group["cosine_train"], chance, seed, note)
            )
        bits = group["bits_per_weight"]
        values.append(make_value(f"bits_per_weight_{choice}", float(bits.mean()), unit="bits"))
    return values


def _gap_values(gaps: pd.DataFrame, seed: int) -> list[Value]:
    if not len(gaps):
        return []
    note = "beta of an expert's own rotation minus that of the shared one, held-out rows; chance: "
    note += "the same rows dealt at random"
    values = []
    for projection, group in gaps.groupby("projection", sort=False):
        name = f"gap_{projection}"
        values.append(_mean_value(name, group["gap"], group["null_gap"], seed, note))
    return values


def _mean_value(
    name: str, found: pd.Series[float], chance: pd.Series[float], seed: int, note: str
) -> Value:
    interval = bootstrap_interval(found.tolist(), seed=seed) if len(found) > 1 else None
    return make_value(
        name,
        float(found.mean()),
        chance=float(chance.mean()),
        interval=interval,
        note=f"{note}; {_OVER_MATRICES}",
    )
