"""Damaged settings and files: one clear refusal, or the spectrum the settings ask for."""

import dataclasses
import json
import math
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
CASES_PER_FAMILY = 27
COMMAND_EVERY = 9
VALUES_PER_KEY = 11
ALWAYS_REFUSED = {"truncated", "rank_disagrees", "wrong_bytes", "not_files"}

Corruption = Callable[[random.Random, Path, int], None]
FAMILIES: dict[str, Corruption] = {}


def family(corruption: Corruption) -> Corruption:
    FAMILIES[corruption.__name__] = corruption
    return corruption


def edit_config(folder: Path, **settings: object) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | settings))


@family
def truncated(rng: random.Random, folder: Path, case: int) -> None:
    raw = (folder / CONFIG).read_bytes()
    (folder / CONFIG).write_bytes(raw[: rng.randrange(len(raw) - 1)])


@family
def flips(rng: random.Random, folder: Path, case: int) -> None:
    raw = bytearray((folder / CONFIG).read_bytes())
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    (folder / CONFIG).write_bytes(raw)


@family
def numbers_in_config(rng: random.Random, folder: Path, case: int) -> None:
    huge = 10**400
    bad = (
        {"r": huge},
        {"r": 10**12},
        {"r": -4},
        {"r": 4.0},
        {"r": 0},
        {"lora_alpha": huge},
        {"lora_alpha": 1e308},
        {"lora_alpha": 5e-324},
        {"lora_alpha": -huge},
        {"lora_alpha": 0},
        {"lora_alpha": 1e155},
        {"rank_pattern": {"q_proj": huge}},
        {"rank_pattern": {".*": huge}, "use_rslora": True},
        {"rank_pattern": {"q_proj": -1}},
        {"rank_pattern": {"q_proj": math.nan}},
        {"alpha_pattern": {"q_proj": huge}},
        {"alpha_pattern": {".*": 1e308}},
        {"alpha_pattern": {"q_proj": None}},
        {"alpha_pattern": {"": 3}},
        {"rank_pattern": {"a{99999999999}": 3}},
        {"rank_pattern": {"(" * 3000 + ")" * 3000: 3}},
        {"alpha_pattern": {"\\": 3}},
        {"alpha_pattern": {"(?P<x>a)(?P<x>b)": 3}},
        {"alpha_pattern": {"\ud800" * 900 + "(": 3}},
        {"alpha_pattern": {"(?i)Q_PROJ": 3}},
        {"r": math.inf, "use_rslora": True},
        {"r": huge, "use_rslora": True},
    )
    edit_config(folder, **bad[case % len(bad)])


@family
def rank_disagrees(rng: random.Random, folder: Path, case: int) -> None:
    if case % 2:
        edit_config(folder, r=rng.choice((1, 2, 3, 5, 11, 13, 400)))
    else:
        edit_config(folder, rank_pattern={rng.choice(("q_proj", r".*", r"layers\.0\..*")): 7})


@family
def wrong_bytes(rng: random.Random, folder: Path, case: int) -> None:
    """Files that are empty, of another kind, or not UTF-8."""
    path = folder / (WEIGHTS if case % 2 else CONFIG)
    raw = path.read_bytes()
    junk = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 300)))
    at = rng.randrange(len(raw))
    path.write_bytes(
        rng.choice((b"", b"\x00" * 64, junk, raw[:at] + b"\xff\xfe\xc3" + raw[at:], b"PK\x03\x04"))
        if case % 8
        else b"\xef\xbb\xbf" + raw
    )


@family
def not_files(rng: random.Random, folder: Path, case: int) -> None:
    path = folder / (WEIGHTS, CONFIG)[case % 2]
    path.unlink()
    kind = case // 2 % 6
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        path.symlink_to(path)
    elif kind == 2:
        path.symlink_to(folder / "gone")
    elif kind == 3:
        os.mkfifo(path)
    elif kind == 4:
        path.symlink_to(folder)
    for number in range(rng.randrange(30)):
        inner = folder / f"run\n{number}"
        inner.mkdir()
        (inner / CONFIG).write_text("{}")


JSON_VALUES = (
    *(
        "null",
        "true",
        "3",
        "-3",
        "1.5",
        '"x"',
        '""',
        "[]",
        '["a", 1]',
        "{}",
        '{"a": {"b": [null]}}',
    ),
    *("NaN", "-Infinity", "1" + "0" * 400, "1" + "0" * 5000, "1e999", '"\\ud800"'),
    *("[" * 300 + "]" * 300, '"' + "y\\n" * 5000 + '"', "[" + "1," * 9000 + "1]"),
)


def config_keys() -> list[str]:
    """Every setting PEFT knows, and some it does not."""
    from peft import LoraConfig

    return [*sorted(f.name for f in dataclasses.fields(LoraConfig)), "", "self", "\ud800\n" * 99]


def under_wrong_types(key: str, number: int) -> Corruption:
    """One setting under values of other JSON types; a key that is there twice counts last."""
    values = random.Random(number).sample(JSON_VALUES, VALUES_PER_KEY)

    def corruption(rng: random.Random, folder: Path, case: int) -> None:
        text = (folder / CONFIG).read_text().rstrip().removesuffix("}")
        (folder / CONFIG).write_text(f"{text}, {json.dumps(key)}: {values[case]}}}")

    return corruption


@pytest.mark.parametrize("name", FAMILIES)
def test_damaged_settings_are_refused_or_measured_rightly(name, corrupt):
    measured = corrupt(name, FAMILIES[name], CASES_PER_FAMILY, COMMAND_EVERY)
    assert (measured == 0) == (name in ALWAYS_REFUSED)


def test_settings_of_the_wrong_type_are_refused_or_measured_rightly(corrupt):
    """Some 500 cases; with 27 for each family of both files they are more than a thousand."""
    measured = {}
    for number, key in enumerate(config_keys()):
        every = 0 if number % 5 else VALUES_PER_KEY
        corruption = under_wrong_types(key, number)
        measured[key] = corrupt(f"key-{number}", corruption, VALUES_PER_KEY, every)
    assert measured["peft_type"] == measured["bias"] == 0
    assert measured["revision"] > VALUES_PER_KEY // 2
    assert len(measured) * VALUES_PER_KEY > 460  # 20 families of 27 are 540
