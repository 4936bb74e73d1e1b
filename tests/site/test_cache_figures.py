"""Figures of evaluations: recall by depth beside chance, memory beside bfloat16, words for both."""

import json

import numpy as np
import pandas as pd
import pytest

from gonio.errors import RecordError
from gonio.records import make_measurement
from gonio.site.cache_figures import evaluation_figures, memory_figure, recall_figure
from gonio.site.collection import collect

METHODS = {"full": 0.9, "sign-learned": 0.3}


def recall_table() -> pd.DataFrame:
    rows = [
        {
            "context_length": length,
            "is_present": depth is not None,
            "depth": np.nan if depth is None else depth,
            "method": method,
            "correct_top1": share if depth is not None else 0.02,
            "correct_top1_low": np.nan,
            "correct_top1_high": np.nan,
            "copied": share / 3,
            "nll": 1 / share,
        }
        for length in (512, 1024)
        for depth in (0.1, 0.9, None)
        for method, share in METHODS.items()
    ]
    return pd.DataFrame(rows)


def memory_table() -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"method": name, "seq_len": n, "total_bytes": n * size, "bf16_bytes": n * 4096}
            for name, size in (("sign-learned", 2300), ("affine", 1200))
            for n in (1024, 131072)
        ]
    )


def rows_of_layer(panel, layer: int) -> list[dict]:
    """The data of one layer of a chart."""
    spec = json.loads(panel.json)
    return spec["datasets"][spec["layer"][layer]["data"]["name"]]


def entry(**tables):
    record = make_measurement(
        "cache-evaluation", "made-up numbers", settings={}, values=[], tables=tables
    )
    return collect([record]).records[0]


def test_recall_has_a_panel_per_length_and_says_what_chance_is():
    figure = recall_figure(entry(recall=recall_table()))
    assert [panel.title for panel in figure.panels] == [
        "512 tokens of context",
        "1\N{NARROW NO-BREAK SPACE}024 tokens of context",
    ]
    assert figure.legend == ("full precision", "1 bit, learned rotation")
    assert figure.chance == "passage absent: 0.02"
    assert "full precision 90.0%" in figure.description
    assert len(figure.table.rows) == 12
    absent = [row for row in figure.table.rows if "passage absent" in row]
    assert len(absent) == 4
    drawn = rows_of_layer(figure.panels[0], 1)
    assert {(row["depth"], row["correct_top1"]) for row in drawn} == {
        (depth, share) for depth in (0.1, 0.9) for share in METHODS.values()
    }


def test_memory_is_drawn_beside_bfloat16():
    figure = memory_figure(entry(memory=memory_table()))
    assert figure.legend == ("1 bit, learned rotation", "affine")
    assert figure.table.columns == ("tokens", *figure.legend, "bfloat16")
    assert figure.table.rows[-1][1:] == ("287.5", "150", "512")
    assert "in bfloat16 512 MiB" in figure.description
    assert [row["mib"] for row in rows_of_layer(figure.panels[0], 0)] == [4, 512]


def test_records_without_the_tables_have_no_such_figures():
    empty = entry(
        methods=pd.DataFrame(
            columns=[
                *("method", "protocol", "bits_per_element", "side_bits_per_element"),
                *("perplexity", "perplexity_low", "perplexity_high", "perplexity_ratio"),
                *("logit_kl", "same_top1", "scored_tokens", "context_length"),
            ]
        )
    )
    assert evaluation_figures(empty) == [None] * 7
    with pytest.raises(RecordError, match="has no column"):
        recall_figure(entry(recall=recall_table().drop(columns="nll")))
