"""The settings of an adapter folder, read as PEFT reads them and refused where unsure.

The file is data: nothing it names is imported or run. Defaults and pattern matching are PEFT's
own, so that an update scaled here is the update PEFT would merge.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gonio.adapters.refusal import one_line, shown
from gonio.errors import AdapterError

__all__ = ["CONFIG_NAME", "LoraSettings", "read_settings"]

CONFIG_NAME = "adapter_config.json"

# LoRA variants whose merged update is scaling * B @ A on an untouched base, and DoRA, which is
# known once the base is.
_KNOWN_VARIANTS = frozenset({"velora_config", "use_dora"})
_VARIANT_TITLES = {
    "alora_invocation_tokens": "aLoRA acts on part of the tokens only and is never merged",
    "monteclora_config": "MonteCLoRA samples its weights",
    "use_bdlora": "BD-LoRA factors are block-diagonal",
    "arrow_config": "Arrow routes between several adapters",
    "kasa_config": "KaSA truncates the base and scales each direction",
}
_SWITCHES = {
    "use_qalora": "QA-LoRA pools the inputs in groups",
    "layer_replication": "replicated layers share one base weight",
    "target_parameters": "factors on bare parameters (experts) are stored in another layout",
    "megatron_config": "Megatron factors may be shards of a layer",
}
# These initializations subtract the starting factors from the base weight, so that B @ A alone
# is not the change of the original weight.
_BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
_MAX_RANK = 2**31 - 1  # far above any matrix, far below what a float cannot hold
_BIASES = ("none", "all", "lora_only")


@dataclass(frozen=True)
class LoraSettings:
    """What the folder's configuration says about the update, checked.

    Attributes:
        rank: Default r.
        alpha: Default lora_alpha.
        rank_pattern: r of the modules a pattern matches.
        alpha_pattern: lora_alpha of the modules a pattern matches.
        use_rslora: Whether scaling is alpha / sqrt(r) instead of alpha / r.
        fan_in_fan_out: What the file says; PEFT resets it per layer type, so it is a hint only.
        bias: ``none``, ``all`` or ``lora_only``.
        modules_to_save: Modules stored whole beside the factors.
        use_dora: Whether a magnitude rescales the rows of the merged weight.
        lora_bias: Whether the B factors have biases, which are scaled as the update is.
        token_indices: ``trainable_token_indices``: per embedding, the tokens trained apart; the
            input embedding, whatever its name, is the empty text.
        ties_weights: ``ensure_weight_tying``: whether tied layers share what is trained.
        task_type: PEFT's task, empty for none.
        base_model: What the file calls its base model, empty when unnamed.
        unknown: Settings this version of PEFT does not know and, like here, ignores.
    """

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    bias: str = "none"
    modules_to_save: tuple[str, ...] = ()
    use_dora: bool = False
    lora_bias: bool = False
    token_indices: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ties_weights: bool = False
    task_type: str = ""
    base_model: str = ""
    unknown: tuple[str, ...] = ()

    def saves_whole(self, module: str) -> bool:
        """Whether ``modules_to_save`` names a module or one that holds it."""
        return any(f".{name}." in f".{module}." for name in self.modules_to_save)

    def resolve(self, module: str) -> tuple[int, float]:
        """Rank and scaling of one module, patterns matched as PEFT matches them.

        Args:
            module: Module name in the base model, without PEFT's prefix.

        Returns:
            r and alpha / r (alpha / sqrt(r) for rsLoRA).
        """
        rank, alpha = self.rank, self.alpha
        if self.rank_pattern or self.alpha_pattern:
            from peft.utils.other import get_pattern_key

            rank_key = get_pattern_key(list(self.rank_pattern), module)
            alpha_key = get_pattern_key(list(self.alpha_pattern), module)
            rank = self.rank_pattern.get(rank_key, rank)
            alpha = self.alpha_pattern.get(alpha_key, alpha)
        return rank, alpha / (math.sqrt(rank) if self.use_rslora else rank)


def read_settings(folder: Path, contents: bytes | None = None) -> LoraSettings:
    """Read and check ``adapter_config.json``.

    Args:
        folder: The adapter folder.
        contents: What the file holds, where it has been read already.

    Raises:
        AdapterError: The file is missing or broken, is no LoRA configuration, or asks for a
            variant whose update is not ``scaling * B @ A``.
    """
    path = folder / CONFIG_NAME
    raw = _read_json(path, contents)
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise _refused(path, f"peft_type is {shown(kind)}", "Only LoRA adapters are measured.")
    config, unknown = _parse(path, raw)
    _refuse_variants(path, config)
    rank, alpha = _rank(path, "r", config.r), _alpha(path, "lora_alpha", config.lora_alpha)
    ranks = _pattern(path, "rank_pattern", config.rank_pattern)
    alphas = _pattern(path, "alpha_pattern", config.alpha_pattern)
    rank_pattern = {k: _rank(path, f"rank_pattern[{shown(k)}]", v) for k, v in ranks.items()}
    alpha_pattern = {k: _alpha(path, f"alpha_pattern[{shown(k)}]", v) for k, v in alphas.items()}
    return LoraSettings(
        rank=rank,
        alpha=alpha,
        rank_pattern=MappingProxyType(rank_pattern),
        alpha_pattern=MappingProxyType(alpha_pattern),
        use_rslora=_flag(path, "use_rslora", config.use_rslora),
        fan_in_fan_out=_flag(path, "fan_in_fan_out", config.fan_in_fan_out),
        bias=_bias(path, config.bias),
        modules_to_save=_names(path, "modules_to_save", config.modules_to_save),
        use_dora=_flag(path, "use_dora", config.use_dora),
        lora_bias=_flag(path, "lora_bias", config.lora_bias),
        token_indices=_token_indices(path, config.trainable_token_indices),
        ties_weights=_flag(path, "ensure_weight_tying", config.ensure_weight_tying),
        task_type=_text(path, "task_type", config.task_type),
        base_model=_text(path, "base_model_name_or_path", config.base_model_name_or_path),
        unknown=unknown,
    )


def _read_json(path: Path, contents: bytes | None) -> dict[str, Any]:
    try:
        raw = json.loads((path.read_bytes() if contents is None else contents).decode("utf-8"))
    except OSError as error:
        raise _refused(path, f"cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise _refused(path, f"is not JSON: {str(error) or type(error).__name__}") from error
    if not isinstance(raw, dict):
        raise _refused(path, f"holds a {type(raw).__name__}, expected an object")
    return raw


def _parse(path: Path, raw: dict[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """PEFT's own ``LoraConfig`` and the names of the settings it does not know."""
    from peft import LoraConfig

    known = {f.name for f in dataclasses.fields(LoraConfig) if f.init} - {"runtime_config"}
    unknown = sorted(set(raw) - known - {"runtime_config"})
    switched_on = [name for name in unknown if raw[name] is True or _is_filled(raw[name])]
    if switched_on:
        raise _refused(
            path,
            f"switches on {', '.join(switched_on)}, which the installed PEFT does not know",
            "Upgrade PEFT, or save the adapter again with the version that is installed.",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice for training; what matters is checked here
            config = LoraConfig(**{name: raw[name] for name in known & set(raw)})
    except Exception as error:  # whatever PEFT's own checks run into: the file is at fault
        raise _refused(path, f"PEFT cannot read it: {error}") from error
    return config, tuple(name for name in unknown if raw[name] not in (None, False, [], {}))


def _is_filled(value: object) -> bool:
    return isinstance(value, dict | list) and len(value) > 0


def _refuse_variants(path: Path, config: Any) -> None:
    for option in dataclasses.fields(config):
        is_variant = option.metadata.get("is_lora_variant") and option.name not in _KNOWN_VARIANTS
        if (is_variant or option.name in _SWITCHES) and getattr(config, option.name):
            titles = _VARIANT_TITLES | _SWITCHES
            reason = titles.get(option.name, "a LoRA variant whose update is not known here")
            raise _refused(
                path,
                f"{option.name} is set: {reason}",
                "Only updates that are scaling * B @ A are measured.",
            )
    start = config.init_lora_weights
    if isinstance(start, str) and start.lower().startswith(_BASE_CHANGING_INITS):
        raise _refused(
            path,
            f"init_lora_weights is {shown(start)}: factors relative to a changed base weight",
            "Save the adapter again with path_initial_model_for_weight_conversion, which turns "
            "it into a plain LoRA.",
        )


def _rank(path: Path, name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_RANK:
        expected = f"expected a whole number from 1 to {_MAX_RANK}"
        raise _refused(path, f"{name} is {shown(value)}, {expected}")
    return value


def _alpha(path: Path, name: str, value: object) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        number = float(value) if is_number else math.nan  # type: ignore[arg-type]
    except OverflowError:  # a whole number that no float holds
        number = math.inf
    if not math.isfinite(number):
        raise _refused(path, f"{name} is {shown(value)}, expected a finite number")
    return number


def _flag(path: Path, name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _refused(path, f"{name} is {shown(value)}, expected true or false")
    return value


def _pattern(path: Path, name: str, value: object) -> dict[str, Any]:
    """A mapping from module patterns, each a regular expression PEFT can match."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _refused(path, f"{name} is a {type(value).__name__}, expected an object")
    for pattern in value:
        try:
            re.compile(rf"(.*\.)?({pattern})$")
        except (re.error, OverflowError, RecursionError) as error:
            raise _refused(
                path, f"{name}: {shown(pattern)} is not a regular expression: {error}"
            ) from None
    return value


def _names(path: Path, name: str, value: object) -> tuple[str, ...]:
    names = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(item, str) for item in names):
        raise _refused(path, f"{name} is {shown(value)}, expected a list of names")
    return tuple(names)


def _token_indices(path: Path, value: object) -> Mapping[str, tuple[int, ...]]:
    """Tokens per embedding; PEFT reads a bare list as those of the input embedding."""
    tokens = {} if value is None else {"": value} if isinstance(value, list) else value
    is_valid = isinstance(tokens, dict) and all(
        isinstance(ids, list) and all(type(index) is int for index in ids)
        for ids in tokens.values()
    )
    if not is_valid:
        expected = "expected lists of token numbers"
        raise _refused(path, f"trainable_token_indices is {shown(value)}, {expected}")
    assert isinstance(tokens, dict)
    return MappingProxyType({name: tuple(ids) for name, ids in tokens.items()})


def _bias(path: Path, value: object) -> str:
    if not isinstance(value, str) or value not in _BIASES:
        raise _refused(path, f"bias is {shown(value)}, expected one of {', '.join(_BIASES)}")
    return value


def _text(path: Path, name: str, value: object) -> str:
    if value is not None and not isinstance(value, str):
        raise _refused(path, f"{name} is {shown(value)}, expected a text")
    return value or ""


def _refused(path: Path, found: str, cure: str = "") -> AdapterError:
    message = f"not a LoRA configuration gonio can read: {path}\n  {one_line(found)}"
    return AdapterError(f"{message}\n{cure}" if cure else message)
