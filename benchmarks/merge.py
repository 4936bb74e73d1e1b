"""Merging two adapters to one rank: gonio's factored sum against PEFT's svd combination.

Two random rank-16 adapters on every linear layer of the bundled model, merged with weights
0.5 and 0.5 to rank 16. Both results are compared with a float64 dense truncation before timing.

Run: python benchmarks/merge.py [--rank 16]
"""

import argparse
import tempfile
import time
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from gonio.adapters import load_adapter, merge, resize
from gonio.adapters.update import LoraUpdate
from gonio.models import load_model

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
    started = time.perf_counter()
    ours = resize(merge(adapters, [0.5, 0.5]), rank=rank).updates
    our_seconds = time.perf_counter() - started
    started = time.perf_counter()
    peft_model.add_weighted_adapter(
        ["one", "two"], [0.5, 0.5], "merged", combination_type="svd", svd_rank=rank
    )
    their_seconds = time.perf_counter() - started
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
    print(f"gonio  {our_seconds:8.3f} s (and {read:.3f} s to read)  error {errors['gonio']:.1e}")
    print(f"PEFT   {their_seconds:8.3f} s                      error {errors['PEFT']:.1e}")
    print(f"ratio  {their_seconds / our_seconds:8.0f} x; errors against dense float64 truncation")
    assert errors["gonio"] < 1e-5


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
