"""Merging two adapters to one rank: gonio's factored sum against PEFT's svd combination.

Two random rank-16 adapters on every linear layer of the bundled model, merged with weights
0.5 and 0.5 to rank 16 (and 0.3 and 0.7, which are folded into float64 factors). The results are
compared with a float64 dense truncation. Seconds are of the wall, best and median of several runs
for gonio and one run for PEFT; processor seconds, of all threads, tell a busy machine apart.

Run: python benchmarks/merge.py [--rank 16]
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from peft import LoraConfig, get_peft_model

from gonio.adapters import load_adapter, merge, resize
from gonio.adapters.update import LoraUpdate
from gonio.models import load_model

T = TypeVar("T")
REPEATS = 9
CHECKED = 7  # modules compared with dense float64: one layer's


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int, default=16)
    rank = parser.parse_args().rank
    warnings.simplefilter("ignore")
    model, _ = load_model("smollm2-135m")
    peft_model = _two_adapters(model, rank)
    with tempfile.TemporaryDirectory() as folder:
        peft_model.save_pretrained(folder, selected_adapters=["one", "two"])
        started = time.perf_counter()
        adapters = [load_adapter(Path(folder) / name) for name in ("one", "two")]
        read = time.perf_counter() - started
    ours, equal = _timed(lambda: resize(merge(adapters, [0.5, 0.5]), rank=rank).updates, REPEATS)
    _, unequal = _timed(lambda: resize(merge(adapters, [0.3, 0.7]), rank=rank).updates, REPEATS)
    _, peft = _timed(
        lambda: peft_model.add_weighted_adapter(
            ["one", "two"], [0.5, 0.5], "merged", combination_type="svd", svd_rank=rank
        ),
        1,
    )
    with tempfile.TemporaryDirectory() as folder:
        peft_model.save_pretrained(folder, selected_adapters=["merged"])
        theirs = load_adapter(Path(folder) / "merged").updates
    exact = {u.module: u for u in merge(adapters, [0.5, 0.5])}
    errors = {"gonio": 0.0, "PEFT": 0.0}
    for update in ours[:CHECKED]:
        best = _dense_truncation(exact[update.module], rank)
        for name, found in (("gonio", update), ("PEFT", theirs[update.module])):
            dense = found.scaling * found.lora_b.double() @ found.lora_a.double()
            errors[name] = max(errors[name], float((dense - best).norm() / best.norm()))
    print(f"{len(ours)} modules, rank {rank} + {rank} -> {rank}, {torch.get_num_threads()} threads")
    print("            best s   median s  processor s  error against dense float64 truncation")
    for name, times, error in (
        ("gonio", equal, f"{errors['gonio']:.1e} (and {read:.3f} s to read)"),
        ("0.3, 0.7", unequal, ""),
        ("PEFT", peft, f"{errors['PEFT']:.1e}"),
    ):
        wall, busy = zip(*times, strict=True)
        middle = statistics.median(wall)
        print(f"{name:<10} {min(wall):8.3f}   {middle:8.3f}  {min(busy):11.3f}  {error}")
    walls, busy = (min(peft)[i] / min(time[i] for time in equal) for i in (0, 1))
    print(f"ratio      {walls:8.0f}              {busy:10.0f}  PEFT over gonio")
    assert errors["gonio"] < 1e-5


def _timed(function: Callable[[], T], repeats: int) -> tuple[T, list[tuple[float, float]]]:
    """The result, and wall and processor seconds of every run."""
    times = []
    for _ in range(repeats):
        wall, busy = time.perf_counter(), time.process_time()
        result = function()
        times.append((time.perf_counter() - wall, time.process_time() - busy))
    return result, times


def _two_adapters(model: torch.nn.Module, rank: int) -> torch.nn.Module:
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear")
    peft_model = get_peft_model(model, config, adapter_name="one")
    peft_model.add_adapter("two", config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return peft_model


def _dense_truncation(update: LoraUpdate, rank: int) -> torch.Tensor:
    dense = update.scaling * update.lora_b @ update.lora_a
    left, sigma, right = torch.linalg.svd(dense.double(), full_matrices=False)
    return (left[:, :rank] * sigma[:rank]) @ right[:rank]


if __name__ == "__main__":
    main()
