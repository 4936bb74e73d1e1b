"""Corrupted adapter folders: what they are made from, and the truth their tables must equal.

The truth is computed without gonio: the header is parsed by hand, the factors are multiplied out
in float64 and decomposed by NumPy.
"""

import json
import math
import random
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from gonio.adapters import load_adapter, spectrum_table
from gonio.cli.main import cli
from gonio.errors import GonioError

Corruption = Callable[[random.Random, Path, int], None]

PREFIX = "base_model.model."
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
ERROR_LINES = 12
LINE_CHARACTERS = 600  # the longest line may carry a path and a shortened name
EPS32, EPS64 = (float(np.finfo(dtype).eps) for dtype in (np.float32, np.float64))
TINY = float(np.finfo(np.float64).tiny)  # below it float64 has no relative precision
SAVED = {
    "plain": ({"r": 4, "lora_alpha": 8}, torch.float32),
    "patterns": (
        {
            "r": 3,
            "lora_alpha": 5,
            "use_rslora": True,
            "rank_pattern": {"layers.1.q_proj": 2},
            "alpha_pattern": {r"v_proj": 9},
        },
        torch.bfloat16,
    ),
    "wide": ({"r": 12, "lora_alpha": -6}, torch.float64),
    "half": ({"r": 1, "lora_alpha": 16}, torch.float16),
}


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> dict[str, dict[str, bytes]]:
    """The two files of real adapters, saved by PEFT around a model of four linear layers."""
    from peft import LoraConfig, get_peft_model

    def layer() -> torch.nn.ModuleDict:
        return torch.nn.ModuleDict(
            {"q_proj": torch.nn.Linear(8, 8), "v_proj": torch.nn.Linear(10, 6)}
        )

    files = {}
    for seed, (name, (settings, dtype)) in enumerate(SAVED.items()):
        torch.manual_seed(seed)
        model = torch.nn.Sequential()
        model.layers = torch.nn.ModuleList([layer(), layer()])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped = get_peft_model(
                model, LoraConfig(target_modules=["q_proj", "v_proj"], **settings)
            )
            for key, parameter in wrapped.named_parameters():
                if "lora_" in key:
                    torch.nn.init.normal_(parameter)
            folder = tmp_path_factory.mktemp("saved") / name
            wrapped.to(dtype).save_pretrained(folder)
        files[name] = {part: (folder / part).read_bytes() for part in (WEIGHTS, CONFIG)}
    return files


@pytest.fixture
def saved_folder(saved, tmp_path) -> Callable[[str], Path]:
    """A folder with what PEFT saved under one of the names of ``SAVED``."""
    return lambda name: copy_of({name: saved[name]}, tmp_path / name, random.Random(0))


@pytest.fixture(params=SAVED)
def saved_name(request) -> str:
    return str(request.param)


@pytest.fixture
def check_against_truth() -> Callable[..., None]:
    return check_table


@pytest.fixture
def corrupt(saved, tmp_path) -> Callable[..., int]:
    """Corrupt ``cases`` folders, check every outcome, and count those that were measured.

    Every ``command_every``-th folder also goes through the command line; none for 0.
    """

    def run(name: str, corruption: Corruption, cases: int, command_every: int) -> int:
        measured = 0
        for case in range(cases):
            rng = random.Random(zlib.crc32(f"{name}/{case}".encode()))
            folder = copy_of(saved, tmp_path / f"{name}-{case}", rng)
            corruption(rng, folder, case)
            is_measured = check_library(folder)
            if command_every and case % command_every == 0:
                check_command(folder, is_measured)
            measured += is_measured
        return measured

    return run


def copy_of(saved: dict[str, dict[str, bytes]], folder: Path, rng: random.Random) -> Path:
    folder.mkdir()
    for part, raw in saved[rng.choice(sorted(saved))].items():
        (folder / part).write_bytes(raw)
    return folder


def check_library(folder: Path) -> bool:
    """Whether the folder was measured; refused or measured, the outcome is checked."""
    try:
        adapter = load_adapter(folder)
        table = spectrum_table(adapter, samples=2)
    except GonioError as error:
        check_message(folder, error)
        return False
    check_table(folder, table)
    used = {f"{PREFIX}{m}.lora_{side}.weight" for m in adapter.updates for side in "AB"}
    assert used | {key for key, _ in adapter.unused} == read_by_hand(folder)[1]
    return True


def check_command(folder: Path, is_measured: bool) -> None:
    """``adapter inspect`` agrees with the library and leaves no file behind when it fails."""
    target = folder.with_name(f"{folder.name}.csv")
    arguments = ["adapter", "inspect", str(folder), "--csv", "--output", str(target)]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == (0 if is_measured else 2), result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    assert target.exists() == is_measured
    assert not list(folder.parent.glob(f"{target.name}?*"))
    if not is_measured:
        assert str(folder) in result.stderr


def check_message(folder: Path, error: GonioError) -> None:
    """Names the folder, stays short, holds no control characters and no numbers of a tensor."""
    message = str(error)
    assert str(folder) in message
    assert len(message.splitlines()) <= ERROR_LINES, message
    assert max(map(len, message.splitlines())) <= LINE_CHARACTERS, message
    assert all(c.isprintable() or c == "\n" for c in message), message
    assert "tensor(" not in message
    assert "Traceback" not in message


def check_table(folder: Path, table: pd.DataFrame, factor: float = 1.0) -> None:
    """Every row equals the dense float64 spectrum, scaled by ``factor``; no module is missing."""
    tensors, _ = read_by_hand(folder)
    config = json.loads((folder / CONFIG).read_text())
    modules = set(table["module"])
    pairs = {key[: -len(".lora_A.weight")] for key in tensors if key.endswith(".lora_A.weight")}
    loaded = {
        pair.removeprefix(PREFIX)
        for pair in pairs
        if pair.startswith(PREFIX) and not pair.endswith((".base_layer", ".lora_A", ".lora_B"))
    }
    assert modules == loaded
    assert len(table) == len(modules)
    for row in table.itertuples():
        lora_a, lora_b = (tensors[f"{PREFIX}{row.module}.lora_{side}.weight"] for side in "AB")
        scaling = factor * scaling_by_hand(config, row.module)
        assert row.rank == lora_a.shape[0]
        assert row.scaling * factor == pytest.approx(scaling, rel=8 * EPS64)
        check_row(row, lora_b, lora_a, scaling)


def check_row(row, lora_b: np.ndarray, lora_a: np.ndarray, scaling: float) -> None:
    """One row beside the singular values of the product, with the rounding of both routes."""
    sigma = abs(scaling) * np.linalg.svd(lora_b @ lora_a, compute_uv=False)
    pairs = [(b, a) for b, a in zip(lora_b.T, lora_a, strict=True) if b.any() and a.any()]
    dims = max(*lora_b.shape, *lora_a.shape)
    noise = dims * EPS64 * abs(scaling) * sum(math.hypot(*b) * math.hypot(*a) for b, a in pairs)
    noise += TINY
    assert row.spectral_norm == pytest.approx(sigma[0], abs=8 * noise)
    assert row.frobenius_norm == pytest.approx(np.linalg.norm(sigma), abs=8 * noise)
    floor = max(noise, max(lora_b.shape[0], lora_a.shape[1]) * EPS32 * sigma[0])
    assert (sigma > 4 * floor).sum() <= row.numerical_rank <= (sigma > floor / 4).sum()
    if sigma[0] > 1e6 * noise:
        shares = sigma / sigma.sum()
        entropy = -sum(share * math.log(share) for share in shares if share > 0)
        assert row.stable_rank == pytest.approx(((sigma / sigma[0]) ** 2).sum(), rel=1e-5)
        assert row.effective_rank == pytest.approx(math.exp(entropy), rel=1e-4)
        energy = np.cumsum((sigma / sigma[0]) ** 2)
        for k, share in ((row.k90, 0.9), (row.k99, 0.99)):
            assert energy[int(k) - 1] >= (share - 1e-6) * energy[-1]
            assert k == 1 or energy[int(k) - 2] <= (share + 1e-6) * energy[-1]


def read_by_hand(folder: Path) -> tuple[dict[str, np.ndarray], set[str]]:
    """Float tensors of a safetensors file in float64, and the names of all its tensors."""
    raw = (folder / WEIGHTS).read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    header.pop("__metadata__", None)
    data, tensors = raw[8 + size :], {}
    for key, entry in header.items():
        start, end = entry["data_offsets"]
        chunk = data[start:end]
        if entry["dtype"] == "BF16":
            bits = np.frombuffer(chunk, "<u2").astype("<u4") << 16
            values = bits.view("<f4")
        elif entry["dtype"] in ("F64", "F32", "F16"):
            values = np.frombuffer(chunk, f"<f{int(entry['dtype'][1:]) // 8}")
        else:
            continue
        tensors[key] = values.astype(np.float64).reshape(entry["shape"])
    return tensors, set(header)


def scaling_by_hand(config: dict, module: str) -> float:
    """Scaling alpha / r or alpha / sqrt(r), the first matching pattern winning."""

    def first(patterns: dict | None, default: float) -> float:
        for pattern, value in (patterns or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                return value
        return default

    rank = first(config.get("rank_pattern"), config.get("r", 8))
    alpha = first(config.get("alpha_pattern"), config.get("lora_alpha", 8))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
