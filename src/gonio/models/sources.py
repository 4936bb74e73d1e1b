"""One way to name a model: a bundled name, a folder, a ``.gguf`` file or a hub id.

Weights come from safetensors only; no source may run code of its own (``trust_remote_code`` is
never set) and pickled weights are refused by name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from gonio.errors import ModelError
from gonio.models.bundled import bundled_folder, bundled_models
from gonio.models.gguf import dequantized_folder
from gonio.models.quiet import quiet_transformers
from gonio.models.streaming import WeightReader

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["ModelSource", "load_model", "load_tokenizer", "open_weights", "resolve_source"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class ModelSource:
    """A source that was understood but not yet read.

    Attributes:
        kind: ``bundled``, ``folder``, ``gguf`` or ``hub``.
        name: What the user wrote.
        location: Bundled name, path or hub id.
    """

    kind: Literal["bundled", "folder", "gguf", "hub"]
    name: str
    location: str

    def folder(self) -> Path:
        """The local safetensors folder, converted or downloaded when needed.

        Raises:
            ModelError: The source cannot be read.
        """
        if self.kind == "bundled":
            return bundled_folder(self.location)
        if self.kind == "gguf":
            return dequantized_folder(Path(self.location))
        if self.kind == "hub":
            return _hub_folder(self.location)
        return Path(self.location)


def resolve_source(source: str | Path) -> ModelSource:
    """Understand a model source, checking what can be checked without reading weights.

    Args:
        source: A bundled name, a model folder, a ``.gguf`` file or a hub id ``owner/name``.

    Raises:
        ModelError: It is none of them, or the folder holds no configuration or no safetensors.
    """
    name = str(source)
    path = Path(name).expanduser()
    if name in bundled_models() and not path.exists():
        return ModelSource("bundled", name, name)
    if path.is_dir():
        _require_model_folder(path)
        return ModelSource("folder", name, str(path))
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"not a model: {path}\n  found a file, expected a folder or a .gguf")
        return ModelSource("gguf", name, str(path))
    if _HUB_ID.fullmatch(name) and path.suffix != ".gguf":
        return ModelSource("hub", name, name)
    raise ModelError(
        f"unknown model: {name}\n"
        f"  not a bundled model ({', '.join(sorted(bundled_models()))}), not a folder or .gguf "
        "file, not a hub id (owner/name)"
    )


def load_model(
    source: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a decoder model and its tokenizer, in evaluation mode.

    Args:
        source: ``smollm2-135m``, a model folder, a ``.gguf`` file or a hub id.
        dtype: Precision of the weights in memory.
        device: Where the weights go.

    Returns:
        The model and its tokenizer.

    Raises:
        ModelError: The source is unknown, incomplete, pickled, or needs code of its own.
    """
    from transformers import AutoModelForCausalLM

    folder = resolve_source(source).folder()
    _require_model_folder(folder)
    with quiet_transformers():
        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
            )
        except Exception as error:  # loaders raise what the files make them raise
            raise _unreadable(folder, error) from error
    model.to(torch.device(device))  # type: ignore[arg-type]  # its wrapper hides the signature
    return model.eval(), load_tokenizer(folder)


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model source.

    Raises:
        ModelError: The source is unknown or holds no tokenizer.
    """
    from transformers import AutoTokenizer

    folder = resolve_source(source).folder()
    with quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
        except Exception as error:
            raise _unreadable(folder, error) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def open_weights(source: str | Path) -> WeightReader:
    """Stream the weights of a model source tensor by tensor, without building the model.

    Raises:
        ModelError: The source is unknown, or its weights cannot be read.
    """
    return WeightReader(resolve_source(source).folder())


def _require_model_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(f"not a model folder: {folder}\n  config.json  missing")
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    found = f"found {', '.join(pickles[:3])}, but pickled weights are never loaded"
    raise ModelError(
        f"not a loadable model folder: {folder}\n"
        f"  *.safetensors  {found if pickles else 'missing'}\n"
        "Save the model again as safetensors (save_pretrained does so by default)."
    )


def _hub_folder(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(
            f"cannot fetch {name} from the hub: {type(error).__name__}\n"
            "Check the name and the network, or give a local folder."
        ) from error


def _unreadable(folder: Path, error: Exception) -> ModelError:
    reason = str(error).strip().splitlines() or [""]
    return ModelError(f"cannot load the model in {folder}\n  {type(error).__name__}: {reason[0]}")
