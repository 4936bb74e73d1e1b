"""The main job: every instrument on one small real model, in steps that survive interruption.

Each step leaves a record; a step whose record is there, and whose needs were not redone, is not
run again. Killed anywhere, the next run redoes only the unfinished step.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from gonio.errors import OutputError, RecordError
from gonio.files import require_writable, write_text
from gonio.kvcache import CacheCodec, KeySamples, RotationKind, collect_keys, load_codec
from gonio.pipelines.adapters import (
    compare_adapter_with_base,
    compare_two_adapters,
    inspect_adapter,
)
from gonio.pipelines.bench import Bench, TokenBudget, open_bench
from gonio.pipelines.cache import calibrate_cache, evaluate_cache, observe_cache
from gonio.pipelines.demo_summary import summarize_demo
from gonio.pipelines.theorems import check_theorems
from gonio.pipelines.training import train_adapter
from gonio.records import Measurement, read_measurement, write_measurement
from gonio.training import TrainingKind
from gonio.training.recipes import preset_recipe

__all__ = ["FULL", "QUICK", "STEPS", "DemoListener", "DemoSettings", "Step", "run_demo"]

Progress = Callable[[str, int, int], None]

_SETTINGS_NAME = "demo.json"
_ROTATIONS: tuple[RotationKind, ...] = ("none", "haar", "hadamard", "learned")
_EVALUATED: tuple[RotationKind, ...] = ("none", "hadamard", "learned")


@dataclass(frozen=True)
class DemoSettings:
    """Sizes of the demo.

    Attributes:
        model: Model source.
        text: Text source of training pairs, calibration and evaluation.
        train_steps: Optimiser steps of each adapter.
        held_out: Preference pairs kept for evaluation.
        calibration_tokens: Tokens that calibrate the cache codecs.
        evaluation_tokens: Tokens that score them.
        window: Tokens per window.
        prefill: Tokens before the first chunk in the cache protocol.
        iterations: Steps of the learned rotations.
        convergence_layers: Layers whose convergence is followed.
        examples: Cases per theorem check.
        seed: Seed of everything.
    """

    model: str = "smollm2-135m"
    text: str = "bundled"
    train_steps: int = 20
    held_out: int = 16
    calibration_tokens: int = 4096
    evaluation_tokens: int = 2048
    window: int = 512
    prefill: int = 256
    iterations: int = 30
    convergence_layers: int = 4
    examples: int = 100
    seed: int = 0


FULL = DemoSettings()
QUICK = replace(
    FULL,
    train_steps=3,
    held_out=4,
    calibration_tokens=1024,
    evaluation_tokens=512,
    window=256,
    prefill=128,
    iterations=10,
    convergence_layers=2,
    examples=20,
)


class DemoListener(Protocol):
    """Told what the demo does, for progress bars."""

    def start(self, step: Step, number: int, total: int) -> None:
        """A step begins."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Part of the step is done."""

    def finish(self, step: Step, seconds: float | None) -> None:
        """A step ended; ``seconds`` is None when an earlier run's record was used."""


@dataclass(frozen=True)
class Step:
    """One resumable unit of work.

    Attributes:
        name: Name of its record.
        title: What it does, for people.
        run: Does it.
        needs: Steps whose results it reads.
        leaves: Paths below the output folder that it writes besides its record.
    """

    name: str
    title: str
    run: Callable[[DemoRun, Progress], Measurement]
    needs: tuple[str, ...] = ()
    leaves: tuple[str, ...] = ()


@dataclass
class DemoRun:
    """One run: where, how, and what is loaded once for several steps."""

    out: Path
    settings: DemoSettings
    redone: set[str] = field(default_factory=set)

    @cached_property
    def bench(self) -> Bench:
        """The model and its windows, loaded when a step first needs them."""
        sizes = self.settings
        budget = TokenBudget(sizes.calibration_tokens, sizes.evaluation_tokens, sizes.window)
        return open_bench(sizes.model, sizes.text, budget)

    @cached_property
    def calibration_keys(self) -> KeySamples:
        """Keys of the calibration windows, collected when a step first needs them."""
        return collect_keys(self.bench.model, self.bench.calibration, seed=self.settings.seed)

    def adapter(self, kind: TrainingKind) -> Path:
        """Folder of a trained adapter."""
        return self.out / "adapters" / kind

    def codec_path(self, rotation: RotationKind) -> Path:
        """File of a calibrated codec."""
        return self.out / "codecs" / f"sign-{rotation}.safetensors"

    def codecs(self, rotations: tuple[RotationKind, ...]) -> dict[RotationKind, CacheCodec]:
        """Calibrated codecs, read back from their files."""
        return {rotation: load_codec(self.codec_path(rotation)) for rotation in rotations}


def run_demo(out: Path, settings: DemoSettings, listener: DemoListener) -> tuple[Measurement, int]:
    """Run every step that is not done yet.

    Args:
        out: Output folder: new, empty, or of an earlier run with the same settings.
        settings: Sizes.
        listener: Told what happens.

    Returns:
        The summary, which is also written as the record ``summary``, and the number of steps
        that ran.

    Raises:
        OutputError: The folder holds something else, cannot be written, or another run is in it.
        GonioError: A step failed; what was finished is kept.
    """
    _claim(out, settings)
    try:
        with FileLock(out / ".lock", timeout=0):
            return _run_steps(DemoRun(out, settings), listener)
    except Timeout as error:
        raise OutputError(f"another run is working in {out}; wait for it to end.") from error


def _run_steps(run: DemoRun, listener: DemoListener) -> tuple[Measurement, int]:
    _remove_unfinished(run.out)
    records: dict[str, Measurement] = {}
    for number, step in enumerate(STEPS, 1):
        listener.start(step, number, len(STEPS))
        found = _finished(run, step)
        seconds = None
        if found is None:
            started = time.perf_counter()
            found = step.run(run, listener.progress)
            write_measurement(found, _record_folder(run.out, step.name))
            run.redone.add(step.name)
            seconds = time.perf_counter() - started
        records[step.name] = found
        listener.finish(step, seconds)
    summary = summarize_demo(records, asdict(run.settings))
    write_measurement(summary, _record_folder(run.out, "summary"))
    return summary, len(run.redone)


def _finished(run: DemoRun, step: Step) -> Measurement | None:
    """The record of an earlier run, when it is whole and nothing it rests on was redone."""
    if run.redone.intersection(step.needs):
        return None
    if not all((run.out / path).exists() for path in step.leaves):
        return None
    try:
        return read_measurement(_record_folder(run.out, step.name))
    except RecordError:
        return None


def _claim(out: Path, settings: DemoSettings) -> None:
    """Make sure the folder is ours and holds a run with these settings."""
    import json

    if out.exists() and not out.is_dir():
        raise OutputError(f"cannot write the demo to {out}: a file is there")
    require_writable(out)
    note = out / _SETTINGS_NAME
    wanted = asdict(settings)
    if not note.exists():
        others = [path.name for path in out.iterdir() if path.name != ".lock"]
        if others:
            raise OutputError(
                f"{out} is not empty and holds no demo (found {', '.join(sorted(others)[:3])})\n"
                "Choose a new folder with --out."
            )
        write_text(note, json.dumps(wanted, indent=2) + "\n")
        return
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot read {note}: {error}\nChoose another --out.") from error
    if found != wanted:
        different = sorted(key for key in wanted if found.get(key) != wanted[key])
        raise OutputError(
            f"{out} holds a demo with other settings ({', '.join(different)})\n"
            "Choose another --out, or delete the folder."
        )


def _remove_unfinished(out: Path) -> None:
    """Delete what a killed run left under temporary names (all of them start with a dot)."""
    for folder in (out / "records", out / "adapters", out / "codecs"):
        for path in folder.glob(".*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _record_folder(out: Path, name: str) -> Path:
    return out / "records" / name


def _train(kind: TrainingKind) -> Callable[[DemoRun, Progress], Measurement]:
    def run(demo: DemoRun, progress: Progress) -> Measurement:
        settings = demo.settings
        # Seeds differ: from one seed both adapters start from the same lora_a, which training
        # hardly moves, and their right subspaces would agree by construction.
        seed = settings.seed + (kind == "dpo")
        recipe = preset_recipe(kind, "small", steps=settings.train_steps, seed=seed)
        return train_adapter(
            kind,
            settings.model,
            settings.text,
            recipe,
            demo.adapter(kind),
            held_out=settings.held_out,
            overwrite=True,
            progress=progress,
        )

    return run


def _inspect(kind: TrainingKind) -> Callable[[DemoRun, Progress], Measurement]:
    def run(demo: DemoRun, progress: Progress) -> Measurement:
        return inspect_adapter(demo.adapter(kind), seed=demo.settings.seed, progress=progress)

    return run


def _compare_base(kind: TrainingKind) -> Callable[[DemoRun, Progress], Measurement]:
    def run(demo: DemoRun, progress: Progress) -> Measurement:
        return compare_adapter_with_base(
            demo.adapter(kind), demo.settings.model, seed=demo.settings.seed, progress=progress
        )

    return run


def _compare_pair(demo: DemoRun, progress: Progress) -> Measurement:
    return compare_two_adapters(
        demo.adapter("clm"), demo.adapter("dpo"), seed=demo.settings.seed, progress=progress
    )


def _calibrate(rotation: RotationKind) -> Callable[[DemoRun, Progress], Measurement]:
    def run(demo: DemoRun, progress: Progress) -> Measurement:
        codec, found = calibrate_cache(
            demo.bench,
            rotation=rotation,
            iterations=demo.settings.iterations,
            seed=demo.settings.seed,
            samples=demo.calibration_keys,
            progress=progress,
        )
        codec.save(demo.codec_path(rotation))
        return found

    return run


def _observe(demo: DemoRun, progress: Progress) -> Measurement:
    return observe_cache(
        demo.bench,
        iterations=demo.settings.iterations,
        convergence_layers=demo.settings.convergence_layers,
        seed=demo.settings.seed,
        codecs=demo.codecs(_ROTATIONS),
        samples=demo.calibration_keys,
        progress=progress,
    )


def _evaluate(demo: DemoRun, progress: Progress) -> Measurement:
    codecs = {f"sign-{rotation}": codec for rotation, codec in demo.codecs(_EVALUATED).items()}
    return evaluate_cache(
        demo.bench,
        codecs,
        prefill=demo.settings.prefill,
        seed=demo.settings.seed,
        progress=progress,
    )


def _check(demo: DemoRun, progress: Progress) -> Measurement:
    return check_theorems(
        examples=demo.settings.examples, seed=demo.settings.seed, progress=progress
    )


_CODEC_STEPS = tuple(f"codec-{rotation}" for rotation in _ROTATIONS)

STEPS: tuple[Step, ...] = (
    Step("theorems", "Check the theorems", _check),
    Step("train-clm", "Train an adapter with CLM", _train("clm"), leaves=("adapters/clm",)),
    Step("train-dpo", "Train an adapter with DPO", _train("dpo"), leaves=("adapters/dpo",)),
    Step("spectrum-clm", "Spectrum of the CLM adapter", _inspect("clm"), ("train-clm",)),
    Step("spectrum-dpo", "Spectrum of the DPO adapter", _inspect("dpo"), ("train-dpo",)),
    Step("base-clm", "CLM adapter beside the base", _compare_base("clm"), ("train-clm",)),
    Step("base-dpo", "DPO adapter beside the base", _compare_base("dpo"), ("train-dpo",)),
    Step("pair", "CLM and DPO side by side", _compare_pair, ("train-clm", "train-dpo")),
    *(
        Step(
            f"codec-{rotation}",
            f"Calibrate a 1-bit cache ({rotation})",
            _calibrate(rotation),
            leaves=(f"codecs/sign-{rotation}.safetensors",),
        )
        for rotation in _ROTATIONS
    ),
    Step("keys", "Geometry of the keys", _observe, _CODEC_STEPS),
    Step("evaluation", "Perplexity through 1-bit caches", _evaluate, _CODEC_STEPS),
)
