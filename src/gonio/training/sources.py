"""One way to name training data: a text, a JSON-lines file of pairs, or a data set of the hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gonio.errors import DataError
from gonio.files import file_sha256
from gonio.models.texts import load_text
from gonio.training.data import (
    PreferenceSplit,
    load_hub_pairs,
    pairs_sha256,
    read_pairs,
    split_pairs,
)
from gonio.training.passages import pairs_from_text

__all__ = ["PairSource", "load_split"]

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_GIVEN = "Pairs as given in {}."
_MADE = (
    "Pairs made from {}, not judged by people: chosen is the true continuation of a passage, "
    "rejected a continuation of about the same length from elsewhere in the text."
)
_JSON_SUFFIXES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class PairSource:
    """Pairs and where they came from.

    Attributes:
        name: What the user wrote, or a fuller name.
        sha256: Of the text or file; of the pairs for a data set.
        split: Training and held-out pairs.
        nature: One sentence: what the chosen and the rejected responses are.
    """

    name: str
    sha256: str
    split: PreferenceSplit
    nature: str


def load_split(source: str, *, train: int, held_out: int, seed: int = 0) -> PairSource:
    """Read a source and split it; the same arguments give the same pairs in the same order.

    Args:
        source: ``bundled``, a text file, a folder of texts, a ``.jsonl`` file of pairs, or a hub
            data set ``owner/name`` (its train split; twice the rows needed are read).
        train: Training pairs wanted. A text must give them all; of a file or data set at most
            that many are kept, and there may be fewer.
        held_out: Held-out pairs wanted.
        seed: Seed of the split and, for a text, of the wrong continuations.

    Raises:
        DataError: The source cannot be found or read, or is too small.
        MissingDependencyError: A data set is named and ``datasets`` is not installed.
    """
    path = Path(source).expanduser()
    if path.suffix.lower() in _JSON_SUFFIXES:
        pairs = read_pairs(path)
        return PairSource(
            source,
            file_sha256(path),
            _trim(split_pairs(pairs, held_out=held_out, seed=seed), train),
            _GIVEN.format(path.name),
        )
    if source == "bundled" or path.exists():
        text = load_text(source)
        split = pairs_from_text(text.text, train=train, held_out=held_out, seed=seed)
        return PairSource(text.name, text.sha256, split, _MADE.format(text.name))
    if _HUB_NAME.fullmatch(source) and not path.suffix:
        pairs = load_hub_pairs(source, limit=2 * (train + held_out))
        split = _trim(split_pairs(pairs, held_out=held_out, seed=seed), train)
        return PairSource(source, pairs_sha256(pairs), split, _GIVEN.format(source))
    raise DataError(
        f"no training data at {source}\n"
        "  not 'bundled', not a text file or folder, not a .jsonl file of prompt, chosen and "
        "rejected, not a hub data set (owner/name)"
    )


def _trim(split: PreferenceSplit, train: int) -> PreferenceSplit:
    return PreferenceSplit(train=split.train[:train], held_out=split.held_out)
