"""Bundles: members stay PEFT folders, selections are exact, changed members are refused."""

import json
import warnings
from dataclasses import replace

import pytest
import torch

from gonio.adapters import load_adapter
from gonio.adapters.bundle import BUNDLE_NAME, open_bundle, stored_bytes, write_bundle
from gonio.adapters.merge import merge
from gonio.errors import AdapterError, OutputError, SettingError

NAMES = ["chat", "code", "law-2"]
SETTINGS = [
    {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]},
    {"r": 3, "lora_alpha": 7, "use_rslora": True, "target_modules": ["q_proj", "up_proj"]},
    {"r": 1, "lora_alpha": 1, "target_modules": ["down_proj"]},
]


@pytest.fixture
def saved(save_with_peft):
    return [
        save_with_peft("llama", name=f"source-{name}", factor_seed=seed, **settings)
        for seed, (name, settings) in enumerate(zip(NAMES, SETTINGS, strict=True))
    ]


@pytest.fixture
def bundle(saved, tmp_path):
    adapters = [load_adapter(one.adapter) for one in saved]
    return write_bundle(adapters, NAMES, tmp_path / "bundle", weights=[1.0, 0.5, -1.0])


def dense(update):
    return update.scaling * update.lora_b.double() @ update.lora_a.double()


def change_of(saved, weights):
    """The weighted sum of what PEFT itself merged from each source folder."""
    total = {}
    for one, name in zip(saved, NAMES, strict=True):
        for key, change in one.changes.items():
            if name in weights:
                total[key] = total.get(key, 0.0) + weights[name] * change
    return total


def test_a_selection_is_the_weighted_sum_of_what_peft_merges(saved, bundle):
    opened = open_bundle(bundle.path)
    assert opened == bundle
    assert opened.names == tuple(NAMES)
    assert opened.default_weights == {"chat": 1.0, "code": 0.5, "law-2": -1.0}
    for weights in ({"chat": 1.0, "law-2": 0.5}, {"code": -2.0}, None):
        found = {f"{u.module}.weight": u for u in opened.select(weights)}
        expected = change_of(saved, weights or opened.default_weights)
        assert found.keys() == expected.keys()
        for key, change in expected.items():
            assert (dense(found[key]) - change).norm() <= 1e-6 * change.norm()
            assert (dense(found[key]) - 1.001 * change).norm() > 1e-6 * change.norm()
    ranks = {u.projection: u.rank for u in opened.select({"chat": 1.0, "code": 1.0})}
    assert ranks == {"self_attn.q_proj": 5, "self_attn.v_proj": 2, "mlp.up_proj": 3}


def test_peft_loads_every_member_and_every_written_selection(saved, bundle, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    out = bundle.write(tmp_path / "sum", {"chat": 1.0, "code": -0.5})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = AutoModelForCausalLM.from_pretrained(saved[0].base)
        before = {key: value.double() for key, value in base.state_dict().items()}
        model = PeftModel.from_pretrained(base, out, adapter_name="sum")
        for name in NAMES:
            model.load_adapter(bundle.path / name, adapter_name=name)
        changes = {}
        for name in ("sum", *NAMES):
            model.set_adapter(name)
            model.merge_adapter([name])
            after = model.get_base_model().state_dict()
            changes[name] = {
                key.replace(".base_layer", ""): value.double()
                - before[key.replace(".base_layer", "")]
                for key, value in after.items()
                if "lora_" not in key
            }
            model.unmerge_adapter()
    for name in ("sum", *NAMES):
        weights = {"chat": 1.0, "code": -0.5} if name == "sum" else {name: 1.0}
        expected = change_of(saved, weights)
        for key, change in expected.items():
            assert (changes[name][key] - change).norm() <= 1e-5 * change.norm(), (name, key)


def test_members_are_byte_copies_and_only_chosen_ones_are_read(saved, bundle, monkeypatch):
    from gonio.adapters import bundle as module

    for one, name in zip(saved, NAMES, strict=True):
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            assert (bundle.path / name / file).read_bytes() == (one.adapter / file).read_bytes()
    read = []
    real = load_adapter
    monkeypatch.setattr(module, "load_adapter", lambda path: read.append(path.name) or real(path))
    open_bundle(bundle.path).select({"law-2": 1.0})
    assert read == ["law-2"]


def test_what_gonio_does_not_measure_stays_in_the_member_but_not_in_a_sum(save_with_peft, tmp_path):
    one = save_with_peft("llama", r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    bundle = write_bundle([load_adapter(one.adapter)], ["head"], tmp_path / "bundle")
    assert load_adapter(bundle.path / "head").unused
    assert len(bundle.select()) == 2
    with pytest.raises(AdapterError, match="would lose 1 tensors that are in no update"):
        bundle.write(tmp_path / "sum")


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_changed_or_missing_member_is_refused_by_name(bundle, file):
    path = bundle.path / "code" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(AdapterError, match=rf"the member code of (?s:.*){file} was changed"):
        open_bundle(bundle.path)
    path.unlink()
    with pytest.raises(AdapterError, match=rf"the member code of (?s:.*){file} is missing"):
        open_bundle(bundle.path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.update(version=2),
        lambda d: d.update(format="zip"),
        lambda d: d.update(extra=1),
        lambda d: d.update(members=[]),
        lambda d: d["members"][0].update(name="../chat"),
        lambda d: d["members"][0].update(name="CODE"),
        lambda d: d["members"][0].update(weight="1.0"),
        lambda d: d["members"][0]["sha256"].pop("adapter_config.json"),
        lambda d: d["members"][0]["sha256"].update({"adapter_config.json": "no hash"}),
        lambda d: d["members"][0]["sha256"].update({"../../etc": "0" * 64}),
    ],
)
def test_a_broken_description_is_refused(bundle, damage):
    file = bundle.path / BUNDLE_NAME
    description = json.loads(file.read_text())
    damage(description)
    file.write_text(json.dumps(description))
    with pytest.raises(AdapterError, match="cannot read the bundle"):
        open_bundle(bundle.path)


def test_folders_that_are_no_bundle_are_refused(saved, bundle, tmp_path):
    for path in (tmp_path / "absent", saved[0].adapter):
        with pytest.raises(AdapterError, match="not a bundle of adapters"):
            open_bundle(path)
    (bundle.path / BUNDLE_NAME).write_bytes(b"\xff{")
    with pytest.raises(AdapterError, match="cannot read the bundle"):
        open_bundle(bundle.path)


def test_bad_choices_are_refused(bundle, tmp_path):
    with pytest.raises(SettingError, match=r"no member 'cod' in .*; there are chat, code, law-2"):
        bundle.select({"cod": 1.0})
    with pytest.raises(SettingError, match=r"no member of .* is chosen"):
        bundle.select({})
    with pytest.raises(SettingError, match="finite"):
        bundle.select({"chat": float("nan")})
    with pytest.raises(OutputError, match="--force"):
        bundle.write(bundle.path)


@pytest.mark.parametrize(
    "names", [["a", "a", "b"], ["a", "A", "b"], ["a.b", "c", "d"], ["", "a", "b"], ["-a", "b", "c"]]
)
def test_bad_names_are_refused(saved, names, tmp_path):
    adapters = [load_adapter(one.adapter) for one in saved]
    with pytest.raises(SettingError, match="cannot make the bundle"):
        write_bundle(adapters, names, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_one_bundle_is_refused(saved, bundle, make_adapter, factors, tmp_path):
    adapters = [load_adapter(one.adapter) for one in saved]
    out = tmp_path / "out"
    with pytest.raises(SettingError, match="3 adapters need as many names, found 1"):
        write_bundle(adapters, ["a"], out)
    with pytest.raises(SettingError, match="as many weights"):
        write_bundle(adapters, NAMES, out, weights=[1.0])
    with pytest.raises(AdapterError, match="no adapter"):
        write_bundle([], [], out)
    with pytest.raises(AdapterError, match="there is no file"):
        write_bundle([make_adapter({"m": factors(3, 4, 2)})], ["memory"], out)
    with pytest.raises(AdapterError, match="found a dora adapter"):
        write_bundle([replace(adapters[0], kind="dora")], ["a"], out)
    with pytest.raises(OutputError, match="--force"):
        write_bundle(adapters, NAMES, bundle.path)
    again = write_bundle(adapters, ["x", "y", "z"], bundle.path, overwrite=True)
    assert open_bundle(bundle.path) == again


def test_members_of_other_base_models_are_refused_unless_named(write_adapter, factors, tmp_path):
    one = write_adapter({"q": factors(5, 6, 4)}, name="one", base_model_name_or_path="org/base")
    two = write_adapter({"q": factors(5, 6, 4)}, name="two", base_model_name_or_path="other")
    adapters = [load_adapter(one), load_adapter(two)]
    with pytest.raises(AdapterError, match="different base models: org/base, other"):
        write_bundle(adapters, ["one", "two"], tmp_path / "out")
    bundle = write_bundle(adapters, ["one", "two"], tmp_path / "out", base_model="org/base")
    assert open_bundle(bundle.path).base_model == "org/base"
    assert load_adapter(bundle.write(tmp_path / "sum")).settings.base_model == "org/base"


def test_a_member_changed_while_it_is_copied_is_refused(saved, tmp_path, monkeypatch):
    from gonio.adapters import bundle as module

    real = module.shutil.copyfile

    def spoil(source, target):
        real(source, target)
        if target.suffix == ".safetensors":
            target.write_bytes(b"other")

    monkeypatch.setattr(module.shutil, "copyfile", spoil)
    with pytest.raises(AdapterError, match="is not what was bundled"):
        write_bundle([load_adapter(saved[0].adapter)], ["a"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_stored_bytes_worked_by_hand(make_adapter, factors):
    one = make_adapter({"q": factors(10, 6, 2), "v": factors(4, 6, 2)})
    two = make_adapter({"q": factors(10, 6, 3, torch.bfloat16)})
    found = stored_bytes([one, two])
    assert found.factors == 2 * (16 + 10) * 4 + 3 * 16 * 2
    assert found.merged_weights == (60 + 24 + 60) * 2
    assert stored_bytes([two], weight_dtype=torch.float32).merged_weights == 240
    stacked = merge([one, two])
    assert sum(u.rank * sum(u.shape) for u in stacked) == 5 * 16 + 2 * 10
