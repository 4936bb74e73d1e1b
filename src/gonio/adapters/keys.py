"""Which tensors of an adapter file make up which update, and why the others make up none."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gonio.adapters.adapter import UnusedKey
from gonio.adapters.config import LoraSettings
from gonio.adapters.stored import StoredTensors, broken

__all__ = ["PREFIX", "ModuleKeys", "sort_keys"]

PREFIX = "base_model.model."

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])\.weight")
_EMBEDDING = re.compile(r"(?P<module>.+)\.lora_(?P<part>embedding_[AB])")
_MAGNITUDE = re.compile(r"(?P<module>.+)\.lora_(?P<part>magnitude_vector)(\.weight)?")
_NAMED_FACTOR = re.compile(r".+\.lora_(([AB]\.[^.]+\.weight)|(embedding_[AB]\.[^.]+))")


@dataclass(frozen=True)
class ModuleKeys:
    """The keys of one module's update.

    Attributes:
        module: Name in the base model.
        lora_a: Key of the factor PEFT calls A.
        lora_b: Key of the factor PEFT calls B.
        is_embedding: Whether the factors are those of an embedding.
        magnitude: Key of DoRA's magnitude, None without one.
    """

    module: str
    lora_a: str
    lora_b: str
    is_embedding: bool
    magnitude: str | None


def sort_keys(
    tensors: StoredTensors, settings: LoraSettings
) -> tuple[tuple[ModuleKeys, ...], tuple[UnusedKey, ...]]:
    """Modules with both factors, in layer order, and every other key with its reason.

    Raises:
        AdapterError: A factor lacks its other half, a DoRA module its magnitude, or a parameter
            is of a variant the configuration does not mention.
    """
    parts: dict[str, dict[str, str]] = {}
    unused = []
    for key in tensors.keys:
        reason = _unused_reason(tensors, key, settings)
        match = _match(key.removeprefix(PREFIX))
        if reason:
            unused.append(UnusedKey(key, reason))
        elif match:
            found = parts.setdefault(match["module"], {})
            if match["part"] in found:
                raise broken(tensors.folder, [f"{match['module']}: {key} is there twice"])
            found[match["part"]] = key
    modules = []
    for module, found in parts.items():
        keys = _module_keys(tensors, module, found, settings)
        groups = _groups(tensors, keys)
        if groups > 1:
            reason = f"convolution in {groups} groups, which PEFT cannot merge: not measured"
            unused += [UnusedKey(key, reason) for key in found.values()]
        else:
            modules.append(keys)
    return tuple(modules), tuple(unused)


def _match(name: str) -> re.Match[str] | None:
    return _FACTOR.fullmatch(name) or _EMBEDDING.fullmatch(name) or _MAGNITUDE.fullmatch(name)


def _module_keys(
    tensors: StoredTensors, module: str, found: dict[str, str], settings: LoraSettings
) -> ModuleKeys:
    """The keys of one module, after checking that they are complete."""
    has_linear, has_embedding = (bool({f"{p}A", f"{p}B"} & set(found)) for p in ("", "embedding_"))
    if has_linear and has_embedding:
        lines = [f"{module}: factors of a matrix and of an embedding"]
        raise broken(tensors.folder, lines, "One module holds one kind; save the adapter again.")
    prefix = "embedding_" if has_embedding else ""
    for side, other in ("AB", "BA"):
        if prefix + side not in found:
            present = f"{prefix}{other}" if prefix + other in found else "magnitude_vector"
            lines = [f"{module}: lora_{present} without its lora_{prefix}{side}"]
            raise broken(tensors.folder, lines)
    magnitude = found.get("magnitude_vector")
    if settings.use_dora and magnitude is None:
        lines = [f"{module}: no lora_magnitude_vector, which use_dora asks for"]
        raise broken(tensors.folder, lines, "Save the adapter again; DoRA needs every magnitude.")
    lora_a, lora_b = found[f"{prefix}A"], found[f"{prefix}B"]
    return ModuleKeys(module, lora_a, lora_b, has_embedding, magnitude)


def _groups(tensors: StoredTensors, keys: ModuleKeys) -> int:
    """Groups of a convolution: PEFT's B is grouped as the base is, its A is not."""
    shape_a, shape_b = tensors.shape(keys.lora_a), tensors.shape(keys.lora_b)
    is_convolution = not keys.is_embedding and 2 < len(shape_a) == len(shape_b)
    if not is_convolution or shape_b[1] == 0 or shape_a[0] % shape_b[1]:
        return 1
    return shape_a[0] // shape_b[1]


def _unused_reason(tensors: StoredTensors, key: str, settings: LoraSettings) -> str | None:
    """Why a tensor is in no update; None for a part of one."""
    if "lora_diag" in key or ("lora_magnitude_vector" in key and not settings.use_dora):
        raise broken(
            tensors.folder,
            [f"{key}: a DoRA or KaSA parameter, which the configuration does not mention"],
            "The configuration does not belong to these weights.",
        )
    if not key.startswith(PREFIX):
        return f"no {PREFIX} prefix, so PEFT would not load it"
    name = key.removeprefix(PREFIX)
    if _NAMED_FACTOR.fullmatch(key):
        return "the adapter's name is inside the key, so PEFT would not load it"
    if _match(name):
        nested = ".base_layer.lora_" in key
        return (
            "factors nested on one module (target_parameters) are not measured" if nested else None
        )
    if key.endswith(".lora_B.bias"):
        return "bias of lora_B (lora_bias), outside the weight update"
    if ".lora_" in key:
        raise broken(tensors.folder, [f"{key}: unknown LoRA parameter"])
    return _saved_beside(name, settings)


def _saved_beside(name: str, settings: LoraSettings) -> str:
    if settings.saves_whole(name.rpartition(".")[0]):
        return "saved whole (modules_to_save), outside the weight update"
    if name.endswith(".bias") and settings.bias != "none":
        return f"trained bias (bias={settings.bias!r}), outside the weight update"
    if "trainable_tokens" in name:
        return "trained token rows, outside the weight update"
    what = "the base weight" if name.endswith(".base_layer.weight") else "a tensor"
    return f"not a LoRA factor: {what} saved beside them"
