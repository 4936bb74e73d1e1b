"""Advice on an adapter's ranks as a measurement, and a resize that follows it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from gonio.adapters import AdapterStyle, require_rewritable
from gonio.adapters.advise import advice_facts, advise, resize_to
from gonio.adapters.measure import NULL_SAMPLES
from gonio.pipelines.adapter_reading import adapter_settings, open_adapter
from gonio.pipelines.reshape import write_reshaped
from gonio.records import Measurement, Value, make_measurement, make_value

__all__ = ["advise_adapter"]


def advise_adapter(
    folder: str | Path,
    base: str | Path | None = None,
    *,
    energy: float = 0.95,
    out: str | Path | None = None,
    samples: int = NULL_SAMPLES,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Measurement:
    """Which rank every module's spectrum asks for, and what shrinking to it would save.

    Args:
        folder: PEFT adapter folder, or the folder of a whole tuned model.
        base: Model source; needed for DoRA and for a whole model.
        energy: Share of each module's energy to keep, in (0, 1].
        out: Folder to write the resized adapter to; nothing is written unless given.
        samples: Random factor pairs per shape behind the null.
        seed: Seed of those draws.
        overwrite: Replace a folder that is not empty.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        Kind ``adapter-advice`` with the table ``advice`` or, with ``out``, kind
        ``adapter-resize`` with the tables ``modules`` and ``advice``.

    Raises:
        AdapterError: The folder cannot be read, or every update is zero.
        SettingError: ``energy`` is out of range.
        OutputError: ``out`` is not empty or cannot be written.
    """
    with open_adapter(folder, base) as opened:
        adapter = opened.adapter
        if out is not None:
            require_rewritable(adapter, carries=True)
        table = advise(adapter, energy=energy, samples=samples, seed=seed, progress=progress)
        settings = {"energy": energy, "samples": samples, **adapter_settings(adapter)}
        if out is None:
            return make_measurement(
                "adapter-advice",
                f"Ranks for the adapter {adapter.path.name}",
                settings=settings,
                values=_values(advice_facts(table), energy),
                tables={"advice": table},
                inputs=opened.inputs,
                seed=seed,
                dtype=torch.float64,
            )
        ranks = dict(zip(table["module"], table["recommended_rank"].astype(int), strict=True))
        return write_reshaped(
            "adapter-resize",
            f"The adapter {adapter.path.name} resized as advised",
            list(adapter.updates.values()),
            resize_to(adapter, ranks),
            AdapterStyle.of(adapter),
            Path(out),
            settings,
            opened.inputs,
            overwrite=overwrite,
        )


def _values(facts: dict[str, str | int | float | bool], energy: float) -> list[Value]:
    notes = {
        "recommended_rank_largest": f"the one rank that keeps {energy:.0%} of every module",
        "discarded_share": "of all energy, if every module takes its recommended rank",
        "modules_in_null": "stable rank inside the middle 95% of random factors",
        "modules_flatter_than_null": "stable rank above the middle 95% of random factors",
        "norm_ratio": "largest over least Frobenius norm of the nonzero modules",
    }
    return [make_value(name, value, note=notes.get(name, "")) for name, value in facts.items()]
