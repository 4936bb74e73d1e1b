"""Adapter folders: a PEFT configuration and safetensors factors, nothing dropped in silence."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

from gonio.adapters.adapter import Adapter, UnusedKey
from gonio.adapters.base import BaseWeights, WeightSource
from gonio.adapters.config import CONFIG_NAME, LoraSettings, read_settings
from gonio.adapters.contents import AdapterContents
from gonio.adapters.dora import dora_update, magnitude_length
from gonio.adapters.factors import (
    UpdateLayout,
    check_values,
    checked_factors,
    read_magnitude,
    read_update,
)
from gonio.adapters.keys import PREFIX, ModuleKeys, sort_keys
from gonio.adapters.refusal import one_line
from gonio.adapters.stored import (
    WEIGHTS_NAME,
    LazyTensors,
    StoredTensors,
    broken,
    natural_order,
    read_tensor,
)
from gonio.adapters.update import LoraUpdate
from gonio.adapters.whole import whole_change
from gonio.errors import AdapterError

__all__ = ["WEIGHTS_NAME", "Adapter", "UnusedKey", "load_adapter"]

_PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")


def load_adapter(
    path: str | Path, base: WeightSource | None = None, *, contents: AdapterContents | None = None
) -> Adapter:
    """Read a PEFT LoRA or DoRA folder into one update per module.

    Rank, alpha, rsLoRA and the rank and alpha patterns are resolved as PEFT resolves them, so
    each update is what ``PeftModel.merge_and_unload`` would add. Pickled weights are never
    opened. Tensors that are in no update are listed in ``Adapter.unused``.

    Args:
        path: Folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
        base: The base model's weights, for example a :class:`gonio.models.WeightReader`. DoRA
            needs them; matrices saved whole (modules_to_save) become updates with them. They are
            read again whenever such an update is used, so they must stay open.
        contents: What :func:`gonio.adapters.contents.read_contents` read of the folder; the
            factors are then views of its bytes, and only ``Adapter.beside`` reads files.

    Returns:
        The adapter; at least one update, every factor finite.

    Raises:
        AdapterError: The folder, its configuration or its weights are missing, broken, of
            another PEFT type or a variant that is not known here, the factors do not fit each
            other, the configuration or the base, or DoRA comes without the base.

    Source: Hu et al. 2021 (arXiv:2106.09685), section 4.1; rsLoRA: arXiv:2312.03732; DoRA:
    arXiv:2402.09353.
    """
    folder = _folder(path)
    _require_files(folder)
    settings = read_settings(folder, None if contents is None else contents.config)
    if settings.use_dora and base is None:
        raise AdapterError(
            f"cannot read the adapter without its base model: {folder}\n"
            f"  {CONFIG_NAME}: use_dora is set: DoRA rescales every row of the merged weight\n"
            "Give the model the adapter was trained on with --base MODEL."
        )
    weights = None
    if base is not None:
        weights = BaseWeights(base, fan_in_fan_out=settings.fan_in_fan_out)
    with StoredTensors(folder, None if contents is None else contents.tensors) as tensors:
        modules, unused = _updates(tensors, settings, weights, contents)
        updates = list(modules)
        if weights is not None:
            saved, unused = _saved_whole(tensors, unused, settings, weights)
            updates = sorted(updates + saved, key=lambda u: (natural_order(u.module), u.module))
    if not updates:
        found = "no tensors" if not unused else f"{len(unused)} tensors, none of them a factor pair"
        first = [f"{unused[0].key}: {unused[0].reason}"] if unused else []
        raise broken(folder, [f"holds {found}", *first])
    return Adapter(
        folder,
        settings,
        {update.module: update for update in updates},
        tuple(unused),
        "dora" if settings.use_dora else "lora",
        beside=LazyTensors({key: partial(read_tensor, folder, key) for key, _ in unused}),
    )


class _Layout(NamedTuple):
    """All that a weights file and its configuration say but the values."""

    modules: tuple[UpdateLayout, ...]
    unused: tuple[UnusedKey, ...]


@lru_cache(maxsize=4)  # adapters of one fleet differ in little but their values
def _known_layouts(header: bytes, config: bytes) -> list[_Layout]:
    """Where the layout of such files is kept once one of them has been read: none or one."""
    return []


def _updates(
    tensors: StoredTensors,
    settings: LoraSettings,
    base: BaseWeights | None,
    contents: AdapterContents | None,
) -> tuple[Sequence[LoraUpdate], Sequence[UnusedKey]]:
    """The updates of all modules with factors, and the keys that are in none.

    Of values that are known to be finite only their size can still be refused, so that the other
    checks are made once for all files of one header and one configuration.
    """
    known: list[_Layout] = []
    if contents is not None and tensors.header is not None and tensors.is_finite:
        known = _known_layouts(tensors.header, contents.config)
    if known:
        found = [
            _with_magnitude(tensors, layout.keys, read_update(tensors, layout), base)
            for layout in known[0].modules
        ]
        return found, known[0].unused
    modules, unused = sort_keys(tensors, settings)
    layouts, updates = [], []
    for keys in modules:
        layout, factors = checked_factors(tensors, keys, settings)
        layouts.append(layout)
        update = read_update(tensors, layout, factors)
        updates.append(_with_magnitude(tensors, keys, update, base))
    known.append(_Layout(tuple(layouts), unused))
    return updates, unused


def _with_magnitude(
    tensors: StoredTensors, keys: ModuleKeys, update: LoraUpdate, base: BaseWeights | None
) -> LoraUpdate:
    if keys.magnitude is None or base is None:
        return update
    magnitude = read_magnitude(tensors, keys.magnitude, magnitude_length(update))
    return dora_update(update, magnitude, base)


def _saved_whole(
    tensors: StoredTensors,
    unused: Sequence[UnusedKey],
    settings: LoraSettings,
    base: BaseWeights,
) -> tuple[list[LoraUpdate], list[UnusedKey]]:
    """The changes of the matrices that are saved whole, and the keys that still are in none."""
    updates: list[LoraUpdate] = []
    rest = []
    for key, reason in unused:
        module, _, parameter = key.removeprefix(PREFIX).rpartition(".")
        shape = tensors.shape(key)
        is_matrix = parameter == "weight" and len(shape) > 1 and key.startswith(PREFIX)
        if not is_matrix or not settings.saves_whole(module):
            rest.append(UnusedKey(key, reason))
            continue
        check_values(tensors, key, tensors.get(key))
        found = base.find(module)
        if found is None:
            rest.append(UnusedKey(key, f"{reason}; the base has no such weight"))
        elif base.stored_shape(found) != shape:
            other = base.stored_shape(found)
            rest.append(UnusedKey(key, f"{reason}; its shape is {shape}, the base's is {other}"))
        else:
            read = partial(read_tensor, tensors.folder, key)
            updates.append(whole_change(module, read, base, found))
    return updates, rest


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
        names = one_line(", ".join(inner[:4]))
        cure = f"Adapters lie below it; give one of them, or all with --fleet: {names}"
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
