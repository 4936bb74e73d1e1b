"""One safetensors file with a JSON header: how codecs and filled caches are kept.

Nothing in such a file is ever executed or unpickled.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gonio.errors import CodecError
from gonio.files import replace_file

__all__ = ["read_container", "write_container"]

Header = TypeVar("Header", bound=BaseModel)


def write_container(path: Path, key: str, header: BaseModel, tensors: dict[str, Tensor]) -> None:
    """Write tensors and a header, atomically.

    Args:
        path: File to write.
        key: Name of the header inside the file.
        header: What the tensors are.
        tensors: Tensors by name, no two sharing storage.

    Raises:
        OutputError: The file cannot be written.
    """
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with replace_file(path) as staging:
        save_file(contiguous, staging, metadata={key: header.model_dump_json()})


def read_container(
    path: Path, key: str, schema: type[Header], *, what: str, cure: str
) -> tuple[Header, dict[str, Tensor]]:
    """Read what :func:`write_container` wrote; tensors are on the CPU.

    Args:
        path: File to read.
        key: Name of the header inside the file.
        schema: Class of the header.
        what: What the file should hold, for messages.
        cure: How to make such a file, for messages.

    Raises:
        CodecError: The file is missing or broken, or holds something else.
    """
    if not path.is_file():
        raise CodecError(f"no {what} file at {path}")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            text = (file.metadata() or {}).get(key)
            # Copied: products of tensors at the file's odd addresses round differently.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CodecError(f"not a safetensors file: {path}\n  {error}") from error
    if text is None:
        raise CodecError(
            f"not a gonio {what}: {path}\n  a safetensors file without the {key} header\n{cure}"
        )
    try:
        return schema.model_validate_json(text), tensors
    except ValidationError as error:
        raise CodecError(f"not a readable {what} header in {path}\n  {error}") from error
