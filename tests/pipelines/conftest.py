"""A tiny package, installed as a peer would be, that is good or bad in many ways."""

import textwrap
from pathlib import Path

import pytest

from gonio.pipelines.peers.registry import Peer

PACKAGE = '''
"""An int8 quantizer with a float16 scale per vector."""
import torch

def quantize(x):
    scale = (x.abs().amax(dim=-1, keepdim=True) / 127).half()
    return (x / scale).round().to(torch.int8), scale

def dequantize(codes, scale):
    return codes * scale
'''
DRIVER = """
import os, sys, time
import torch
from gonio.pipelines.peers.driver import PeerDriver

class Driver(PeerDriver):
    def __init__(self, setting, facts):
        super().__init__(setting, facts)
        self.mode = self.setting["mode"]
        self.needs_calibration = self.mode == "learns"
        self.seen = 0

    def calibrate(self, keys, values):
        self.seen = keys[0].numel()
        assert keys[0].shape == values[0].shape

    def encode(self, x, layer, part):
        import tiny_peer
        assert x.dtype == torch.float16
        if self.mode == "crash":
            raise ValueError("no such luck")
        if self.mode == "learns" and not self.seen:
            raise ValueError("nothing learned")
        if self.mode == "dies":
            print("last words", file=sys.stderr, flush=True)
            os._exit(3)
        if self.mode == "hangs":
            time.sleep(60)
        if self.mode == "chatty":
            print("look at me" * 1000)
        if self.mode == "keeps":
            return x[:, :, :2]
        return tiny_peer.quantize(x)

    def decode(self, stored, layer, part):
        import tiny_peer
        if self.mode == "keeps":
            return torch.zeros(1, 2, 6, 8)
        found = tiny_peer.dequantize(*stored)
        if self.mode == "nan":
            found[0, 0, 0, 0] = float("nan")
        if self.mode == "shape":
            found = found[:, :, 1:]
        return found.to(torch.int64) if self.mode == "integers" else found

    def side(self):
        return torch.zeros(8)

    def new_cache(self):
        if self.mode != "good":
            return None
        from transformers import DynamicCache
        return DynamicCache()
"""


@pytest.fixture(scope="session")
def tiny_peer(tmp_path_factory) -> tuple[Peer, Path]:
    """The peer and the folder below which it is installed."""
    root = tmp_path_factory.mktemp("peers")
    modes = ("good", "crash", "nan", "shape")
    peer = Peer("tiny", "tiny-peer", "1.0", {m: {"mode": m} for m in modes}, "tiny_peer_driver")
    folder = peer.folder(root)
    (folder / "tiny_peer").mkdir(parents=True)
    (folder / "tiny_peer" / "__init__.py").write_text(textwrap.dedent(PACKAGE))
    (folder / "tiny_peer_driver.py").write_text(textwrap.dedent(DRIVER))
    (folder / "tiny_peer-1.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: tiny-peer\nVersion: 1.0\n"
    (folder / "tiny_peer-1.0.dist-info" / "METADATA").write_text(metadata)
    return peer, root
