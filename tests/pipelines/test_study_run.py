"""A study is killed, fails, is damaged and packed: its numbers stay what they are."""

import gzip
import io
import json
import multiprocessing
import random
import shutil
import tarfile
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from gonio.cli.main import cli
from gonio.errors import OutputError, SettingError
from gonio.files import file_sha256
from gonio.pipelines.study import run_study, study_status
from gonio.pipelines.study_ledger import FIGURES
from gonio.pipelines.study_spec import StudySpec
from gonio.pipelines.study_verify import export_study, verify_study
from gonio.records import read_measurement

pytest.importorskip("trl")

CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}


def make_spec(tokenizer, seeds=(1,), recipes=("dpo", "clm"), **changes):
    settings = {"steps": 2, "batch_size": 2, "max_length": 96}
    built = {"architecture": "gpt_neox", "tokenizer": str(tokenizer), "config": CONFIG}
    spec = {
        "title": "Tiny",
        "models": [{"name": "neox", "built": built}],
        "recipes": {name: {"objective": name} | settings for name in recipes},
        "seeds": list(seeds),
        "held_out": 3,
        "ks": [1, 2],
        "spectrum_every": 1,
    }
    for name in set(recipes) - {"bitfit"}:
        spec["recipes"][name]["r"] = 4
    return StudySpec.model_validate(spec | changes)


@pytest.fixture(scope="module")
def spec(tiny_folder):
    return make_spec(tiny_folder)


@pytest.fixture(scope="module")
def finished(spec, tmp_path_factory):
    """The study run without interruption, and how long that took."""
    out = tmp_path_factory.mktemp("study") / "whole"
    started = time.perf_counter()
    found = run_study(spec, out)
    assert len(found.ran) == 2
    assert [state.reason for state in found.failed] == []
    return out, time.perf_counter() - started


@pytest.fixture
def copy(finished, tmp_path):
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


def numbers(out):
    """Hashes of every table and weight of the cells, and the conclusions without times."""
    hashes = {
        path.relative_to(out).as_posix(): file_sha256(path)
        for path in sorted((out / "cells").rglob("*"))
        if path.suffix in (".parquet", ".safetensors")
    }
    tables = read_measurement(out / "records" / "study").tables
    said = {name: table.drop(columns="seconds", errors="ignore") for name, table in tables.items()}
    return hashes, said


def assert_same_numbers(one, other):
    (hashes, tables), (its_hashes, its_tables) = numbers(one), numbers(other)
    assert hashes == its_hashes
    assert list(tables) == list(its_tables)
    for name, table in tables.items():
        pd.testing.assert_frame_equal(table, its_tables[name], check_exact=True)


def closed_cells(out):
    """The closing file of every finished cell; a cell run again has other times in it."""
    found = {}
    for path in sorted(out.glob("cells/*/cell.json")):
        if json.loads(path.read_text(encoding="utf-8"))["status"] == "finished":
            found[path.parent.name] = path.read_bytes()
    return found


def run_killed(spec, out, kills, seconds, seed):
    """Start the study and kill it at a random moment, so many times; then let it end.

    A run that ends before its moment is no kill: a finished cell is taken away, and moments come
    earlier from then on.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gonio.pipelines.study", "trl.trainer.dpo_trainer"])
    draws, met, closed = random.Random(seed), 0, {}
    while met < kills:
        process = context.Process(target=run_study, args=(spec, out))
        process.start()
        while process.is_alive() and not (out / ".lock").exists():  # imports are no study
            time.sleep(0.02)
        process.join(draws.uniform(0, seconds))
        if process.is_alive():
            process.kill()
            process.join()
            met += 1
        else:
            assert process.exitcode == 0
            name = draws.choice(sorted(closed_cells(out)))
            shutil.rmtree(out / "cells" / name)
            closed.pop(name, None)
            seconds *= 0.7
        for name, state in closed_cells(out).items():
            assert closed.setdefault(name, state) == state
    process = context.Process(target=run_study, args=(spec, out))
    process.start()
    process.join()
    assert process.exitcode == 0
    last = closed_cells(out)
    assert {name: last[name] for name in closed} == closed
    assert len(last) == len(list((out / "cells").glob("[!.]*")))


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_study_ends_with_the_same_numbers(spec, finished, tmp_path, kills):
    out, seconds = finished
    run_killed(spec, tmp_path / "killed", kills, seconds / 2, seed=kills)
    assert_same_numbers(out, tmp_path / "killed")
    assert not len(verify_study(tmp_path / "killed").tables["drift"])


def test_finished_cells_are_not_repeated(spec, copy):
    before = closed_cells(copy)
    record = (copy / "records" / "study" / "record.json").read_bytes()
    found = run_study(spec, copy)
    assert found.ran == ()
    assert closed_cells(copy) == before
    assert (copy / "records" / "study" / "record.json").read_bytes() == record
    shutil.rmtree(copy / "cells" / "neox_clm_seed1")
    found = run_study(spec, copy)
    assert found.ran == ("neox_clm_seed1",)
    assert closed_cells(copy)["neox_dpo_seed1"] == before["neox_dpo_seed1"]
    assert (copy / "records" / "study" / "record.json").read_bytes() != record


def test_other_numbers_would_be_noticed(spec, finished, copy, tiny_folder):
    """The comparison of numbers can fail: one more step changes them."""
    recipes = {**spec.recipes, "clm": {**spec.recipes["clm"], "steps": 3}}
    with pytest.raises(OutputError, match="holds another study"):
        run_study(spec.model_copy(update={"recipes": recipes}), copy)
    shutil.rmtree(copy / "cells" / "neox_clm_seed1")
    (copy / "study.json").unlink()
    other = spec.model_copy(update={"recipes": recipes})
    (copy / "study.json").write_text(other.model_dump_json(), encoding="utf-8")
    run_study(other, copy)
    with pytest.raises(AssertionError):
        assert_same_numbers(finished[0], copy)


def test_a_failed_cell_is_reported_and_the_others_go_on(tmp_path, tiny_folder):
    """A model with damaged weights fails its cell; repaired, only that cell runs."""
    good = make_spec(tiny_folder, recipes=("clm",))
    damaged = shutil.copytree(tiny_folder, tmp_path / "damaged")
    weights = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(b"damaged")
    models = [{"name": "bad", "source": str(damaged)}, good.models[0].model_dump()]
    spec = StudySpec.model_validate(good.model_dump() | {"models": models})
    path, out = tmp_path / "spec.json", tmp_path / "out"
    path.write_text(spec.model_dump_json(), encoding="utf-8")
    result = CliRunner().invoke(cli, ["study", "run", str(path), "--out", str(out)])
    assert result.exit_code == 1, result.output
    assert "cannot load the model" in " ".join(result.output.split())
    table = study_status(out).tables["cells"].set_index("cell")
    assert table["status"].to_dict() == {"bad_clm_seed1": "failed", "neox_clm_seed1": "finished"}
    missing = read_measurement(out / "records" / "study").tables["missing"]
    assert missing["reason"].str.contains("bad_clm_seed1 is not finished").any()
    (damaged / "model.safetensors").write_bytes(weights)
    assert run_study(spec, out).ran == ("bad_clm_seed1",)


def test_the_record_says_what_it_could_not_conclude(finished):
    """One width, one seed, no BitFit: reasons, no errors."""
    found = read_measurement(finished[0] / "records" / "study")
    reasons = found.tables["missing"].groupby("analysis")["reason"].apply(list).to_dict()
    assert len(reasons["stable rank by width"]) == 2
    assert "no model has finished both" in reasons["BitFit's share"][0]
    assert "n = 1" in reasons["geometry against behavior"][0]
    assert found.tables["stable_rank"]["low"].isna().all()
    assert found.record.value("finished_cells").value == 2
    assert list(found.tables["alignment"]["relation"]) == ["other recipe, same seed"]
    shown = CliRunner().invoke(cli, ["study", "show", str(finished[0])])
    assert shown.exit_code == 0
    assert max(map(len, shown.output.splitlines())) <= 80
    assert "is the stable rank a transient" in shown.output
    for title in ("Stable rank by width", "Two trainings of a model", "that no gain explains"):
        assert title in shown.output


def drift_of(out):
    return dict(verify_study(out).tables["drift"].itertuples(index=False, name=None))


def test_verify_names_what_drifted(copy):
    assert drift_of(copy) == {}
    cell = copy / "cells" / "neox_dpo_seed1"
    with (cell / "records" / "training" / "held_out.parquet").open("ab") as stream:
        stream.write(b"x")
    (cell / "trained" / "adapter_config.json").unlink()
    (cell / "notes.txt").write_text("mine", encoding="utf-8")
    (copy / "records" / "study" / "cells.parquet").unlink()
    (copy / "cells" / "stranger").mkdir()
    assert drift_of(copy) == {
        "cells/neox_dpo_seed1/notes.txt": "added",
        "cells/neox_dpo_seed1/records/training/held_out.parquet": "edited",
        "cells/neox_dpo_seed1/trained/adapter_config.json": "missing",
        "cells/stranger": "added",
        "records/study/cells.parquet": "missing",
    }
    result = CliRunner().invoke(cli, ["study", "verify", str(copy)])
    assert result.exit_code == 1
    assert "notes.txt" in result.output


def test_verify_notices_another_model(copy):
    with (copy / "models" / "neox" / "config.json").open("a", encoding="utf-8") as stream:
        stream.write("\n")
    drift = drift_of(copy)
    assert drift["models/neox/config.json"] == "edited"
    assert drift["inputs of cells/neox_dpo_seed1"] == "settings or files of the model differ"
    (copy / "ledger.json").unlink()
    with pytest.raises(SettingError, match="no ledger"):
        verify_study(copy)


def test_an_export_has_no_weights_and_the_same_bytes(copy, tmp_path):
    archives = [tmp_path / "one.tar.gz", tmp_path / "two.tar.gz"]
    count = export_study(copy, archives[0])
    for path in copy.rglob("*"):
        path.touch()  # other times
    for path in archives[1:]:
        assert export_study(copy, path) == count
    first, second = (path.read_bytes() for path in archives)
    assert first == second
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(first))) as archive:
        names = archive.getnames()
    assert not [name for name in names if name.endswith(".safetensors")]
    assert "study/cells/neox_dpo_seed1/records/training/held_out.parquet" in names
    assert "study/PROVENANCE.md" in names
    with pytest.raises(OutputError, match="lies in the study"):
        export_study(copy, copy / "study.tar.gz")


def test_an_unpacked_export_can_be_verified_and_shown(finished, tmp_path):
    """Its weights are not missed; anything else is."""
    export_study(finished[0], tmp_path / "study.tar.gz")
    with tarfile.open(tmp_path / "study.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    out = tmp_path / "study"
    found = verify_study(out)
    assert drift_of(out) == {}
    weights = len(list(finished[0].rglob("*.safetensors")))
    assert found.record.value("left_out").value == weights > 0
    whole = verify_study(finished[0]).record
    assert whole.value("left_out").value == 0
    assert found.record.value("files").value == whole.value("files").value - weights
    assert CliRunner().invoke(cli, ["study", "show", str(out)]).exit_code == 0
    assert export_study(out, tmp_path / "again.tar.gz") > 0
    assert (tmp_path / "again.tar.gz").read_bytes() == (tmp_path / "study.tar.gz").read_bytes()
    (out / "cells" / "neox_dpo_seed1" / "trained" / "adapter_config.json").unlink()
    assert drift_of(out) == {"cells/neox_dpo_seed1/trained/adapter_config.json": "missing"}
    result = CliRunner().invoke(cli, ["study", "verify", str(out)])
    assert "cells/neox_dpo_seed1/trained/adapter_config.json" in result.output  # not cut off
    (out / "left_out.json").write_text("{", encoding="utf-8")
    with pytest.raises(SettingError, match="cannot read"):
        verify_study(out)


def test_damaged_conclusions_are_drawn_again(spec, copy):
    (copy / "records" / "study" / "gains.parquet").unlink()
    assert run_study(spec, copy).ran == ()
    assert drift_of(copy) == {}
    assert "gains" in read_measurement(copy / "records" / "study").tables


def test_the_ledger_names_every_record_and_figure(finished):
    out = finished[0]
    text = (out / "PROVENANCE.md").read_text(encoding="utf-8")
    for path in out.rglob("record.json"):
        assert file_sha256(path) in text
        for entry in read_measurement(path.parent).record.inputs:
            assert entry.sha256 in text
    for cell in closed_cells(out):
        assert f"### {cell}" in text
    figures = (out / "FIGURES.md").read_text(encoding="utf-8")
    assert all(f"figure-{anchor}" in figures for anchor in FIGURES)


@pytest.mark.slow
def test_a_lost_ray_node_changes_no_number(tiny_folder, tmp_path):
    """Two nodes on one machine, one killed while it holds a cell."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    spec = make_spec(tiny_folder, seeds=(1, 2))
    run_study(spec, tmp_path / "whole")
    store = {"object_store_memory": 96 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **store})
    out = tmp_path / "ray"
    try:
        nodes = [cluster.add_node(num_cpus=1, **store) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False)

        def kill_one():
            while not list(out.glob("cells/[!.]*")):
                time.sleep(0.05)
            time.sleep(1.0)
            cluster.remove_node(nodes[0], allow_graceful=False)

        killer = threading.Thread(target=kill_one)
        killer.start()
        found = run_study(spec, out, engine="ray", workers=2)
        killer.join()
        assert not found.failed
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert_same_numbers(tmp_path / "whole", out)
