"""What else could bring the entropy-coded tier nearer its limit: gains measured before building.

Keys and values of the bundled model in the coordinates of the `entropy` method (joined metric),
quantized with one step and a dead zone. Tables are counted on 4,096 tokens, bits and errors are of
2,048 others. Errors at equal bits, beside static tables per coordinate; below zero is better. Every
fourth layer. Ideas:

energy     a table per coordinate and class of token, by the quartile of its codes' size (2 bits)
neighbors  a table per coordinate and the sizes of the two coordinates before it, of the same token
previous   a table per coordinate and the size of the same coordinate of the token before
gain       coordinates over the token's root mean square (8 bits), so the step follows the token
joint      one basis for all heads of a layer in place of one for each
predicted  each coordinate from its decoded value one token before (closed loop)

Run: python benchmarks/transform_ideas.py [--key-bits 1.5] [--value-bits 2.15]
"""

import argparse
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gonio.kvcache import collect_metrics
from gonio.kvcache.weighted_basis import fit_basis, head_moments
from gonio.models import load_model, load_text, token_windows

SINKS, RADIUS, CLASSES = 4, 150, 4
DEAD_ZONE = 0.6  # a coordinate below this share of a step is zero
PRIOR = 0.005  # of a count, for codes that a table has not seen
TABLES, SCORED = 8, 4  # windows of 512 tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--key-bits", type=float, default=1.5)
    parser.add_argument("--value-bits", type=float, default=2.15)
    options = parser.parse_args()
    model, tokenizer = load_model("smollm2-135m")
    ids = torch.tensor(tokenizer(load_text("bundled").text)["input_ids"])
    windows = token_windows(ids, 512)
    seen = collect_metrics(model, windows[:TABLES])
    other = collect_metrics(model, windows[100 : 100 + SCORED])
    for part, bits in (("keys", options.key_bits), ("values", options.value_bits)):
        metrics = seen.metrics(part, "joined")
        pairs = [
            (x[:, :, SINKS:], y[:, :, SINKS:], metric)
            for x, y, metric in zip(getattr(seen, part), getattr(other, part), metrics, strict=True)
        ][::4]
        report(part, bits, pairs)


def report(part: str, bits: float, pairs: Sequence[tuple[Tensor, Tensor, Tensor]]) -> None:
    """One line per idea, each at its own step: the one that takes the same bits."""
    plain = [coordinates(*each) for each in pairs]
    dim = pairs[0][0].shape[3]
    base = at_bits(plain, bits, static)
    print(f"\n{part}, {bits} bits per element")
    for more in (0.1, 0.2):
        dearer = at_bits(plain, bits + more, static)
        print(f"  {more} bits more {10 * math.log10(dearer / base):+.2f} dB")
    wide = [coordinates(*joined(*each)) for each in pairs]
    ideas = {
        "energy": (plain, by_energy, (CLASSES.bit_length() - 1) / dim, {}),
        "neighbors": (plain, by_neighbors, 0.0, {}),
        "previous": (plain, by_previous, 0.0, {}),
        "gain": (plain, static, 8 / dim, {"with_gain": True}),
        "joint": (wide, static, 0.0, {}),
        "predicted": (plain, static, 0.0, {"is_predicted": True}),
    }
    for name, (samples, contexts, cost, options) in ideas.items():
        error = at_bits(samples, bits - cost, contexts, **options)
        print(f"  {name:<13}{10 * math.log10(error / base):+.2f} dB", flush=True)


def coordinates(x: Tensor, y: Tensor, metric: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates of both samples, ``(windows, heads, tokens, dim)``, in the basis of the first."""
    basis, _ = fit_basis(*head_moments(x), metric)
    found = []
    for each in (x, y):
        rows = basis.apply(each).view(basis.heads, basis.dim, each.shape[0], -1)
        found.append(rows.permute(2, 0, 3, 1).contiguous())
    return found[0], found[1]


def joined(x: Tensor, y: Tensor, metric: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All heads as one, their metrics on the diagonal."""
    wide = [each.transpose(1, 2).flatten(2, 3)[:, None] for each in (x, y)]
    return wide[0], wide[1], torch.block_diag(*metric)[None]


Contexts = Callable[[Tensor], tuple[Tensor, int]]


def at_bits(
    samples: Sequence[tuple[Tensor, Tensor]], bits: float, contexts: Contexts, **options: bool
) -> float:
    """Mean squared error at the step that takes these bits per element."""
    low, high = 1e-3, 1e3
    for _ in range(16):
        step = math.sqrt(low * high)
        found, error = measure(samples, step, contexts, **options)
        if abs(found - bits) < 0.003:
            break
        low, high = (step, high) if found > bits else (low, step)
    return error * 4 ** (found - bits)  # what is left of the difference, below 0.02 dB


def measure(
    samples: Sequence[tuple[Tensor, Tensor]],
    step: float,
    contexts: Contexts,
    *,
    with_gain: bool = False,
    is_predicted: bool = False,
) -> tuple[float, float]:
    """Bits per element and mean squared error of the second samples, tables from the first."""
    bits, error, elements = 0.0, 0.0, 0
    for learned, scored in samples:
        sizes = [token_gain(each) if with_gain else torch.ones(()) for each in (learned, scored)]
        if with_gain:  # steps of the same mean square as without
            sizes = [each / sizes[0].square().mean().sqrt() for each in sizes]
        rows = [each / size / step for each, size in zip((learned, scored), sizes, strict=True)]
        weight = lag_weights(rows[0]) if is_predicted else None
        codes = [quantize(each, weight) for each in rows]
        levels = reconstruction(rows[0], codes[0], weight)
        bits += cross_entropy(codes[0], codes[1], contexts)
        decoded = rebuild(codes[1], levels, weight)
        error += float(((decoded - rows[1]) * sizes[1] * step).double().square().sum())
        elements += scored.numel()
    return bits / elements, error / elements


def token_gain(rows: Tensor) -> Tensor:
    """Root mean square of each token, in quarters of an octave."""
    size = rows.square().mean(dim=-1, keepdim=True).sqrt().clamp(min=1e-6)
    return torch.exp2((4 * size.log2()).round() / 4)


def quantize(rows: Tensor, weight: Tensor | None) -> Tensor:
    """Codes -RADIUS..RADIUS; with weights of what is left after prediction from decoded tokens."""
    if weight is None:
        return code_of(rows)
    codes, before = torch.empty_like(rows), torch.zeros_like(rows[:, :, 0])
    for token in range(rows.shape[2]):
        guess = weight * before
        codes[:, :, token] = code_of(rows[:, :, token] - guess)
        before = guess + codes[:, :, token]
    return codes


def code_of(rows: Tensor) -> Tensor:
    size = (rows.abs() + (1 - DEAD_ZONE)).floor()
    return (rows.sign() * size).clamp(-RADIUS, RADIUS)


def lag_weights(rows: Tensor) -> Tensor:
    """Least-squares weight of the token before, by head and coordinate; of noise the less."""
    past, now = rows[:, :, :-1], rows[:, :, 1:]
    noise = 1 / 12 + (now.square().mean(dim=(0, 2)) < 1 / 3).float() * 1e3  # idle: no prediction
    return (past * now).mean(dim=(0, 2)) / (past.square().mean(dim=(0, 2)) + noise)


def reconstruction(rows: Tensor, codes: Tensor, weight: Tensor | None) -> Tensor:
    """Mean of what each code stands for, ``(heads, codes, dim)``."""
    if weight is not None:  # the loop is closed on codes themselves
        grid = torch.arange(-RADIUS, RADIUS + 1.0)
        return grid[None, :, None].expand(rows.shape[1], -1, rows.shape[3])
    found = torch.zeros(rows.shape[1], 2 * RADIUS + 1, rows.shape[3])
    place = (codes + RADIUS).long().transpose(0, 1).flatten(1, 2)
    count = found.scatter_add(1, place, torch.ones(place.shape))
    total = found.scatter_add(1, place, rows.transpose(0, 1).flatten(1, 2))
    grid = torch.arange(-RADIUS, RADIUS + 1.0)[None, :, None]
    return torch.where(count > 0, total / count.clamp(min=1), grid)


def rebuild(codes: Tensor, levels: Tensor, weight: Tensor | None) -> Tensor:
    place = (codes + RADIUS).long()
    table = levels[None].expand(codes.shape[0], -1, -1, -1)
    found = table.gather(2, place)
    if weight is None:
        return found
    before = torch.zeros_like(found[:, :, 0])
    for token in range(found.shape[2]):
        before = found[:, :, token] = weight * before + found[:, :, token]
    return found


def cross_entropy(learned: Tensor, scored: Tensor, contexts: Contexts) -> float:
    """Bits of the scored codes by tables of head, coordinate and context."""
    heads, dim = learned.shape[1], learned.shape[3]
    place = torch.arange(heads)[:, None, None] * dim + torch.arange(dim)
    size = 2 * RADIUS + 1
    counts = None
    for codes in (learned, scored):
        context, number = contexts(codes)
        index = ((place * number + context) * size + codes + RADIUS).long().flatten()
        if counts is None:
            flat = torch.bincount(index, minlength=heads * dim * number * size).double()
            counts = flat.view(heads * dim, number, size)
            own = counts.sum(dim=1, keepdim=True) + PRIOR  # contexts lean on the whole coordinate
            counts = counts + 8 * own / own.sum(dim=-1, keepdim=True)
            bits = -(counts / counts.sum(dim=-1, keepdim=True)).log2().flatten()
    return float(bits[index].sum())


def static(codes: Tensor) -> tuple[Tensor, int]:
    return torch.zeros(()), 1


def by_energy(codes: Tensor) -> tuple[Tensor, int]:
    energy = codes.abs().sum(dim=-1, keepdim=True)
    flat = energy.transpose(0, 1).flatten(1)
    edges = flat.quantile(torch.arange(1, CLASSES) / CLASSES, dim=1)  # (edges, heads)
    return (energy[..., None] > edges.mT[:, None, None]).sum(dim=-1), CLASSES


def by_neighbors(codes: Tensor) -> tuple[Tensor, int]:
    size = codes.abs().clamp(max=2)
    before = torch.nn.functional.pad(size, (2, 0))
    return (before[..., 1:-1] + before[..., :-2]), 5


def by_previous(codes: Tensor) -> tuple[Tensor, int]:
    size = codes.abs().clamp(max=2)
    return torch.nn.functional.pad(size, (0, 0, 1, 0))[:, :, :-1], 3


if __name__ == "__main__":
    main()
