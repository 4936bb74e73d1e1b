"""``gonio adapter``: output that parses and fits, exit code 2 and no traceback on bad input."""

import csv
import io
import json

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from gonio.cli.main import cli

Q0 = "model.layers.0.self_attn.q_proj"


def gonio(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["adapter", *map(str, arguments)])


@pytest.fixture
def saved(save_with_peft):
    return save_with_peft("gpt2", r=4, target_modules=["c_attn", "c_proj"], bias="lora_only")


def test_inspect_fits_80_columns_and_names_what_it_left(saved):
    result = gonio("inspect", saved.adapter)
    assert result.exit_code == 0, result.output
    body = result.stdout.splitlines()[2:]  # the title holds a path of any length
    assert max(map(len, body)) <= 80
    for expected in ("stable rank", "chance", "attn.c_proj", "mlp.c_proj", "trained bias"):
        assert expected in result.stdout


def test_json_is_whole_and_csv_has_every_module(saved):
    data = json.loads(gonio("inspect", saved.adapter, "--json").stdout)
    assert data["record"]["kind"] == "adapter-spectrum"
    assert len(data["tables"]["modules"]) == 6
    rows = list(csv.DictReader(io.StringIO(gonio("inspect", saved.adapter, "--csv").stdout)))
    assert [row["module"] for row in rows] == [r["module"] for r in data["tables"]["modules"]]
    assert float(rows[0]["stable_rank"]) == data["tables"]["modules"][0]["stable_rank"]


def test_compare_with_base_and_with_another(saved, save_with_peft):
    other = save_with_peft("gpt2", name="other", factor_seed=1, r=2, target_modules=["c_attn"])
    for arguments, kind in (
        ((saved.adapter, "--base", saved.base, "-k", 1), "adapter-base-overlap"),
        ((saved.adapter, other.adapter, "-k", 1), "adapter-pair"),
    ):
        text = gonio("compare", *arguments)
        assert text.exit_code == 0, text.output
        assert max(map(len, text.stdout.splitlines()[3:])) <= 80
        data = json.loads(gonio("compare", *arguments, "--json").stdout)
        assert data["record"]["kind"] == kind
        assert data["record"]["settings"]["ks"] == [1]


def test_output_goes_to_a_file_once(saved, tmp_path):
    target = tmp_path / "out.csv"
    assert gonio("inspect", saved.adapter, "--csv", "--output", target).exit_code == 0
    before = target.read_text()
    refused = gonio("inspect", saved.adapter, "--csv", "--output", target)
    assert (refused.exit_code, target.read_text()) == (2, before)
    assert gonio("inspect", saved.adapter, "--csv", "--output", target, "--force").exit_code == 0


def bad_folders(tmp_path, write_adapter, factors):
    """One folder per way to be wrong, with the word its message must hold."""
    lora_b, lora_a = factors(6, 5, 4)
    good = {Q0: (lora_b, lora_a)}
    yield "no such folder", tmp_path / "nowhere"
    folder = write_adapter(good, name="no-config")
    (folder / "adapter_config.json").unlink()
    yield "adapter_config.json        missing", folder
    folder = write_adapter(good, name="truncated")
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    yield "broken or incomplete", folder
    folder = write_adapter(good, name="garbage")
    (folder / "adapter_model.safetensors").write_bytes(b"\xff" * 100)
    yield "broken or incomplete", folder
    folder = write_adapter(good, name="pickle")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    yield "pickled weights are never loaded", folder
    yield "r is 0", write_adapter(good, name="zero-rank", r=0)
    yield "use_dora", write_adapter(good, name="dora", use_dora=True)
    yield "NaN or infinite", write_adapter({Q0: (lora_b * torch.nan, lora_a)}, name="nan")
    yield "NaN or infinite", write_adapter({Q0: (lora_b, lora_a * torch.inf)}, name="inf")
    yield "their ranks differ", write_adapter({Q0: (lora_b[:, :3], lora_a)}, name="ranks")
    yield "holds no tensors", write_adapter({}, name="empty")
    yield "are zero", write_adapter({Q0: (0 * lora_b, lora_a)}, name="all-zero")
    yield "peft_type is 'IA3'", write_adapter(good, name="ia3", peft_type="IA3")


def test_bad_folders_exit_with_2_and_one_message(tmp_path, write_adapter, factors, saved):
    for expected, folder in bad_folders(tmp_path, write_adapter, factors):
        for arguments in (("inspect", folder), ("compare", folder, "--base", saved.base)):
            result = gonio(*arguments)
            assert result.exit_code == 2, (folder, result.output)
            if arguments[0] == "inspect":
                assert expected in result.stderr, (folder, result.stderr)
                assert folder.name in result.stderr
            assert result.stderr.startswith("Error: ")
            assert "Traceback" not in result.output
            assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "give one of SECOND and --base"),
        (("x", "--base", "y"), "give one of SECOND and --base"),
        (("--base", "no-such-model"), "unknown model"),
        (("--base", "smollm2-135m", "-k", "0"), "-k"),
    ],
    ids=["neither", "both", "unknown base", "k 0"],
)
def test_bad_comparisons_exit_with_2(arguments, expected, saved):
    result = gonio("compare", saved.adapter, *arguments)
    assert result.exit_code == 2
    assert expected in result.output
    assert "Traceback" not in result.output


def test_a_base_that_is_another_model_is_named(saved, save_with_peft):
    llama = save_with_peft("llama", name="llama", r=2, target_modules=["q_proj"])
    result = gonio("compare", saved.adapter, "--base", llama.base)
    assert result.exit_code == 2
    assert "no weight for the adapter's module transformer.h.0.attn.c_attn" in result.stderr
    assert "nearest:" in result.stderr


def test_a_base_with_other_shapes_is_named(saved, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    names = [
        f"transformer.h.{i}.{m}.weight"
        for i in (0, 1)
        for m in ("attn.c_attn", "attn.c_proj", "mlp.c_proj")
    ]
    save_file({name: torch.ones(3, 3) for name in names}, base / "model.safetensors")
    result = gonio("compare", saved.adapter, "--base", base)
    assert result.exit_code == 2
    assert "does not fit the base model" in result.stderr


@pytest.mark.parametrize("command", [(), ("inspect",), ("compare",)])
def test_help_has_an_example(command):
    result = gonio(*command, "--help")
    assert result.exit_code == 0
    assert "Example:\n  " in result.stdout
