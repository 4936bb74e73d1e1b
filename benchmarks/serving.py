"""Mixed subsets of adapters in one batch against one merged model for each subset.

K random adapters on every linear layer of a model, and one request per subset. The same greedy
tokens are made three ways: one batch with other adapters in every row, one merged model after the
other (each holds its own weights), and the base alone in one batch, which is the floor. Answers
are compared before anything is timed; memory is counted in bytes of tensors, for 1, 2, 4, ...
adapters beside as many merged models. --bytes counts only, which takes seconds.

Run: python benchmarks/serving.py [--adapters 4] [--rank 16] [--requests 8] [--tokens 32] [--bytes]
"""

import argparse
import copy
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from gonio.adapters import Adapter, LoraSettings, LoraUpdate
from gonio.adapters.update import split_module_name
from gonio.models import load_model
from gonio.serving import AdapterMixture, RowWeights
from gonio.serving.batch import DecodingBatch

REPEATS = 3
PROMPT = 24  # tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bytes", action="store_true")
    given = parser.parse_args()
    model, _ = load_model(given.model, device=given.device)
    generator = torch.Generator().manual_seed(0)
    names = [f"a{i}" for i in range(given.adapters)]
    adapters = {name: random_adapter(model, given.rank, generator) for name in names}
    print_bytes(model, adapters)
    if given.bytes:
        return
    subsets = choose_subsets(names, given.requests)
    vocabulary = int(model.config.vocab_size)
    prompts = torch.randint(vocabulary, (given.requests, PROMPT), generator=generator).tolist()
    merged = [merge_into(model, adapters, subset) for subset in subsets]
    with AdapterMixture(model, adapters) as mixture:

        def mixed() -> list[list[int]]:
            return generate(model, mixture, prompts, subsets, given.tokens)

        def one_by_one() -> list[list[int]]:
            rows = zip(merged, prompts, strict=True)
            return [generate(m, None, [prompt], [{}], given.tokens)[0] for m, prompt in rows]

        def base() -> list[list[int]]:
            return generate(model, mixture, prompts, [{}] * len(prompts), given.tokens)

        ours, theirs = mixed(), one_by_one()
        assert ours == theirs, "the answers differ"
        assert ours != base(), "the adapters change nothing"
        seconds = {way.__name__: timed(way) for way in (mixed, one_by_one, base)}
    made = given.requests * given.tokens
    print(
        f"{given.model}, {given.adapters} adapters of rank {given.rank}, {given.requests} requests"
    )
    print(f"answers equal: {given.requests} of {given.requests}, {given.tokens} tokens each")
    for name, taken in seconds.items():
        print(
            f"{name:<12} {made / taken:8.1f} tokens/s  {taken / seconds['base']:5.2f} of base time"
        )


def print_bytes(model: PreTrainedModel, adapters: dict[str, Adapter]) -> None:
    """Tensors of the first K adapters and one model, beside K merged models."""
    whole = sum(p.nbytes for p in model.parameters())
    print(f"{'K':>4} {'factors MB':>12} {'with model':>12} {'K merged':>12} {'ratio':>7}")
    for count in (2**i for i in range(len(adapters).bit_length())):
        chosen = dict(list(adapters.items())[:count])
        size = AdapterMixture(model, chosen).bytes
        counted = sum(
            update.rank * sum(update.shape) * model.dtype.itemsize
            for adapter in chosen.values()
            for update in adapter.updates.values()
        )
        assert size.factors == counted, "the factors take other bytes than r (m + n) numbers each"
        assert size.merged_models == count * whole
        held = whole + size.factors
        numbers = (size.factors / 1e6, held / 1e6, size.merged_models / 1e6)
        print(f"{count:>4} " + " ".join(f"{n:12.1f}" for n in numbers), end=" ")
        print(f"{size.merged_models / held:7.2f}")


def choose_subsets(names: Sequence[str], count: int) -> list[RowWeights]:
    """Subsets of one, two, ... adapters, again from the start when they run out."""
    every: list[RowWeights] = [
        dict.fromkeys(chosen, 1.0)
        for size in range(1, len(names) + 1)
        for chosen in itertools.combinations(names, size)
    ]
    return [every[i % len(every)] for i in range(count)]


def random_adapter(model: PreTrainedModel, rank: int, generator: torch.Generator) -> Adapter:
    """Updates of a tenth of each weight's norm, so that answers change and stay finite."""
    updates = {}
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and not name.endswith("lm_head"):
            m, n = layer.weight.shape
            lora_a = torch.randn(rank, n, generator=generator)
            lora_b = torch.randn(m, rank, generator=generator)
            size = float((lora_b.T @ lora_b * (lora_a @ lora_a.T)).sum()) ** 0.5  # of B A
            scaling = 0.1 * float(layer.weight.detach().norm()) / size
            updates[name] = LoraUpdate(name, lora_a, lora_b, scaling, *split_module_name(name))
    return Adapter(Path("random"), LoraSettings(rank=rank, alpha=1.0), updates)


def merge_into(
    model: PreTrainedModel, adapters: dict[str, Adapter], subset: RowWeights
) -> PreTrainedModel:
    merged = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in subset.items():
            for update in adapters[name].updates.values():
                own = merged.get_parameter(f"{update.module}.weight")
                own += (weight * update.scaling * update.lora_b @ update.lora_a).to(own)
    return merged


def generate(
    model: PreTrainedModel,
    mixture: AdapterMixture | None,
    prompts: Sequence[Sequence[int]],
    subsets: Sequence[RowWeights],
    tokens: int,
) -> list[list[int]]:
    """Greedy tokens of every row, end tokens included."""
    batch = DecodingBatch(model, mixture)
    logits = batch.join(prompts, subsets)
    made = [logits.argmax(dim=1).tolist()]
    for _ in range(tokens - 1):
        made.append(batch.step(made[-1]).argmax(dim=1).tolist())
    return [list(row) for row in zip(*made, strict=True)]


def timed(way: Callable[[], object]) -> float:
    taken = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        way()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
