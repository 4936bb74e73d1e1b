"""Finding adapters below a folder: PEFT's extra adapters, and a Trainer's checkpoints by step."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gonio.adapters.adapter import Adapter
from gonio.adapters.base import WeightSource
from gonio.adapters.config import CONFIG_NAME
from gonio.adapters.folder import load_adapter
from gonio.adapters.refusal import one_line
from gonio.adapters.stored import WEIGHTS_NAME, natural_order
from gonio.errors import AdapterError

__all__ = ["AdapterSearch", "FoundAdapter", "find_adapters", "load_checkpoints"]

_CHECKPOINT = re.compile(r"checkpoint-([0-9]{1,18})")


class FoundAdapter(NamedTuple):
    """An adapter folder below a root.

    Attributes:
        name: Its path below the root with ``/``; the root's own name for the root itself.
        path: The folder.
        step: Training step of its checkpoint, None outside checkpoints.
    """

    name: str
    path: Path
    step: int | None


@dataclass(frozen=True)
class AdapterSearch:
    """What lies below a root.

    Attributes:
        found: Folders with both files: the root, its subfolders by name, checkpoints by step.
        unfinished: Folders with one of the two files, and checkpoints with no adapter at all,
            each with what is missing: being written, interrupted, or saved as pickles.
    """

    found: tuple[FoundAdapter, ...]
    unfinished: tuple[tuple[Path, str], ...]


def find_adapters(root: str | Path) -> AdapterSearch:
    """The adapters in a folder, in its subfolders and in its checkpoints.

    ``PeftModel.save_pretrained`` writes the adapter ``default`` into the folder and every other
    one into a subfolder of its name; a Trainer does so in each ``checkpoint-STEP``.

    Args:
        root: A folder.

    Returns:
        The adapters and the folders that are none yet; files are looked for, not opened.

    Raises:
        AdapterError: The root is no folder that can be read.
    """
    folder = Path(root).expanduser()
    subfolders = _subfolders(folder)
    steps = {path: _step(path) for path in subfolders}
    plain = [path for path in subfolders if steps[path] is None]
    checkpoints = sorted((step, path) for path, step in steps.items() if step is not None)
    found: list[FoundAdapter] = []
    unfinished: list[tuple[Path, str]] = []

    def look(path: Path, step: int | None) -> bool:
        missing = [name for name in (CONFIG_NAME, WEIGHTS_NAME) if not (path / name).is_file()]
        if not missing:
            name = path.relative_to(folder).as_posix() if path != folder else folder.resolve().name
            found.append(FoundAdapter(name, path, step))
        elif len(missing) == 1:
            unfinished.append((path, f"{missing[0]} is missing"))
        return len(missing) < 2

    look(folder, _step(folder))
    for path in plain:
        look(path, _step(folder))
    for step, path in checkpoints:
        looked = [look(inner, step) for inner in (path, *_subfolders(path))]
        if not any(looked):
            unfinished.append((path, f"neither {CONFIG_NAME} nor {WEIGHTS_NAME}"))
    return AdapterSearch(tuple(found), tuple(unfinished))


def load_checkpoints(
    root: str | Path, base: WeightSource | None = None, *, adapter: str = ""
) -> Iterator[tuple[int, Adapter]]:
    """The adapters of a Trainer's checkpoints by ascending step, each read when it is reached.

    Args:
        root: The Trainer's output folder.
        base: As for :func:`gonio.adapters.folder.load_adapter`.
        adapter: Name of the adapter within each checkpoint; empty for the one in the checkpoint
            folder itself.

    Returns:
        An iterator of ``(step, adapter)``; the list of checkpoints is made at the call.

    Raises:
        AdapterError: There is no such checkpoint, one is unfinished, or one cannot be read.
    """
    search = find_adapters(root)
    name = Path(root).expanduser()
    for path, why in search.unfinished:
        if _is_checkpoint_of(path, adapter):
            raise AdapterError(
                f"cannot follow the checkpoints of {name}\n"
                f"  {one_line(path.relative_to(name))}: {why}\n"
                "It is being written or was interrupted; try again later, or remove it."
            )
    chosen = [
        (found.step, found.path)
        for found in search.found
        if found.step is not None and _is_checkpoint_of(found.path, adapter)
    ]
    if not chosen:
        others = ", ".join(found.name for found in search.found[:4]) or "no adapter at all"
        raise AdapterError(
            f"no checkpoints of {'an adapter' if not adapter else one_line(adapter)} in {name}\n"
            f"  found {one_line(others)}\n"
            "Give the output folder of the training run, with its checkpoint-STEP folders."
        )
    return ((step, load_adapter(path, base)) for step, path in chosen)


def _is_checkpoint_of(path: Path, adapter: str) -> bool:
    """Whether a folder is a checkpoint, or that adapter's folder in one."""
    if not adapter:
        return _step(path) is not None
    return path.name == adapter and _step(path.parent) is not None


def _step(path: Path) -> int | None:
    match = _CHECKPOINT.fullmatch(path.resolve().name)
    return int(match[1]) if match else None


def _subfolders(folder: Path) -> list[Path]:
    """Direct subfolders, layer 2 before layer 10."""
    try:
        paths = [path for path in folder.iterdir() if path.is_dir()]
    except OSError as error:
        raise AdapterError(
            f"cannot look for adapters in {folder}: {error.strerror or error}\n"
            "Give a folder that holds adapters."
        ) from error
    return sorted(paths, key=lambda path: (natural_order(path.name), path.name))
