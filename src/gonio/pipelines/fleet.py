"""Fleets: many adapter folders measured at once, as one table, each adapter with its intervals.

An adapter has two intervals of its mean stable rank: over its modules, and over its layers with
all modules of a layer together, which is the wider one where a layer's modules agree. Neither
says how another run would turn out; for that there is the interval over a seed group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from gonio.adapters.buffers import RecycledBuffers
from gonio.adapters.measure import NULL_SAMPLES
from gonio.errors import AdapterError, GonioError
from gonio.files import require_writable
from gonio.linalg.resampling import Interval, bootstrap_interval
from gonio.pipelines.ahead import run_ahead
from gonio.pipelines.engines import Engine, available_cpus, require_engine, run_tasks
from gonio.pipelines.fleet_members import find_fleet, seed_groups
from gonio.pipelines.fleet_parts import (
    FleetTask,
    MeasuredAdapter,
    measure_read,
    measure_task,
    read_task,
)
from gonio.pipelines.steps import record_folder
from gonio.records import Measurement, Value, make_measurement, make_value, write_measurement

__all__ = ["inspect_fleet"]

Progress = Callable[[str, int, int], None]

_PARTS = ".parts"
_RECORD = "fleet"
_FOR_PROCESSES = 1000  # adapters: starting processes takes as long as a few hundred of them
_BUSY_CPUS = 2  # of one process with its reader
_READ_AHEAD = 1
_FEW_SEEDS = 5


def inspect_fleet(
    roots: Sequence[str | Path],
    *,
    engine: Engine = "local",
    workers: int | None = None,
    groups: Mapping[str, str] | None = None,
    samples: int = NULL_SAMPLES,
    seed: int = 0,
    progress: Progress | None = None,
    out: str | Path | None = None,
) -> Measurement:
    """Spectrum of every update of many adapters; one adapter in memory per worker.

    A single local worker is this process, and a thread reads the next adapter meanwhile: two are
    in memory. Weights above 256 MiB are mapped in place of held.

    Args:
        roots: Adapter folders, and folders that hold adapters or ``checkpoint-N`` folders.
        engine: ``"local"`` or ``"ray"`` (:func:`gonio.pipelines.engines.run_tasks`).
        workers: Adapters measured at a time. None: one per CPU, with ``"local"`` fewer for small
            fleets: one below 1,000 adapters, since processes take seconds to start, and on two
            CPUs, which one process keeps busy.
        groups: Adapter name to the name of its seed group. None: adapters of equal shapes whose
            names differ only in a number after ``seed`` or in a last ``-N``.
        samples: Random factor pairs per shape behind the chance columns.
        seed: Seed of those draws and of the bootstrap.
        progress: Called as ``progress(adapter, done, total)``.
        out: Folder that keeps finished adapters (``out/.parts``, by content and settings), so
            that an interrupted run goes on, and the record (``out/records/fleet``).

    Returns:
        Kind ``adapter-fleet``; tables ``modules`` (first; adapter, path, step and the columns of
        :func:`gonio.adapters.spectrum_table`), ``adapters`` and, where there are any, ``groups``
        and ``failed`` (adapter, path, reason).

    Raises:
        AdapterError: No adapter could be measured.
        SettingError: A setting is out of range, or a group names an unknown adapter.
        MissingDependencyError: Ray is asked for and not installed.
        OutputError: ``out`` cannot be written.
    """
    require_engine(engine, workers)
    items = find_fleet(roots)
    chosen = seed_groups(items, groups)
    parts = None
    if out is not None:
        parts = Path(out).resolve() / _PARTS
        require_writable(parts)
    if workers is None and engine == "local":
        cpus = available_cpus()
        workers = cpus if len(items) >= _FOR_PROCESSES and cpus > _BUSY_CPUS else 1
    tasks = [FleetTask(item, samples, seed, parts) for item in items]
    measured, failed = _measure_all(tasks, engine, workers, progress)
    tables = _tables(measured, failed, chosen, seed)
    fleet = make_measurement(
        "adapter-fleet",
        f"Spectra of {len(measured)} adapters",
        settings={
            "samples": samples,
            "roots": [str(root) for root in roots],
            "engine": engine,
            "workers": workers,
            "groups": None if groups is None else dict(groups),
        },
        values=_values(tables["adapters"], tables.get("groups"), len(failed), seed),
        tables=tables,
        inputs=[file for one in measured for file in one.inputs],
        seed=seed,
        dtype=torch.float64,
    )
    if out is not None:
        write_measurement(fleet, record_folder(Path(out), _RECORD))
    return fleet


def _measure_all(
    tasks: Sequence[FleetTask], engine: Engine, workers: int | None, progress: Progress | None
) -> tuple[list[MeasuredAdapter], list[tuple[str, str, str]]]:
    """What was measured and what failed, both in the order of the tasks.

    Raises:
        AdapterError: Nothing could be measured.
    """
    found: dict[str, MeasuredAdapter | str] = {}
    if engine == "local" and workers == 1:
        read = partial(read_task, buffers=RecycledBuffers())
        run = run_ahead(read, measure_read, tasks, ahead=_READ_AHEAD)
    else:
        run = run_tasks(measure_task, tasks, engine=engine, workers=workers)
    with closing(run) as results:
        for done, (task, result) in enumerate(results, start=1):
            if isinstance(result, Exception) and not isinstance(result, GonioError):
                raise result  # a defect of gonio's or the machine's, not of one folder
            # Only the text of an error: its traceback would keep what was read.
            found[task.item.name] = str(result) if isinstance(result, Exception) else result
            if progress:
                progress(task.item.name, done, len(tasks))
    in_order = [(task.item, found[task.item.name]) for task in tasks]
    failed = [
        (item.name, str(item.path), result) for item, result in in_order if isinstance(result, str)
    ]
    measured = [result for _, result in in_order if isinstance(result, MeasuredAdapter)]
    if not measured:
        rest = f"\nand {len(failed) - 1} more that failed" if len(failed) > 1 else ""
        raise AdapterError(f"no adapter could be measured\n{failed[0][2]}{rest}")
    return measured, failed


def _tables(
    measured: Sequence[MeasuredAdapter],
    failed: Sequence[tuple[str, str, str]],
    groups: Mapping[str, str],
    seed: int,
) -> dict[str, pd.DataFrame]:
    """All tables of the record; those that would be empty are left out."""
    adapters = pd.DataFrame([one.row for one in measured]).astype({"step": "Int64"})
    members = pd.Series([groups.get(name) for name in adapters["adapter"]], dtype="str")
    adapters.insert(3, "group", members)
    tables = {
        "modules": _long_table(measured),
        "adapters": adapters,
        "groups": _group_table(adapters, seed),
        "failed": pd.DataFrame(failed, columns=["adapter", "path", "reason"]),
    }
    return {name: table for name, table in tables.items() if len(table)}


def _long_table(measured: Sequence[MeasuredAdapter]) -> pd.DataFrame:
    """The tables of all adapters below each other, each row with its adapter, path and step."""
    table = pd.concat([one.modules for one in measured], ignore_index=True)
    member = np.repeat(np.arange(len(measured)), [len(one.modules) for one in measured])
    origin = pd.DataFrame([one.row for one in measured])[["adapter", "path", "step"]]
    origin = origin.astype({"step": "Int64"}).take(member).reset_index(drop=True)
    return pd.concat([origin, table], axis=1)


def _group_table(adapters: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Mean stable rank of each group of two or more adapters of equal shapes."""
    rows = []
    grouped = adapters.dropna(subset=["group"]).groupby(["group", "parameters"], sort=False)
    for (group, parameters), members in grouped:
        if len(members) < 2:
            continue
        interval = bootstrap_interval(members["stable_rank"].tolist(), seed=seed)
        rows.append(
            {
                "group": group,
                "parameters": parameters,
                "adapters": len(members),
                "stable_rank": float(members["stable_rank"].mean()),
                "stable_rank_chance": float(members["stable_rank_chance"].mean()),
                "stable_rank_low": interval.low,
                "stable_rank_high": interval.high,
                "stable_rank_sd": float(members["stable_rank"].std()),
                "method": interval.method,
            }
        )
    return pd.DataFrame(rows)


def _values(
    adapters: pd.DataFrame, groups: pd.DataFrame | None, failed: int, seed: int
) -> list[Value]:
    means = adapters["stable_rank"].tolist()
    values = [
        make_value("adapters", len(adapters)),
        make_value("failed", failed, note="listed with reasons in the table failed"),
        make_value("modules", int(adapters["modules"].sum())),
        make_value(
            "stable_rank",
            float(adapters["stable_rank"].mean()),
            chance=float(adapters["stable_rank_chance"].mean()),
            interval=bootstrap_interval(means, seed=seed) if len(means) > 1 else None,
            note="mean over adapters of their means over modules; interval over adapters",
        ),
    ]
    for row in [] if groups is None else groups.to_dict(orient="records"):
        values.append(
            make_value(
                f"stable_rank_over_seeds:{row['group']}",
                row["stable_rank"],
                chance=row["stable_rank_chance"],
                interval=Interval(
                    row["stable_rank_low"], row["stable_rank_high"], 0.95, row["method"]
                ),
                note=_seeds_note(int(row["adapters"])),
            )
        )
    return values


def _seeds_note(count: int) -> str:
    """How much an interval over so few runs can show.

    The range of n independent draws holds the median of their law with probability
    ``1 - 2^(1 - n)``, whatever the law, and no bootstrap interval of the mean leaves the range.
    """
    note = f"interval over {count} runs that differ in their seed"
    if count < _FEW_SEEDS:
        held = 100 * (1 - 2.0 ** (1 - count))
        note += (
            f"; with {count} it cannot leave their range, which holds the median of all seeds "
            f"only in {held:.3g}% of such draws, so it is not a 95% interval"
        )
    return note
