"""What adapters lose beside one another: predicted from their factors, measured on their texts.

Around an adapter D_i that minimizes the loss of its own text, a quadratic model makes adding D_j
cost ``1/2 <D_j, H D_j>``. What D_i itself gained over the base, ``1/2 <D_i, H D_i>``, gives the
size of H once its shape is assumed. With equal curvature in all directions the cost is ``gain
|D_j|^2 / |D_i|^2``. With curvature only along the inputs that D_i reads, ``gain |D_j P_i|^2 /
|D_i|^2`` with P_i the projection onto its row space, module by module: the overlap of what both
read decides. Both are predictions without a free parameter, and both can be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from gonio.adapters import Adapter, LoraUpdate, load_adapter
from gonio.errors import SettingError
from gonio.linalg.lowrank import factored_frobenius_norm, factored_inner_product
from gonio.linalg.resampling import bootstrap_interval, paired_bootstrap_interval
from gonio.models import load_model, load_text, open_weights, split_tokens, token_windows
from gonio.pipelines.adapter_reading import adapter_inputs
from gonio.records import (
    InputFile,
    Measurement,
    Value,
    file_input,
    make_measurement,
    make_value,
    text_input,
)
from gonio.serving import AdapterMixture, RowWeights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["measure_interference", "predicted_ratios", "window_losses"]

_FEWEST_PAIRS = 6  # three adapters: below, a rank correlation says nothing


def measure_interference(
    model: str | Path,
    adapters: Mapping[str, str | Path],
    texts: Mapping[str, str | Path] | None = None,
    *,
    default_text: str | Path = "bundled",
    tokens: int = 2048,
    window: int = 256,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[str, int, int], None] | None = None,
) -> Measurement:
    """The loss of every adapter's text under that adapter, and with each other one added.

    Args:
        model: Model source.
        adapters: Name -> PEFT folder of plain LoRA, at least two.
        texts: Name -> text source of that adapter.
        default_text: Text of the adapters that have none of their own.
        tokens: Tokens of each text, from its end.
        window: Tokens read together.
        seed: Seed of the bootstrap.
        device: Where the model runs.
        progress: Called as ``progress(what, windows done, windows)``.

    Returns:
        Kind ``adapter-interference``; table ``pairs`` with one row per ordered pair.

    Raises:
        SettingError: Fewer than two adapters, or a text of no adapter.
        AdapterError: A folder cannot be read, or does not fit the model.
        DataError: A text cannot be read or is too short.
        ModelError: The model cannot be read.
    """
    own = dict(texts or {})
    _check_names(tuple(adapters), own)
    read = {name: load_adapter(folder) for name, folder in adapters.items()}
    loaded = {name: load_text(own.get(name, default_text)) for name in adapters}
    network, tokenizer = load_model(model, device=device)
    windows = {
        name: token_windows(
            split_tokens(tokenizer, text, calibration=0, evaluation=tokens).evaluation, window
        )
        for name, text in loaded.items()
    }
    with AdapterMixture(network, read) as mixture:
        pairs = _measured(network, mixture, windows, seed, progress)
    table = _with_predictions(pairs, read)
    files = {text.name: text_input(text.name, text.text) for text in loaded.values()}
    return make_measurement(
        "adapter-interference",
        f"Interference of {', '.join(read)}",
        settings={
            "model": str(model),
            "adapters": {name: str(folder) for name, folder in adapters.items()},
            "texts": {name: text.name for name, text in loaded.items()},
            "tokens": tokens,
            "window": window,
        },
        values=_values(table, seed),
        tables={"pairs": table},
        inputs=[*adapter_inputs(list(read.values())), *files.values(), *_model_files(model)],
        seed=seed,
        dtype=network.dtype,
        device=device,
    )


def _check_names(adapters: Sequence[str], texts: Mapping[str, object]) -> None:
    strange = [name for name in texts if name not in adapters]
    if strange or len(adapters) < 2:
        there = f"the adapters are {', '.join(adapters) or 'none'}"
        what = f"a text is given for {strange[0]!r}" if strange else "two or more are needed"
        raise SettingError(f"cannot measure interference: {what}; {there}")


def _measured(
    model: PreTrainedModel,
    mixture: AdapterMixture,
    windows: Mapping[str, Tensor],
    seed: int,
    progress: Callable[[str, int, int], None] | None,
) -> pd.DataFrame:
    """One row per ordered pair: the losses of the first one's windows under every subset."""
    frames = []
    done, total = 0, sum(map(len, windows.values()))
    for name, batch in windows.items():
        others = [other for other in mixture.names if other != name]
        subsets: list[RowWeights] = [{}, {name: 1.0}]
        subsets += [{name: 1.0, other: 1.0} for other in others]
        subsets.append(dict.fromkeys(mixture.names, 1.0))
        losses = []
        for window in batch:
            losses.append(window_losses(model, mixture, window, subsets))
            done += 1
            if progress:
                progress(f"text of {name}", done, total)
        frames.append(_rows(name, others, torch.stack(losses), seed))
    return pd.concat(frames, ignore_index=True)


def window_losses(
    model: PreTrainedModel, mixture: AdapterMixture, window: Tensor, subsets: Sequence[RowWeights]
) -> Tensor:
    """Mean loss of one window under every subset, in one batch.

    Args:
        model: The model.
        mixture: Its attached adapters.
        window: Token ids, shape ``(length,)``.
        subsets: Adapters of each row.

    Returns:
        Nats per token, float64, shape ``(subsets,)``.
    """
    rows = window.to(model.device).expand(len(subsets), -1)
    with torch.inference_mode(), mixture.rows(subsets):
        logits = model(input_ids=rows).logits[:, :-1].double()
    losses = torch.nn.functional.cross_entropy(logits.mT, rows[:, 1:], reduction="none")
    return losses.mean(dim=1).cpu()


def predicted_ratios(adapter: Adapter, added: Adapter) -> tuple[float, float, float]:
    """What the factors say about adding one adapter to another.

    Args:
        adapter: D_i, whose text is read.
        added: D_j.

    Returns:
        The cosine of both updates over all modules, ``|D_j|^2 / |D_i|^2``, and ``|D_j P_i|^2 /
        |D_i|^2`` over the modules both change.

    Raises:
        SettingError: One of the updates is zero.
    """
    norms = [
        sum(_norm_squared(update) for update in one.updates.values()) for one in (adapter, added)
    ]
    if min(norms) == 0:
        raise SettingError(f"{adapter.path if norms[0] == 0 else added.path} changes nothing")
    inner = read_too = 0.0
    for module in adapter.updates.keys() & added.updates.keys():
        first, second = adapter.updates[module], added.updates[module]
        scale = first.scaling * second.scaling
        factors = (first.lora_b, first.lora_a, second.lora_b, second.lora_a)
        inner += scale * float(factored_inner_product(*(f.double() for f in factors)))
        read_too += _norm_squared_along(second, first)
    return inner / (norms[0] * norms[1]) ** 0.5, norms[1] / norms[0], read_too / norms[0]


def _norm_squared(update: LoraUpdate) -> float:
    norm = factored_frobenius_norm(update.lora_b.double(), update.lora_a.double())
    return (update.scaling * float(norm)) ** 2


def _norm_squared_along(update: LoraUpdate, reader: LoraUpdate) -> float:
    """``|D P|_F^2`` with P the projection onto the row space of another update."""
    _, sigma, rows = reader.svd()
    basis = rows[sigma > reader.noise_floor()].mT  # (in_features, numerical rank)
    if basis.shape[1] == 0:
        return 0.0
    norm = factored_frobenius_norm(update.lora_b.double(), update.lora_a.double() @ basis)
    return (update.scaling * float(norm)) ** 2


def _rows(name: str, others: Sequence[str], losses: Tensor, seed: int) -> pd.DataFrame:
    """One row per other adapter out of the losses ``(windows, subsets)``."""
    mean = losses.mean(dim=0)
    rows = []
    for at, other in enumerate(others, start=2):
        row: dict[str, object] = {"text_of": name, "added": other}
        row |= {"loss_base": float(mean[0]), "loss_alone": float(mean[1])}
        row |= {"loss_both": float(mean[at]), "loss_all": float(mean[-1])}
        row |= {"change": float(mean[at] - mean[1]), "change_low": None, "change_high": None}
        if len(losses) > 1:
            interval = paired_bootstrap_interval(losses[:, at], losses[:, 1], seed=seed)
            row |= {"change_low": interval.low, "change_high": interval.high}
        rows.append(row)
    return pd.DataFrame(rows)


def _with_predictions(pairs: pd.DataFrame, adapters: Mapping[str, Adapter]) -> pd.DataFrame:
    found = {
        (one, other): predicted_ratios(adapters[one], adapters[other])
        for one, other in permutations(adapters, 2)
    }
    ratios = [
        found[one, other] for one, other in zip(pairs["text_of"], pairs["added"], strict=True)
    ]
    gain = (pairs["loss_base"] - pairs["loss_alone"]).clip(lower=0)
    return pairs.assign(
        gain=pairs["loss_base"] - pairs["loss_alone"],
        cosine=[cosine for cosine, _, _ in ratios],
        norm_ratio_squared=[even for _, even, _ in ratios],
        inputs_ratio_squared=[inputs for _, _, inputs in ratios],
        predicted_even=gain * [even for _, even, _ in ratios],
        predicted_inputs=gain * [inputs for _, _, inputs in ratios],
    )


def _values(table: pd.DataFrame, seed: int) -> list[Value]:
    interval = bootstrap_interval(table["change"].tolist(), seed=seed)
    values = [
        make_value(
            "mean_change",
            float(table["change"].mean()),
            unit="nats",
            chance=0.0,
            interval=interval,
            note="of the loss on an adapter's text when one other is added; interval over ordered "
            "pairs, which share adapters",
        ),
        make_value(
            "adapters_without_gain",
            int((table.groupby("text_of")["gain"].first() <= 0).sum()),
            note="no better than the base on their own text: nothing is predicted for them",
        ),
    ]
    for name, assumed in (("even", "in all directions"), ("inputs", "along the inputs it reads")):
        predicted = table[f"predicted_{name}"]
        error = float((predicted - table["change"]).abs().mean())
        note = f"mean absolute error of the prediction with equal curvature {assumed}"
        values.append(make_value(f"error_{name}", error, unit="nats", note=note))
        if len(table) >= _FEWEST_PAIRS and predicted.nunique() > 1:
            values.append(_order(f"rank_correlation_{name}", predicted, table["change"], ""))
    shared = table["inputs_ratio_squared"]
    if len(table) >= _FEWEST_PAIRS and shared.nunique() > 1:
        note = " of the overlap alone, also where an adapter gained nothing"
        values.append(_order("rank_correlation_overlap", shared, table["change"], note))
    return values


def _order(name: str, predicted: pd.Series[float], change: pd.Series[float], note: str) -> Value:
    order = float(stats.spearmanr(predicted, change).statistic)
    return make_value(name, order, chance=0.0, note=f"Spearman's, over ordered pairs{note}")


def _model_files(model: str | Path) -> list[InputFile]:
    with open_weights(model) as weights:
        return [file_input(path, f"base/{path.name}") for path in weights.files]
