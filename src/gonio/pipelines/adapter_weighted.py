"""Resizing an adapter by the error of its outputs on a text, both errors in the record."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from torch import Tensor

from gonio.adapters import AdapterStyle, require_rewritable
from gonio.adapters.weighted import resize_weighted
from gonio.errors import SettingError
from gonio.models.activations import input_second_moments
from gonio.pipelines.adapter_reading import open_adapter
from gonio.pipelines.adapters import Progress
from gonio.pipelines.bench import Bench, TokenBudget, open_bench
from gonio.pipelines.reshape import write_reshaped
from gonio.records import Measurement, Value, make_value

__all__ = ["resize_adapter_by_inputs"]

_SKIP = 4  # attention sinks: their activations can be hundreds of times larger than all others


def resize_adapter_by_inputs(
    folder: str | Path,
    out: str | Path,
    base: str | Path,
    text: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    parameters: int | None = None,
    budget: TokenBudget = TokenBudget(),  # noqa: B008 - frozen
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Measurement:
    """Write the adapter of smaller ranks with the least output error on a text.

    The inputs of every changed layer are those the base model gives it, the adapter switched
    off. Second moments come from the front of the text; both errors are judged on its back too.
    The first tokens of a window are left out.

    Args:
        folder: PEFT adapter folder of linear layers, or the folder of a whole tuned model.
        out: Folder to create.
        base: Model source.
        text: Text source, see :func:`gonio.models.load_text`.
        rank: Largest rank of every module.
        energy: Share of each module's output energy to keep.
        parameters: Parameters in all; ranks then minimise the total output error.
        budget: Tokens for calibration and for judging.
        overwrite: Replace a folder that is not empty.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        Kind ``adapter-resize``; table ``modules`` with the output errors of this resize and of
        the plain one to the same ranks, on both parts of the text.

    Raises:
        AdapterError: The folder cannot be read, or holds what a rewritten one would lose.
        ModelError: The base cannot be read, or a module is no linear layer.
        SettingError: Not exactly one rule is given, or it is out of range.
        OutputError: ``out`` is not empty or cannot be written.
    """
    rules = {"rank": rank, "energy": energy, "parameters": parameters}
    if sum(value is not None for value in rules.values()) != 1:
        raise SettingError("give exactly one of rank, energy and parameters")
    with open_adapter(folder, base) as opened:
        adapter = opened.adapter
        require_rewritable(adapter, carries=True)
        bench = open_bench(base, text, budget)
        moments, held_out = (
            _moments(bench, windows, list(adapter.updates), progress)
            for windows in (bench.calibration, bench.evaluation)
        )
        resized = resize_weighted(
            adapter, moments, rank=rank, energy=energy, parameters=parameters, held_out=held_out
        )
        files = {item.name: item for item in (*opened.inputs, *bench.inputs)}
        return write_reshaped(
            "adapter-resize",
            f"The adapter {adapter.path.name} resized by its inputs",
            list(adapter.updates.values()),
            resized,
            AdapterStyle.of(adapter),
            Path(out),
            {**rules, "adapter": str(folder), "base": str(base), **_text_settings(bench)},
            list(files.values()),
            extra=_error_values,
            overwrite=overwrite,
        )


def _moments(
    bench: Bench, windows: Tensor, names: list[str], progress: Progress | None
) -> dict[str, Tensor]:
    found = input_second_moments(bench.model, windows, names, skip=_SKIP, progress=progress)
    return {name: moments.matrix for name, moments in found.items()}


def _text_settings(bench: Bench) -> dict[str, object]:
    return {
        "weigh_by_inputs": bench.text_name,
        "calibration_tokens": int(bench.calibration.numel()),
        "evaluation_tokens": int(bench.evaluation.numel()),
        "skipped_tokens_per_window": _SKIP,
    }


def _error_values(table: pd.DataFrame) -> list[Value]:
    """Relative output errors, all modules added up, of this resize and of the plain one."""
    values = []
    for prefix, where in (("", "the calibration text"), ("held_out_", "the held-out text")):
        total = float(table[f"{prefix}output_energy"].sum())
        for suffix, which in (("", "this resize"), ("_plain", "plain truncation, same ranks")):
            error = float(table[f"{prefix}output_error{suffix}"].sum())
            values.append(
                make_value(
                    f"{prefix}output_error{suffix}",
                    error / total if total > 0 else 0.0,
                    note=f"share of the updates' output energy lost on {where}: {which}",
                )
            )
    return values
