"""Adapters below a folder are all found, in order; unfinished ones are named."""

import shutil

import pytest
import torch

from gonio.adapters import find_adapters, load_checkpoints
from gonio.errors import AdapterError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture
def place(tmp_path, write_adapter, factors):
    """Put adapters at paths below a root; each holds its own number in its factors."""
    root = tmp_path / "run"
    root.mkdir()

    def put(*paths: str, without: str = "") -> None:
        for number, path in enumerate(paths):
            lora_b, lora_a = factors(6, 5, 4)
            lora_a[0, 0] = number
            folder = write_adapter(
                {"q_proj": (lora_b, lora_a)}, name=f"made-{path.replace('/', '_')}"
            )
            target = root / path
            target.mkdir(parents=True, exist_ok=True)
            for file in folder.iterdir():
                if file.name != without:
                    shutil.copy(file, target)

    put.root = root
    return put


def names(search) -> list[tuple[str, int | None]]:
    return [(found.name, found.step) for found in search.found]


def test_checkpoints_come_by_step(place):
    steps = ["checkpoint-1000", "checkpoint-20", "checkpoint-100", "checkpoint-3"]
    place(".", "dpo", "adapter10", "adapter2", *steps, "checkpoint-20/dpo", "checkpoint-best")
    (place.root / "runs").mkdir()
    search = find_adapters(place.root)
    assert names(search) == [
        ("run", None),
        ("adapter2", None),
        ("adapter10", None),
        ("checkpoint-best", None),
        ("dpo", None),
        ("checkpoint-3", 3),
        ("checkpoint-20", 20),
        ("checkpoint-20/dpo", 20),
        ("checkpoint-100", 100),
        ("checkpoint-1000", 1000),
    ]
    assert search.unfinished == ()
    assert all((found.path / CONFIG).is_file() for found in search.found)


def test_checkpoints_are_read_one_at_a_time(place, monkeypatch):
    import gonio.adapters.checkpoints as module

    place("checkpoint-20", "checkpoint-3", "checkpoint-3/dpo")
    opened = []
    real = module.load_adapter
    monkeypatch.setattr(module, "load_adapter", lambda p, b: opened.append(p.name) or real(p, b))
    sequence = load_checkpoints(place.root)
    assert opened == []
    step, adapter = next(sequence)
    assert (step, opened) == (3, ["checkpoint-3"])
    assert adapter.updates["q_proj"].lora_a[0, 0] == 1
    assert [step for step, _ in sequence] == [20]
    assert [a.path.name for _, a in load_checkpoints(place.root, adapter="dpo")] == ["dpo"]


def test_one_checkpoint_is_a_sequence_of_one(place):
    place("checkpoint-7", "checkpoint-7/dpo")
    root = place.root / "checkpoint-7"
    assert names(find_adapters(root)) == [("checkpoint-7", 7), ("dpo", 7)]
    assert [step for step, _ in load_checkpoints(root)] == [7]


@pytest.mark.parametrize("missing", [CONFIG, WEIGHTS])
def test_a_checkpoint_being_written_is_reported(missing, place):
    place("checkpoint-1")
    place("checkpoint-2", "other", without=missing)
    (place.root / "checkpoint-3").mkdir()
    search = find_adapters(place.root)
    assert names(search) == [("checkpoint-1", 1)]
    assert [(path.name, why) for path, why in search.unfinished] == [
        ("other", f"{missing} is missing"),
        ("checkpoint-2", f"{missing} is missing"),
        ("checkpoint-3", f"neither {CONFIG} nor {WEIGHTS}"),
    ]
    with pytest.raises(AdapterError, match=f"checkpoint-2: {missing} is missing(.|\n)*try again"):
        load_checkpoints(place.root)


def test_folders_without_checkpoints_say_what_they_hold(place, tmp_path):
    place(".", "dpo")
    with pytest.raises(AdapterError, match="found run, dpo"):
        load_checkpoints(place.root)
    place("checkpoint-5")
    with pytest.raises(AdapterError, match="no checkpoints of other"):
        load_checkpoints(place.root, adapter="other")
    for path in (tmp_path / "nowhere", place.root / CONFIG):
        with pytest.raises(AdapterError, match="cannot look for adapters"):
            find_adapters(path)


def test_what_peft_and_the_trainer_write_is_found(tmp_path, make_model):
    """Two adapters of one model, saved by PEFT: one in the folder, one in a subfolder."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    settings = {"r": 2, "target_modules": ["linear"]}
    model = get_peft_model(make_model("convolutions"), LoraConfig(**settings))
    model.add_adapter("second", LoraConfig(**settings))
    model.save_pretrained(tmp_path / "checkpoint-30")
    assert names(find_adapters(tmp_path)) == [("checkpoint-30", 30), ("checkpoint-30/second", 30)]
    for adapter in ("", "second"):
        ((step, loaded),) = load_checkpoints(tmp_path, adapter=adapter)
        assert (step, list(loaded.updates)) == (30, ["linear"])
