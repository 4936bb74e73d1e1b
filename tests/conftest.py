"""Fixtures shared by every test."""

import zlib

import pytest
import torch

__all__ = ["rng"]


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> torch.Generator:
    """A generator seeded from the test's own name: stable runs, independent tests."""
    generator = torch.Generator()
    generator.manual_seed(zlib.crc32(request.node.nodeid.encode()))
    return generator
