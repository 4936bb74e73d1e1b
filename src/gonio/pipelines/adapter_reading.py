"""Opening what a command calls an adapter: a LoRA folder, a DoRA folder, or a tuned model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from gonio.adapters import Adapter, load_adapter, load_finetune
from gonio.adapters.config import CONFIG_NAME
from gonio.errors import AdapterError
from gonio.models import WeightReader, open_weights
from gonio.records import InputFile, file_input

__all__ = ["OpenAdapter", "adapter_inputs", "adapter_settings", "is_model_folder", "open_adapter"]


@dataclass(frozen=True)
class OpenAdapter:
    """An adapter and, where one was given, its base model, both open.

    Attributes:
        adapter: The adapter.
        weights: The base model's tensors, None where no base was given.
    """

    adapter: Adapter
    weights: WeightReader | None

    @property
    def inputs(self) -> list[InputFile]:
        """The files read, hashed."""
        base = [] if self.weights is None else _named("base", self.weights.files)
        return [*adapter_inputs([self.adapter]), *base]


@contextmanager
def open_adapter(folder: str | Path, base: str | Path | None = None) -> Iterator[OpenAdapter]:
    """Read an adapter folder, or a fully fine-tuned model as its difference from the base.

    Args:
        folder: PEFT folder, or the folder of a whole model.
        base: Model source; needed for DoRA and for a whole model.

    Raises:
        AdapterError: The folder cannot be read, or needs a base.
        ModelError: The base or the tuned model cannot be read.
    """
    path = Path(folder).expanduser()
    with ExitStack() as stack:
        weights = None if base is None else stack.enter_context(open_weights(base))
        if not is_model_folder(path):
            yield OpenAdapter(load_adapter(path, weights), weights)
            return
        if weights is None:
            raise AdapterError(
                f"{path} is a whole model, not an adapter\n"
                "Give the model it was tuned from with --base MODEL to measure the difference."
            )
        tuned = stack.enter_context(open_weights(path))
        yield OpenAdapter(load_finetune(tuned, weights, path), weights)


def is_model_folder(path: Path) -> bool:
    """Whether a folder holds a whole model and no adapter."""
    try:
        has_adapter = (path / CONFIG_NAME).is_file()
        return not has_adapter and (path / "config.json").is_file()
    except (OSError, ValueError):  # the loader says what is wrong with the path
        return False


def adapter_settings(adapter: Adapter) -> dict[str, object]:
    """What a record keeps of an adapter's configuration."""
    settings = adapter.settings
    return {
        "adapter": str(adapter.path),
        "kind": adapter.kind,
        "rank": settings.rank,
        "alpha": settings.alpha,
        "rank_pattern": dict(settings.rank_pattern),
        "alpha_pattern": dict(settings.alpha_pattern),
        "use_rslora": settings.use_rslora,
        "base_model": settings.base_model,
        "unknown_settings": list(settings.unknown),
    }


def adapter_inputs(adapters: Sequence[Adapter]) -> list[InputFile]:
    """The files of one adapter, of a pair, or of several named by their folders."""
    if len(adapters) == 1:
        names = ["adapter"]
    elif len(adapters) == 2:
        names = ["first", "second"]
    else:
        names = [f"{i}-{adapter.path.name}" for i, adapter in enumerate(adapters, start=1)]
    return [
        item
        for name, adapter in zip(names, adapters, strict=True)
        for item in _named(name, adapter.files)
    ]


def _named(owner: str, files: Iterable[Path]) -> list[InputFile]:
    return [file_input(path, f"{owner}/{path.name}") for path in files]
