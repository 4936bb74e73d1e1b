"""Fleets: one table of many adapters, equal from every engine, resumed without repeating work."""

import json
import math
import os
import signal
import threading
import time
from functools import partial

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from safetensors.torch import save_file

from gonio.adapters import load_adapter, spectrum_table
from gonio.errors import AdapterError, SettingError
from gonio.pipelines import fleet_parts
from gonio.pipelines.fleet import inspect_fleet
from gonio.records import read_measurement, write_measurement

PREFIX = "base_model.model.model.layers"
SHAPES = {"self_attn.q_proj": (12, 8), "mlp.up_proj": (20, 8)}


@pytest.fixture
def save(tmp_path):
    """Write a tiny adapter of three layers; another ``draw`` gives other factors."""

    def write(name, draw=0, rank=4, scale=1.0):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        generator = torch.Generator().manual_seed(draw)
        tensors = {}
        for layer in range(3):
            for module, (m, n) in SHAPES.items():
                key = f"{PREFIX}.{layer}.{module}"
                lora_a = torch.randn(rank, n, generator=generator)
                tensors[f"{key}.lora_A.weight"] = lora_a
                tensors[f"{key}.lora_B.weight"] = scale * torch.randn(m, rank, generator=generator)
        save_file(tensors, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["q_proj"]}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        return folder

    return write


def without_seconds(measurement):
    """The tables, less what differs between runs."""
    tables = measurement.tables
    return {**tables, "adapters": tables["adapters"].drop(columns="seconds")}


def assert_same(first, second, exact=True):
    first, second = without_seconds(first), without_seconds(second)
    assert first.keys() == second.keys()
    for name in first:
        pd.testing.assert_frame_equal(first[name], second[name], check_exact=exact)


def test_the_long_table_is_the_tables_of_the_adapters(save):
    one, two = save("a", 1), save("b", 2)
    found = inspect_fleet([one, two], samples=20, seed=3)
    assert found.record.kind == "adapter-fleet"
    assert found.record.tables[0] == "modules"
    modules = found.tables["modules"]
    assert modules.columns[:3].tolist() == ["adapter", "path", "step"]
    for name, folder in (("a", one), ("b", two)):
        mine = modules[modules["adapter"] == name].reset_index(drop=True)
        expected = spectrum_table(load_adapter(folder), samples=20, seed=3)
        pd.testing.assert_frame_equal(mine[expected.columns], expected, check_exact=True)
        assert set(mine["path"]) == {str(folder)}
    assert {item.name for item in found.record.inputs} == {
        f"{name}/{file}"
        for name in "ab"
        for file in ("adapter_config.json", "adapter_model.safetensors")
    }


def test_the_row_of_an_adapter(save):
    """Dense singular values, SciPy's bootstrap, and parameters counted from the file."""
    folder = save("a", 1)
    row = inspect_fleet([folder], samples=20).tables["adapters"].iloc[0]
    updates = load_adapter(folder).updates.values()
    dense = [update.lora_b.double() @ update.lora_a.double() * update.scaling for update in updates]
    stable = [
        float((torch.linalg.svdvals(d) ** 2).sum() / torch.linalg.norm(d, 2) ** 2) for d in dense
    ]
    assert row["stable_rank"] == pytest.approx(np.mean(stable), rel=1e-6)  # float32 factors
    whole = math.sqrt(sum(float(d.norm() ** 2) for d in dense))
    assert row["frobenius_norm"] == pytest.approx(whole, rel=1e-6)
    assert row["parameters"] == sum(u.lora_a.numel() + u.lora_b.numel() for u in updates)
    low, high = scipy.stats.bootstrap(
        (stable,), np.mean, n_resamples=20_000, rng=np.random.default_rng(5)
    ).confidence_interval
    width = high - low
    assert abs(row["stable_rank_low"] - low) < 0.1 * width
    assert abs(row["stable_rank_high"] - high) < 0.1 * width
    assert row["stable_rank_layers_low"] <= row["stable_rank"] <= row["stable_rank_layers_high"]
    assert row["stable_rank_layers_low"] != row["stable_rank_low"]
    assert row["modules"] == 6
    assert pd.isna(row["step"])
    assert row["seconds"] > 0


def test_folders_of_adapters_and_checkpoints(save, tmp_path):
    """Subfolders by name, checkpoints by step (not by name), names made unique by their parents."""
    for step in (200, 1000, 50):
        save(f"run/checkpoint-{step}", step)
    save("many/first", 1)
    save("many/second", 2)
    save("other/checkpoint-50", 7)
    (tmp_path / "many" / "notes").mkdir()
    roots = [tmp_path / "run", tmp_path / "many", tmp_path / "other", tmp_path / "many" / "first"]
    adapters = inspect_fleet(roots, samples=5).tables["adapters"]
    assert adapters["adapter"].tolist() == [
        "run/checkpoint-50",
        "checkpoint-200",
        "checkpoint-1000",
        "first",
        "second",
        "other/checkpoint-50",
    ]
    assert adapters["step"].tolist()[:3] == [50, 200, 1000]
    assert adapters["step"].isna().tolist() == [False, False, False, True, True, False]


def test_broken_folders_are_rows_and_the_others_go_on(save, tmp_path):
    good, broken, zero = save("good", 1), save("broken", 2), save("zero", 3, scale=0.0)
    (broken / "adapter_model.safetensors").write_bytes(b"not safetensors")
    missing = tmp_path / "nowhere"
    found = inspect_fleet([missing, broken, good, zero], samples=5)
    assert found.tables["adapters"]["adapter"].tolist() == ["good"]
    failed = found.tables["failed"].set_index("adapter")["reason"]
    assert failed.index.tolist() == ["nowhere", "broken", "zero"]
    assert "no such folder" in failed["nowhere"] or "cannot look" in failed["nowhere"]
    assert "adapter_model.safetensors" in failed["broken"]
    assert "zero" in failed["zero"]
    assert found.record.value("failed").value == 3
    with pytest.raises(AdapterError, match=r"no adapter could be measured[\s\S]*and 2 more"):
        inspect_fleet([missing, broken, zero], samples=5)
    assert "failed" not in inspect_fleet([good], samples=5).tables


def test_a_defect_is_no_broken_folder(save, monkeypatch):
    """An error that is not about the folder ends the run."""
    folder = save("a")
    monkeypatch.setattr(fleet_parts, "spectrum_table", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        inspect_fleet([folder], samples=5)


def test_seed_groups_by_name(save):
    """A number after 'seed' or at the end tells seeds apart; a step does not, nor another rank."""
    folders = [save(f"dpo-seed{n}", n) for n in (1, 2, 3)]
    folders += [save(f"clm_{n}", 10 + n) for n in (1, 2)]
    folders += [save("clm_3", 9, rank=2)]  # same name pattern, other shapes
    folders += [save(f"run/checkpoint-{n}", 20 + n) for n in (1, 2)]
    folders += [save("single-7", 30)]
    found = inspect_fleet(folders, samples=5)
    groups = found.tables["groups"].set_index("group")
    assert groups["adapters"].to_dict() == {"dpo-seed*": 3, "clm_*": 2}
    means = found.tables["adapters"].set_index("adapter")["stable_rank"]
    members = means[[f"dpo-seed{n}" for n in (1, 2, 3)]]
    value = found.record.value("stable_rank_over_seeds:dpo-seed*")
    assert value.value == pytest.approx(members.mean(), rel=1e-14)
    low, high = members.min() * (1 - 1e-14), members.max() * (1 + 1e-14)  # rounding of means
    assert low <= value.interval.low < value.interval.high <= high
    assert "75%" in value.note  # 1 - 2^(1 - 3)
    assert "50%" in found.record.value("stable_rank_over_seeds:clm_*").note


def test_given_groups(save):
    folders = [save(name, place) for place, name in enumerate("abcdef")]
    found = inspect_fleet(folders, samples=5, groups=dict.fromkeys("abcde", "mine"))
    assert found.tables["groups"]["adapters"].tolist() == [5]
    assert "not a 95%" not in found.record.value("stable_rank_over_seeds:mine").note
    with pytest.raises(SettingError, match="no such adapter: z"):
        inspect_fleet(folders, samples=5, groups={"z": "mine"})


def test_a_run_goes_on_where_it_was_killed(save, tmp_path, monkeypatch):
    """Finished adapters are read back, changed files and settings are measured again."""
    folders = [save(name, place) for place, name in enumerate("abcd")]
    measured = []

    def interrupted(adapter, **settings):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(adapter.path.name)
        return spectrum_table(adapter, **settings)

    monkeypatch.setattr(fleet_parts, "spectrum_table", interrupted)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        inspect_fleet(folders, samples=5, out=out)
    assert len(list((out / ".parts").glob("*.parquet"))) == 2

    def counted(adapter, **settings):
        measured.append(adapter.path.name)
        return spectrum_table(adapter, **settings)

    monkeypatch.setattr(fleet_parts, "spectrum_table", counted)
    resumed = inspect_fleet(folders, samples=5, out=out)
    assert measured == ["a", "b", "c", "d"]
    assert_same(resumed, inspect_fleet(folders, samples=5))
    assert_same(read_measurement(out / "records" / "fleet"), resumed)

    measured.clear()
    again = inspect_fleet(folders, samples=5, out=out)
    assert measured == []
    pd.testing.assert_frame_equal(again.tables["adapters"], resumed.tables["adapters"])
    config = json.loads((folders[1] / "adapter_config.json").read_text())
    (folders[1] / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 16}))
    part = next((out / ".parts").glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:100])  # the disk was full
    changed = inspect_fleet(folders, samples=5, out=out)
    assert "b" in measured
    assert 1 <= len(measured) <= 2
    norms = (
        changed.tables["adapters"]["frobenius_norm"] / again.tables["adapters"]["frobenius_norm"]
    )
    assert norms.tolist() == pytest.approx([1, 2, 1, 1], rel=1e-12)
    measured.clear()
    inspect_fleet(folders, samples=6, out=out)
    assert len(measured) == 4


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({"workers": 2}, id="processes"),
        pytest.param({"engine": "ray", "workers": 2}, id="ray", marks=pytest.mark.slow),
    ],
)
def test_engines_give_equal_tables(save, tmp_path, how):
    folders = [save(f"run-{place}", place) for place in range(3)] + [tmp_path / "nowhere"]
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the workers: the sums of LAPACK depend on it
    try:
        expected = inspect_fleet(folders, samples=5)
    finally:
        torch.set_num_threads(before)
    seen = []
    found = inspect_fleet(folders, samples=5, progress=lambda *step: seen.append(step), **how)
    assert_same(found, expected)
    assert sorted(name for name, _, _ in seen) == ["nowhere", "run-0", "run-1", "run-2"]
    assert [step[1:] for step in seen] == [(n, 4) for n in (1, 2, 3, 4)]


def test_fifty_adapters_are_one_parquet_file(save, tmp_path):
    folders = [save(f"all/run-{place}", place).parent for place in range(50)]
    found = inspect_fleet(folders[:1], samples=5, workers=1)
    assert len(found.tables["adapters"]) == 50
    folder = write_measurement(found, tmp_path / "record")
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapters.parquet",
        "groups.parquet",
        "modules.parquet",
        "record.json",
    ]
    stored = pd.read_parquet(folder / "modules.parquet")
    assert stored.groupby("adapter").size().tolist() == [6] * 50
    assert found.tables["adapters"]["adapter"].tolist()[9:11] == ["run-9", "run-10"]


def test_ctrl_c_while_the_next_adapter_is_read(save, tmp_path, monkeypatch):
    """What was measured by then is kept, and measured only once."""
    folders = [save(name, place) for place, name in enumerate("abcde")]
    read = fleet_parts.read_contents

    def interrupted(folder, stopped, **memory):
        if folder.name == "d":
            os.kill(os.getpid(), signal.SIGINT)
            while not stopped():
                time.sleep(0.001)
        return read(folder, stopped, **memory)

    monkeypatch.setattr(fleet_parts, "read_contents", interrupted)
    out, done = tmp_path / "out", []
    with pytest.raises(KeyboardInterrupt):
        inspect_fleet(folders, samples=5, out=out, workers=1, progress=lambda *s: done.append(s))
    kept = len(list((out / ".parts").glob("*.parquet")))
    assert kept in (2, 3)  # c may have been in work
    assert len(done) in (kept - 1, kept)
    assert not any(thread.name.startswith("gonio-reader") for thread in threading.enumerate())
    monkeypatch.undo()
    resumed = inspect_fleet(folders, samples=5, out=out, workers=1)
    assert_same(resumed, inspect_fleet(folders, samples=5, workers=1))
    assert len(list((out / ".parts").glob("*.parquet"))) == 5


def test_a_broken_adapter_says_what_loading_it_says(save, tmp_path):
    """In the order of the fleet, however early the reader meets it."""
    good, cut, diverged = save("good", 1), save("cut", 2), save("diverged", 3, scale=math.inf)
    weights = cut / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    failed = inspect_fleet([cut, good, diverged], samples=5, workers=1).tables["failed"]
    assert failed["adapter"].tolist() == ["cut", "diverged"]
    for folder, reason in zip((cut, diverged), failed["reason"], strict=True):
        with pytest.raises(AdapterError) as expected:
            load_adapter(folder)
        assert reason == str(expected.value)


def test_large_adapters_are_mapped_and_measured_alike(save, monkeypatch):
    folders = [save(name, place) for place, name in enumerate("ab")]
    expected = inspect_fleet(folders, samples=5, workers=1)
    read = fleet_parts.read_contents
    monkeypatch.setattr(fleet_parts, "read_contents", partial(read, limit=100))
    found = inspect_fleet(folders, samples=5, workers=1)
    assert_same(found, expected)
    assert found.record.inputs == expected.record.inputs
