"""A rotated model computes the same; a wrongly folded one is refused."""

import copy
import shutil

import pytest
import torch
import transformers

from gonio.errors import GonioError, ModelError, OutputError, SettingError, ShapeError
from gonio.linalg import haar_rotation
from gonio.models import load_model
from gonio.pipelines import weight_rotation
from gonio.pipelines.weight_rotation import rotate_weights
from gonio.weights import rotate_stream, stream_matrices, stream_rotation

RELATIVE = 1e-5  # of the largest logit: float32 through two layers
ROTATABLE = ("llama", "llama-tied", "mistral", "qwen2", "qwen3", "mixtral", "olmoe", "qwen3-moe")


def logits(model):
    tokens = torch.randint(400, (2, 24), generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        return model(tokens, use_cache=False).logits


def relative_difference(one, two):
    return ((one - two).abs().max() / two.abs().max()).item()


@pytest.mark.parametrize(
    ("family", "rotation"),
    [
        *[(family, "hadamard") for family in ROTATABLE],
        ("llama-tied", "haar"),
        ("llama-tied", "learned"),
        ("mixtral", "learned"),
    ],
)
def test_the_written_model_computes_the_same(family, rotation, weights_folder, tmp_path):
    source, out = weights_folder(family), tmp_path / "out"
    found = rotate_weights(source, out, rotation=rotation, iterations=5)
    original, _ = load_model(source)
    written, tokenizer = load_model(out)
    assert relative_difference(logits(written), logits(original)) < RELATIVE
    assert found.record.value("largest_logit_difference").value < RELATIVE
    assert tokenizer("a word").input_ids
    assert written.config.tie_word_embeddings is False
    before, after = (dict(model.named_parameters()) for model in (original, written))
    changed = [
        name for name in after if not torch.equal(after[name], before.get(name, after[name]))
    ]
    assert all(bool((after[name] == 1).all()) for name in after if "layernorm" in name)
    assert len(changed) > len(after) / 2
    table = found.tables["matrices"]
    assert (table["cosine_rotated"] - table["cosine_stored"]).abs().median() > 1e-3
    assert len(table) == len(stream_matrices(original))


def test_uneven_columns_gain_and_figures_are_those_of_the_written_rows(weights_folder, tmp_path):
    """Columns of very different size: a Hadamard rotation brings the cosine up to chance."""
    found = rotate_weights(weights_folder("llama"), tmp_path / "out")
    table = found.tables["matrices"].set_index("matrix")
    row = table.loc["model.layers.1.mlp.gate_proj.weight"]
    written, _ = load_model(tmp_path / "out")
    rows = written.model.layers[1].mlp.gate_proj.weight.detach().double()
    cosine = (rows.abs().sum(1) / rows.norm(dim=1) / 32**0.5).mean().item()
    assert row["cosine_rotated"] == pytest.approx(cosine, abs=1e-6)
    assert row["cosine_rotated"] > row["cosine_stored"] + 0.02
    reads = table[table["side"] == "reads"]
    assert abs(reads["cosine_rotated"] - reads["cosine_chance"]).mean() < 0.02


def test_a_learned_rotation_is_judged_on_rows_it_was_not_fitted_on(weights_folder, tmp_path):
    source = weights_folder("qwen2")
    model, _ = load_model(source)
    _, fitted = stream_rotation(model, "learned", iterations=2)
    found = rotate_weights(source, tmp_path / "out", rotation="learned", iterations=2)
    judged = found.tables["matrices"].set_index("matrix")["rows"]
    matrices = {one.name: one for one in stream_matrices(model)}
    readers = {n for n, one in matrices.items() if one.side == "reads" and one.layer is not None}
    assert fitted.keys() == readers
    for name, rows in fitted.items():
        assert 0 < len(rows) <= len(matrices[name].rows()) // 2
        assert len(set(rows.tolist())) == len(rows)
        assert judged[name] == len(matrices[name].rows()) - len(rows)


@pytest.mark.parametrize("spoil", ["gain", "bias", "writer", "norm", "head"])
def test_each_part_of_the_rotation_is_needed(spoil, weights_folder):
    """Mutants: one part left as it was, and the logits are far off."""
    original, _ = load_model(weights_folder("llama-tied" if spoil == "head" else "llama"))
    model = copy.deepcopy(original)
    rotate_stream(model, haar_rotation(32, torch.Generator().manual_seed(0)))
    assert relative_difference(logits(model), logits(original)) < RELATIVE
    block, old = model.model.layers[1], original.model.layers[1]
    with torch.no_grad():
        if spoil == "gain":
            block.mlp.gate_proj.weight.div_(old.post_attention_layernorm.weight)
        elif spoil == "bias":
            block.mlp.down_proj.bias.copy_(old.mlp.down_proj.bias)
        elif spoil == "writer":
            block.self_attn.o_proj.weight.copy_(old.self_attn.o_proj.weight)
        elif spoil == "norm":
            block.input_layernorm.weight.copy_(old.input_layernorm.weight)
        else:
            model.lm_head.weight.copy_(model.model.embed_tokens.weight)
    assert relative_difference(logits(model), logits(original)) > 1e-3


def test_a_model_that_computes_something_else_is_not_written(weights_folder, tmp_path, monkeypatch):
    def wrong(model, rotation):
        rotate_stream(model, rotation)
        model.model.norm.weight.data[0] = 3.0

    monkeypatch.setattr(weight_rotation, "rotate_stream", wrong)
    with pytest.raises(ModelError, match="computes something else"):
        rotate_weights(weights_folder("llama"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", ["gpt2", "gpt-neox", "gpt-oss"])
def test_other_architectures_are_refused_by_name(family, weights_folder, tmp_path):
    with pytest.raises(
        ModelError, match=f"of a {family.replace('-', '_')} model(?s:.*)Known to be exact: llama"
    ):
        rotate_weights(weights_folder(family), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_hidden_sizes_without_a_hadamard_matrix_are_refused(weights_folder, tmp_path):
    source = tmp_path / "model"
    shutil.copytree(weights_folder("llama"), source)
    config = transformers.LlamaConfig(
        vocab_size=400, hidden_size=18, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, head_dim=6, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(source)
    with pytest.raises(ShapeError, match="no Hadamard matrix of order 18"):
        rotate_weights(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    found = rotate_weights(source, tmp_path / "out", rotation="haar")
    assert found.record.value("largest_logit_difference").value < RELATIVE


def test_folders_are_replaced_only_when_asked_and_never_the_source(weights_folder, tmp_path):
    source, out = weights_folder("llama"), tmp_path / "out"
    with pytest.raises(SettingError, match="the model itself"):
        rotate_weights(source, source, overwrite=True)
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        rotate_weights(source, out)
    assert (out / "mine.txt").read_text() == "mine"
    rotate_weights(source, out, overwrite=True)
    assert not (out / "mine.txt").exists()
    again = rotate_weights(out, tmp_path / "twice", seed=1)
    assert again.record.value("same_top1").value == 1.0


@pytest.mark.parametrize("rotation", [torch.eye(31), 1.01 * torch.eye(32), torch.ones(32, 32)])
def test_what_is_no_rotation_is_refused(rotation, weights_folder):
    model, _ = load_model(weights_folder("llama"))
    before = logits(model)
    with pytest.raises(GonioError, match="rotation"):
        rotate_stream(model, rotation)
    assert torch.equal(logits(model), before)
