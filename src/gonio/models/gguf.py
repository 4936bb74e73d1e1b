"""GGUF files as safetensors folders: dequantised once, then loaded in seconds.

transformers dequantises a GGUF on every load, in many seconds, and marks the result as quantised
so that it cannot be saved; here it is done once, under a lock, and the copy is kept in the user's
cache folder under the sha256 of its source.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from filelock import FileLock
from platformdirs import user_cache_path

from gonio.errors import ModelError
from gonio.files import file_sha256, replace_folder, require_writable
from gonio.models.quiet import quiet_transformers

__all__ = ["cache_folder", "converted_folder", "dequantized_folder"]

_MANIFEST = "gonio-manifest.json"


def cache_folder() -> Path:
    """Where gonio keeps converted models: ``$GONIO_CACHE``, else the user's cache folder."""
    chosen = os.environ.get("GONIO_CACHE")
    return Path(chosen) if chosen else user_cache_path("gonio")


def converted_folder(sha256: str) -> Path:
    """Where the safetensors copy of the GGUF file with this hash is kept."""
    return cache_folder() / "models" / f"gguf-{sha256[:16]}"


def dequantized_folder(path: Path, sha256: str | None = None) -> Path:
    """The safetensors folder of a GGUF file, converted on first use.

    Two processes may ask at once: one converts, the other waits. The result is verified against
    the sha256 of each file noted at conversion; a damaged copy is made again.

    Args:
        path: The ``.gguf`` file.
        sha256: Its expected sha256; computed unless given. A copy already converted under that
            name is used without reading ``path``.

    Returns:
        A transformers model folder (float32 safetensors, config, tokenizer).

    Raises:
        ModelError: The file is missing, differs from ``sha256``, or cannot be converted.
        OutputError: The cache folder cannot be written.
    """
    digest = sha256 or _source_sha256(path)
    folder = converted_folder(digest)
    root = folder.parent
    require_writable(root)
    with FileLock(root / f"{folder.name}.lock"):
        if not _is_intact(folder, digest):
            found = _source_sha256(path)
            if found != digest:
                raise ModelError(
                    f"not the expected file: {path}\n  sha256 {found}, expected {digest}\n"
                    "Fetch it again."
                )
            _convert(path, folder, digest)
    return folder


def _source_sha256(path: Path) -> str:
    if not path.is_file():
        raise ModelError(f"no GGUF file at {path}")
    return file_sha256(path)


def _is_intact(folder: Path, digest: str) -> bool:
    """Whether every file noted at conversion is there, unchanged."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        return manifest["source_sha256"] == digest and all(
            (folder / name).is_file() and file_sha256(folder / name) == expected
            for name, expected in files.items()
        )
    except (OSError, ValueError, KeyError):
        return False


def _convert(path: Path, folder: Path, digest: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with replace_folder(folder) as staging, quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            model = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32
            )
        except Exception as error:  # the GGUF readers raise whatever the bytes make them raise
            raise ModelError(
                f"cannot convert {path}: {type(error).__name__}: {error}\n"
                "The file is broken, or of an architecture transformers cannot read from GGUF."
            ) from error
        # save_pretrained refuses a model marked as quantised; these weights no longer are.
        vars(model).update(is_quantized=False, hf_quantizer=None)
        vars(model.config).pop("quantization_config", None)
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        files = {file.name: file_sha256(file) for file in sorted(staging.iterdir())}
        manifest = {"source": path.name, "source_sha256": digest, "files": files}
        (staging / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
