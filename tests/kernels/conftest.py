"""Plans with every mix of widths, and queries for them."""

import os
import shutil
from dataclasses import dataclass
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from gonio.kernels import CodePlan, available_levels, make_plan
from gonio.kernels.build import source_files

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="Triton is not installed: pip install 'gonio[triton]'"
)

MIXES = {
    "none": [0],
    "1": [1],
    "2": [2],
    "3": [3],
    "4": [4],
    "narrow": [0, 1, 2, 3, 4],
    "wide": [5, 6, 7, 8],
    "all": list(range(9)),
}


def installed_compilers() -> list[str]:
    """$CC (else cc), gcc and clang as far as they are installed, none of them twice."""
    found: dict[str, str] = {}
    for name in (os.environ.get("CC") or "cc", "gcc", "clang"):
        if path := shutil.which(name):
            found.setdefault(os.path.realpath(path), name)
    return list(found.values())


def write_mutant(folder, file: str, right: str, wrong: str) -> None:
    """Copy the C sources into a folder, with a mistake in one place of one of them."""
    for path in source_files():
        shutil.copy(path, folder)
    text = (folder / file).read_text()
    assert text.count(right) == 1
    (folder / file).write_text(text.replace(right, wrong))


@dataclass(frozen=True)
class Layer:
    """Random codebooks of random widths, their plans, and what they mean by themselves."""

    heads: int
    dim: int
    widths: Tensor
    levels: Tensor

    def plan(self, kind: str) -> CodePlan:
        return make_plan(kind, self.widths, self.levels, self.heads)

    def nearest(self, rows: Tensor) -> Tensor:
        """The nearest level of each coordinate, by looking at every level."""
        books = self.levels.split((1 << self.widths).tolist())
        picked = [
            (row[:, None] - book).abs().argmin(1) for row, book in zip(rows, books, strict=True)
        ]
        return torch.stack([book[at] for book, at in zip(books, picked, strict=True)])


def make_layer(mix: str, heads: int, dim: int, rng: torch.Generator) -> Layer:
    """A layer whose widths are drawn from a mix."""
    choices = torch.tensor(MIXES[mix])
    widths = choices[torch.randint(len(choices), (heads * dim,), generator=rng)]
    books = [torch.randn(1 << int(w), generator=rng).sort().values for w in widths]
    return Layer(heads, dim, widths, torch.cat(books))


COMPILED = [level for level in available_levels() if level != "reference"]


@pytest.fixture(params=COMPILED)
def compiled_level(request: pytest.FixtureRequest) -> str:
    """Every compiled level this machine can run, in turn."""
    return request.param


@pytest.fixture(params=[*COMPILED, pytest.param("triton", marks=needs_triton)])
def level(request: pytest.FixtureRequest) -> str:
    """The same, and Triton's interpreter."""
    return request.param
