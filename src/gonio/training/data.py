"""Preference pairs: what they are, where they come from, how they are split.

A pair is a prompt with a chosen and a rejected response. Sources: a plain text
(:mod:`gonio.training.passages`), a JSON-lines file, or a data set of the hub. Causal language
modeling uses the same pairs without the rejected response.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gonio.errors import DataError
from gonio.training.backend import require_datasets, require_trl

__all__ = [
    "PreferencePair",
    "PreferenceSplit",
    "load_hub_pairs",
    "pairs_sha256",
    "read_pairs",
    "split_pairs",
    "write_pairs",
]

_FIELDS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class PreferencePair:
    """A prompt and two responses, which start with the white space that follows the prompt.

    Attributes:
        prompt: Text before the response.
        chosen: The preferred response.
        rejected: The other one, different from ``chosen``.
    """

    prompt: str
    chosen: str
    rejected: str

    def __post_init__(self) -> None:
        for name in _FIELDS:
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise DataError(
                    f"{name} must be text that is not blank, found {type(value).__name__}"
                    if not isinstance(value, str)
                    else f"{name} is blank"
                )
        if self.chosen == self.rejected:
            raise DataError("chosen and rejected are the same")


@dataclass(frozen=True)
class PreferenceSplit:
    """Training and held-out pairs that share no prompt.

    Attributes:
        train: Pairs to train on.
        held_out: Pairs to evaluate on.
    """

    train: tuple[PreferencePair, ...]
    held_out: tuple[PreferencePair, ...]

    def __post_init__(self) -> None:
        shared = {pair.prompt for pair in self.train} & {pair.prompt for pair in self.held_out}
        if shared:
            raise DataError(
                f"{len(shared)} prompts are in both the training and the held-out pairs; "
                "split by prompt"
            )


def split_pairs(
    pairs: Sequence[PreferencePair], *, held_out: int, seed: int = 0
) -> PreferenceSplit:
    """Split by a hash of the prompt: pairs of one prompt stay on one side.

    The prompts with the lowest hashes are held out until ``held_out`` pairs are, so the split
    does not depend on the order of the pairs. Both sides are ordered by hash.

    Raises:
        DataError: Too few pairs to hold that many out and leave one to train on.
    """
    ordered = sorted(pairs, key=lambda pair: (_hash(seed, pair.prompt), pair.chosen, pair.rejected))
    cut = min(held_out, len(ordered))
    while 0 < cut < len(ordered) and ordered[cut].prompt == ordered[cut - 1].prompt:
        cut += 1
    if held_out < 0 or cut < held_out or cut >= len(ordered):
        raise DataError(
            f"{len(ordered)} pairs cannot be split into {held_out} held-out pairs and at least "
            "one to train on; give more pairs or hold out fewer"
        )
    return PreferenceSplit(train=tuple(ordered[cut:]), held_out=tuple(ordered[:cut]))


def read_pairs(path: Path) -> tuple[PreferencePair, ...]:
    """Read a JSON-lines file of objects with exactly ``prompt``, ``chosen`` and ``rejected``.

    Raises:
        DataError: The file cannot be read, is empty, or a line (named by its number) is refused.
    """
    pairs = []
    try:
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    pairs.append(_parse_line(path, number, line))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read preference pairs from {path}: {error}") from error
    if not pairs:
        raise DataError(f"no preference pairs in {path}: the file is empty")
    return tuple(pairs)


def write_pairs(path: Path, pairs: Iterable[PreferencePair]) -> Path:
    """Write pairs as JSON lines that :func:`read_pairs` reads back unchanged.

    Raises:
        OutputError: The file cannot be written.
    """
    from gonio.files import write_text

    return write_text(path, "".join(_json_line(pair) for pair in pairs))


def load_hub_pairs(
    name: str, *, split: str = "train", limit: int | None = None
) -> tuple[PreferencePair, ...]:
    """Read preference pairs from a data set of the hub, or a local folder of one.

    Data sets without a prompt column, such as ``Anthropic/hh-rlhf``, have the common start of
    both responses taken as the prompt, by trl's own rule.

    Args:
        name: Data set name, ``owner/name``.
        split: Which of its splits.
        limit: Read at most that many rows, from the start.

    Raises:
        MissingDependencyError: The ``train`` extra is not installed.
        DataError: The data set cannot be loaded, or its columns are not text pairs.
    """
    datasets, trl = require_datasets(), require_trl()
    try:
        rows = datasets.load_dataset(name, split=split)
    except Exception as error:  # the library raises many kinds: network, script, missing split
        raise DataError(f"cannot load the data set {name!r}, split {split!r}: {error}") from error
    rows = rows if limit is None else rows.select(range(min(limit, len(rows))))
    missing = {"chosen", "rejected"} - set(rows.column_names)
    if missing:
        raise DataError(
            f"data set {name!r} has the columns {sorted(rows.column_names)}; "
            f"missing for preference pairs: {sorted(missing)}"
        )
    pairs = []
    for number, row in enumerate(rows):
        full = row if "prompt" in row else trl.extract_prompt(row)
        try:
            pairs.append(PreferencePair(*(full[field] for field in _FIELDS)))
        except DataError as error:
            raise DataError(f"row {number} of data set {name!r}: {error}") from error
    return tuple(pairs)


def pairs_sha256(pairs: Iterable[PreferencePair]) -> str:
    """Hexadecimal sha256 of the pairs as JSON lines, in their order."""
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(_json_line(pair).encode("utf-8"))
    return digest.hexdigest()


def _json_line(pair: PreferencePair) -> str:
    return json.dumps(asdict(pair), ensure_ascii=False) + "\n"


def _parse_line(path: Path, number: int, line: str) -> PreferencePair:
    where = f"{path}, line {number}"
    try:
        found: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error.msg}, column {error.colno})") from error
    if not isinstance(found, dict):
        raise DataError(f"{where}: expected an object, found {type(found).__name__}")
    if set(found) != set(_FIELDS):
        raise DataError(
            f"{where}: expected the fields {', '.join(_FIELDS)}, "
            f"found {', '.join(sorted(found)) or 'none'}"
        )
    try:
        return PreferencePair(**found)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _hash(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed}:{text}".encode()).digest()
