"""Damaged weights: one clear refusal, or the spectrum of what the file holds."""

import json
import math
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gonio.adapters import load_adapter, spectrum_table
from gonio.errors import GonioError

PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"
CASES_PER_FAMILY = 27
COMMAND_EVERY = 9
ALWAYS_REFUSED = {"truncated", "flips_in_length", "flips_in_header", "not_finite", "odd_suffixes"}
MOSTLY_MEASURED = {"flips_in_data", "swapped", "odd_names", "extreme_values"}

Corruption = Callable[[random.Random, Path, int], None]
FAMILIES: dict[str, Corruption] = {}


def family(corruption: Corruption) -> Corruption:
    FAMILIES[corruption.__name__] = corruption
    return corruption


def split(folder: Path) -> tuple[dict, bytes]:
    raw = (folder / WEIGHTS).read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def join(folder: Path, header: dict | str | bytes, data: bytes) -> None:
    text = json.dumps(header) if isinstance(header, dict) else header
    encoded = text.encode() if isinstance(text, str) else text
    encoded += b" " * (-len(encoded) % 8)
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)


def edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, folder / WEIGHTS)


def flip(rng: random.Random, path: Path, start: int, end: int) -> None:
    raw = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 2, 8, 40))):
        raw[rng.randrange(start, min(end, len(raw)))] ^= 1 << rng.randrange(8)
    path.write_bytes(raw)


def header_end(folder: Path) -> int:
    return 8 + struct.unpack("<Q", (folder / WEIGHTS).read_bytes()[:8])[0]


def pick(rng: random.Random, tensors: dict) -> str:
    return rng.choice(sorted(key for key in tensors if key != "__metadata__"))


@family
def truncated(rng: random.Random, folder: Path, case: int) -> None:
    path = folder / WEIGHTS
    raw = path.read_bytes()
    path.write_bytes(raw[: rng.randrange(len(raw))])


@family
def flips_in_length(rng: random.Random, folder: Path, case: int) -> None:
    flip(rng, folder / WEIGHTS, 0, 8)


@family
def flips_in_header(rng: random.Random, folder: Path, case: int) -> None:
    flip(rng, folder / WEIGHTS, 8, header_end(folder))


@family
def flips_in_data(rng: random.Random, folder: Path, case: int) -> None:
    flip(rng, folder / WEIGHTS, header_end(folder), 1 << 40)


@family
def wrong_shapes(rng: random.Random, folder: Path, case: int) -> None:
    header, data = split(folder)
    entry = header[pick(rng, header)]
    count = math.prod(entry["shape"])
    entry["shape"] = rng.choice(
        (
            [count],
            [1, count],
            [count, 1],
            [1, 1, *entry["shape"]],
            entry["shape"][::-1],
            [],
            [0, 4],
            [2**63, 2],
            [-1, 4],
            ["4", 4],
            [count // 2, 2],
        )
    )
    join(folder, header, data)


@family
def transposed(rng: random.Random, folder: Path, case: int) -> None:
    chosen = rng.random()

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for key in tensors:
            if rng.random() < chosen:
                tensors[key] = tensors[key].mT

    edit_tensors(folder, edit)


@family
def swapped(rng: random.Random, folder: Path, case: int) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        one, two = pick(rng, tensors), pick(rng, tensors)
        tensors[one], tensors[two] = tensors[two], tensors[one]

    edit_tensors(folder, edit)


@family
def not_finite(rng: random.Random, folder: Path, case: int) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        flat = tensors[pick(rng, tensors)].view(-1)
        flat[rng.randrange(len(flat))] = rng.choice((math.nan, math.inf, -math.inf))

    edit_tensors(folder, edit)


@family
def missing_halves(rng: random.Random, folder: Path, case: int) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for _ in range(rng.choice((1, 1, 2, len(tensors)))):
            del tensors[pick(rng, tensors)]

    edit_tensors(folder, edit)


ODD_NAMES = (
    "é.ü.q_proj",
    "層.0.q_proj",
    "a b c",
    "..",
    "../../etc/passwd",
    "",
    ".",
    "x" * 5000,
    "layers.²",
    "layers.٣.q_proj",
    "layers." + "9" * 30 + ".q_proj",
    "layers." + "9" * 5000 + ".q_proj",
    "line\nbreak\r.q_proj",
    "\x1b[31mred",
    "nul\x00.q_proj",
    '"quoted",comma',
    "[/red] [bold]",
    "\u202eright.q_proj",
    "=1+1",
    "lora_A",
    "default.lora_A",
    "layers.0..q_proj",
    "-1.q_proj",
    "layers.00.q_proj",
    "\n" * 40,
)


@family
def odd_names(rng: random.Random, folder: Path, case: int) -> None:
    """A module, or one key alone, under another name."""
    header, data = split(folder)
    name = ODD_NAMES[case % len(ODD_NAMES)]
    chosen = pick(rng, header)
    module = chosen.rpartition(".lora_")[0].removeprefix(PREFIX)
    if case < len(ODD_NAMES):
        renamed = {
            k.replace(f"{PREFIX}{module}.", f"{PREFIX}{name}."): v for k, v in header.items()
        }
    else:
        renamed = {(f"{PREFIX}{name}" if k == chosen else k): v for k, v in header.items()}
    join(folder, renamed, data)


@family
def odd_suffixes(rng: random.Random, folder: Path, case: int) -> None:
    endings = (
        "lora_A.default.weight",
        "lora_C.weight",
        "lora_A.bias",
        "lora_B.bias",
        "lora_magnitude_vector",
        "lora_embedding_A",
        "lora_\n",
        "weight",
        "lora_A.weight.lora_A.weight",
        "base_layer.lora_A.weight",
        "lora_" + "\n\t" * 3000,
    )
    header, data = split(folder)
    chosen = pick(rng, header)
    ending = endings[case % len(endings)]
    renamed = f"{chosen.rpartition('.lora_')[0]}.{ending}"
    join(folder, {(renamed if k == chosen else k): v for k, v in header.items()}, data)


@family
def bad_headers(rng: random.Random, folder: Path, case: int) -> None:
    """Duplicate keys, offsets that overlap, run backwards or leave the file, broken JSON."""
    header, data = split(folder)
    chosen, other = pick(rng, header), pick(rng, header)
    text = json.dumps(header)
    start, end = header[chosen]["data_offsets"]
    offsets = ([end, start], [0, 1 << 62], [-8, 0], [start + 1, end + 1], [start], "all", None, [])
    kind = case % (len(offsets) + 8)
    if kind < len(offsets):
        header[chosen]["data_offsets"] = offsets[kind]
        return join(folder, header, data)
    header_texts = (
        text[:-1] + f", {json.dumps(chosen)}: {json.dumps(header[chosen])}}}",
        text[:-1] + f", {json.dumps(chosen)}: {json.dumps(header[other])}}}",
        json.dumps(header | {"__metadata__": {"format": 3}}),
        json.dumps(header | {chosen: header[chosen] | {"more": [1] * 9}}),
        json.dumps({k: v["shape"] for k, v in header.items() if "shape" in v}),
        "[" * 2000,
        text.encode().replace(b"q_proj", b"q_\xff\xfeoj"),
        text.replace("q_proj", "q_\\ud800"),
    )
    return join(folder, header_texts[kind - len(offsets)], data)


@family
def other_dtypes(rng: random.Random, folder: Path, case: int) -> None:
    dtypes = (
        *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool),
        *(torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.float16),
    )
    names = ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2", "U16", "C64", "F128", 3)
    if case % 2:
        chosen = dtypes[case // 2 % len(dtypes)]
        return edit_tensors(folder, lambda t: t.update({k: v.to(chosen) for k, v in t.items()}))
    header, data = split(folder)
    entry = header[pick(rng, header)]
    width = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}[entry["dtype"]]
    entry["dtype"] = name = names[case // 2 % len(names)]
    bits = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U16": 16, "C64": 64}.get(name, 8)
    entry["shape"] = [entry["shape"][0], entry["shape"][1] * width * 8 // bits]
    return join(folder, header, data)


@family
def extreme_values(rng: random.Random, folder: Path, case: int) -> None:
    """Zero, cancelling, tiny, huge and badly scaled factors in float64."""
    top, tiny = torch.finfo(torch.float64).max, 5e-324

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for key in tensors:
            tensors[key] = tensors[key].double()
        module = pick(rng, tensors).rpartition(".lora_")[0]
        lora_a, lora_b = (tensors[f"{module}.lora_{side}.weight"] for side in "AB")
        changes: tuple[Callable[[], object], ...] = (
            lambda: lora_b.zero_(),
            lambda: (lora_a.fill_(1.0), lora_b.sub_(lora_b.mean(dim=1, keepdim=True))),
            lambda: lora_a.fill_(top),
            lambda: (lora_a.fill_(top), lora_b.fill_(top)),
            lambda: (lora_a.fill_(1e200), lora_b.fill_(1e-200)),
            lambda: (lora_a.fill_(tiny), lora_b.fill_(tiny)),
            lambda: lora_a.fill_(tiny),
            lambda: (lora_a[0].fill_(0), lora_b[:, 0].fill_(top)),
            lambda: (lora_a[0].mul_(1e-150), lora_b[:, 0].mul_(1e150)),
            lambda: lora_a[0].mul_(1e12),
            lambda: [tensors[key].zero_() for key in tensors],
            lambda: [tensors[key].fill_(1e77) for key in tensors],
        )
        changes[case % len(changes)]()

    edit_tensors(folder, edit)


@pytest.mark.parametrize("name", FAMILIES)
def test_damaged_weights_are_refused_or_measured_rightly(name, corrupt):
    measured = corrupt(name, FAMILIES[name], CASES_PER_FAMILY, COMMAND_EVERY)
    assert (measured == 0) == (name in ALWAYS_REFUSED)
    assert measured >= CASES_PER_FAMILY // 2 or name not in MOSTLY_MEASURED


def test_the_truth_accepts_what_peft_saved_and_rejects_a_near_miss(
    saved_name, saved_folder, check_against_truth
):
    folder = saved_folder(saved_name)
    table = spectrum_table(load_adapter(folder), samples=2)
    check_against_truth(folder, table)
    with pytest.raises(AssertionError):
        check_against_truth(folder, table, factor=1 + 1e-9)


@pytest.mark.parametrize("path", ["~nobody-of-that-name/x", "a" * 300, "b/" * 3000], ids=len)
def test_paths_no_system_accepts_are_refused(path):
    with pytest.raises(GonioError) as caught:
        load_adapter(path)
    assert path[:100] in str(caught.value)
