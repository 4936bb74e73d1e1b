"""The demo's headline numbers, picked from its records with their chance levels and intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from gonio.records import Measurement, make_measurement

__all__ = ["summarize_demo"]

# (record, value in it, name in the summary)
_HEADLINES = (
    ("spectrum-clm", "stable_rank", "CLM adapter: stable rank"),
    ("spectrum-dpo", "stable_rank", "DPO adapter: stable rank"),
    ("base-clm", "left_overlap_k5", "CLM and base: left overlap, k = 5"),
    ("base-dpo", "left_overlap_k5", "DPO and base: left overlap, k = 5"),
    ("base-dpo", "right_overlap_k5", "DPO and base: right overlap, k = 5"),
    ("pair", "left_overlap_k5", "CLM and DPO: left overlap, k = 5"),
    ("pair", "right_overlap_k5", "CLM and DPO: right overlap, k = 5"),
    ("train-dpo", "held_out_reward_margin", "DPO: held-out reward margin"),
    ("train-dpo", "held_out_preference_accuracy", "DPO: held-out preferences"),
    ("keys", "mean_cosine_none", "keys: 1-bit cosine, as they are"),
    ("keys", "mean_cosine_hadamard", "keys: 1-bit cosine, Hadamard"),
    ("keys", "mean_cosine_learned", "keys: 1-bit cosine, learned"),
    ("evaluation", "perplexity_full_teacher-forced", "perplexity, exact keys"),
    ("evaluation", "perplexity_sign-hadamard_teacher-forced", "perplexity, 1 bit, Hadamard"),
    ("evaluation", "perplexity_sign-learned_teacher-forced", "perplexity, 1 bit, learned"),
    ("evaluation", "perplexity_transform-keys_teacher-forced", "perplexity, keys of 1.78 bits"),
    ("evaluation", "perplexity_transform-both_teacher-forced", "perplexity, all of 2.28 bits"),
    ("evaluation", "perplexity_zeros_teacher-forced", "perplexity, a cache of zeros"),
    ("evaluation", "perplexity_full_cache", "in a cache: perplexity, exact keys"),
    ("evaluation", "perplexity_sign-hadamard_cache", "in a cache: 1 bit, Hadamard"),
    ("evaluation", "perplexity_sign-learned_cache", "in a cache: 1 bit, learned"),
    ("evaluation", "perplexity_transform-keys_cache", "in a cache: keys of 1.78 bits"),
    ("evaluation", "perplexity_transform-both_cache", "in a cache: all of 2.28 bits"),
    ("evaluation", "perplexity_zeros_cache", "in a cache: all zeros"),
    ("theorems", "statements", "theorems: statements checked"),
    ("theorems", "proved", "theorems: machine-checked proofs"),
    ("theorems", "failed", "theorems: failed checks"),
)


def summarize_demo(records: Mapping[str, Measurement], settings: Mapping[str, Any]) -> Measurement:
    """The summary of a demo run.

    Args:
        records: Its measurements by step.
        settings: The demo's settings.

    Returns:
        Kind ``demo``; values as in the records under readable names, table ``steps``.
    """
    values = [
        records[record].record.value(name).model_copy(update={"name": label})
        for record, name, label in _HEADLINES
    ]
    steps = pd.DataFrame(
        [
            {"step": name, "kind": found.record.kind, "created": found.record.created}
            for name, found in records.items()
        ]
    )
    return make_measurement(
        "demo",
        f"What gonio found on {settings['model']}",
        settings=settings,
        values=values,
        tables={"steps": steps},
        inputs=records["evaluation"].record.inputs,
        seed=int(settings["seed"]),
    )
