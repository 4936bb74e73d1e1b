"""Damaged embeddings, convolutions, magnitudes and fine-tunes: refused, or measured rightly."""

import json
import random
import struct
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gonio.adapters import load_adapter, load_finetune
from gonio.errors import AdapterError, GonioError
from gonio.models import WeightReader

PREFIX = "base_model.model."
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
TARGETS = ["conv", "image", "table", "linear"]
FLIPS = 60
Edit = Callable[[dict[str, torch.Tensor]], object]


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv1d(3, 5, 2)
        self.image = torch.nn.Conv2d(2, 3, (3, 2))
        self.table = torch.nn.Embedding(9, 4)
        self.linear = torch.nn.Linear(4, 6)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A base model, and a LoRA and a DoRA folder PEFT saved around it."""
    from peft import LoraConfig, get_peft_model

    root = tmp_path_factory.mktemp("kinds")
    for name, use_dora in (("lora", False), ("dora", True)):
        torch.manual_seed(3)
        model = Small()
        (root / "base").mkdir(exist_ok=True)
        save_file(model.state_dict(), root / "base" / "model.safetensors")
        settings = {"r": 2, "lora_alpha": 3, "use_dora": use_dora, "target_modules": TARGETS}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped = get_peft_model(model, LoraConfig(**settings))
            for key, parameter in wrapped.named_parameters():
                if "lora_" in key:
                    torch.nn.init.normal_(parameter)
            wrapped.save_pretrained(root / name)
    return root


@pytest.fixture
def damaged(files, tmp_path) -> Callable[..., Path]:
    """A copy of one of the folders after an edit of its tensors or its raw bytes."""

    def copy(name: str, edit: Edit | None = None, raw: Callable[[bytes], bytes] | None = None):
        folder = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / CONFIG).write_bytes((files / name / CONFIG).read_bytes())
        tensors = load_file(files / name / WEIGHTS)
        if edit:
            edit(tensors)
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, folder / WEIGHTS)
        if raw:
            (folder / WEIGHTS).write_bytes(raw((folder / WEIGHTS).read_bytes()))
        return folder

    return copy


def put(name: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Edit:
    """Replace one tensor."""
    return lambda tensors: tensors.update({PREFIX + name: make(tensors[PREFIX + name])})


def drop(name: str) -> Edit:
    return lambda tensors: tensors.pop(PREFIX + name)


LORA_CASES: dict[str, tuple[Edit, str]] = {
    "no embedding A": (drop("table.lora_embedding_A"), "lora_embedding_B without its lora_embed"),
    "no embedding B": (drop("table.lora_embedding_B"), "lora_embedding_A without its lora_embed"),
    "embedding turned": (put("table.lora_embedding_B", lambda t: t.mT), "their ranks differ"),
    "embedding of three axes": (
        put("table.lora_embedding_A", lambda t: t[None]),
        r"lora_embedding_A has shape \(1, 2, 9\)",
    ),
    "embedding and matrix": (
        lambda tensors: tensors.update({f"{PREFIX}table.lora_A.weight": torch.ones(2, 4)}),
        "factors of a matrix and of an embedding",
    ),
    "NaN in an embedding": (
        put("table.lora_embedding_A", lambda t: t * torch.nan),
        "table: lora_embedding_A holds 18 NaN or infinite of 18",
    ),
    "embedding of another rank": (
        lambda tensors: (
            put("table.lora_embedding_A", lambda t: torch.ones(3, 9))(tensors),
            put("table.lora_embedding_B", lambda t: torch.ones(4, 3))(tensors),
        ),
        "resolves to rank 2",
    ),
    "wide kernel of B": (
        put("conv.lora_B.weight", lambda t: t.expand(-1, -1, 2)),
        "the kernel of a convolution's lora_B is 1",
    ),
    "B of a matrix": (put("conv.lora_B.weight", lambda t: t[..., 0]), "lora_B is 1"),
    "A of a matrix": (put("image.lora_A.weight", lambda t: t.flatten(1)), "lora_B is 1"),
    "kernel of another dimension": (put("image.lora_A.weight", lambda t: t[..., 0]), "lora_B is 1"),
    "six axes": (
        put("image.lora_A.weight", lambda t: t[..., None, None]),
        r"lora_A has shape \(2, 2, 3, 2, 1, 1\)",
    ),
    "empty kernel": (put("conv.lora_A.weight", lambda t: t[..., :0]), r"lora_A has shape"),
    "no B of a convolution": (drop("image.lora_B.weight"), "lora_A without its lora_B"),
    "integers": (put("image.lora_B.weight", lambda t: t.int()), "torch.int32"),
}
DORA_CASES: dict[str, tuple[Edit, str]] = {
    "short": (put("linear.lora_magnitude_vector", lambda t: t[:-1]), r"\(5,\), expected 6 entries"),
    "long": (put("linear.lora_magnitude_vector", lambda t: t.repeat(2)), "expected 6 entries"),
    "one number": (put("linear.lora_magnitude_vector", lambda t: t.sum()), "has shape"),
    "of the other side": (
        put("table.lora_magnitude_vector", lambda t: torch.ones(9)),
        "expected 4 entries",
    ),
    "a matrix": (
        put("linear.lora_magnitude_vector", lambda t: t.reshape(2, 3)),
        "expected 6 entries",
    ),
    "NaN": (put("conv.lora_magnitude_vector", lambda t: t * torch.nan), "5 NaN or infinite of 5"),
    "infinite": (put("conv.lora_magnitude_vector", lambda t: t / 0), "5 NaN or infinite of 5"),
    "integers": (put("conv.lora_magnitude_vector", lambda t: t.int()), "torch.int32"),
    "missing": (drop("image.lora_magnitude_vector"), "image: no lora_magnitude_vector"),
    "alone": (
        lambda tensors: [drop(f"conv.lora_{side}.weight")(tensors) for side in "AB"],
        "lora_magnitude_vector without its lora_A",
    ),
    "twice": (
        lambda tensors: tensors.update(
            {f"{PREFIX}conv.lora_magnitude_vector.weight": torch.ones(5)}
        ),
        "is there twice",
    ),
}


@pytest.mark.parametrize("case", LORA_CASES)
def test_damaged_factors_are_named(case, damaged):
    edit, found = LORA_CASES[case]
    with pytest.raises(AdapterError, match=found):
        load_adapter(damaged("lora", edit))


@pytest.mark.parametrize("case", DORA_CASES)
def test_damaged_magnitudes_are_named(case, damaged, files):
    edit, found = DORA_CASES[case]
    with WeightReader(files / "base") as base, pytest.raises(AdapterError, match=found):
        load_adapter(damaged("dora", edit), base)


def by_hand(folder: Path, base: dict[str, torch.Tensor], module: str) -> np.ndarray:
    """The change of a module's weight, multiplied out by NumPy from the file's own tensors."""
    tensors = {k: v.double().numpy() for k, v in load_file(folder / WEIGHTS).items()}
    config = json.loads((folder / CONFIG).read_text())
    scaling = config["lora_alpha"] / config["r"]
    if module == "table":
        a, b = (tensors[f"{PREFIX}table.lora_embedding_{side}"] for side in "AB")
        change = scaling * (b @ a).T
    else:
        a, b = (tensors[f"{PREFIX}{module}.lora_{side}.weight"] for side in "AB")
        change = scaling * b.reshape(len(b), -1) @ a.reshape(len(a), -1)
    if not config["use_dora"]:
        return change
    weight = base[f"{module}.weight"].double().numpy().reshape(change.shape)
    axis = 0 if module == "table" else 1
    magnitude = tensors[f"{PREFIX}{module}.lora_magnitude_vector"].reshape(-1)
    whole = weight + change
    length = np.linalg.norm(whole, axis=axis)
    return whole * np.expand_dims(magnitude / length, axis) - weight


def flip(raw: bytes, rng: random.Random) -> bytes:
    """Some bits turned: in half the cases among the numbers only."""
    first = rng.choice((0, 8 + struct.unpack("<Q", raw[:8])[0]))
    flipped = bytearray(raw)
    for _ in range(rng.choice((1, 2, 8))):
        flipped[rng.randrange(first, len(raw))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def is_measured_rightly(folder: Path, base: WeightReader) -> bool:
    """Whether the folder was measured; what it was measured as must be true."""
    try:
        adapter = load_adapter(folder, base)
        updates = adapter.updates.values()
        products = {u.module: u.scaling * u.lora_b.double() @ u.lora_a.double() for u in updates}
    except GonioError as error:
        message = str(error)
    else:
        for module, product in products.items():
            truth = by_hand(folder, dict(base), module)
            atol = 1e-9 * max(1.0, float(np.abs(truth).max()))
            assert np.abs(product.numpy() - truth).max() <= atol
        return True
    assert str(folder) in message or "the update of" in message
    assert all(c.isprintable() or c == "\n" for c in message)
    return False


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_flipped_bits_are_refused_or_measured_rightly(name, damaged, files):
    with WeightReader(files / "base") as base:
        measured = sum(
            is_measured_rightly(damaged(name, raw=partial(flip, rng=random.Random(case))), base)
            for case in range(FLIPS)
        )
    assert FLIPS // 4 < measured < FLIPS


def test_a_kernel_that_is_not_the_bases_is_refused_with_it(damaged, files):
    """Without the base a turned kernel cannot be told; with it, nothing is measured."""
    turned = put("image.lora_A.weight", lambda t: t.mT)
    assert load_adapter(damaged("lora", turned)).updates["image"].kernel == (2, 3)
    with WeightReader(files / "base") as base, pytest.raises(AdapterError, match="does not fit"):
        load_adapter(damaged("dora", turned), base)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_fine_tune_of_another_shape_is_refused(axis, files, tmp_path):
    tensors = load_file(files / "base" / "model.safetensors")
    weight = tensors["linear.weight"]
    tensors["linear.weight"] = torch.cat([weight, weight], dim=axis)
    save_file(tensors, tmp_path / "model.safetensors")
    with (
        WeightReader(files / "base") as base,
        WeightReader(tmp_path) as tuned,
        pytest.raises(AdapterError, match=r"linear\.weight is .*, in the base \(6, 4\)"),
    ):
        load_finetune(tuned, base, tmp_path)
