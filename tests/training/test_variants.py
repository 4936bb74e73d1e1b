"""Variants trained on tiny models: they learn, start at zero, and are plain PEFT folders."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from gonio.adapters import load_adapter
from gonio.adapters.sparse import unpack_factors
from gonio.errors import SettingError
from gonio.training import GradientCallback, SpectrumCallback, make_recipe, train_clm, train_dpo
from gonio.training.variants.factors import linear_layers
from gonio.training.variants.run import training_method

pytest.importorskip("trl")

TRAIN = {"dpo": train_dpo, "clm": train_clm}
VARIANTS = {
    "stacked": {"variant": {"name": "stacked", "stages": 3}},
    "sparse": {"variant": {"name": "sparse", "density": 0.3}},
    "dynamic": {"variant": {"name": "dynamic", "threshold": 0.2, "every": 2}},
    "adalora": {"variant": {"name": "adalora", "begin": 0.2, "orthogonality": 0.0}},
    "scaled": {"variant": {"name": "scaled", "scale_learning_rate": 0.05}},
    "rslora": {"use_rslora": True},
    "zero-a": {"init": "zero-a"},
    "orthogonal": {"init": "orthogonal"},
    "mica": {"init": "mica"},
    "pissa": {"init": "pissa"},
    "pissa_niter_4": {"init": "pissa_niter_4"},
    "olora": {"init": "olora"},
}
RANK, STEPS = 4, 6
RANKS = {"stacked": 12, "adalora": 6, "pissa": 8, "pissa_niter_4": 8, "olora": 8}  # others: RANK


def dense(update):
    return update.scaling * update.lora_b.double() @ update.lora_a.double()


def header_free_bytes(path):
    """Size of a safetensors file without its length field and JSON header."""
    content = path.read_bytes()
    return len(content) - 8 - int.from_bytes(content[:8], "little")


def recipe(name, kind="clm", **changes):
    settings = {"steps": STEPS, "learning_rate": 1e-2, "batch_size": 4, "max_length": 24}
    settings |= {"r": RANK, "lora_alpha": 8, "seed": 5}
    return make_recipe(kind, **{**settings, **VARIANTS[name], **changes})


def tokens_of(model):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, model.config.vocab_size, (2, 9), generator=generator)


@torch.no_grad()
def logits(model):
    return model(tokens_of(model)).logits


class Watch:
    """Keeps the logits of the model while it is trained, at the start and at the end."""

    def __init__(self):
        from transformers import TrainerCallback

        watch = self

        class Callback(TrainerCallback):
            def on_step_begin(self, args, state, control, model=None, **kwargs):
                watch.by_step[state.global_step] = watch.take(model)

            def on_train_end(self, args, state, control, model=None, **kwargs):
                watch.last = watch.take(model)

        self.by_step, self.callback = {}, Callback()

    def take(self, model):
        was_training = model.training
        found = logits(model.eval())
        model.train(was_training)
        return found


ALIKE = ("rslora", "pissa_niter_4")  # to another that is trained in the fast tests
CASES = [
    *((name, "clm") for name in VARIANTS if name not in ALIKE),
    *(pytest.param(name, "clm", marks=pytest.mark.slow) for name in ALIKE),
    ("pissa", "dpo"),  # its reference must be the base as given, not what is left of it
    *(pytest.param(n, "dpo", marks=pytest.mark.slow) for n in VARIANTS if n != "pissa"),
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_variant_learns_from_zero_and_reads_back_as_plain_lora(
    tmp_path, make_model, tokenizer, pairs, name, kind
):
    model, watch = make_model(), Watch()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    settings = recipe(name, kind)
    run = TRAIN[kind](
        model, tokenizer, pairs, settings, tmp_path / "run", callbacks=[watch.callback]
    )
    base = logits(make_model())
    rounding = 2e-5 * float(base.abs().max())  # float32 through two layers
    assert (watch.by_step[0] - base).abs().max() < rounding  # no update at the start
    assert (watch.last - base).abs().max() > 1e2 * rounding
    assert run.log["loss"].iloc[-1] < run.log["loss"].iloc[0]
    if kind == "dpo":
        assert run.log["loss"].iloc[0] == pytest.approx(np.log(2.0), abs=1e-4)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    config = json.loads((run.folder / "adapter_config.json").read_text())
    assert (config["peft_type"], config["init_lora_weights"]) == ("LORA", True)
    loaded = PeftModel.from_pretrained(make_model(), run.folder).eval()
    assert (logits(loaded) - watch.last).abs().max() < rounding
    updates = load_adapter(run.folder).updates.values()
    highest = RANKS.get(name, RANK)
    assert all(torch.linalg.matrix_rank(dense(update)) <= highest for update in updates)
    numbers = sum(update.rank * sum(update.shape) for update in updates)
    assert header_free_bytes(run.folder / "adapter_model.safetensors") == 4 * numbers


def trained(tmp_path, make_model, tokenizer, pairs, settings, **options):
    return train_clm(make_model(), tokenizer, pairs, settings, tmp_path / "run", **options)


def factor_tensors(folder):
    weights = load_file(folder / "adapter_model.safetensors")
    modules = {key.rpartition(".lora_")[0] for key in weights}
    return {
        m: (weights[f"{m}.lora_B.weight"], weights[f"{m}.lora_A.weight"]) for m in sorted(modules)
    }


def test_stages_are_frozen_once_done_and_add_up_bit_for_bit(tmp_path, make_model, tokenizer, pairs):
    from transformers import TrainerCallback

    class Factors(TrainerCallback):
        def __init__(self):
            self.first_stage = {}

        def on_step_begin(self, args, state, control, model=None, **kwargs):
            self.first_stage[state.global_step] = {
                name: layer.lora_B["default"].weight.detach().clone()
                for name, layer in linear_layers(model)
            }

    factors, watch = Factors(), Watch()
    run = trained(
        tmp_path,
        make_model,
        tokenizer,
        pairs,
        recipe("stacked"),
        callbacks=[factors, watch.callback],
    )
    for name, at_two in factors.first_stage[2].items():  # 6 steps, 3 stages
        assert not torch.equal(at_two, factors.first_stage[1][name])
        assert torch.equal(at_two, factors.first_stage[5][name])
    whole = factor_tensors(run.folder)
    stages = [factor_tensors(run.folder / "stages" / str(k)) for k in (1, 2, 3)]
    for module, (lora_b, lora_a) in whole.items():
        assert lora_b.shape[1] == lora_a.shape[0] == 3 * RANK
        assert torch.equal(lora_b, torch.cat([stage[module][0] for stage in stages], dim=1))
        assert torch.equal(lora_a, torch.cat([stage[module][1] for stage in stages], dim=0))
        assert torch.linalg.matrix_rank(lora_b.double() @ lora_a.double()) <= 3 * RANK
        assert all(stage[module][0].any() for stage in stages)
    assert run.num_trainable == sum(b.numel() + a.numel() for b, a in whole.values())
    # Each stage beside the ones before it, by PEFT from the separate folders
    model = PeftModel.from_pretrained(make_model(), run.folder / "stages" / "1", "one")
    model.load_adapter(run.folder / "stages" / "2", "two")
    model.base_model.set_adapter(["one", "two"])
    assert (logits(model.eval()) - watch.by_step[4]).abs().max() < 1e-4
    assert pd.read_parquet(run.folder / "variant.parquet").to_numpy().tolist() == [
        [1, 1, 2],
        [2, 3, 4],
        [3, 5, 6],
    ]


def test_pruned_factors_have_their_density_and_their_bytes(tmp_path, make_model, tokenizer, pairs):
    run = trained(tmp_path, make_model, tokenizer, pairs, recipe("sparse"))
    packed = load_file(run.folder / "sparse_factors.safetensors")
    written = load_file(run.folder / "adapter_model.safetensors")
    for module, pair in factor_tensors(run.folder).items():
        for side, factor in zip("BA", pair, strict=True):
            name = f"{module.removeprefix('base_model.model.')}.lora_{side}"
            keep = math.ceil(0.3 * factor.numel())
            assert torch.count_nonzero(factor) == keep
            bitmap = math.ceil(factor.numel() / 8)
            found = sum(packed[f"{name}.{part}"].nbytes for part in ("values", "places", "shape"))
            assert found == 4 * keep + min(bitmap, 4 * keep) + 16
    table = pd.read_parquet(run.folder / "variant.parquet")
    assert table["density"].is_monotonic_decreasing
    assert table["density"].iloc[-1] == 0.3
    # zeros cost as much as any number; the sparse file gives the same folder back
    assert len(written) == 2 * len(factor_tensors(run.folder))
    unpack_factors(run.folder, tmp_path / "whole")
    unpacked = load_file(tmp_path / "whole" / "adapter_model.safetensors")
    assert all(torch.equal(unpacked[key], tensor) for key, tensor in written.items())
    small = (run.folder / "sparse_factors.safetensors").stat().st_size
    assert sum(tensor.nbytes for tensor in packed.values()) < small


@pytest.mark.parametrize("relative_to", ["module", "model"])
def test_ranks_fall_by_the_threshold_and_the_folder_says_which(
    tmp_path, make_model, tokenizer, pairs, relative_to
):
    variant = {"name": "dynamic", "threshold": 0.5, "every": 2, "relative_to": relative_to}
    run = trained(tmp_path, make_model, tokenizer, pairs, recipe("dynamic", variant=variant))
    table = pd.read_parquet(run.folder / "variant.parquet")
    assert (table["rank_after"] <= table["rank_before"]).all()
    assert set(table["step"]) == {2, 4, 6}
    last = table[table["step"] == 6].set_index("module")["rank_after"]
    spectra = {}
    for module, (lora_b, lora_a) in factor_tensors(run.folder).items():
        name = module.removeprefix("base_model.model.")
        assert lora_b.shape[1] == last[name] <= RANK
        spectra[name] = torch.linalg.svdvals(2.0 * lora_b.double() @ lora_a.double())
    largest = max(float(sigma[0]) for sigma in spectra.values())
    for name, sigma in spectra.items():
        top = float(sigma[0]) if relative_to == "module" else largest
        below = int((sigma[1 : last[name]] <= 0.5 * top * (1 - 1e-6)).sum())
        assert below == 0
    assert last.nunique() > 1
    adapter = load_adapter(run.folder)
    assert {m: u.rank for m, u in adapter.updates.items()} == last.to_dict()
    assert {u.scaling for u in adapter.updates.values()} == {2.0}


def test_a_learned_scale_moves_and_leaves_a_plain_folder(tmp_path, make_model, tokenizer, pairs):
    run = trained(tmp_path, make_model, tokenizer, pairs, recipe("scaled"))
    table = pd.read_parquet(run.folder / "variant.parquet")
    assert len(table) == 14
    moved = (table["scale"] - 1.0).abs()
    assert 0.05 < moved.max() <= 0.05 * (STEPS - 1) * 1.5  # Adam moves about its rate a step
    weights = load_file(run.folder / "adapter_model.safetensors")
    assert all(key.endswith((".lora_A.weight", ".lora_B.weight")) for key in weights)
    assert run.num_trainable == sum(tensor.numel() for tensor in weights.values()) + len(table)


def test_the_budget_of_adalora_is_kept(tmp_path, make_model, tokenizer, pairs):
    run = trained(tmp_path, make_model, tokenizer, pairs, recipe("adalora"))
    ranks = pd.read_parquet(run.folder / "variant.parquet")["rank"]
    assert ranks.sum() <= RANK * 14 + (ranks == 1).sum()  # a module without any keeps a zero one
    assert ranks.max() <= 6


def test_callbacks_that_would_measure_something_else_are_refused(
    tmp_path, make_model, tokenizer, pairs
):
    for name in ("stacked", "dynamic", "adalora", "scaled", "pissa", "olora"):
        for callback in (GradientCallback(), SpectrumCallback(2)):
            with pytest.raises(SettingError, match=f"update of {name} is not"):
                trained(tmp_path, make_model, tokenizer, pairs, recipe(name), callbacks=[callback])
    assert list(tmp_path.iterdir()) == []
    for name in ("sparse", "zero-a", "mica", "rslora"):
        training_method(recipe(name)).require_callbacks([SpectrumCallback(2)])


def test_an_interrupted_pissa_gives_the_weights_back(tmp_path, make_model, tokenizer, pairs):
    model = make_model()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}

    def interrupt(what, done, total):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_clm(model, tokenizer, pairs, recipe("pissa"), tmp_path / "run", progress=interrupt)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_what_cannot_start_is_refused(tmp_path, make_model, tokenizer, pairs):
    with pytest.raises(SettingError, match=r"takes 17 singular directions.*only 16"):
        trained(tmp_path, make_model, tokenizer, pairs, recipe("pissa", r=17))
    with pytest.raises(SettingError, match="even rank, found 3"):
        trained(tmp_path, make_model, tokenizer, pairs, recipe("orthogonal", r=3))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"variant": {"name": "stacked", "stages": 9}}, "9 stages leave some without"),
        ({"variant": {"name": "stacked", "stages": 1}}, "greater than or equal to 2"),
        ({"variant": {"name": "sparse", "density": 0.0}}, "greater than 0"),
        ({"variant": {"name": "sparse", "begin": 0.8}}, "ends at 0.75 before it begins at 0.8"),
        ({"variant": {"name": "dynamic", "threshold": 1.0}}, "less than 1"),
        ({"variant": {"name": "adalora", "begin": 0.9}}, "no step to lower ranks"),
        ({"variant": {"name": "adalora", "start_rank": 3}}, "below the rank r 4"),
        ({"variant": {"name": "adalora"}, "use_rslora": True}, "rsLoRA does not apply"),
        ({"variant": {"name": "scaled"}, "init": "pissa"}, "not from init pissa"),
        ({"variant": {"name": "scaled", "stages": 2}}, "Extra inputs"),
        ({"variant": {"name": "lokr"}}, "variant"),
        ({"init": "loftq"}, "init"),
    ],
    ids=str,
)
def test_settings_that_contradict_each_other_are_refused(changes, what):
    with pytest.raises(SettingError, match=what):
        recipe("rslora", **{"use_rslora": False, **changes})


def test_a_recipe_without_a_variant_is_stored_as_before():
    assert "variant" not in recipe("rslora").model_dump(mode="json")
    stored = recipe("stacked").model_dump(mode="json")
    assert make_recipe("clm", **stored) == recipe("stacked")


def test_stages_go_on_the_layers_that_were_named(tmp_path, make_model, tokenizer, pairs):
    """The later stages are added to a model whose layers are wrapped by then."""
    named = recipe("stacked", target_modules=["q_proj", "down_proj"])
    run = trained(tmp_path, make_model, tokenizer, pairs, named)
    found = {module.rpartition(".")[2] for module in factor_tensors(run.folder)}
    assert found == {"q_proj", "down_proj"}
