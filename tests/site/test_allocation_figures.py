"""Figures of allocations: every policy on both, words for each, nothing drawn from nothing."""

import json

import numpy as np
import pandas as pd
import pytest

from gonio.errors import RecordError
from gonio.records import make_measurement
from gonio.site.allocation_figures import allocated_bits_figure, allocation_figures
from gonio.site.collection import collect

POLICIES = {"uniform": 1.4, "collapse-angle": 1.6, "searched": 1.1, "<new>": 1.2}


def allocation(bits=2.0, **tables):
    units = [
        {"policy": policy, "layer": layer, "part": part, "bits": bits + layer / 10}
        for policy in POLICIES
        for part in ("keys", "values")
        for layer in range(3)
    ]
    policies = [
        {
            "method": method,
            "bits_per_element": bits if method != "full" else np.nan,
            "key_bits": bits - 0.2,
            "value_bits": bits + 0.2,
            "logit_kl": np.log(ratio),
            "perplexity_ratio": ratio,
            "perplexity_ratio_low": ratio - 0.02,
            "perplexity_ratio_high": np.nan if method == "<new>" else ratio + 0.02,
        }
        for method, ratio in {"full": 1.0, **POLICIES}.items()
    ]
    found = {"units": pd.DataFrame(units), "policies": pd.DataFrame(policies), **tables}
    return make_measurement(
        "cache-allocation", "made up", settings={"bits": bits}, values=[], tables=found
    )


def test_one_figure_of_quality_and_one_of_bits_per_record():
    records = collect([allocation(2.0), allocation(3.0)]).records
    quality, *bits = allocation_figures(records)
    assert len(quality.table.rows) == 2 * len(POLICIES)
    assert "full" not in {row[0] for row in quality.table.rows}
    assert quality.legend[0] == "uniform"
    assert quality.legend[-1] == "<new>"
    assert "\\u003cnew" in quality.panels[0].json
    assert [len(figure.panels) for figure in bits] == [2, 2]
    for figure in (quality, *bits):
        assert all(name in figure.description for name in figure.legend)
        assert json.loads(figure.panels[0].json)["layer"]


def test_without_records_there_is_no_figure_and_without_columns_an_error():
    assert allocation_figures([]) == [None]
    (entry,) = collect([allocation(units=pd.DataFrame({"policy": ["uniform"]}))]).records
    with pytest.raises(RecordError):
        allocated_bits_figure(entry)
