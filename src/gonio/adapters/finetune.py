"""A full fine-tune as an adapter: what each weight of the tuned model gained over the base's.

Both models are walked through once, one pair of tensors in memory, to tell what changed; the
changes themselves are computed when they are used.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from gonio.adapters.adapter import Adapter, UnusedKey
from gonio.adapters.base import INPUT_EMBEDDINGS, OUTPUT_HEADS, BaseWeights, WeightSource
from gonio.adapters.config import LoraSettings
from gonio.adapters.keys import PREFIX
from gonio.adapters.refusal import one_line
from gonio.adapters.stored import LazyTensors, all_finite, natural_order
from gonio.adapters.update import LoraUpdate
from gonio.adapters.whole import is_embedding_name, whole_change
from gonio.errors import AdapterError

__all__ = ["load_finetune"]

_HEADS = tuple(f"{head}.weight" for head in OUTPUT_HEADS)


def load_finetune(tuned: WeightSource, base: WeightSource, path: str | Path) -> Adapter:
    """The changes of a fully fine-tuned model, one dense update per changed matrix.

    Matrices and convolution kernels that differ become updates, named after their modules; equal
    tensors are counted in ``Adapter.unchanged``. Vectors that differ, tensors that only one model
    has, and resized vocabularies are listed in ``Adapter.unused``. An output head tied to the
    input embedding changes with it and is listed, not measured twice.

    Args:
        tuned: The tuned model's weights; read again when an update is used, so keep it open.
        base: The weights of the model it was trained from; likewise.
        path: The tuned model's folder, for messages and provenance.

    Returns:
        An adapter of kind ``full``; its updates are dense, of rank ``min(m, n)``.

    Raises:
        AdapterError: The models share no tensor, a shape differs, a tensor is not finite, or
            nothing changed.
    """
    folder = Path(path)
    names, unused = _pair(folder, tuned, base)
    weights = BaseWeights(base)
    updates: dict[str, LoraUpdate] = {}
    vectors: dict[str, Callable[[], Tensor]] = {}
    unchanged = 0
    for name in names:
        reason = _shape_reason(folder, name, tuple(tuned.shape(name)), tuple(base.shape(name)))
        if reason is not None:
            unused.append(UnusedKey(name, reason))
            continue
        after, before = tuned.get(name), base.get(name)
        if _is_equal(after, before):
            unchanged += 1
            continue
        _require_finite(folder, name, after)
        reason = _value_reason(name, after, before)
        if reason is None:
            module = name.removesuffix(".weight")
            updates[module] = whole_change(module, partial(tuned.get, name), weights, name)
        else:
            unused.append(UnusedKey(name, reason))
            if after.ndim < 2 and after.is_floating_point():
                vectors[f"{PREFIX}{name}"] = partial(tuned.get, name)
    if not updates:
        changed = f"{len(unused)} other tensors differ" if unused else "no tensor differs"
        raise AdapterError(
            f"cannot measure the fine-tune {folder}: no matrix differs from the base model's\n"
            f"  {unchanged} tensors are equal; {changed}\n"
            "Give the model it was trained from with --base."
        )
    rank = max(update.rank for update in updates.values())
    settings = LoraSettings(rank=rank, alpha=float(rank))
    beside = LazyTensors(vectors)
    return Adapter(folder, settings, updates, tuple(unused), "full", unchanged, beside)


def _pair(
    folder: Path, tuned: WeightSource, base: WeightSource
) -> tuple[list[str], list[UnusedKey]]:
    """The names to compare, in layer order, and those that are not compared."""
    after, before = frozenset(tuned.names), frozenset(base.names)
    if not after & before:
        raise AdapterError(
            f"cannot measure the fine-tune {folder}: it shares no tensor with the base model\n"
            f"  it has {_first(after)}, the base has {_first(before)}\n"
            "Give the model it was trained from with --base."
        )
    shared, unused = [], []
    for name in sorted(after | before, key=lambda n: (natural_order(n), n)):
        embeddings = {
            _tied_to(model, name)
            for model, names in ((tuned, after), (base, before))
            if name in _HEADS and name in names
        }
        if len(embeddings) == 1 and None not in embeddings:
            reason = f"a copy of {embeddings.pop()} (tied embeddings), which changes with it"
            unused.append(UnusedKey(name, reason))
        elif name in after and name in before:
            shared.append(name)
        else:
            present = "tuned model" if name in after else "base model"
            unused.append(UnusedKey(name, f"only the {present} has it"))
    return shared, unused


def _tied_to(model: WeightSource, head: str) -> str | None:
    """The input embedding that a stored output head is a copy of, None if it is none."""
    shape = tuple(model.shape(head))
    for name in model.names:
        is_candidate = name.endswith(INPUT_EMBEDDINGS) and tuple(model.shape(name)) == shape
        if is_candidate and _is_equal(model.get(name), model.get(head)):
            return name
    return None


def _is_equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape hold the same numbers, whatever their dtypes."""
    wide = torch.promote_types(one.dtype, other.dtype)
    return torch.equal(one.to(wide), other.to(wide))


def _shape_reason(
    folder: Path, name: str, tuned: tuple[int, ...], base: tuple[int, ...]
) -> str | None:
    """Why a tensor cannot be subtracted; None if it can."""
    if tuned == base:
        return None
    module = name.removesuffix(".weight")
    is_vocabulary = is_embedding_name(module) or name in _HEADS
    if is_vocabulary and len(tuned) == len(base) == 2 and tuned[1] == base[1]:
        return f"the vocabulary was resized: {tuned}, in the base {base}"
    raise AdapterError(
        f"cannot measure the fine-tune {folder}: it does not fit the base model\n"
        f"  {one_line(name)} is {tuned}, in the base {base}\n"
        "Give the model it was trained from with --base."
    )


def _value_reason(name: str, after: Tensor, before: Tensor) -> str | None:
    """Why a tensor that differs is no update; None for a matrix or a kernel."""
    if not (after.is_floating_point() and before.is_floating_point()):
        return f"differs, but holds {after.dtype} and {before.dtype}: only floats are measured"
    if after.ndim < 2:
        size = float(before.double().norm())
        change = float((after.double() - before.double()).norm())
        relative = f"{change / size:.3g} of its norm" if size > 0 else "from zero"
        return f"a vector, no matrix; it changed by {relative}"
    if after.ndim > 2 and not name.endswith(".weight"):
        return f"changed, but shape {tuple(after.shape)} stacks several matrices: not measured"
    return None


def _require_finite(folder: Path, name: str, tensor: Tensor) -> None:
    if tensor.is_floating_point() and not all_finite(tensor):
        raise AdapterError(
            f"cannot measure the fine-tune {folder}\n"
            f"  {one_line(name)} holds NaN or infinite entries\n"
            "The training run diverged; use an earlier checkpoint."
        )


def _first(names: frozenset[str]) -> str:
    return one_line(min(names)) if names else "none"
