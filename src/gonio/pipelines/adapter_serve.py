"""Serving a model with its adapters, and what that took."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import torch

from gonio.adapters import Adapter, load_adapter, open_bundle, stored_bytes
from gonio.errors import SettingError
from gonio.models import load_model, resolve_source
from gonio.pipelines.adapter_reading import adapter_inputs
from gonio.records import Measurement, Value, make_measurement, make_value
from gonio.serving import CompletionEngine, EngineLimits
from gonio.serving.server import require_serving, serve_until_signal

__all__ = ["named_folders", "serve_adapters"]


def named_folders(
    adapters: Mapping[str, str | Path], bundle: str | Path | None = None
) -> dict[str, Path]:
    """The adapter folders of both kinds of argument, by name.

    Args:
        adapters: Name -> PEFT folder.
        bundle: A bundle, all of whose members are added under their names; its default weights
            do not apply, since every request gives its own.

    Raises:
        AdapterError: The bundle cannot be read.
        SettingError: A name occurs twice.
    """
    found = {name: Path(folder).expanduser() for name, folder in adapters.items()}
    if bundle is not None:
        opened = open_bundle(bundle)
        twice = [name for name in opened.names if name in found]
        if twice:
            raise SettingError(f"the bundle {bundle} has an adapter {twice[0]!r} too; rename one")
        found |= {name: opened.path / name for name in opened.names}
    return found


def serve_adapters(
    model: str | Path,
    adapters: Mapping[str, str | Path],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: EngineLimits = EngineLimits(),  # noqa: B008 - frozen
    grace: float = 10.0,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    on_start: Callable[[str], None] | None = None,
) -> Measurement:
    """Serve until SIGINT or SIGTERM; see :func:`gonio.serving.server.serve_until_signal`.

    Args:
        model: Model source.
        adapters: Name -> PEFT folder; none serves the base model alone.
        host: Address to listen on.
        port: Port to listen on; 0 for any free one.
        limits: What is accepted.
        grace: Seconds that running requests get after the signal.
        dtype: Precision of weights and factors in memory.
        device: Where the model runs.
        on_start: Called with the server's URL.

    Returns:
        Kind ``adapter-serving``; table ``adapters``.

    Raises:
        MissingDependencyError: The ``serve`` extra is not installed.
        AdapterError: A folder cannot be read, or cannot be mixed per request.
        ModelError: The model cannot be read or served.
        SettingError: A name is the model's, or the address cannot be listened on.
    """
    require_serving()
    source = resolve_source(model)
    read = {name: load_adapter(folder) for name, folder in adapters.items()}
    name = Path(source.location).name if source.kind in ("folder", "gguf") else source.location
    if name in read:
        raise SettingError(f"{name!r} names the model; give the adapter another name")
    network, tokenizer = load_model(model, dtype=dtype, device=device)
    engine = CompletionEngine(network, tokenizer, read, limits=limits)
    with engine:
        dropped = serve_until_signal(
            engine, name, host=host, port=port, grace=grace, on_start=on_start
        )
    return make_measurement(
        "adapter-serving",
        f"Served {name} with {len(read)} adapters",
        settings={
            "model": str(model),
            "adapters": {key: str(folder) for key, folder in adapters.items()},
            "host": host,
            "limits": vars(limits),
        },
        values=_values(engine, dropped),
        tables={"adapters": _adapter_table(read)},
        inputs=adapter_inputs(list(read.values())) if read else [],
        dtype=dtype,
        device=device,
    )


def _values(engine: CompletionEngine, dropped: int) -> list[Value]:
    stats = engine.stats
    values = [
        make_value("answers", stats.finished),
        make_value("dropped", dropped, note="requests that ran when the server stopped"),
        make_value("tokens", stats.tokens, note="generated"),
        make_value("largest_batch", stats.largest_batch, note="requests decoded together"),
    ]
    if engine.mixture is not None:
        size = engine.mixture.bytes
        values += [
            make_value("factor_bytes", size.factors, unit="bytes", note="all adapters, in memory"),
            make_value(
                "merged_weight_bytes",
                size.merged_weights,
                unit="bytes",
                note="the changed weights whole, once per adapter",
            ),
            make_value(
                "merged_model_bytes",
                size.merged_models,
                unit="bytes",
                note="one merged model per adapter",
            ),
        ]
    return values


def _adapter_table(adapters: Mapping[str, Adapter]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "name": list(adapters),
            "rank": [adapter.settings.rank for adapter in adapters.values()],
            "modules": [len(adapter.updates) for adapter in adapters.values()],
            "stored_bytes": [stored_bytes([adapter]).factors for adapter in adapters.values()],
        }
    )
