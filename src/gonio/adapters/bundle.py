"""Several adapters in one folder, combined when they are loaded.

A bundle is a folder with one PEFT folder for each member, byte for byte as it was given, and a
``bundle.json`` with names, default weights and sha256 hashes: PEFT and servers load a member as
any adapter, gonio loads a weighted choice of them as one stack of factors, exactly. K members cost
their factors, ``O(K r (m + n))``; merging every choice into the weights ahead would cost ``m n``
for each choice.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gonio.adapters.adapter import Adapter
from gonio.adapters.config import CONFIG_NAME
from gonio.adapters.folder import WEIGHTS_NAME, load_adapter
from gonio.adapters.merge import merge
from gonio.adapters.refusal import one_line
from gonio.adapters.update import LoraUpdate
from gonio.adapters.vllm import even_ranks
from gonio.adapters.writer import AdapterStyle, write_adapter
from gonio.errors import AdapterError, OutputError, SettingError
from gonio.files import file_sha256, replace_folder, write_text

__all__ = ["BUNDLE_NAME", "Bundle", "Member", "StoredBytes", "open_bundle", "stored_bytes"]
__all__ += ["write_bundle"]

BUNDLE_NAME = "bundle.json"

# PEFT keeps adapters as submodules, whose names hold no dot; a leading dot or dash would be a
# hidden folder or look like an option.
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
_SHA256 = r"^[0-9a-f]{64}$"


class Member(BaseModel):
    """One adapter of a bundle.

    Attributes:
        name: Its folder inside the bundle.
        weight: Its weight where a selection gives none.
        rank: Its default rank.
        alpha: Its default lora_alpha.
        use_rslora: Whether its scaling is alpha / sqrt(r).
        sha256: Hashes of its two files, by file name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

    name: Annotated[str, Field(pattern=_NAME)]
    weight: float = 1.0
    rank: Annotated[int, Field(ge=1)]
    alpha: float
    use_rslora: bool
    sha256: dict[Literal["adapter_config.json", "adapter_model.safetensors"], str]

    @model_validator(mode="after")
    def _check_hashes(self) -> Member:
        if len(self.sha256) != 2 or not all(
            re.fullmatch(_SHA256, value) for value in self.sha256.values()
        ):
            raise ValueError("sha256 must hold one hexadecimal hash for each of the two files")
        return self


class _Manifest(BaseModel):
    """The content of ``bundle.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal["gonio-bundle"] = "gonio-bundle"
    version: Literal[1] = 1
    base_model: str
    members: Annotated[list[Member], Field(min_length=1)]

    @model_validator(mode="after")
    def _check_names(self) -> _Manifest:
        names = Counter(member.name.lower() for member in self.members)
        repeated = [name for name, count in names.items() if count > 1]
        if repeated:
            raise ValueError(f"two members are called {repeated[0]!r} (case does not count)")
        return self


@dataclass(frozen=True)
class Bundle:
    """An opened bundle; tensors are read when they are asked for.

    Attributes:
        path: The folder.
        base_model: Name of the base model, empty when unnamed.
        members: The adapters, in the order they were given.
    """

    path: Path
    base_model: str
    members: tuple[Member, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The members' names."""
        return tuple(member.name for member in self.members)

    @property
    def default_weights(self) -> dict[str, float]:
        """The weight of every member where a selection gives none."""
        return {member.name: member.weight for member in self.members}

    def load(self, name: str) -> Adapter:
        """Read one member.

        Raises:
            SettingError: No member has that name.
            AdapterError: It cannot be read.
        """
        if name not in self.names:
            raise SettingError(
                f"no member {name!r} in {self.path}; there are {', '.join(self.names)}"
            )
        return load_adapter(self.path / name)

    def select(self, weights: Mapping[str, float] | None = None) -> list[LoraUpdate]:
        """The weighted sum of some members, as stacked factors: exact, of the sum of their ranks.

        Args:
            weights: Name -> weight of the members to take; every member with its default weight
                unless given. Only these members' tensors are read.

        Raises:
            SettingError: No member is chosen, a name is unknown or a weight is not finite.
            AdapterError: A member cannot be read.
        """
        return merge(*self._chosen(weights))

    def write(
        self,
        out: Path,
        weights: Mapping[str, float] | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        even: bool = False,
        overwrite: bool = False,
    ) -> Path:
        """Write a selection as one PEFT folder of the summed rank.

        Args:
            out: Folder to create.
            weights: As for :meth:`select`.
            dtype: Precision of the stored factors.
            even: Fill all modules up to one rank with zero directions, as vLLM needs them.
            overwrite: Replace a folder that is not empty.

        Raises:
            SettingError: As :meth:`select`.
            AdapterError: A member cannot be read, or holds tensors that a sum would lose.
            OutputError: ``out`` is not empty or cannot be written.
        """
        adapters, chosen = self._chosen(weights)
        for adapter in adapters:
            _require_whole(adapter)
        hint = adapters[0].settings.fan_in_fan_out
        style = AdapterStyle(base_model=self.base_model, fan_in_fan_out=hint, dtype=dtype)
        updates = merge(adapters, chosen)
        updates = even_ranks(updates) if even else updates
        return write_adapter(updates, out, style, overwrite=overwrite)

    def _chosen(self, weights: Mapping[str, float] | None) -> tuple[list[Adapter], list[float]]:
        chosen = self.default_weights if weights is None else dict(weights)
        if not chosen:
            raise SettingError(f"no member of {self.path} is chosen")
        return [self.load(name) for name in chosen], list(chosen.values())


def write_bundle(
    adapters: Sequence[Adapter],
    names: Sequence[str],
    out: Path,
    *,
    weights: Sequence[float] | None = None,
    base_model: str | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Copy adapter folders into a bundle, whole or absent.

    Each member keeps its two files as they are, with every tensor that gonio does not measure.

    Args:
        adapters: At least one, read from folders, of one base model.
        names: One per adapter: letters, digits, ``_`` and ``-``, distinct also without case.
        out: Folder to create.
        weights: Default weights; 1 for each unless given.
        base_model: Name of the base model; needed only where the adapters name different ones.
        overwrite: Replace a folder that is not empty.

    Raises:
        SettingError: Names or weights do not fit the adapters in number, or are not allowed.
        AdapterError: An adapter is no plain LoRA folder, the adapters name different base models
            or differ in a module's shape, or one was changed while it was copied.
        OutputError: The folder is not empty or cannot be written.
    """
    chosen = [1.0] * len(adapters) if weights is None else [float(weight) for weight in weights]
    merge(adapters, chosen)  # refuses an empty list, unequal shapes and weights that do not fit
    if len(names) != len(adapters):
        raise SettingError(f"{len(adapters)} adapters need as many names, found {len(names)}")
    base = _common_base(adapters) if base_model is None else base_model
    try:
        members = [
            _member(adapter, name, weight)
            for adapter, name, weight in zip(adapters, names, chosen, strict=True)
        ]
        manifest = _Manifest(base_model=base, members=members)
    except ValidationError as error:
        raise SettingError(f"cannot make the bundle {out}\n  {_reason(error)}") from error
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not overwrite:
        raise OutputError(f"{out} exists and is not replaced; give --force to replace it.")
    with replace_folder(out) as staging:
        for adapter, name in zip(adapters, names, strict=True):
            _copy(adapter, staging / name)
        write_text(staging / BUNDLE_NAME, manifest.model_dump_json(indent=2) + "\n")
        _check_files(staging, manifest.members)
    return Bundle(out, base, tuple(manifest.members))


def open_bundle(path: str | Path) -> Bundle:
    """Open a bundle and check that every member is what was put in.

    Args:
        path: Folder with a ``bundle.json``.

    Raises:
        AdapterError: The folder is no bundle, its description is broken, or a member is missing
            or was changed.
    """
    folder = Path(path).expanduser()
    file = folder / BUNDLE_NAME
    try:
        manifest = _Manifest.model_validate_json(file.read_bytes())
    except OSError as error:
        raise AdapterError(
            f"not a bundle of adapters: {folder}\n"
            f"  {BUNDLE_NAME}  {error.strerror or error}\n"
            "Give the folder that write_bundle made, or one of its members as an adapter."
        ) from error
    except ValidationError as error:
        raise AdapterError(f"cannot read the bundle {file}\n  {_reason(error)}") from error
    _check_files(folder, manifest.members)
    return Bundle(folder, manifest.base_model, tuple(manifest.members))


@dataclass(frozen=True)
class StoredBytes:
    """What a collection of adapters takes on disk, tensors only.

    Attributes:
        factors: All factors, in their stored precision: the size of a bundle.
        merged_weights: The changed weights whole, once for each adapter.
    """

    factors: int
    merged_weights: int


def stored_bytes(
    adapters: Sequence[Adapter], *, weight_dtype: torch.dtype = torch.bfloat16
) -> StoredBytes:
    """Bytes of adapters kept as factors, and of their modules' weights merged one by one.

    Args:
        adapters: Any number.
        weight_dtype: Precision of the merged weights.
    """
    updates = [update for adapter in adapters for update in adapter.updates.values()]
    factors = sum(u.lora_a.nbytes + u.lora_b.nbytes for u in updates)
    entries = sum(u.out_features * u.in_features for u in updates)
    return StoredBytes(factors, entries * weight_dtype.itemsize)


def _common_base(adapters: Sequence[Adapter]) -> str:
    found = sorted({a.settings.base_model for a in adapters if a.settings.base_model})
    if len(found) > 1:
        raise AdapterError(
            f"the adapters name different base models: {', '.join(map(one_line, found))}\n"
            "Give base_model if these are names of the same one."
        )
    return found[0] if found else ""


def _member(adapter: Adapter, name: str, weight: float) -> Member:
    missing = [path for path in adapter.files if not path.is_file()]
    if adapter.kind != "lora" or missing:
        what = f"there is no file {missing[0]}" if missing else f"found a {adapter.kind} adapter"
        raise AdapterError(
            f"cannot bundle {adapter.path}: {what}\nMembers are LoRA folders as PEFT writes them."
        )
    settings = adapter.settings
    hashes = {path.name: file_sha256(path) for path in adapter.files}
    return Member.model_validate(
        {
            "name": name,
            "weight": weight,
            "rank": settings.rank,
            "alpha": float(settings.alpha),
            "use_rslora": settings.use_rslora,
            "sha256": hashes,
        }
    )


def _require_whole(adapter: Adapter) -> None:
    """Refuse to sum a member of which the sum would lose a part."""
    if adapter.unused:
        key, reason = adapter.unused[0]
        raise AdapterError(
            f"cannot write a sum with {adapter.path}: it would lose {len(adapter.unused)} tensors "
            f"that are in no update\n  {key}  {reason}\n"
            "Load the member's own folder instead; it has all of them."
        )


def _copy(adapter: Adapter, folder: Path) -> None:
    folder.mkdir()
    try:
        for path in adapter.files:
            shutil.copyfile(path, folder / path.name)
    except OSError as error:
        raise OutputError(f"cannot copy {adapter.path}: {error.strerror or error}") from error


def _check_files(folder: Path, members: Sequence[Member]) -> None:
    for member in members:
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            path = folder / member.name / name
            expected = member.sha256[name]  # type: ignore[index]  # the two names of the literal
            found = file_sha256(path) if path.is_file() else None
            if found != expected:
                what = "is missing" if found is None else "was changed"
                raise AdapterError(
                    f"the member {member.name} of {folder} is not what was bundled\n"
                    f"  {name} {what}\n"
                    "Restore it, or make the bundle again from the adapters it should hold."
                )


def _reason(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return one_line(f"{place}: {first['msg']}" if place else first["msg"])
