"""Adapter folders: a PEFT configuration and safetensors factors, nothing dropped in silence."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gonio.adapters.config import CONFIG_NAME, LoraSettings, read_settings
from gonio.adapters.refusal import one_line
from gonio.adapters.update import LoraUpdate, split_module_name
from gonio.errors import AdapterError

__all__ = ["WEIGHTS_NAME", "Adapter", "UnusedKey", "load_adapter"]

WEIGHTS_NAME = "adapter_model.safetensors"

_READ_ERRORS = (SafetensorError, OSError, RuntimeError, ValueError, TypeError, AttributeError)
_PREFIX = "base_model.model."
_PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_NAMED_FACTOR = re.compile(r".+\.lora_[AB]\.[^.]+\.weight")
_MAX_NORM = math.sqrt(torch.finfo(torch.float64).max)  # above it, energies leave float64
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class UnusedKey(NamedTuple):
    """A tensor of the file that is not part of any update, and why."""

    key: str
    reason: str


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter as stored: settings and one factored update per module.

    Attributes:
        path: The folder.
        settings: The checked configuration.
        updates: Module name -> update, in layer order.
        unused: Every tensor of the file that is in no update, with the reason.
    """

    path: Path
    settings: LoraSettings
    updates: Mapping[str, LoraUpdate] = field(repr=False)
    unused: tuple[UnusedKey, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """The files the adapter was read from."""
        return self.path / CONFIG_NAME, self.path / WEIGHTS_NAME


def load_adapter(path: str | Path) -> Adapter:
    """Read a PEFT LoRA folder into factored updates.

    Rank, alpha, rsLoRA and the rank and alpha patterns are resolved as PEFT resolves them, so
    each update is what ``PeftModel.merge_and_unload`` would add. Pickled weights are never
    opened. Tensors that are not LoRA factors of a matrix are listed in ``Adapter.unused``.

    Args:
        path: Folder with ``adapter_config.json`` and ``adapter_model.safetensors``.

    Returns:
        The adapter; at least one update, every factor finite.

    Raises:
        AdapterError: The folder, its configuration or its weights are missing, broken, of
            another PEFT type or a variant that is not ``scaling * B @ A``, or the factors do
            not fit each other or the configuration.

    Source: Hu et al. 2021 (arXiv:2106.09685), section 4.1; rsLoRA: arXiv:2312.03732.
    """
    folder = _folder(path)
    _require_files(folder)
    settings = read_settings(folder)
    with _open_weights(folder) as tensors:
        pairs, unused = _sort_keys(folder, tensors, settings)
        updates = [_read_update(folder, tensors, module, settings) for module in pairs]
    if not updates:
        found = "no tensors" if not unused else f"{len(unused)} tensors, none of them a factor pair"
        first = [f"{unused[0].key}: {unused[0].reason}"] if unused else []
        raise _broken(folder, [f"holds {found}", *first])
    return Adapter(folder, settings, {update.module: update for update in updates}, unused)


def _folder(path: str | Path) -> Path:
    """The path with ``~`` resolved, after asking the system whether it can be looked at."""
    try:
        folder = Path(path).expanduser()
        folder.is_dir()
        (folder / CONFIG_NAME).is_file(), (folder / WEIGHTS_NAME).is_file()
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AdapterError(
            f"not a loadable LoRA adapter folder: {path}\n  cannot be looked at: {reason}"
        ) from error
    return folder


class _Tensors:
    """The tensors of one safetensors file; library errors become ours."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            self._file = safe_open(str(folder / WEIGHTS_NAME), framework="pt", device="cpu")
            self.keys = tuple(sorted(self._file.keys(), key=lambda key: (_natural(key), key)))
        except (SafetensorError, OSError) as error:
            raise self._unreadable(error) from error

    def __enter__(self) -> _Tensors:
        return self

    def __exit__(self, *exception: object) -> None:
        del self._file

    def shape(self, key: str) -> tuple[int, ...]:
        try:
            return tuple(self._file.get_slice(key).get_shape())
        except _READ_ERRORS as error:
            raise self._unreadable(error) from error

    def get(self, key: str) -> Tensor:
        try:
            tensor = self._file.get_tensor(key)
        except _READ_ERRORS as error:
            raise self._unreadable(error) from error
        assert isinstance(tensor, Tensor)
        return tensor

    def _unreadable(self, error: Exception) -> AdapterError:
        return _broken(
            self._folder,
            [f"{type(error).__name__}: {error}"],
            "The file is broken or incomplete; copy, download or save it again.",
        )


def _open_weights(folder: Path) -> _Tensors:
    return _Tensors(folder)


def _require_files(folder: Path) -> None:
    """Say in one message what is there and what is not."""
    if not folder.is_dir():
        kind = "a file, expected a folder" if folder.exists() else "no such folder"
        raise AdapterError(f"not a loadable LoRA adapter folder: {folder}\n  found {kind}")
    has_config, has_weights = (folder / CONFIG_NAME).is_file(), (folder / WEIGHTS_NAME).is_file()
    if has_config and has_weights:
        return
    pickles = [name for name in _PICKLES if (folder / name).exists()]
    lines = [
        f"{CONFIG_NAME:<26} {_describe_settings(folder)}",
        f"{WEIGHTS_NAME:<26} {'found' if has_weights else _absence(folder / WEIGHTS_NAME)}",
        *(f"{name:<26} found, but pickled weights are never loaded" for name in pickles),
    ]
    inner = sorted(p.parent.name for p in folder.glob(f"*/{CONFIG_NAME}"))
    if inner and not has_config:
        cure = f"Adapters lie below it; give one of them: {one_line(', '.join(inner[:4]))}"
    elif has_config:
        cure = (
            "Save the adapter again as safetensors (PeftModel.save_pretrained does so by default)."
        )
    else:
        cure = "Give the folder PeftModel.save_pretrained wrote."
    raise AdapterError(
        "\n  ".join([f"not a loadable LoRA adapter folder: {folder}", *lines]) + f"\n{cure}"
    )


def _absence(path: Path) -> str:
    return "not a readable file" if path.exists() or path.is_symlink() else "missing"


def _describe_settings(folder: Path) -> str:
    if not (folder / CONFIG_NAME).is_file():
        return _absence(folder / CONFIG_NAME)
    try:
        return f"found (peft_type LORA, r {read_settings(folder).rank})"
    except AdapterError:
        return "found, but no LoRA configuration gonio can read"


def _sort_keys(
    folder: Path, tensors: _Tensors, settings: LoraSettings
) -> tuple[tuple[str, ...], tuple[UnusedKey, ...]]:
    """Modules with both factors, in layer order, and every other key with its reason."""
    sides: dict[str, set[str]] = {}
    unused = []
    for key in tensors.keys:
        reason = _unused_reason(folder, key, tensors.shape(key), settings)
        match = _FACTOR.fullmatch(key.removeprefix(_PREFIX))
        if reason:
            unused.append(UnusedKey(key, reason))
        elif match:
            sides.setdefault(match["module"], set()).add(match["side"])
    for module, found in sides.items():
        if found != {"A", "B"}:
            (side,) = found
            lacking = "B" if side == "A" else "A"
            raise _broken(folder, [f"{module}: lora_{side} without its lora_{lacking}"])
    return tuple(sides), tuple(unused)


def _unused_reason(
    folder: Path, key: str, shape: tuple[int, ...], settings: LoraSettings
) -> str | None:
    """Why a tensor is in no update; None for the factors of a matrix."""
    if "lora_magnitude_vector" in key or "lora_diag" in key:
        raise _broken(
            folder,
            [f"{key}: a DoRA or KaSA parameter, which the configuration does not mention"],
            "Only updates that are scaling * B @ A are measured.",
        )
    if not key.startswith(_PREFIX):
        return f"no {_PREFIX} prefix, so PEFT would not load it"
    if "lora_embedding_" in key:
        return "LoRA on an embedding is not measured"
    if _NAMED_FACTOR.fullmatch(key):
        return "the adapter's name is inside the key, so PEFT would not load it"
    if _FACTOR.fullmatch(key.removeprefix(_PREFIX)):
        if len(shape) > 2:
            return f"factor of shape {shape}: only factors of matrices are measured"
        nested = ".base_layer.lora_" in key
        return (
            "factors nested on one module (target_parameters) are not measured" if nested else None
        )
    if key.endswith(".lora_B.bias"):
        return "bias of lora_B (lora_bias), outside the weight update"
    if ".lora_" in key:
        raise _broken(folder, [f"{key}: unknown LoRA parameter"])
    return _saved_beside(key.removeprefix(_PREFIX), settings)


def _saved_beside(name: str, settings: LoraSettings) -> str:
    module = name.rpartition(".")[0]
    if any(module == saved or module.endswith(f".{saved}") for saved in settings.modules_to_save):
        return "saved whole (modules_to_save), outside the weight update"
    if name.endswith(".bias") and settings.bias != "none":
        return f"trained bias (bias={settings.bias!r}), outside the weight update"
    if "trainable_tokens" in name:
        return "trained token rows, outside the weight update"
    return "not a LoRA factor: a tensor saved beside them"


def _read_update(
    folder: Path, tensors: _Tensors, module: str, settings: LoraSettings
) -> LoraUpdate:
    """Read and check the two factors of one module."""
    lora_a, lora_b = (tensors.get(f"{_PREFIX}{module}.lora_{side}.weight") for side in "AB")
    for name, factor in (("lora_A", lora_a), ("lora_B", lora_b)):
        _check_factor(folder, f"{module}: {name}", factor)
    rank, scaling = settings.resolve(module)
    shapes = f"lora_A is {tuple(lora_a.shape)}, lora_B is {tuple(lora_b.shape)}"
    if lora_a.shape[0] != lora_b.shape[1]:
        raise _broken(folder, [f"{module}: {shapes}; their ranks differ"])
    if lora_a.shape[0] != rank:
        raise _broken(
            folder,
            [f"{module}: {shapes}, but {CONFIG_NAME} resolves to rank {rank}"],
            "r or rank_pattern does not belong to these weights; the scaling would be wrong.",
        )
    layer, projection = split_module_name(module)
    update = LoraUpdate(module, lora_a, lora_b, scaling, layer, projection)
    if not update.norm_bound() < _MAX_NORM:
        raise _broken(
            folder,
            [f"{module}: the update is too large for float64, its squared norm overflows"],
            "The training run diverged or the file is damaged; use an earlier checkpoint.",
        )
    return update


def _check_factor(folder: Path, what: str, factor: Tensor) -> None:
    if factor.ndim != 2 or factor.numel() == 0:
        raise _broken(
            folder,
            [f"{what} has shape {tuple(factor.shape)}, expected a matrix"],
            "Sharded training must gather its weights before saving.",
        )
    if factor.dtype not in _DTYPES:
        raise _broken(
            folder, [f"{what} has dtype {factor.dtype}, expected a float of 16 to 64 bits"]
        )
    if not bool(torch.isfinite(factor).all()):
        bad = int((~torch.isfinite(factor)).sum())
        raise _broken(
            folder,
            [f"{what} holds {bad} NaN or infinite of {factor.numel()} entries"],
            "The training run diverged; use an earlier checkpoint.",
        )


def _broken(folder: Path, lines: Iterable[str], cure: str = "") -> AdapterError:
    found = map(one_line, lines)
    message = "\n  ".join([f"cannot read the adapter: {folder / WEIGHTS_NAME}", *found])
    return AdapterError(f"{message}\n{cure}" if cure else message)


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Sort key that puts layer 2 before layer 10."""
    keys = []
    for position, part in enumerate(re.split(r"([0-9]+)", name)):
        is_number = position % 2 == 1
        text = part.lstrip("0") if is_number else part
        keys.append((is_number, len(text) if is_number else 0, text))  # longer numbers are larger
    return keys
