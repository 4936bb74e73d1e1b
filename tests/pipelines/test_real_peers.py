"""The real packages, where they are installed: they answer; bits are as worked by hand."""

import math

import pytest
import torch
import transformers

from gonio.pipelines.peers.driver import ModelFacts
from gonio.pipelines.peers.install import peers_folder
from gonio.pipelines.peers.process import PeerProcess
from gonio.pipelines.peers.registry import PEERS

pytestmark = pytest.mark.slow

# Bits per element of keys at head_dim 64, by hand: codes, then scales and norms per group.
KEY_BITS = {
    ("quanto", "2 bit, KIVI axes"): 2 + 32 / 32,
    ("quanto", "4 bit, default axes"): 4 + 32 / 64,
    ("hqq", "2 bit, groups of 32"): 2 + 32 / 32,
    ("tiny-turboquant", "3 bit, blocks of 32"): 3 + 32 / 32,
    ("turbokv", "2 bit"): 2 + 16 / 64,
    ("nexusquant", "K3V2"): math.log2(9**8 / 2 + 8**8) / 8 + 16 / 64,
    ("rabitq", "3 bit"): 3 + 32 / 64,
    ("kakeyalattice", "E8, Q 2"): math.ceil(8 * math.log2(5)) / 8 + 32 / 64,
    ("transformers-fp8", "fp8"): 8,
}


@pytest.fixture(params=PEERS, scope="module")
def running(request):
    peer = PEERS[request.param]
    if not peer.is_installed(peers_folder()):
        pytest.skip(f"{peer.distribution} is not installed: run scripts/install-peers.sh")
    with PeerProcess(peer, peers_folder()) as process:
        yield process


@pytest.fixture(scope="module")
def facts():
    config = transformers.LlamaConfig(
        hidden_size=256, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2
    )
    return ModelFacts("llama", config.to_dict(), num_layers=2, num_kv_heads=2, head_dim=64)


def test_every_setting_answers_and_its_bits_are_those_worked_by_hand(running, facts, rng):
    peer = running.peer
    x = torch.randn(1, 2, 128, 64, generator=rng) * torch.logspace(-1, 1, 64)
    errors = {}
    for name, setting in peer.settings.items():
        if running.open(setting, facts):
            running.calibrate([x.expand(2, -1, -1, -1)] * 2, [x.expand(2, -1, -1, -1)] * 2)
        found, stored = running.roundtrip(x, 1, "keys")
        errors[name] = ((found - x).norm() / x.norm()).item()
        coded = stored["coded_bits"] or 8 * stored["held_bytes"] / x.numel()
        assert 0 < coded <= 8.1
        assert 8 * stored["held_bytes"] / x.numel() >= coded - 0.01
        if (peer.name, name) in KEY_BITS:
            assert coded == pytest.approx(KEY_BITS[peer.name, name], abs=0.01)
    assert running.version == peer.version or peer.is_bundled
    assert max(errors.values()) < 0.7  # zeros would give 1
    ordered = [errors[f"{bits} bit"] for bits in (2, 3, 4) if f"{bits} bit" in errors]
    assert ordered == sorted(ordered, reverse=True)


def test_caches_they_ship_return_every_token(running, facts, rng):
    found = 0
    for setting in running.peer.settings.values():
        running.open(setting, facts)
        if not running.new_cache():
            continue
        x = torch.randn(1, 2, 160, 64, generator=rng)
        for part in (x[:, :, :128], x[:, :, 128:]):
            for layer in range(2):
                keys, values = running.update(part, part, layer)
        assert keys.shape == values.shape == x.shape
        assert ((keys - x).norm() / x.norm()).item() < 0.7
        assert running.held_bytes() > 0
        found += 1
    if not found:
        pytest.skip(f"{running.peer.name} ships no cache")
