"""The main job: every instrument on one small real model, in steps that survive interruption.

How steps are resumed is in :mod:`gonio.pipelines.steps`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from gonio.kvcache import (
    CacheCodec,
    KeySamples,
    RotationKind,
    collect_keys,
    collect_metrics,
    load_codec,
)
from gonio.kvcache.recall import RecallSettings
from gonio.kvcache.rotary import can_turn
from gonio.pipelines.adapter_compare import compare_adapter_with_base, compare_two_adapters
from gonio.pipelines.adapters import inspect_adapter
from gonio.pipelines.bench import Bench, TokenBudget, open_bench
from gonio.pipelines.cache_calibrate import calibrate_cache
from gonio.pipelines.cache_certify import certify_cache
from gonio.pipelines.cache_evaluate import CacheEvaluation, evaluate_cache
from gonio.pipelines.cache_observe import observe_cache
from gonio.pipelines.demo_summary import summarize_demo
from gonio.pipelines.model import describe_model
from gonio.pipelines.steps import (
    Progress,
    Step,
    StepListener,
    claimed_folder,
    record_folder,
    run_steps,
)
from gonio.pipelines.theorems import check_theorems
from gonio.pipelines.training import train_adapter
from gonio.records import Measurement, write_measurement
from gonio.training import TrainingKind
from gonio.training.recipes import preset_recipe

__all__ = ["FULL", "QUICK", "STEPS", "DemoRun", "DemoSettings", "run_demo"]

_ROTATIONS: tuple[RotationKind, ...] = ("none", "haar", "hadamard", "learned")
_EVALUATED = ("sign-none", "sign-hadamard", "sign-learned")
# The fixed-rate tier of the transform codec, whose codes need no whole blocks: every token but the
# sinks is coded in windows of any length.
_KEYS: Mapping[str, Any] = {"method": "transform", "bits": 1.75, "sinks": 4}
_BOTH = {**_KEYS, "bits": 2.25, "value_method": "transform", "value_bits": 2.25}
_TRANSFORMS: Mapping[str, Mapping[str, Any]] = {"transform-keys": _KEYS, "transform-both": _BOTH}


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
        recall_length: Context length of the recall probe.
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
    window: int = 256
    prefill: int = 128
    recall_length: int = 512
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
    window=128,
    prefill=64,
    recall_length=128,
    iterations=10,
    convergence_layers=2,
    examples=20,
)


@dataclass
class DemoRun:
    """One run: where, how, and what is loaded once for several steps."""

    out: Path
    settings: DemoSettings

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

    @cached_property
    def calibration_metrics(self) -> KeySamples:
        """Keys, values and what their errors cost the model, on the calibration windows."""
        model, seed = self.bench.model, self.settings.seed
        return collect_metrics(model, self.bench.calibration, pre_rope=can_turn(model), seed=seed)

    def adapter(self, kind: TrainingKind) -> Path:
        """Folder of a trained adapter."""
        return self.out / "adapters" / kind

    def codec_path(self, name: str) -> Path:
        """File of a calibrated codec."""
        return self.out / "codecs" / f"{name}.safetensors"

    def codecs(self, names: Sequence[str]) -> dict[str, CacheCodec]:
        """Calibrated codecs, read back from their files."""
        return {name: load_codec(self.codec_path(name)) for name in names}


def run_demo(out: Path, settings: DemoSettings, listener: StepListener) -> tuple[Measurement, int]:
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
    with claimed_folder(out, asdict(settings), ("records", "adapters", "codecs")):
        records, ran = run_steps(STEPS, DemoRun(out, settings), out, listener)
        summary = summarize_demo(records, asdict(settings))
        write_measurement(summary, record_folder(out, "summary"))
        return summary, ran


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
        options = {"rotation": rotation, "iterations": demo.settings.iterations}
        samples = demo.calibration_keys
        return _keep_codec(demo, f"sign-{rotation}", options, samples, progress)

    return run


def _calibrate_transform(name: str) -> Callable[[DemoRun, Progress], Measurement]:
    def run(demo: DemoRun, progress: Progress) -> Measurement:
        samples = demo.calibration_metrics
        return _keep_codec(demo, name, _TRANSFORMS[name], samples, progress)

    return run


def _keep_codec(
    demo: DemoRun,
    name: str,
    options: Mapping[str, Any],
    samples: KeySamples,
    progress: Progress,
) -> Measurement:
    codec, found = calibrate_cache(
        demo.bench, options=options, seed=demo.settings.seed, samples=samples, progress=progress
    )
    codec.save(demo.codec_path(name))
    return found


def _observe(demo: DemoRun, progress: Progress) -> Measurement:
    return observe_cache(
        demo.bench,
        iterations=demo.settings.iterations,
        convergence_layers=demo.settings.convergence_layers,
        seed=demo.settings.seed,
        progress=progress,
    )


def _evaluate(demo: DemoRun, progress: Progress) -> Measurement:
    sizes = demo.settings
    plan = CacheEvaluation(
        prefill=sizes.prefill,
        allocation=sizes.evaluation_tokens,
        recall=RecallSettings(lengths=(sizes.recall_length,), passage=48, trials=2),
        seed=sizes.seed,
    )
    codecs = demo.codecs((*_EVALUATED, *_TRANSFORMS))
    return evaluate_cache(demo.bench, codecs, plan, progress=progress)


def _certify(demo: DemoRun, progress: Progress) -> Measurement:
    codec = load_codec(demo.codec_path("transform-both"))
    return certify_cache(demo.bench, codec, progress=progress)


def _describe(demo: DemoRun, progress: Progress) -> Measurement:
    return describe_model(demo.settings.model)


def _check(demo: DemoRun, progress: Progress) -> Measurement:
    return check_theorems(
        examples=demo.settings.examples, seed=demo.settings.seed, progress=progress
    )


_CODEC_STEPS = (
    *(f"codec-{rotation}" for rotation in _ROTATIONS),
    *(f"codec-{name}" for name in _TRANSFORMS),
)

STEPS: tuple[Step[DemoRun], ...] = (
    Step("model", "Read the model (converted on first use)", _describe),
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
    *(
        Step(
            f"codec-{name}",
            f"Calibrate a cache of 2 bits ({name})",
            _calibrate_transform(name),
            leaves=(f"codecs/{name}.safetensors",),
        )
        for name in _TRANSFORMS
    ),
    Step("keys", "Geometry of the keys", _observe),
    Step("evaluation", "Perplexity through the caches", _evaluate, _CODEC_STEPS),
    Step("certificate", "Bound the errors of attention", _certify, ("codec-transform-both",)),
)
