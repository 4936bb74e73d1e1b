"""One adapter of a fleet: measured, summarized, and kept on disk so that it is measured once.

A part is one Parquet file, the adapter's table of modules, named by what determines it: the bytes
of the adapter's files, the settings and the version of gonio.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import pandas as pd

from gonio import __version__
from gonio.adapters import load_adapter, spectrum_table
from gonio.adapters.buffers import RecycledBuffers
from gonio.adapters.checkpoints import FoundAdapter
from gonio.adapters.config import CONFIG_NAME
from gonio.adapters.contents import AdapterContents, prefetch_contents, read_contents
from gonio.adapters.stored import WEIGHTS_NAME
from gonio.files import replace_file
from gonio.linalg.resampling import bootstrap_interval, cluster_bootstrap_interval
from gonio.pipelines.ahead import Stopped
from gonio.records import InputFile

__all__ = [
    "FleetTask",
    "MeasuredAdapter",
    "ReadAdapter",
    "measure_read",
    "measure_task",
    "read_task",
]


_SIZES = ("rank", "out_features", "in_features")


@dataclass(frozen=True)
class FleetTask:
    """An adapter to measure, the settings that change its numbers, and where parts are kept."""

    item: FoundAdapter
    samples: int
    seed: int
    parts: Path | None


@dataclass(frozen=True)
class MeasuredAdapter:
    """What one adapter adds to a fleet.

    Attributes:
        modules: :func:`gonio.adapters.spectrum_table` of the adapter.
        row: Its row of the table ``adapters``.
        inputs: Its files.
    """

    modules: pd.DataFrame
    row: dict[str, Any]
    inputs: tuple[InputFile, ...]


@dataclass(frozen=True, eq=False)
class ReadAdapter:
    """An adapter whose files were read, or whose measured part was.

    Attributes:
        task: What to do with it.
        inputs: Its files.
        part: Where its part is kept, None for nowhere.
        measured: The table of its part, None where there is none.
        contents: What its files held.
    """

    task: FleetTask
    inputs: tuple[InputFile, ...]
    part: Path | None
    measured: pd.DataFrame | None
    contents: AdapterContents


def measure_task(task: FleetTask) -> MeasuredAdapter:
    """Measure one adapter, or read what an earlier run measured of the same files.

    Raises:
        AdapterError: The folder cannot be read, or every update is zero.
        DataError: A file cannot be read.
        OutputError: The part cannot be written.
    """
    return measure_read(read_task(task))


def read_task(
    task: FleetTask,
    following: FleetTask | None = None,
    stopped: Stopped = lambda: False,
    buffers: RecycledBuffers | None = None,
) -> ReadAdapter:
    """Read and hash the files of one adapter, once, and the part that is there for them.

    Args:
        task: The adapter.
        following: The next one, whose file the system may begin to read.
        stopped: Asked while reading; once true, reading ends with an error.
        buffers: Where weights are kept; fresh memory when omitted.

    Raises:
        AdapterError: The folder cannot be read.
        DataError: A file cannot be read.
    """
    name, path, _ = task.item
    if not all((path / file).is_file() for file in (CONFIG_NAME, WEIGHTS_NAME)):
        load_adapter(path)  # raises, and says what is missing
    if following is not None:
        prefetch_contents(following.item.path)
    contents = read_contents(path, stopped, buffers=buffers)
    inputs = tuple(
        InputFile(name=f"{name}/{file}", sha256=digest) for file, digest in contents.sha256.items()
    )
    part = None if task.parts is None else task.parts / f"{_key(task, inputs)}.parquet"
    return ReadAdapter(task, inputs, part, _read_part(part), contents)


def measure_read(read: ReadAdapter) -> MeasuredAdapter:
    """Measure an adapter that was read, and keep its part.

    Raises:
        AdapterError: The folder is not an adapter's, or every update is zero.
        OutputError: The part cannot be written.
    """
    task, modules = read.task, read.measured
    if modules is None:
        started = time.perf_counter()
        adapter = load_adapter(task.item.path, contents=read.contents)
        modules = spectrum_table(adapter, samples=task.samples, seed=task.seed)
        modules.attrs["seconds"] = time.perf_counter() - started
        if read.part is not None:
            with replace_file(read.part) as staging:
                modules.to_parquet(staging, index=False)
    seconds = modules.attrs.pop("seconds")
    return MeasuredAdapter(modules, _row(task, modules, seconds), read.inputs)


def _key(task: FleetTask, inputs: tuple[InputFile, ...]) -> str:
    """sha256 of what the numbers depend on."""
    given = [__version__, task.samples, task.seed, *(file.sha256 for file in inputs)]
    return hashlib.sha256(json.dumps(given).encode("utf-8")).hexdigest()


def _read_part(part: Path | None) -> pd.DataFrame | None:
    """The table of a part; None where there is none or it is damaged."""
    if part is None or not part.is_file():
        return None
    try:
        modules = pd.read_parquet(part)
    except (OSError, ValueError):
        return None
    return modules if "seconds" in modules.attrs else None


def _row(task: FleetTask, modules: pd.DataFrame, seconds: float) -> dict[str, Any]:
    """The adapter in one row: means over its trained modules, with chance and intervals."""
    is_trained = modules["spectral_norm"].to_numpy() > 0
    names = ("stable_rank", "random_lora_stable_rank", "k90", "random_lora_k90")
    trained = {name: modules[name].to_numpy()[is_trained] for name in names}
    values = trained["stable_rank"]
    # A module outside the numbered layers is a layer of its own.
    pairs = zip(modules["layer"].tolist(), modules["module"].tolist(), strict=True)
    layers = [module if layer is pd.NA else layer for layer, module in compress(pairs, is_trained)]
    over_modules = bootstrap_interval(values, seed=task.seed) if len(values) > 1 else None
    over_layers = None
    if len(set(layers)) > 1:
        over_layers = cluster_bootstrap_interval(values, layers, seed=task.seed)
    rank, rows, columns = (modules[name].to_numpy() for name in _SIZES)
    return {
        "adapter": task.item.name,
        "path": str(task.item.path),
        "step": task.item.step,
        "modules": len(modules),
        "zero_updates": len(modules) - len(values),
        "parameters": int((rank * (rows + columns)).sum()),
        "stable_rank": float(values.mean()),
        "stable_rank_chance": float(trained["random_lora_stable_rank"].mean()),
        "stable_rank_low": over_modules.low if over_modules else math.nan,
        "stable_rank_high": over_modules.high if over_modules else math.nan,
        "stable_rank_layers_low": over_layers.low if over_layers else math.nan,
        "stable_rank_layers_high": over_layers.high if over_layers else math.nan,
        "k90": float(trained["k90"].mean()),
        "k90_chance": float(trained["random_lora_k90"].mean()),
        "frobenius_norm": math.hypot(*modules["frobenius_norm"]),
        "seconds": seconds,
    }
