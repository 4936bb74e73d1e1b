"""Texts and their token splits: calibration and evaluation never share a token.

Two texts are on every machine: ``bundled`` is Python's own documentation of the language
(``pydoc_data.topics``), ``docstrings`` the longer docstrings of its standard library. Both are
real English whose content varies with the Python version, so its sha256 is part of every record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gonio.errors import DataError, MissingDependencyError, SettingError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Text", "TokenSplit", "load_text", "split_tokens", "spread_windows", "token_windows"]

_SUFFIXES = (".txt", ".md", ".rst")
_SHORTEST = 400  # characters of a docstring worth reading: shorter ones repeat a signature


@dataclass(frozen=True)
class Text:
    """A text and where it came from.

    Attributes:
        name: What the user wrote; for texts that come with Python what they are, and its version.
        text: The whole text.
    """

    name: str
    text: str

    @property
    def sha256(self) -> str:
        """Hexadecimal sha256 of the text in UTF-8."""
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()


@dataclass(frozen=True)
class TokenSplit:
    """Disjoint token ids of one text: the front calibrates, the back evaluates.

    Attributes:
        calibration: Token ids, shape ``(num_calibration,)``.
        evaluation: Token ids, shape ``(num_evaluation,)``.
    """

    calibration: Tensor
    evaluation: Tensor


def load_text(source: str | Path = "bundled") -> Text:
    """Read a text.

    Args:
        source: ``bundled``, ``docstrings``, a file, a folder (its .txt, .md and .rst files in
            name order), or a ``datasets`` name as ``NAME[:CONFIG[:SPLIT]]`` whose ``text`` column
            is joined.

    Raises:
        DataError: It is none of these, is empty, or is not UTF-8 text; or the standard library
            has no sources.
        MissingDependencyError: A data set is named and ``datasets`` is not installed.
    """
    name = str(source)
    path = Path(name).expanduser()
    if name in _WITH_PYTHON and not path.exists():
        return _WITH_PYTHON[name]()
    if path.is_file():
        text = Text(name, _read(path))
    elif path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES)
        if not files:
            raise DataError(f"no text in {path}: found no {', '.join(_SUFFIXES)} file")
        text = Text(name, "\n\n".join(_read(file) for file in files))
    elif path.suffix or path.is_absolute() or name.startswith("."):
        raise DataError(f"no text file or folder at {path}")
    else:
        text = _dataset_text(name)
    if not text.text.strip():
        raise DataError(f"the text {name} is empty")
    return text


def split_tokens(
    tokenizer: PreTrainedTokenizerBase, text: Text, *, calibration: int, evaluation: int
) -> TokenSplit:
    """Tokenise a text and take its first tokens for calibration, its last for evaluation.

    Args:
        tokenizer: The model's tokenizer.
        text: The text; no special tokens are added to it.
        calibration: Number of calibration tokens.
        evaluation: Number of evaluation tokens.

    Raises:
        DataError: The text has fewer tokens than both parts need together.
        SettingError: A part is negative.
    """
    if calibration < 0 or evaluation < 0:
        raise SettingError(f"token counts must be >= 0, found {calibration} and {evaluation}")
    ids = tokenizer(text.text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < calibration + evaluation:
        raise DataError(
            f"the text {text.name} is too short: {len(ids)} tokens, {calibration} for calibration "
            f"and {evaluation} for evaluation are needed\nGive a longer text or ask for fewer."
        )
    tokens = torch.tensor(ids, dtype=torch.long)
    return TokenSplit(tokens[:calibration], tokens[len(ids) - evaluation :])


def token_windows(tokens: Tensor, length: int) -> Tensor:
    """Cut token ids into consecutive windows; a shorter rest is left out.

    Args:
        tokens: Token ids, shape ``(n,)``.
        length: Tokens per window.

    Returns:
        Windows, shape ``(n // length, length)``.

    Raises:
        DataError: There are fewer tokens than one window needs.
    """
    count = tokens.numel() // length
    if count == 0:
        raise DataError(f"{tokens.numel()} tokens make no window of {length}")
    return tokens[: count * length].view(count, length)


def spread_windows(windows: Tensor, count: int) -> Tensor:
    """Some of the windows of a text, evenly spread over it.

    Args:
        windows: As :func:`token_windows` makes them, ``(n, length)``.
        count: How many, 1 to n; the first and the last are among them.

    Raises:
        DataError: There are fewer windows.
    """
    if not 1 <= count <= len(windows):
        raise DataError(f"{count} windows cannot be spread over a text of {len(windows)} windows")
    return windows[torch.linspace(0, len(windows) - 1, count).round().long()]


def _topics() -> Text:
    import platform
    from pydoc_data.topics import topics

    parts = [topics[key] for key in sorted(topics)]
    return Text(f"pydoc_data.topics of Python {platform.python_version()}", "\n\n".join(parts))


def _docstrings() -> Text:
    """Docstrings of the standard library's top-level modules, read from their sources."""
    import ast
    import platform
    import sysconfig

    folder = Path(sysconfig.get_path("stdlib"))
    found = []
    for path in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                found.append(ast.get_docstring(node) or "")
    text = "\n\n".join(each for each in found if len(each) >= _SHORTEST)
    if not text:
        raise DataError(
            "the text 'docstrings' needs the sources of Python's standard library, and this "
            "Python has none\nUse --text bundled or a file."
        )
    return Text(f"standard library docstrings of Python {platform.python_version()}", text)


_WITH_PYTHON: dict[str, Callable[[], Text]] = {"bundled": _topics, "docstrings": _docstrings}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text: {path} (byte {error.start})") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _dataset_text(name: str) -> Text:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingDependencyError(
            f"reading the data set {name} needs datasets: pip install 'gonio[train]'"
        ) from error
    path, config, split = [*name.split(":"), "", ""][:3]
    try:
        rows = load_dataset(path, config or None, split=split or "train")
    except Exception as error:  # datasets raises many kinds; all mean that it cannot be had
        raise DataError(
            f"{name} is neither a file nor a folder, and as a data set it cannot be loaded: "
            f"{type(error).__name__}"
        ) from error
    if "text" not in rows.column_names:
        raise DataError(f"the data set {name} has no column 'text', only {rows.column_names}")
    return Text(name, "\n\n".join(rows["text"]))
