"""Pruned adapters against dense algebra and PEFT's own loader, through the commands."""

import json

import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from gonio.adapters import LoraUpdate, load_adapter
from gonio.adapters.sparse import (
    added_deltas,
    low_rank_product,
    prune_factors,
    pruned_product,
    read_sparse,
    unpack_factors,
)
from gonio.cli.main import cli
from gonio.errors import AdapterError, OutputError, SettingError

NAME = "model.layers.0.mlp.down_proj"


def random_update(rng, m=12, n=9, r=3, scaling=0.5):
    lora_a, lora_b = torch.randn(r, n, generator=rng), torch.randn(m, r, generator=rng)
    return LoraUpdate(NAME, lora_a, lora_b, scaling, 0, "mlp.down_proj")


def dense(update):
    return update.scaling * update.lora_b.double() @ update.lora_a.double()


def test_pruned_factors_are_the_largest_entries_and_the_error_is_measured(rng):
    update = random_update(rng)
    pruned = prune_factors([update], 0.4)
    row = pruned.table.iloc[0]
    (kept,) = pruned.updates
    assert (row["entries"], row["nonzero"]) == (63, 11 + 15)  # ceil of 0.4 * 27 and 0.4 * 36
    missed = (dense(update) - dense(kept)).norm() / dense(update).norm()
    assert row["relative_error"] == pytest.approx(float(missed), rel=1e-9)
    assert torch.linalg.matrix_rank(dense(kept)) <= 3
    assert row["plain_bytes"] == 4 * 63
    assert row["sparse_bytes"] == 4 * 26 + 4 + 5 + 2 * 16  # values, bitmaps, shapes
    assert prune_factors([update], 1.0).table["relative_error"].iloc[0] < 1e-14


def test_a_pruned_product_is_no_longer_of_low_rank_and_the_best_lora_misses_the_rest(rng):
    update = random_update(rng, 30, 20, 2)
    product = pruned_product(update, 0.3)
    assert torch.linalg.matrix_rank(dense(update)) == 2
    assert torch.linalg.matrix_rank(product) > 10
    mask = product != 0
    assert int(mask.sum()) == 180
    assert torch.equal(product[mask], dense(update)[mask])
    assert dense(update)[mask].abs().min() >= dense(update)[~mask].abs().max()
    lowered, sigma = low_rank_product(update, product, 4)
    missed = torch.linalg.vector_norm(product - dense(lowered))
    assert float(missed) == pytest.approx(float(sigma[4:].norm()), rel=1e-9)
    assert lowered.rank == 4
    with pytest.raises(SettingError, match="rank must be at least 1"):
        low_rank_product(update, product, 0)


@pytest.fixture
def folders(tmp_path, make_model):
    """A tiny Llama and an adapter of it, saved by PEFT, with random factors."""
    model = make_model("llama").eval()
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"])
    adapted = get_peft_model(model, config)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.arange(8)[None]).logits


def run(*arguments):
    return CliRunner().invoke(cli, ["adapter", *map(str, arguments)])


def test_the_command_writes_a_peft_folder_that_unpacks_from_its_sparse_file(
    tmp_path, folders, make_model
):
    out = tmp_path / "pruned"
    done = run("prune", folders, "--density", 0.25, "--out", out, "--json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)["record"]
    values = {value["name"]: value["value"] for value in record["values"]}
    assert values["density"] == pytest.approx(0.25, abs=0.01)
    assert values["sparse_factors_bytes"] == (out / "sparse_factors.safetensors").stat().st_size
    assert values["sparse_bytes"] < 0.5 * values["plain_bytes"]
    (tmp_path / "sent").mkdir()
    for name in ("adapter_config.json", "sparse_factors.safetensors"):
        (tmp_path / "sent" / name).write_bytes((out / name).read_bytes())
    assert run("unpack", tmp_path / "sent", "--out", tmp_path / "whole").exit_code == 0
    ours = load_file(tmp_path / "whole" / "adapter_model.safetensors")
    theirs = load_file(out / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    found = logits(PeftModel.from_pretrained(make_model("llama"), tmp_path / "whole"))
    pruned = prune_factors(list(load_adapter(folders).updates.values()), 0.25)
    model = make_model("llama")
    with torch.no_grad():
        for update in pruned.updates:
            model.get_submodule(update.module).weight += dense(update).float()
    expected = logits(model)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_a_pruned_product_is_kept_exactly_as_sparse_changes(tmp_path, folders, make_model):
    out = tmp_path / "delta"
    done = run("prune", folders, "--density", 0.1, "--product", "--out", out)
    assert done.exit_code == 0, done.output
    assert [path.name for path in out.iterdir()] == ["sparse_delta.safetensors"]
    deltas = read_sparse(out / "sparse_delta.safetensors")
    model, other = make_model("llama"), make_model("llama")
    base = logits(model)
    with torch.no_grad():
        for update in load_adapter(folders).updates.values():
            assert torch.equal(deltas[update.module].decode(), pruned_product(update, 0.1).float())
            other.get_submodule(update.module).weight += deltas[update.module].decode()
    with added_deltas(model, deltas):
        assert torch.allclose(logits(model), logits(other), atol=1e-6)
        assert not torch.allclose(logits(model), base, atol=1e-3)
    assert torch.equal(logits(model), base)
    with pytest.raises(AdapterError, match="of another model"), added_deltas(model.model, deltas):
        pass


def test_the_best_lora_of_a_pruned_product_has_its_error_measured(tmp_path, folders):
    out = tmp_path / "low"
    done = run("prune", folders, "--density", 0.2, "--product", "--rank", 5, "--out", out, "--json")
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["tables"]["modules"]
    before, after = load_adapter(folders).updates, load_adapter(out).updates
    for row in rows:
        product = pruned_product(before[row["module"]], 0.2)
        sigma = torch.linalg.svdvals(product)
        assert after[row["module"]].rank == 5
        missed = float((product - dense(after[row["module"]])).norm() / product.norm())
        assert row["rank_error"] == pytest.approx(missed, rel=1e-4)
        assert row["rank_error"] == pytest.approx(float(sigma[5:].norm() / sigma.norm()), rel=1e-6)
        whole = float((dense(before[row["module"]]) - product).norm())
        whole /= float(dense(before[row["module"]]).norm())
        assert row["relative_error"] == pytest.approx(whole, rel=1e-6)
        assert row["rank_for_99_percent"] > 5


def test_what_cannot_be_done_is_said(tmp_path, folders):
    for arguments, message in (
        (("prune", folders, "--density", 0.2, "--rank", 4, "--out", tmp_path / "x"), "--product"),
        (("prune", folders, "--density", 0, "--out", tmp_path / "x"), "density must be in"),
        (("prune", folders, "--density", 0.5, "--out", folders), "--force"),
        (("unpack", folders, "--out", tmp_path / "x"), "sparse_factors.safetensors"),
        (("unpack", tmp_path, "--out", tmp_path / "x"), "adapter_config.json"),
    ):
        done = run(*arguments)
        assert done.exit_code == 2, done.output
        assert message in done.output
    assert not (tmp_path / "x").exists()
    run("prune", folders, "--density", 0.5, "--out", tmp_path / "y")
    with pytest.raises(OutputError, match="--force"):
        unpack_factors(tmp_path / "y", tmp_path / "y")
