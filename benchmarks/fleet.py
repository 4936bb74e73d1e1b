"""Many adapters measured by each engine: equal tables first, then adapters and MB per second.

Writes adapters of SmolLM2-135M's shapes (30 layers, 7 projections) with random factors to a
temporary folder. The first lines are how fast their files can be read at all (they were just
written, so mostly from memory) and what one adapter's steps take; the one of a single worker also
says how much memory the fleet took beyond those steps, which hold two adapters.

Run: python benchmarks/fleet.py [--adapters 50] [--rank 16] [--workers 2] [--engines local ray]
"""

import argparse
import json
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
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
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
