"""Resizing by the error of the outputs against resizing by the error of the entries.

A rank-16 adapter on every linear layer of the bundled model, trained here on the bundled text for
a few steps, is resized to rank 4 both ways. Judged on text the moments have not seen: the share of
the update's output energy that is lost, the divergence from the unresized model, the perplexity.

Run: python benchmarks/weighted_resize.py [--rank 4] [--skip 1]
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from gonio.adapters import Adapter, LoraUpdate, load_adapter, resize
from gonio.adapters.weighted import resize_weighted
from gonio.models import load_model, load_text, split_tokens, token_windows
from gonio.models.activations import input_second_moments

LENGTH = 128
TRAINING, CALIBRATION, HELD_OUT = 30 * LENGTH, 16 * LENGTH, 16 * LENGTH  # tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--skip", type=int, default=0, help="first tokens of a window left out")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    model, tokenizer = load_model("smollm2-135m")
    split = split_tokens(
        tokenizer, load_text(), calibration=TRAINING + CALIBRATION, evaluation=HELD_OUT
    )
    training = token_windows(split.calibration[:TRAINING], LENGTH)
    calibration = token_windows(split.calibration[TRAINING:], LENGTH)
    held_out = token_windows(split.evaluation, LENGTH)
    adapter = _trained(model, training)
    started = time.perf_counter()
    seen, unseen = (
        input_second_moments(model, windows, list(adapter.updates), skip=options.skip)
        for windows in (calibration, held_out)
    )
    observed = time.perf_counter() - started
    started = time.perf_counter()
    moments, others = ({k: v.matrix for k, v in found.items()} for found in (seen, unseen))
    weighted = resize_weighted(adapter, moments, rank=options.rank, held_out=others)
    seconds = time.perf_counter() - started
    plain = resize(adapter, rank=options.rank)
    table = weighted.table
    assert (table["output_error"] <= table["output_error_plain"] * (1 + 1e-9)).all()
    print(
        f"{len(table)} modules, rank 16 -> {options.rank}, {torch.get_num_threads()} threads; "
        f"moments of {len(calibration)} + {len(held_out)} windows of {LENGTH} tokens, skip "
        f"{options.skip}: {observed:.1f} s; resize {seconds:.1f} s"
    )
    energies = table["energy"].sum()
    lost = {name: table[f"discarded_energy{name}"].sum() / energies for name in ("", "_plain")}
    print(f"lost energy of the entries      weighted {lost['']:.4f}   plain {lost['_plain']:.4f}")
    for where, prefix in (("calibration", ""), ("held out", "held_out_")):
        total = table[f"{prefix}output_energy"]
        error, error_plain = (table[f"{prefix}output_error{s}"] for s in ("", "_plain"))
        print(
            f"lost output energy, {where:<11} weighted {(error / total).mean():.4f}   "
            f"plain {(error_plain / total).mean():.4f}   (mean over modules; weighted is less in "
            f"{int((error < error_plain).sum())} of {len(table)})"
        )
    full = _log_probs(model, adapter.updates.values(), held_out)
    for name, updates in (("none", []), ("plain", plain.updates), ("weighted", weighted.updates)):
        log_probs = _log_probs(model, updates, held_out)
        divergence = (full.exp() * (full - log_probs)).sum(-1).mean()
        print(f"{name:<9} KL to the unresized {divergence:.6f} nats/token", end="   ")
        print(f"perplexity {_perplexity(log_probs, held_out):.4f}")
    print(f"unresized                                        {_perplexity(full, held_out):.4f}")


def _trained(model: torch.nn.Module, windows: torch.Tensor) -> Adapter:
    """A rank-16 adapter after one AdamW step for each window; the model comes back as it was."""
    torch.manual_seed(0)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    peft_model = get_peft_model(model, config)
    optimizer = torch.optim.AdamW(
        [p for p in peft_model.parameters() if p.requires_grad], lr=5e-4, weight_decay=0.0
    )
    for window in windows:
        loss = peft_model(input_ids=window[None], labels=window[None]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"trained {len(windows)} steps, last loss {loss.item():.3f}")
    with tempfile.TemporaryDirectory() as folder:
        peft_model.save_pretrained(folder)
        adapter = load_adapter(Path(folder))
    peft_model.unload()
    return adapter


@torch.no_grad()
def _log_probs(
    model: torch.nn.Module, updates: Iterable[LoraUpdate], windows: torch.Tensor
) -> torch.Tensor:
    """Log-probabilities with the updates added to the weights, which are put back afterwards."""
    before = []
    for update in updates:
        weight = model.get_submodule(update.module).weight
        before.append((weight, weight.clone()))
        weight += (update.scaling * update.lora_b.double() @ update.lora_a.double()).float()
    logits = torch.cat([model(input_ids=window[None]).logits[:, :-1] for window in windows])
    for weight, content in before:
        weight.copy_(content)
    return torch.log_softmax(logits, dim=-1)


def _perplexity(log_probs: torch.Tensor, windows: torch.Tensor) -> float:
    return float((-log_probs.gather(-1, windows[:, 1:, None]).double().mean()).exp())


if __name__ == "__main__":
    main()
