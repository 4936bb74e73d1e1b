"""Weights one tensor at a time from safetensors, without building the model.

Measuring an adapter against a 7B base needs each base matrix once; holding them all would need
the whole model's memory.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from safetensors import SafetensorError, safe_open
from torch import Tensor

from gonio.errors import ModelError

__all__ = ["WeightReader"]

_INDEX_NAME = "model.safetensors.index.json"


class WeightReader:
    """Read-only access to the tensors of a model folder, memory-mapped, one at a time.

    Args:
        folder: A transformers model folder with one or several ``*.safetensors`` files.

    Raises:
        ModelError: The folder holds no safetensors, one of them is broken, or the index names a
            file that is missing.

    Example:
        >>> with WeightReader(folder) as weights:  # doctest: +SKIP
        ...     weights.get("model.layers.0.self_attn.q_proj.weight").shape
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = {}
        self._file_of: dict[str, str] = {}
        for name in _weight_files(folder):
            try:
                handle = safe_open(str(folder / name), framework="pt", device="cpu")
            except (SafetensorError, OSError) as error:
                raise ModelError(
                    f"cannot read weights: {folder / name}\n  {error}\n"
                    "The file is broken or incomplete; download or save the model again."
                ) from error
            self._files[name] = handle
            for key in handle.keys():  # noqa: SIM118 - safe_open is not a mapping
                self._file_of[key] = name

    @property
    def names(self) -> tuple[str, ...]:
        """Tensor names, sorted."""
        return tuple(sorted(self._file_of))

    @property
    def files(self) -> tuple[Path, ...]:
        """The safetensors files read, in name order."""
        return tuple(self.folder / name for name in sorted(self._files))

    def __contains__(self, name: object) -> bool:
        return name in self._file_of

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor in name order, one in memory at a time."""
        for name in self.names:
            yield name, self.get(name)

    def get(self, name: str) -> Tensor:
        """The tensor called ``name``, in its stored dtype, on the CPU.

        Raises:
            ModelError: No tensor has that name; the message gives the nearest ones.
        """
        tensor: Tensor = self._handle(name).get_tensor(name)
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading its data.

        Raises:
            ModelError: No tensor has that name.
        """
        return tuple(self._handle(name).get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """Stored dtype of a tensor as safetensors names it, for example ``F32`` or ``BF16``.

        Raises:
            ModelError: No tensor has that name.
        """
        return str(self._handle(name).get_slice(name).get_dtype())

    def close(self) -> None:
        """Let go of the files; the reader cannot be used afterwards."""
        self._files.clear()
        self._file_of.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _handle(self, name: str) -> safe_open:
        if name not in self._file_of:
            near = difflib.get_close_matches(name, self._file_of, n=3)
            hint = f"nearest: {', '.join(near)}" if near else f"{len(self._file_of)} others"
            raise ModelError(f"no tensor {name!r} in {self.folder} ({hint})")
        return self._files[self._file_of[name]]


def _weight_files(folder: Path) -> list[str]:
    """Names of the safetensors files, from the index where there is one."""
    index = folder / _INDEX_NAME
    if not index.exists():
        names = sorted(path.name for path in folder.glob("*.safetensors"))
        if not names:
            raise ModelError(f"no safetensors weights in {folder}")
        return names
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"cannot read the weight index {index}: {error}") from error
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{index} names files that are not beside it: {', '.join(missing)}")
    return names
