"""Do two trainings of one model turn the same directions? Across recipes and across seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import pandas as pd

from gonio.adapters import compare_adapters, load_adapter
from gonio.errors import AdapterError
from gonio.linalg.association import student_interval
from gonio.pipelines.study_tables import Finding, FinishedCell
from gonio.records import make_value

__all__ = ["align_recipes"]

_ANGLE_SAMPLES = 1  # the smallest angle is not reported
_RELATIONS = {
    (True, False): "other recipe, same seed",
    (False, True): "same recipe, other seed",
    (False, False): "other recipe, other seed",
}
_START = (
    "the same seed gives both the same random A to start from, which alone aligns what they "
    "read; other seeds are free of that"
)


def align_recipes(
    cells: Sequence[FinishedCell],
    k: int,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> Finding:
    """Cosine and overlap of every two adapters of one model, grouped by what they share.

    Args:
        cells: Finished cells.
        k: Directions compared; modules of a smaller numerical rank are left out.
        progress: Called as ``progress(what, pairs done, pairs)``.

    Returns:
        Table ``alignment``: one row per pair: ``model, first, second, relation, modules, cosine,
        cosine_z_score`` (means over modules, chance 0)``, left_overlap_ratio,
        right_overlap_ratio`` (chance 1; NaN where no update has k directions).

    Raises:
        AdapterError: An adapter of a finished cell cannot be read.
    """
    trained = [cell for cell in cells if cell.cell.kind != "bitfit"]
    pairs = [
        (one, other)
        for one, other in combinations(trained, 2)
        if one.cell.model == other.cell.model
    ]
    rows, missing = [], []
    for done, (one, other) in enumerate(pairs, start=1):
        try:
            rows.append(_compare(one, other, k))
        except AdapterError as error:
            reason = str(error).splitlines()[0]
            missing.append(
                ("alignment", f"{one.cell.name} and {other.cell.name}: {reason}"),
            )
        if progress is not None:
            progress("comparing adapters", done, len(pairs))
    if not rows:
        why = "no model has two finished trainings of matrices"
        return Finding(missing=tuple(missing) or (("alignment", why),))
    table = pd.DataFrame(rows)
    values = []
    for (model, relation), group in table.groupby(["model", "relation"], sort=False):
        name = f"cosine_{model}_{relation}".replace(", ", "_").replace(" ", "_")
        cosines = group["cosine"].tolist()
        values.append(
            make_value(
                name,
                sum(cosines) / len(cosines),
                chance=0.0,
                interval=student_interval(cosines) if len(cosines) > 1 else None,
                note=f"cosine of the updates, mean over modules and {len(group)} pairs, interval "
                f"over pairs (which share trainings); {_START}",
            )
        )
    return Finding({"alignment": table}, tuple(values), tuple(missing))


def _compare(one: FinishedCell, other: FinishedCell, k: int) -> dict[str, object]:
    first, second = load_adapter(one.trained), load_adapter(other.trained)
    found = compare_adapters(first, second, [k], samples=_ANGLE_SAMPLES)
    fixed = found.overlaps[found.overlaps["k_from"] == "fixed"]
    ratios = fixed.groupby("side")["overlap_ratio"].mean()
    same = one.cell.seed == other.cell.seed, one.cell.recipe_name == other.cell.recipe_name
    return {
        "model": one.cell.model.name,
        "first": one.cell.name,
        "second": other.cell.name,
        "relation": _RELATIONS[same],
        "modules": len(found.cosines),
        "k": k,
        "cosine": float(found.cosines["cosine"].mean()),
        "cosine_z_score": float(found.cosines["z_score"].mean()),
        "left_overlap_ratio": float(ratios.get("left", float("nan"))),
        "right_overlap_ratio": float(ratios.get("right", float("nan"))),
    }
