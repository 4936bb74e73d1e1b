"""What following the geometry costs: SpectrumCallback against the training steps of SmolLM2-135M.

All 210 projections are followed, with the leading directions of base and last measurement. The
last measurement is checked against the adapter that training wrote before its cost is printed.
Processor time is told, which hardly depends on other work on the machine when there is one thread.

Usage: python benchmarks/spectrum_callback.py [--steps 6] [--r 16] [--batch-size 2] [--threads 1]
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import TrainerCallback

from gonio.models import load_model, load_text
from gonio.pipelines.adapters import inspect_adapter
from gonio.training import SpectrumCallback, pairs_from_text, preset_recipe, train_clm

__all__ = ["main"]

EVERY = 10  # the callback's own choice
MOST = 0.02


class Clock(TrainerCallback):
    """Processor time whenever callbacks at this place in the list run."""

    def __init__(self) -> None:
        self.start = 0.0
        self.begins: list[float] = []
        self.ends: list[float] = []

    def on_train_begin(self, *args, **kwargs) -> None:
        self.start = time.process_time()

    def on_step_begin(self, *args, **kwargs) -> None:
        self.begins.append(time.process_time())

    def on_step_end(self, *args, **kwargs) -> None:
        self.ends.append(time.process_time())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--r", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    recipe = preset_recipe("clm", steps=chosen.steps, r=chosen.r, batch_size=chosen.batch_size)
    pairs = pairs_from_text(load_text("bundled").text, train=recipe.num_examples, held_out=0).train
    model, tokenizer = load_model("smollm2-135m")
    before, after, callback = Clock(), Clock(), SpectrumCallback(1)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        callbacks = [before, callback, after]
        train_clm(model, tokenizer, pairs, recipe, out, callbacks=callbacks)
        check(callback, out)
    steps = [end - begin for begin, end in zip(before.begins, before.ends, strict=True)][1:]
    costs = [end - begin for begin, end in zip(before.ends, after.ends, strict=True)][1:]
    step, cost = statistics.median(steps), statistics.median(costs)
    share = cost / (EVERY * step)
    print(f"r = {chosen.r}, batch {chosen.batch_size}, {chosen.threads} threads, processor time")
    print(f"  step          {step:7.3f} s (median of {len(steps)})")
    print(f"  measurement   {cost:7.3f} s, once before training {after.start - before.start:.1f} s")
    print(f"  share         {share:7.2%} of the steps at every={EVERY} (at most {MOST:.0%})")
    return 0 if share < MOST else 1


def check(callback: SpectrumCallback, out: Path) -> None:
    """Refuse a measurement that is not that of the adapter on disk."""
    last = callback.table[callback.table["step"] == callback.table["step"].max()]
    written = inspect_adapter(out, seed=0).tables["modules"].set_index("module")["stable_rank"]
    found = last.set_index("module")["stable_rank"]
    written = written.rename(index=lambda name: name.removeprefix("base_model.model."))
    if len(found) != len(written) or not np.allclose(found, written[found.index], rtol=1e-4):
        raise SystemExit("the callback's stable ranks are not the adapter's: nothing is timed")


if __name__ == "__main__":
    raise SystemExit(main())
