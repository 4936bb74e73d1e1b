"""How gradients and updates of LoRA grow with the rank under both scalings, in a short training."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd

from gonio.errors import SettingError
from gonio.models import load_model, load_skeleton, load_tokenizer, open_weights
from gonio.pipelines.training import check_trainable
from gonio.records import (
    InputFile,
    Measurement,
    Value,
    file_input,
    make_measurement,
    make_value,
)
from gonio.training import ClmRecipe, DpoRecipe, LoraRecipe, keep_fitting, train_clm, train_dpo
from gonio.training.backend import require_datasets, require_trl
from gonio.training.factor_gradients import (
    Scaling,
    expected_gradient_ratio,
    gradient_exponent,
)
from gonio.training.gradient_callback import GradientCallback
from gonio.training.sources import load_split

__all__ = ["gradient_dynamics"]

Progress = Callable[[str, int, int], None]


def gradient_dynamics(
    model: str | Path,
    data: str,
    recipe: LoraRecipe,
    ranks: Sequence[int],
    *,
    progress: Progress | None = None,
) -> Measurement:
    """Train a few steps at every rank under alpha / r and alpha / sqrt(r), nothing kept.

    Args:
        model: Model source.
        data: ``bundled``, a text, a ``.jsonl`` file of pairs or a hub data set.
        recipe: DPO or CLM; its rank and scaling rule are replaced, its alpha, seed and steps kept.
        ranks: Distinct ranks, at least 1.
        progress: Called as ``progress(what, runs done, runs)``.

    Returns:
        Kind ``adapter-dynamics``; tables ``growth`` (one row per scaling and rank: norms over all
        modules at the start and after the last step), ``steps`` (the same by step) and
        ``modules`` (by step and module, see :class:`gonio.training.GradientCallback`; its
        ``expected_gradient_b`` is ``s sqrt(r v) |G|``, v the variance of the entries of A at the
        start). Gradients of ``growth`` and ``steps`` are those before clipping. Values are the
        fitted powers of r and how far gradients are from their closed forms.

    Raises:
        GonioError: The model, the data, the recipe or the ranks are refused.
    """
    _check(recipe, ranks)
    require_datasets()
    require_trl()
    check_trainable(load_skeleton(model), recipe)
    source = load_split(data, train=recipe.num_examples, held_out=2, seed=recipe.seed)
    pairs, _ = keep_fitting(load_tokenizer(model), source.split.train, recipe.max_length)
    network, tokenizer = load_model(model)
    runs = [(rule, rank) for rule in get_args(Scaling) for rank in sorted(ranks)]
    tables = []
    for done, (rule, rank) in enumerate(runs):
        if progress is not None:
            progress(f"{rule}, rank {rank}", done, len(runs))
        settings = recipe.model_copy(update={"r": rank, "use_rslora": rule == "rslora"})
        callback = GradientCallback(closed_forms=True)
        trainer: Callable[..., Any] = train_dpo if isinstance(recipe, DpoRecipe) else train_clm
        with tempfile.TemporaryDirectory() as folder:
            run = trainer(
                network, tokenizer, pairs, settings, Path(folder) / "run", callbacks=[callback]
            )
        table = callback.table.assign(scaling_rule=rule)
        table["expected_gradient_b"] = [
            _expected(row, settings.init) for row in table.to_dict("records")
        ]
        tables.append(table.merge(run.log[["step", "grad_norm"]].assign(step=_before), how="left"))
    modules = pd.concat(tables, ignore_index=True)
    steps = _steps(modules)
    growth = _growth(steps)
    return make_measurement(
        "adapter-dynamics",
        f"Gradients of LoRA factors of {model} by rank",
        settings={
            "model": str(model),
            "data": data,
            "ranks": sorted(ranks),
            "recipe": recipe.model_dump(mode="json", exclude={"r", "use_rslora"}),
        },
        values=_values(growth, modules),
        tables={
            "growth": growth,
            "steps": steps,
            "modules": modules.drop(columns="grad_norm"),
        },
        inputs=[InputFile(name=f"data/{source.name}", sha256=source.sha256), *_inputs(model)],
        seed=recipe.seed,
        dtype=network.dtype,
        device=network.device.type,
    )


def _check(recipe: LoraRecipe, ranks: Sequence[int]) -> None:
    """Refuse ranks that give no power, and recipes whose gradients have other closed forms."""
    if len(ranks) < 2 or len(set(ranks)) != len(ranks) or min(ranks) < 1:
        raise SettingError(f"give at least two distinct ranks above 0, found {list(ranks)}")
    if not isinstance(recipe, DpoRecipe | ClmRecipe):
        raise SettingError(f"a {type(recipe).__name__} trains no LoRA factors that can be followed")
    if recipe.init not in ("kaiming", "gaussian") or recipe.variant is not None or recipe.dropout:
        raise SettingError(
            "the closed forms are those of plain LoRA from a random A without dropout: leave init, "
            "variant and dropout of the recipe out"
        )


def _before(log: pd.DataFrame) -> pd.Series:
    """The log counts a step when it is done, the gradients when it begins."""
    return log["step"] - 1


def _steps(modules: pd.DataFrame) -> pd.DataFrame:
    """Norms over all modules by scaling, rank and step; gradients as before clipping."""
    names = ["norm_a", "norm_b", "gradient_a", "gradient_b", "update_norm", "descent_norm"]
    names += ["closed_gradient_a", "closed_gradient_b", "weight_gradient", "expected_gradient_b"]
    keys = ["scaling_rule", "rank", "step"]
    groups = modules.groupby(keys, sort=False)
    squares = modules[keys].join(modules[names] ** 2).groupby(keys, sort=False)
    found = squares[names].sum(min_count=1) ** 0.5  # NaN after the last step, not 0
    clipped = np.hypot(found["gradient_a"], found["gradient_b"])
    factor: pd.Series = (groups["grad_norm"].first() / clipped).where(clipped > 0, 1.0)
    for name in ("gradient_a", "gradient_b", "descent_norm"):
        found[name] *= factor
    found["imbalance"] = groups["imbalance"].max()
    found["scaling"] = groups["scaling"].first()
    return found.reset_index()


def _growth(steps: pd.DataFrame) -> pd.DataFrame:
    """One row per scaling and rank: the start, the first step, and what was reached."""
    rows = []
    for (rule, rank), run in steps.groupby(["scaling_rule", "rank"], sort=False):
        run = run.set_index("step")
        first, last = run.loc[0], run.loc[run.index.max()]
        rows.append(
            {
                "scaling_rule": rule,
                "rank": rank,
                "scaling": first["scaling"],
                "gradient_a_at_start": first["gradient_a"],
                "gradient_b_at_start": first["gradient_b"],
                "closed_gradient_b_at_start": first["closed_gradient_b"],
                "expected_gradient_b_at_start": first["expected_gradient_b"],
                "descent_norm_at_start": first["descent_norm"],
                "update_norm_first_step": run["update_norm"].iloc[1],
                "update_norm": last["update_norm"],
                "steps": int(run.index.max()),
                "imbalance": run["imbalance"].max(),
                "closed_form_error": _closed_form_error(run),
            }
        )
    return pd.DataFrame(rows)


def _values(growth: pd.DataFrame, modules: pd.DataFrame) -> list[Value]:
    start = modules[modules["step"] == 0]
    values = [
        make_value(
            "largest_gradient_a_at_start",
            float(start["gradient_a"].max()),
            chance=0.0,
            note="over modules and ranks; B = 0, so exactly 0 is expected",
        ),
        make_value(
            "largest_imbalance",
            float(modules["imbalance"].max()),
            note="of B^T grad_B = grad_A A^T, relative: rounding only",
        ),
    ]
    values.append(
        make_value(
            "largest_closed_form_error",
            float(growth["closed_form_error"].max()),
            note="of the norms of grad A and grad B over all modules against s B^T G and s G A^T "
            "from the layers' inputs and output gradients, relative, over all steps: rounding only",
        )
    )
    for rule in get_args(Scaling):
        mine = growth[growth["scaling_rule"] == rule]
        for column, name, chance in (
            ("gradient_b_at_start", "gradient", gradient_exponent(rule)),
            ("update_norm_first_step", "first_update", None),
            ("update_norm", "update", None),
        ):
            note = f"power of r that fits {column.replace('_', ' ')}"
            if chance is not None:
                note += "; chance: of the root mean square over random A"
            exponent = _slope(mine["rank"], mine[column])
            values.append(make_value(f"{rule}_{name}_exponent", exponent, chance=chance, note=note))
        ratio = mine["gradient_b_at_start"] / mine["expected_gradient_b_at_start"]
        note = "gradient of B at the start over s sqrt(r v) |G|, mean over ranks"
        values.append(
            make_value(f"{rule}_gradient_ratio", float(ratio.mean()), chance=1.0, note=note)
        )
    return values


def _expected(row: Mapping[Any, Any], init: str) -> float:
    """Root mean square of the gradient of B over random A, given the full weight's gradient."""
    variance = 1 / (3 * row["in_features"]) if init == "kaiming" else 1 / row["rank"] ** 2
    ratio = expected_gradient_ratio(row["scaling"], row["rank"], variance)
    return float(ratio * row["weight_gradient"])


def _closed_form_error(run: pd.DataFrame) -> float:
    """The largest relative difference between a factor's gradient norm and its closed form."""
    found = [
        (run[f"gradient_{side}"] - run[f"closed_gradient_{side}"]).abs()
        / run[f"closed_gradient_{side}"].where(run[f"closed_gradient_{side}"] > 0)
        for side in "ab"
    ]
    return float(pd.concat(found).max())  # the gradient of A is zero on both sides at the start


def _slope(ranks: pd.Series, norms: pd.Series) -> float:
    """Least-squares slope of log norm over log rank; NaN where a norm is zero."""
    x, y = ranks.to_numpy(float), norms.to_numpy(float)
    if not bool((y > 0).all()):
        return float("nan")
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def _inputs(model: str | Path) -> list[InputFile]:
    with open_weights(model) as weights:
        return [file_input(path, f"base/{path.name}") for path in weights.files]
