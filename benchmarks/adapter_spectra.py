"""Every singular value of a 7B-sized adapter, from file to numbers, against the other routes.

Writes 224 modules of rank 64 in the shapes of Llama 7B as a PEFT folder, then measures in a fresh
process on one thread: seconds to load it and to have all singular values (page cache warm, torch,
pandas and PEFT imported before), and the peak of resident memory above that after the imports.
Beside it, on one module of each sampled shape, what other routes take: dense singular values of
the formed product, PEFT's svd combination (form the product, decompose it with full matrices) and
WeightWatcher. Their time for all modules is extrapolated by m n min(m, n). Spectra are compared
before they are timed. The dense routes take minutes; the larger shapes much longer.

Run: python benchmarks/adapter_spectra.py [--dtype float32 float16] [--dense-shapes 1]
"""

import argparse
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

SHAPES = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (4096, 4096),
    "self_attn.v_proj": (4096, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (11008, 4096),
    "mlp.up_proj": (11008, 4096),
    "mlp.down_proj": (4096, 11008),
}
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
REPEATS = 3
MOST_SECONDS, MOST_GIGABYTES = 2.0, 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=["float16", "float32"], nargs="+", default=["float32"])
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--dense-shapes", type=int, default=1, help="shapes to sample, 0 to 3")
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        step, folder = options.step[0], Path(options.step[1])
        if step == "write":
            write(folder, options.dtype[0], options.rank, options.layers)
        elif step == "compare":
            compare(folder, options.dense_shapes)
        else:
            print(json.dumps(measure(folder, tables=step == "tables")))
        return
    for dtype in options.dtype:
        with tempfile.TemporaryDirectory() as folder:
            settings = ["--rank", options.rank, "--layers", options.layers, "--dtype", dtype]
            # A process starts with the peak memory of its parent, so this one stays small.
            _fresh("write", folder, *settings)
            report(Path(folder), dtype, is_whole=(options.layers, options.rank) == (32, 64))
            if options.dense_shapes:
                print(_fresh("compare", folder, "--dense-shapes", options.dense_shapes), end="")


def write(folder: Path, dtype: str, rank: int, layers: int) -> None:
    """A PEFT folder of Gaussian factors with decaying column sizes."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    decay = torch.logspace(0, -2, rank)  # trained updates have small directions too
    tensors = {}
    for layer in range(layers):
        for projection, (m, n) in SHAPES.items():
            name = f"base_model.model.model.layers.{layer}.{projection}"
            lora_b = torch.randn(m, rank, generator=generator) * decay * 0.01
            lora_a = torch.randn(rank, n, generator=generator) / n**0.5
            tensors[f"{name}.lora_B.weight"] = lora_b.to(getattr(torch, dtype))
            tensors[f"{name}.lora_A.weight"] = lora_a.to(getattr(torch, dtype))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    projections = sorted(name.rpartition(".")[2] for name in SHAPES)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": projections}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def measure(folder: Path, *, tables: bool) -> dict[str, float]:
    """Seconds and memory of one run, in this process."""
    import pandas as pd
    import peft  # noqa: F401 - load_adapter reads settings as PEFT does; its import takes seconds
    import torch

    from gonio.adapters import load_adapter
    from gonio.adapters.batches import spectra_of
    from gonio.adapters.measure import spectrum_table

    torch.set_num_threads(1)
    torch.linalg.svdvals(torch.eye(3, dtype=torch.float64))  # loads LAPACK
    pd.DataFrame({"x": [1]})
    baseline = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, used = time.perf_counter(), time.process_time()
    adapter = load_adapter(folder)
    loaded = time.perf_counter() - started
    found = [spectrum for _, spectrum in spectra_of(list(adapter.updates.values()))]
    seconds, busy = time.perf_counter() - started, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    by_gram = sum(bool(spectrum.by_gram) for spectrum in found)
    worst = max(float((spectrum.error / spectrum.sigma).max()) for spectrum in found)
    result = {
        "seconds": seconds,
        "processor_seconds": busy,
        "load_seconds": loaded,
        "gigabytes": (peak - baseline) * 1024 / 1e9,
        "modules": len(found),
        "by_gram": by_gram,
        "relative_error": worst,
    }
    if tables:
        started = time.perf_counter()
        spectrum_table(adapter)
        result["table_seconds"] = time.perf_counter() - started
    return result


def report(folder: Path, dtype: str, *, is_whole: bool) -> None:
    """Measure several times in fresh processes and print the best and the median."""
    table = json.loads(_fresh("tables", folder))["table_seconds"]  # also warms the page cache
    runs = [json.loads(_fresh("measure", folder)) for _ in range(REPEATS)]
    best = min(runs, key=lambda run: run["seconds"])
    middle = statistics.median(run["seconds"] for run in runs)
    size = (folder / "adapter_model.safetensors").stat().st_size / 1e9
    print(
        f"{best['modules']} modules, {dtype}, {size:.2f} GB\n"
        f"gonio, 1 thread     {best['seconds']:8.2f} s from file to all singular values "
        f"(median of {REPEATS}: {middle:.2f}; loading {best['load_seconds']:.2f}; processor "
        f"{best['processor_seconds']:.2f})\n"
        f"                    {best['gigabytes']:8.2f} GB above the imports\n"
        f"                    {table:8.2f} s for spectrum_table with its null\n"
        f"                    {best['by_gram']} by Gram matrices, error at most "
        f"{best['relative_error']:.0e} of each value"
    )
    if is_whole and (best["seconds"] > MOST_SECONDS or best["gigabytes"] > MOST_GIGABYTES):
        print(f"ABOVE the floor of {MOST_SECONDS} s and {MOST_GIGABYTES} GB")


def compare(folder: Path, shapes: int) -> None:
    """Time the dense routes on one module of each of the first shapes, and extrapolate."""
    import torch

    from gonio.adapters import load_adapter
    from gonio.linalg.lowrank import factored_spectrum

    torch.set_num_threads(1)
    updates = list(load_adapter(folder).updates.values())
    first = {update.shape: update for update in reversed(updates)}
    sample = [first[shape] for shape in list(dict.fromkeys(SHAPES.values()))[:shapes]]
    share = sum(map(_work, updates)) / sum(map(_work, sample))

    def ours(update):
        return factored_spectrum([update.lora_b], [update.lora_a], update.scaling).sigma

    routes = {
        "svdvals, float32": lambda u: torch.linalg.svdvals(_product(u, torch.float32)),
        "svdvals, float64": lambda u: torch.linalg.svdvals(_product(u, torch.float64)),
        "PEFT svd": lambda u: torch.linalg.svd(_product(u, torch.float32), full_matrices=True)[1],
    }
    watcher = _weightwatcher()
    if watcher:
        routes["WeightWatcher"] = watcher
    fast = min(_seconds(sample, ours)[0] for _ in range(REPEATS))
    print(f"the modules {[u.module for u in sample]}, 1 thread, 1 by 1; all {len(updates)} so:")
    print(f"{'gonio':<20}{fast:10.4f} s")
    for name, route in routes.items():
        seconds, spectra = _seconds(sample, route)
        for update, dense in zip(sample, spectra, strict=True):
            check(update, dense)
        ratio = seconds / fast
        print(f"{name:<20}{seconds:10.1f} s {ratio:10.0f} x   {seconds * share:10.0f} s for all")


def _work(update) -> int:
    return update.shape[0] * update.shape[1] * min(update.shape)


def check(update, dense) -> None:
    """A dense spectrum equals ours, up to what its own precision allows."""
    import torch

    from gonio.linalg.lowrank import factored_spectrum

    found = factored_spectrum([update.lora_b], [update.lora_a], update.scaling)
    sigma, error = found.sigma[0], found.error[0]
    rounding = max(update.shape) * torch.finfo(dense.dtype).eps * sigma[0]
    difference = (dense.double()[: len(sigma)] - sigma).abs()
    assert bool((difference <= error + rounding).all()), update.module
    assert not bool((1.001 * dense.double()[0] - sigma[0]).abs() <= error[0] + 1e-4 * sigma[0])


def _weightwatcher() -> Callable | None:
    """WeightWatcher's own decomposition of one matrix, where it is installed."""
    import torch

    try:
        module = importlib.import_module("weightwatcher.RMT_Util")
    except ImportError:
        print("WeightWatcher       not installed: pip install weightwatcher")
        return None

    def spectrum(update) -> torch.Tensor:
        values = module.svd_vals(_product(update, torch.float32).numpy())
        return torch.as_tensor(values).sort(descending=True).values

    return spectrum


def _product(update, dtype):
    return update.scaling * (update.lora_b.to(dtype) @ update.lora_a.to(dtype))


def _seconds(sample: Iterable, route: Callable) -> tuple[float, list]:
    started = time.perf_counter()
    results = [route(update) for update in sample]
    return time.perf_counter() - started, results


def _fresh(step: str, folder: str | Path, *settings: object) -> str:
    """What one step prints, run in a process of its own on one thread."""
    command = [sys.executable, __file__, "--step", step, str(folder), *map(str, settings)]
    environment = os.environ | THREADS
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return done.stdout


if __name__ == "__main__":
    main()
