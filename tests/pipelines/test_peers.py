"""Packages in processes of their own: what they answer, what they store, and how they fail."""

import io

import numpy as np
import pytest
import torch

from gonio.errors import PeerError
from gonio.pipelines.peers.driver import ModelFacts
from gonio.pipelines.peers.held import held_bytes
from gonio.pipelines.peers.install import install_command, install_peer
from gonio.pipelines.peers.process import PeerProcess
from gonio.pipelines.peers.registry import PEERS
from gonio.pipelines.peers.wire import read_message, write_message

FACTS = ModelFacts("llama", {}, num_layers=2, num_kv_heads=2, head_dim=8)


@pytest.fixture(scope="module")
def process(tiny_peer):
    peer, root = tiny_peer
    with PeerProcess(peer, root) as running:
        yield running


def keys(rng, tokens=6):
    return torch.randn(1, 2, tokens, 8, generator=rng)


def test_a_good_package_answers_and_its_bytes_are_counted(process, rng):
    assert process.open({"mode": "good"}, FACTS) is False
    x = keys(rng)
    found, stored = process.roundtrip(x, 1, "keys")
    assert process.version == "1.0"
    assert found.dtype == x.dtype
    assert stored["held_bytes"] == 2 * 6 * (8 + 2)  # int8 codes, a float16 scale per vector
    assert stored["coded_bits"] is None
    step = x.abs().amax(dim=-1, keepdim=True) / 127
    assert ((found - x).abs() <= 0.51 * step + 1e-3 * x.abs()).all()  # half a step, and float16
    assert (found != x).any()


def test_what_a_package_prints_does_not_enter_its_answers(process, rng):
    process.open({"mode": "chatty"}, FACTS)
    found, _ = process.roundtrip(keys(rng), 0, "values")
    assert found.shape == (1, 2, 6, 8)


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("crash", "tiny failed to roundtrip: ValueError: no such luck"),
        ("nan", "numbers that are not finite"),
        ("shape", r"shape \(1, 2, 5, 8\) for one of \(1, 2, 6, 8\)"),
        ("integers", "numbers that are not finite"),
    ],
)
def test_bad_answers_are_refused_and_the_process_lives_on(process, rng, mode, message):
    process.open({"mode": mode}, FACTS)
    with pytest.raises(PeerError, match=message):
        process.roundtrip(keys(rng), 0, "keys")
    process.open({"mode": "good"}, FACTS)
    process.roundtrip(keys(rng), 0, "keys")


def test_a_setting_it_refuses_is_its_failure(process):
    with pytest.raises(PeerError, match="tiny failed to open: KeyError"):
        process.open({}, FACTS)


def test_a_package_sees_a_copy_in_half_precision(process, rng):
    process.open({"mode": "keeps"}, FACTS)
    _, stored = process.roundtrip(keys(rng), 0, "keys")
    assert stored["held_bytes"] == 2 * 6 * 8 * 2  # a view of two tokens keeps all six alive
    assert stored["side_bytes"] == 8 * 4


def test_its_own_cache_answers_token_by_token(process, rng):
    process.open({"mode": "good"}, FACTS)
    assert process.new_cache()
    for count in (5, 1):
        found, _ = process.update(keys(rng, count), keys(rng, count), 0)
    assert found.shape[2] == 6
    assert process.held_bytes() == 2 * (2 * 6 * 8 * 2)


def test_a_process_that_dies_is_an_error(tiny_peer, rng):
    peer, root = tiny_peer
    with PeerProcess(peer, root) as running:
        running.open({"mode": "dies"}, FACTS)
        with pytest.raises(PeerError, match="exit code 3: last words"):
            running.roundtrip(keys(rng), 0, "keys")
        with pytest.raises(PeerError, match="ended while asked to new_cache"):
            running.new_cache()


@pytest.mark.slow
def test_a_process_that_hangs_is_ended(tiny_peer, rng):
    peer, root = tiny_peer
    with PeerProcess(peer, root) as running:
        running.open({"mode": "hangs"}, FACTS)
        running.timeout_seconds = 0.2
        with pytest.raises(PeerError, match=r"no answer within 0\.2 s"):
            running.roundtrip(keys(rng), 0, "keys")


def test_messages_survive_the_wire_and_a_cut_one_is_the_end():
    stream = io.BytesIO()
    tensors = {"x": torch.arange(6.0).half().view(2, 3).mT, "none": torch.empty(0)}
    write_message(stream, {"do": "it", "text": "ä"}, tensors)
    write_message(stream, {})
    whole = stream.getvalue()
    stream.seek(0)
    content, found = read_message(stream)
    assert content == {"do": "it", "text": "ä"}
    assert {name: x.dtype for name, x in found.items()} == {"x": torch.half, "none": torch.float}
    assert torch.equal(found["x"], tensors["x"])
    assert read_message(stream) == ({}, {})
    assert read_message(stream) is None
    for length in (3, 17, 60):
        assert read_message(io.BytesIO(whole[:length])) is None


def test_held_bytes_count_memory_once_and_follow_objects():
    class Slotted:
        __slots__ = ("inner",)

    base = torch.zeros(100)
    holder = Slotted()
    holder.inner = {"a": [base[:2], base[5:]], "b": (np.zeros(3), b"four"), "c": "text", "d": 7}
    holder.inner["loop"] = holder
    assert held_bytes(holder) == 400 + 24 + 4
    assert held_bytes([base, base.clone()]) == 800
    assert held_bytes(()) == 0


def test_pinned_packages_go_into_a_folder_each_without_their_dependencies(tmp_path):
    assert sum(not peer.is_bundled for peer in PEERS.values()) >= 6
    for peer in PEERS.values():
        if peer.is_bundled:
            assert install_peer(peer, tmp_path) is None
            continue
        command = install_command(peer, peer.folder(tmp_path))
        assert "--no-deps" in command
        assert f"{peer.distribution}=={peer.version}" in command
        assert all("==" in each for each in peer.requires)


def test_a_failed_installation_leaves_no_folder(tiny_peer, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "gonio.pipelines.peers.install.install_command",
        lambda peer, target: ["false"],
    )
    peer, _ = tiny_peer
    with pytest.raises(PeerError, match=r"cannot install tiny-peer==1\.0"):
        install_peer(peer, tmp_path)
    assert list(tmp_path.iterdir()) == []
