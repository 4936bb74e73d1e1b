"""Who belongs to a fleet: adapters found below folders, and groups that differ in their seed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from gonio.adapters.checkpoints import FoundAdapter, find_adapters
from gonio.errors import AdapterError, SettingError

__all__ = ["find_fleet", "seed_groups"]

_SEED = re.compile(r"(seed[-_=]?)[0-9]+", re.IGNORECASE)
_LAST_NUMBER = re.compile(r"([-_])[0-9]+$")


def find_fleet(roots: Sequence[str | Path]) -> list[FoundAdapter]:
    """The adapters of a fleet, each once, with names no two share.

    Args:
        roots: Adapter folders, or folders with adapters below
            (:func:`gonio.adapters.checkpoints.find_adapters`). Folders that hold none, and
            unfinished ones, are members too: reading them says what is missing.

    Returns:
        In the order given; below a folder by name, then checkpoints by step.

    Raises:
        SettingError: No folder is given.
    """
    if not roots:
        raise SettingError("no adapter folders given")
    found: dict[Path, FoundAdapter] = {}
    for root in roots:
        for item in _below(Path(root)):
            found.setdefault(item.path.resolve(), item)
    return _with_unique_names(list(found.values()))


def seed_groups(items: Sequence[FoundAdapter], groups: Mapping[str, str] | None) -> dict[str, str]:
    """Adapter name to seed group: as given, or by names that differ only in a number.

    The number follows ``seed``, or ends the name after a hyphen or an underscore; the number of a
    checkpoint is a step, never a seed. Groups of one are left out.

    Raises:
        SettingError: A group is given for a name that is not in the fleet.
    """
    names = [item.name for item in items]
    if groups is not None:
        unknown = [name for name in groups if name not in names]
        if unknown:
            raise SettingError(
                f"groups name no such adapter: {', '.join(unknown[:4])}\n"
                f"  the fleet has {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
            )
        return dict(groups)
    patterns = {}
    for item in items:
        pattern = _SEED.sub(r"\1*", item.name)
        if pattern == item.name and item.step is None:
            pattern = _LAST_NUMBER.sub(r"\1*", item.name)
        if pattern != item.name:
            patterns[item.name] = pattern
    sizes = Counter(patterns.values())
    return {name: pattern for name, pattern in patterns.items() if sizes[pattern] > 1}


def _below(root: Path) -> list[FoundAdapter]:
    try:
        search = find_adapters(root)
    except AdapterError:
        return [FoundAdapter(root.name or str(root), root, None)]
    unfinished = [FoundAdapter(path.name, path, None) for path, _ in search.unfinished]
    return [*search.found, *unfinished] or [FoundAdapter(root.resolve().name, root, None)]


def _with_unique_names(items: list[FoundAdapter]) -> list[FoundAdapter]:
    """Names that several folders share are led by their parents, as many as it takes."""
    parts = [item.path.resolve().parts for item in items]
    depth = [item.name.count("/") + 1 for item in items]
    names = [item.name for item in items]
    while True:
        counts = Counter(names)
        shared = [place for place, name in enumerate(names) if counts[name] > 1]
        if not shared:
            return [item._replace(name=n) for item, n in zip(items, names, strict=True)]
        for place in shared:
            depth[place] += 1
            names[place] = "/".join(parts[place][-depth[place] :])
