"""What an adapter's size says before any test: complexity bounds, parameters and bytes.

The mutual information of weights and update, I(W; BA), is left out on purpose. One adapter is one
point, and an information belongs to a joint law that one training does not give; an update that
training computes from the weights shares infinitely many nats with them; and a Gaussian estimate
from the rows of W and BA as paired samples is infinite for any two matrices, random ones too, as
soon as out_features <= in_features + r: some of their columns then predict each other exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import pandas as pd
import torch

from gonio.adapters import LoraUpdate, StoredBytes, stored_bytes
from gonio.adapters.memory import Optimizer, parameter_gain, training_bytes
from gonio.errors import AdapterError, SettingError
from gonio.linalg.complexity import (
    MatrixClass,
    complexity_bound,
    printed_full_bound,
    printed_lora_bound,
)
from gonio.linalg.lowrank import factored_frobenius_norm
from gonio.models import WeightReader
from gonio.models.activations import input_second_moments
from gonio.pipelines.adapter_reading import open_adapter
from gonio.pipelines.adapters import Progress
from gonio.pipelines.bench import TokenBudget, open_bench
from gonio.records import InputFile, Measurement, Value, make_measurement, make_value

__all__ = ["adapter_bounds"]

_SKIP = 4  # attention sinks: their activations can be hundreds of times larger than all others
_PRECISIONS: dict[str, tuple[torch.dtype, torch.dtype, bool]] = {  # frozen, trained, master copy
    "float32": (torch.float32, torch.float32, False),
    "bfloat16": (torch.bfloat16, torch.bfloat16, False),
    "mixed": (torch.bfloat16, torch.bfloat16, True),
}


@dataclass(frozen=True)
class _Inputs:
    """What is known of a module's inputs: their number, and norms or bounds on them."""

    examples: int
    frobenius_norm: float
    spectral_norm: float | None


def adapter_bounds(
    folder: str | Path,
    base: str | Path | None = None,
    *,
    samples: int = 1000,
    input_norm: float = 1.0,
    text: str = "bundled",
    tokens: int = 4096,
    optimizer: Optimizer = "adamw",
    progress: Progress | None = None,
) -> Measurement:
    """Complexity bounds of every module's class of updates, its parameters, and bytes to train.

    The class of a module holds all matrices of its rank whose norm is at most that of its update:
    see :mod:`gonio.linalg.complexity` for the inequalities. The norm is read off after training,
    so a statement about unseen data needs a class chosen before: take the next power of two, and
    pay for the choice. Modules are bounded one by one; a network's complexity is not their sum.

    Args:
        folder: LoRA folder.
        base: Base model; with it the inputs are those it gives every module on a text.
        samples: Number of inputs N, without a base.
        input_norm: Largest Euclidean length of an input, without a base.
        text: Text, with a base.
        tokens: Tokens of its front, with a base; the first 4 of each window are left out.
        optimizer: Whose states are counted.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        Kind ``adapter-bounds``; tables ``modules`` and ``memory``.

    Raises:
        AdapterError: The folder cannot be read, or is no LoRA of linear layers.
        SettingError: ``samples`` or ``input_norm`` is out of range.
        GonioError: The base or the text cannot be read.
    """
    if samples < 1 or not 0.0 < input_norm < math.inf:
        raise SettingError(
            f"samples must be at least 1 and input_norm above 0, found {samples} and {input_norm}"
        )
    with open_adapter(folder, base) as opened:
        adapter = opened.adapter
        updates = [update for update in adapter.updates.values() if update.kind == "linear"]
        if adapter.kind != "lora" or not updates:
            raise AdapterError(
                f"no bounds for {folder}: found a {adapter.kind} adapter with {len(updates)} "
                "factored linear updates, expected a LoRA"
            )
        inputs = opened.inputs
        if base is None:
            sized = {
                u.module: _Inputs(samples, math.sqrt(samples) * input_norm, None) for u in updates
            }
        else:
            sized, text_inputs = _observed(base, text, tokens, updates, progress)
            inputs = list({item.name: item for item in (*inputs, *text_inputs)}.values())
        rslora = adapter.settings.use_rslora
        modules = pd.DataFrame([_row(u, sized[u.module], use_rslora=rslora) for u in updates])
        trained = int(modules["parameters"].sum())
        total = _num_parameters(opened.weights) or int(modules["full_parameters"].sum())
        stored = stored_bytes([adapter])
    return make_measurement(
        "adapter-bounds",
        f"Bounds of {Path(folder).name}",
        settings={
            "adapter": str(folder),
            "base": None if base is None else str(base),
            **(
                {"samples": samples, "input_norm": input_norm}
                if base is None
                else {"text": text, "tokens": tokens, "skipped_tokens_per_window": _SKIP}
            ),
            "optimizer": optimizer,
        },
        values=[*_values(modules, has_base=base is not None), *_byte_values(stored)],
        tables={"modules": modules, "memory": _memory(total, trained, optimizer)},
        inputs=inputs,
        dtype=torch.float64,
    )


def _byte_values(stored: StoredBytes) -> list[Value]:
    note = "the same modules as merged bfloat16 weights, a copy for every adapter"
    return [
        make_value("adapter_bytes", stored.factors, unit="B", note="factors as stored"),
        make_value("merged_bytes", stored.merged_weights, unit="B", note=note),
    ]


def _observed(
    base: str | Path,
    text: str,
    tokens: int,
    updates: list[LoraUpdate],
    progress: Progress | None,
) -> tuple[dict[str, _Inputs], tuple[InputFile, ...]]:
    """Both norms of every module's inputs on a text, from their second moments."""
    window = min(512, tokens)
    bench = open_bench(base, text, TokenBudget(tokens, 0, window))
    names = [update.module for update in updates]
    found = input_second_moments(
        bench.model, bench.calibration, names, skip=min(_SKIP, window - 1), progress=progress
    )
    sized: dict[int, _Inputs] = {}
    for moments in found.values():
        if id(moments) not in sized:
            top = float(torch.linalg.eigvalsh(moments.matrix)[-1].clamp_min(0))
            trace = float(moments.matrix.trace())
            sized[id(moments)] = _Inputs(
                moments.count, math.sqrt(moments.count * trace), math.sqrt(moments.count * top)
            )
    return {name: sized[id(moments)] for name, moments in found.items()}, bench.inputs


def _row(update: LoraUpdate, inputs: _Inputs, *, use_rslora: bool) -> dict[str, object]:
    m, n = update.shape
    scaling = abs(update.scaling)
    sigma = update.singular_values()
    norms: Mapping[MatrixClass, float] = {
        "spectral": float(sigma[0]),
        "frobenius": float(factored_frobenius_norm(update.lora_b, update.lora_a, scaling)),
        "factors": scaling * float(update.lora_b.double().norm() * update.lora_a.double().norm()),
    }
    row: dict[str, object] = {
        "module": update.module,
        "layer": update.layer,
        "projection": update.projection,
        "out_features": m,
        "in_features": n,
        "rank": update.rank,
        "examples": inputs.examples,
        "input_length": inputs.frobenius_norm / math.sqrt(inputs.examples),  # root mean square
        "parameters": update.rank * (m + n),
        "full_parameters": m * n,
        "parameter_gain": parameter_gain((m, n), update.rank),
    }
    for kind in get_args(MatrixClass):
        row[f"{kind}_radius"] = norms[kind]
        row[f"{kind}_bound"] = _bound(kind, update, inputs, update.rank, norms[kind])
    row["full_spectral_bound"] = _bound("spectral", update, inputs, min(m, n), norms["spectral"])
    alpha = scaling * (math.sqrt(update.rank) if use_rslora else update.rank)
    row["printed_lora_bound"] = printed_lora_bound(alpha, update.rank, (m, n), inputs.examples)
    row["printed_full_bound"] = printed_full_bound((m, n), inputs.examples)
    return row


def _bound(
    kind: MatrixClass, update: LoraUpdate, inputs: _Inputs, rank: int, radius: float
) -> float:
    return complexity_bound(
        *(kind, inputs.examples, update.shape, rank, radius),
        frobenius_norm=inputs.frobenius_norm,
        spectral_norm=inputs.spectral_norm,
    )


def _num_parameters(weights: WeightReader | None) -> int:
    """Parameters stored by a base model; 0 without one."""
    return 0 if weights is None else sum(math.prod(weights.shape(name)) for name in weights.names)


def _memory(total: int, trained: int, optimizer: Optimizer) -> pd.DataFrame:
    """Bytes of LoRA and of full training under every precision."""
    rows = []
    for precision, (frozen_dtype, trained_dtype, has_master) in _PRECISIONS.items():
        for method, (frozen, moving) in {"lora": (total, trained), "full": (0, total)}.items():
            found = training_bytes(
                *(frozen, moving),
                frozen_dtype=frozen_dtype,
                trained_dtype=trained_dtype,
                has_master=has_master,
                optimizer=optimizer,
                state_dtype=torch.float32 if has_master else trained_dtype,
            )
            row = {"method": method, "precision": precision, "trained_parameters": moving}
            rows.append({**row, **asdict(found), "total": found.total})
    return pd.DataFrame(rows)


def _values(modules: pd.DataFrame, *, has_base: bool) -> list[Value]:
    where = "on the text" if has_base else "for inputs of at most the given length"
    unit = "update times input"
    notes = {
        "spectral_bound": "||D||_2 at most that of the update, rank at most r",
        "frobenius_bound": "||D||_F at most that of the update, rank at most r",
        "factors_bound": "s ||B||_F ||A||_F at most that of the factors",
        "full_spectral_bound": "||D||_2 at most that of the update, any rank",
    }
    values = [
        make_value(
            name,
            float(modules[name].median()),
            unit=unit,
            note=f"upper bound on the empirical Rademacher complexity {where}: {note}; median over "
            f"{len(modules)} modules",
        )
        for name, note in notes.items()
    ]
    gain = float(modules["full_parameters"].sum()) / float(modules["parameters"].sum())
    return [
        *values,
        make_value(
            "printed_lora_bound",
            float(modules["printed_lora_bound"].median()),
            note="as printed, in no unit; not a valid bound: it leaves out the norms of factors "
            "and inputs and falls as 1/N, which no class with two members does",
        ),
        make_value(
            "printed_full_bound",
            float(modules["printed_full_bound"].median()),
            note="as printed, O(sqrt(mn/N)) without its constant and with no norm: not comparable",
        ),
        make_value("parameter_gain", gain, note="parameters of the modules over their factors'"),
    ]
