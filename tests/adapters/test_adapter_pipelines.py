"""Measurements: values with chance and interval, provenance, the library's own numbers."""

import hashlib
import math

import pytest
import torch

from gonio.adapters import compare_adapters, load_adapter, spectrum_table
from gonio.errors import AdapterError, ModelError
from gonio.pipelines.adapter_compare import compare_adapter_with_base, compare_two_adapters
from gonio.pipelines.adapters import inspect_adapter
from gonio.records import read_measurement, write_measurement

TARGETS = ["q_proj", "k_proj", "down_proj"]


@pytest.fixture
def saved(save_with_peft):
    return save_with_peft("llama", r=4, lora_alpha=8, target_modules=TARGETS)


def sha256(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_inspection_summarizes_the_table(saved):
    found = inspect_adapter(saved.adapter, samples=50, seed=2)
    table = spectrum_table(load_adapter(saved.adapter), samples=50, seed=2)
    assert found.record.kind == "adapter-spectrum"
    assert found.record.tables[0] == "modules"
    assert found.tables["modules"].equals(table)
    for name in ("stable_rank", "effective_rank", "k90", "k99"):
        value = found.record.value(name)
        assert value.value == pytest.approx(table[name].mean(), rel=1e-14)
        assert value.chance == pytest.approx(table[f"random_lora_{name}"].mean(), rel=1e-14)
        assert value.interval.low <= value.value <= value.interval.high
    assert found.tables["projections"]["projection"].tolist() == [
        "mlp.down_proj",
        "self_attn.k_proj",
        "self_attn.q_proj",
    ]
    assert found.tables["projections"]["modules"].sum() == len(table)
    assert found.tables["layers"]["layer"].tolist() == [0, 1]
    first = table[table["layer"] == 0]["stable_rank"].mean()
    assert found.tables["layers"]["stable_rank"][0] == pytest.approx(first)


def test_inputs_are_hashed(saved):
    record = compare_adapter_with_base(saved.adapter, saved.base, ks=(1, 2)).record
    inputs = {item.name: item.sha256 for item in record.inputs}
    for owner, folder, name in (
        ("adapter", saved.adapter, "adapter_config.json"),
        ("adapter", saved.adapter, "adapter_model.safetensors"),
        ("base", saved.base, "model.safetensors"),
    ):
        assert inputs[f"{owner}/{name}"] == sha256(folder / name)


def test_measurements_survive_the_disk(saved, save_with_peft, tmp_path):
    """Also those with notes: unused tensors, k left out, modules of one side."""
    other = save_with_peft(
        "llama", name="other", factor_seed=1, r=2, target_modules=["q_proj"], bias="lora_only"
    )
    measurements = [
        inspect_adapter(saved.adapter, samples=20),
        compare_adapter_with_base(saved.adapter, saved.base, ks=(1, 5)),
        compare_two_adapters(saved.adapter, other.adapter, ks=(1, 5), samples=20),
    ]
    assert "left_out" in measurements[1].tables
    assert {"left_out", "unshared"} <= set(measurements[2].tables)
    for measurement in measurements:
        folder = tmp_path / "records" / measurement.record.kind
        back = read_measurement(write_measurement(measurement, folder))
        assert back.record == measurement.record
        for name, table in measurement.tables.items():
            assert back.tables[name].shape == table.shape


def test_every_ratio_has_chance_and_interval(saved):
    found = compare_adapter_with_base(saved.adapter, saved.base, ks=(1, 2))
    names = {value.name for value in found.record.values}
    assert {"left_overlap_k1", "right_overlap_k2", "left_overlap_stable_rank"} <= names
    assert {"column_gain_residual", "row_gain_residual"} <= names
    for value in found.record.values:
        if value.name != "overlaps_certified":
            assert value.interval is not None, value.name
            assert value.chance is not None or "relative" in value.name, value.name
    rows = found.tables["overlaps"].query("side == 'right' and k_from == 'fixed' and k == 2")
    value = found.record.value("right_overlap_k2")
    assert value.value == pytest.approx(rows["overlap"].mean())
    assert value.chance == pytest.approx(rows["chance"].mean())


def test_two_adapters_against_the_library(saved, save_with_peft):
    other = save_with_peft("llama", name="other", factor_seed=1, r=3, target_modules=TARGETS)
    found = compare_two_adapters(saved.adapter, other.adapter, ks=(1,), samples=30)
    direct = compare_adapters(
        load_adapter(saved.adapter), load_adapter(other.adapter), (1,), samples=30
    )
    assert found.tables["overlaps"].equals(direct.overlaps)
    cosine = found.record.value("cosine")
    assert cosine.value == pytest.approx(direct.cosines["cosine"].mean())
    assert cosine.chance == 0
    assert found.record.value("shared_modules").value == 6
    angle = found.record.value("left_smallest_angle")
    assert (angle.unit, 0 < angle.chance < math.pi / 2) == ("rad", True)


def test_zero_updates_stay_out_of_the_means(write_adapter, factors):
    lora_b, lora_a = factors(6, 5, 4)
    folder = write_adapter({"l.0.q": (lora_b, lora_a), "l.1.q": (0 * lora_b, lora_a)})
    record = inspect_adapter(folder, samples=20).record
    assert record.value("zero_updates").value == 1
    assert record.value("stable_rank").value >= 1
    assert record.value("stable_rank").interval is None  # one value has no spread


def test_modules_outside_layers_are_summarized(write_adapter, factors):
    folder = write_adapter({"lm_head": factors(6, 5, 4), "l.1.q": factors(6, 5, 4)})
    layers = inspect_adapter(folder, samples=20).tables["layers"]
    assert layers["layer"].isna().tolist() == [False, True]
    assert layers["modules"].tolist() == [1, 1]


def test_errors_pass_through(saved, tmp_path):
    with pytest.raises(AdapterError):
        inspect_adapter(tmp_path)
    with pytest.raises(ModelError):
        compare_adapter_with_base(saved.adapter, tmp_path / "nowhere")


def test_the_seed_is_recorded_and_matters(saved):
    one, two = (inspect_adapter(saved.adapter, samples=20, seed=s).record for s in (0, 1))
    assert (one.seed, two.seed) == (0, 1)
    assert one.value("stable_rank").chance != two.value("stable_rank").chance
    assert one.value("stable_rank").value == two.value("stable_rank").value
    assert one.dtype == str(torch.float64).removeprefix("torch.")
