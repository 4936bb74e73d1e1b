"""Many adapters measured by each engine: equal tables first, then adapters and MB per second.

Writes adapters of SmolLM2-135M's shapes (30 layers, 7 projections) with random factors to a
temporary folder. The first lines are how fast their files can be read at all from the system's
cache and what one adapter's steps take; the one of a single worker also says how much memory the
fleet took beyond those steps, which hold two adapters.

With --cold N the files are dropped from the cache before each of N plain reads (one buffered read
of each file after the other) and N fleets with default settings, in turns. What the disk or a host
below it keeps in caches of its own cannot be dropped from here, so the two are compared with each
other, and the share that the system's cache still holds is printed.

Run: python benchmarks/fleet.py [--adapters 50] [--rank 16] [--workers 2] [--engines local ray]
    [--cold 3] [--folder DISK]
"""

import argparse
import ctypes
import json
import mmap
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_file

from gonio.adapters import load_adapter, spectrum_table
from gonio.adapters.batches import spectra_of
from gonio.pipelines.fleet import inspect_fleet
from gonio.records import file_input

SHAPES = {
    "self_attn.q_proj": (576, 576),
    "self_attn.k_proj": (192, 576),
    "self_attn.v_proj": (192, 576),
    "self_attn.o_proj": (576, 576),
    "mlp.gate_proj": (1536, 576),
    "mlp.up_proj": (1536, 576),
    "mlp.down_proj": (576, 1536),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, default=50)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--engines", nargs="+", default=["local", "ray"])
    parser.add_argument("--cold", type=int, default=0, help="rounds from a cold cache")
    parser.add_argument("--folder", help="where to write the adapters, on the disk to measure")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        root = Path(name)
        for number in range(options.adapters):
            _write(root / f"seed-{number}", options.layers, options.rank, number)
        _report(root, options)


def _report(root: Path, options: argparse.Namespace) -> None:
    files = sorted(root.glob("*/*.safetensors"))
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    inspect_fleet([files[0].parent], workers=1)  # imports and first calls
    started = time.perf_counter()
    for file in files:
        file.read_bytes()
    print(
        f"{options.adapters} adapters, rank {options.rank}, {options.layers * len(SHAPES)} updates "
        f"each, {megabytes:.0f} MB, float32 factors, float64 spectra, CPU"
    )
    _line("plain read", options.adapters, megabytes, time.perf_counter() - started)
    _steps([file.parent for file in files[:10]])
    peak = _peak()
    runs = [("local", 1), *(("local", n) for n in (options.workers,) if "local" in options.engines)]
    runs += [("ray", options.workers)] if "ray" in options.engines else []
    expected = None
    for engine, workers in runs:
        started = time.perf_counter()
        modules = inspect_fleet([root], engine=engine, workers=workers).tables["modules"]
        seconds = time.perf_counter() - started
        if expected is None:
            expected = modules
        pd.testing.assert_frame_equal(modules, expected, rtol=1e-10)
        _line(f"{engine}, {workers} worker(s)", options.adapters, megabytes, seconds)
        if (engine, workers) == ("local", 1):
            print(f"  memory at most {_peak() - peak:.0f} MB above the peak of those steps")
    if options.cold:
        _cold(root, files, options)


def _cold(root: Path, files: list[Path], options: argparse.Namespace) -> None:
    """A plain read and the fleet, each with nothing of the files in the system's cache."""
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    seconds: dict[str, list[float]] = {"plain read, cold": [], "fleet, cold": []}
    resident = 0.0
    for _ in range(options.cold):
        for name, times in seconds.items():
            resident = max(resident, _evict(files))
            started = time.perf_counter()
            if name.startswith("plain"):
                for file in files:
                    file.read_bytes()
            else:
                inspect_fleet([root])
            times.append(time.perf_counter() - started)
    print(f"  of the files at most {resident:.2%} in the cache before each of the next")
    for name, times in seconds.items():
        _line(name, options.adapters, megabytes, statistics.median(times))
        rates = ", ".join(f"{megabytes / t:.0f}" for t in times)
        print(f"  MB/s of {len(times)} runs: {rates}")
    plain, fleet = (statistics.median(times) for times in seconds.values())
    print(f"  the fleet runs at {plain / fleet:.2f} of the speed of the plain read, medians")


def _evict(files: list[Path]) -> float:
    """Drop files from the system's cache; the share of their pages that is still in it."""
    libc = ctypes.CDLL(None, use_errno=True)
    pages = held = 0
    for file in files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY) as view:
                count = -(-len(view) // mmap.PAGESIZE)
                flags = (ctypes.c_ubyte * count)()
                start = ctypes.c_char.from_buffer(view)
                if libc.mincore(ctypes.byref(start), ctypes.c_size_t(len(view)), flags):
                    raise OSError(ctypes.get_errno(), "mincore")
                del start
                pages += count
                held += sum(flag & 1 for flag in flags)
    return held / pages


def _peak() -> float:
    """Most memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _steps(folders: list[Path]) -> None:
    """Milliseconds that each step takes of an adapter, the median over some."""
    adapters = [load_adapter(folder) for folder in folders[:2]]

    def median(step: Callable[[int], object]) -> float:
        times = []
        for number in range(len(folders)):
            started = time.perf_counter()
            step(number)
            times.append(time.perf_counter() - started)
        return 1e3 * statistics.median(times)

    steps: dict[str, Callable[[int], object]] = {
        "read and hash": lambda i: file_input(folders[i] / "adapter_model.safetensors", "file"),
        "read and check": lambda i: load_adapter(folders[i]),
        "singular values": lambda i: list(spectra_of(list(adapters[i % 2].updates.values()))),
        "whole table": lambda i: spectrum_table(adapters[i % 2]),
    }
    found = ", ".join(f"{name} {median(step):.0f}" for name, step in steps.items())
    print(f"  ms of one adapter: {found} (the table with its singular values)")


def _line(name: str, adapters: int, megabytes: float, seconds: float) -> None:
    rates = f"{adapters / seconds:8.2f} adapters/s {megabytes / seconds:9.1f} MB/s"
    print(f"{name:<20} {seconds:8.2f} s {rates}", flush=True)


def _write(folder: Path, layers: int, rank: int, seed: int) -> None:
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(layers):
        for module, (rows, columns) in SHAPES.items():
            key = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(rank, columns, generator=generator)
            tensors[f"{key}.lora_B.weight"] = torch.randn(rows, rank, generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank}
    config["target_modules"] = [module.split(".")[1] for module in SHAPES]
    (folder / "adapter_config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    main()
