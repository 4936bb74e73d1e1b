"""A model described from its configuration and tensor headers, without loading weights."""

from __future__ import annotations

from collections import Counter
from math import prod

import pandas as pd

from gonio.errors import ModelError
from gonio.models import attention_layout, resolve_source
from gonio.models.streaming import WeightReader
from gonio.records import Measurement, file_input, make_measurement, make_value

__all__ = ["describe_model"]


def describe_model(source: str) -> Measurement:
    """Attention layout, cache cost and tensor counts of a model source.

    Args:
        source: Model source, see :func:`gonio.models.load_model`.

    Returns:
        Kind ``model``; table ``tensors``: tensors and elements by dtype.

    Raises:
        ModelError: The source or its configuration cannot be read.
    """
    from transformers import AutoConfig

    folder = resolve_source(source).folder()
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the configuration's content decides what is raised
        raise ModelError(f"cannot read the configuration in {folder}: {error}") from error
    with WeightReader(folder) as weights:
        counts: Counter[str] = Counter()
        elements: Counter[str] = Counter()
        for name in weights.names:
            counts[weights.dtype(name)] += 1
            elements[weights.dtype(name)] += prod(weights.shape(name))
        inputs = [file_input(path, f"{source}/{path.name}") for path in weights.files]
    values = [
        make_value("architecture", str(config.model_type)),
        make_value("parameters", sum(elements.values()), note="elements of all stored tensors"),
    ]
    try:
        layout = attention_layout(config)
    except ModelError as error:
        values.append(make_value("cache_support", f"no: {error}"))
    else:
        values += [
            make_value("layers", layout.num_layers),
            make_value("query_heads", layout.num_heads),
            make_value("kv_heads", layout.num_kv_heads),
            make_value("head_dim", layout.head_dim),
            make_value(
                "fp16_cache_bytes_per_token",
                2 * 2 * layout.key_elements_per_token,
                unit="bytes",
                note="keys and values",
            ),
        ]
    rows = [{"dtype": k, "tensors": counts[k], "elements": elements[k]} for k in sorted(counts)]
    return make_measurement(
        "model",
        f"Model {source}",
        settings={"model": source},
        values=values,
        tables={"tensors": pd.DataFrame(rows)},
        inputs=inputs,
    )
