"""Where a number comes from: hashes of inputs, package versions, time, and the record itself."""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gonio import __version__
from gonio.files import file_sha256
from gonio.linalg.resampling import Interval
from gonio.records.schema import (
    Environment,
    InputFile,
    IntervalRecord,
    Measurement,
    Record,
    Value,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["describe_environment", "file_input", "make_measurement", "make_value", "text_input"]

_PACKAGES = ("torch", "transformers", "peft", "trl", "numpy", "scipy", "safetensors")


def describe_environment() -> Environment:
    """Versions of gonio, Python and the packages that touch numbers, and the thread count."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue  # an extra that is not installed cannot have touched the numbers
    return Environment(
        gonio=__version__,
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        packages=packages,
        threads=torch.get_num_threads(),
    )


def file_input(path: Path, name: str | None = None) -> InputFile:
    """Name and sha256 of a file, read in blocks.

    Args:
        path: The file.
        name: What to call it in the record; the file's own name unless given.

    Raises:
        DataError: The file cannot be read.
    """
    return InputFile(name=name or path.name, sha256=file_sha256(path))


def text_input(name: str, text: str) -> InputFile:
    """Name and sha256 of a text held in memory (UTF-8)."""
    return InputFile(name=name, sha256=hashlib.sha256(text.encode("utf-8")).hexdigest())


def make_value(
    name: str,
    value: float | int | str | None,
    *,
    unit: str = "",
    chance: float | None = None,
    interval: Interval | None = None,
    note: str = "",
) -> Value:
    """A :class:`Value` from plain numbers; a NaN or an infinity becomes null and says so."""
    if isinstance(value, float) and not math.isfinite(value):
        note = f"{note} (undefined: {value})".strip()
        value = None
    stored = None
    if interval is not None and math.isfinite(interval.low) and math.isfinite(interval.high):
        stored = IntervalRecord(
            low=interval.low,
            high=interval.high,
            confidence=interval.confidence,
            method=interval.method,
        )
    return Value(name=name, value=value, unit=unit, chance=chance, interval=stored, note=note)


def make_measurement(
    kind: str,
    title: str,
    *,
    settings: Mapping[str, Any],
    values: Iterable[Value],
    tables: Mapping[str, pd.DataFrame],
    inputs: Iterable[InputFile] = (),
    seed: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Measurement:
    """A measurement stamped with the time and the environment.

    Args:
        kind: What was measured, lower case with hyphens, for example ``adapter-spectrum``.
        title: One line for people.
        settings: Every setting that changes the numbers (JSON types only).
        values: Summary values, each with its chance level and interval where they exist.
        tables: Data frames by name.
        inputs: Name and sha256 of every file or text read.
        seed: Seed of everything random.
        dtype: Precision of the computation.
        device: Device type.
    """
    record = Record(
        kind=kind,
        title=title,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        settings=dict(settings),
        inputs=tuple(inputs),
        environment=describe_environment(),
        seed=seed,
        dtype=str(dtype).removeprefix("torch."),
        device=device,
        values=tuple(values),
        tables=tuple(tables),
    )
    return Measurement(record, dict(tables))
