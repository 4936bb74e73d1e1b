"""Family D: what attention scores and softmax do not notice."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from gonio.linalg.rotations import haar_rotation, householder_reflection
from gonio.quant.sign import sign_cosine
from gonio.theorems.checks import exact
from gonio.theorems.checks.cases import (
    IntMatrix,
    IntVector,
    Key,
    binary_exponents,
    generator,
    int_matrices,
    int_vectors,
    keys,
    seeds,
    to_tensor,
)
from gonio.theorems.checks.check import Check, Mutant, close_margin, exact_margin

__all__ = ["CHECKS"]

_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class _Attention:
    """Keys (one per row), a query, a shift, normals of two reflections, a scale and a seed."""

    keys: IntMatrix
    query: IntVector
    shift: IntVector
    normals: tuple[IntVector, IntVector]
    exponent: int
    seed: int


@st.composite
def _attentions(draw: st.DrawFn) -> _Attention:
    size = draw(st.integers(1, 5))
    vector = int_vectors(size)
    return _Attention(
        draw(int_matrices(cols=size, max_size=5)),
        draw(vector),
        draw(vector),
        draw(st.tuples(vector, vector)),
        draw(binary_exponents.filter(lambda e: abs(e) < 400)),  # scores are products of two
        draw(seeds),
    )


def _scores(keys: exact.Matrix, query: exact.Vector) -> exact.Vector:
    return tuple(exact.dot(key, query) for key in keys)


def _apply(rotation: exact.Matrix, vectors: exact.Matrix) -> exact.Matrix:
    """Each row ``v`` becomes ``R v``."""
    return exact.matmul(vectors, exact.transpose(rotation))


def _scores_agree(case: _Attention, rotation: exact.Matrix) -> float:
    rotated = _scores(_apply(rotation, case.keys), _apply(rotation, (case.query,))[0])
    pairs = zip(rotated, _scores(case.keys, case.query), strict=True)
    return min(exact_margin(one, other) for one, other in pairs)


def _gauge(case: _Attention) -> float:
    rational = exact.rotation(case.normals)
    scale = 2.0**case.exponent
    keys, query = scale * to_tensor(case.keys), scale * to_tensor(case.query)
    rotation = haar_rotation(query.shape[-1], generator(case.seed), dtype=torch.float64)
    rotated = (keys @ rotation.mT) @ (query @ rotation.mT)
    # Each rotated vector is off by sqrt(d) (d + 2) eps of its norm, the factor 4 covers QR.
    size = query.shape[-1]
    relative = 4 * (size + 2) ** 1.5 * _EPS
    reach = (keys / scale).norm(dim=-1) * (query / scale).norm() * scale**2
    error = (rotated - keys @ query).abs()
    margins = [
        close_margin(e, relative * r) for e, r in zip(error.tolist(), reach.tolist(), strict=True)
    ]
    return min(_scores_agree(case, rational), *margins)


def _first_order_rotation(case: _Attention) -> float:
    """``I + S`` with S skew: orthogonal to first order only."""
    u, v = case.normals
    identity = exact.identity(len(u))
    tilted = tuple(
        tuple(identity[i][j] + u[i] * v[j] - v[i] * u[j] for j in range(len(u)))
        for i in range(len(u))
    )
    return _scores_agree(case, tilted)


def _softmax(scores: exact.Vector, exponent: int) -> torch.Tensor:
    return torch.softmax(to_tensor(scores) * 2.0**exponent, dim=-1)


def _weights_agree(case: _Attention, shifted: exact.Matrix) -> float:
    """Differences of scores exactly, softmax weights up to rounding."""
    before, after = _scores(case.keys, case.query), _scores(shifted, case.query)
    pairs = zip(before, after, strict=True)
    differences = min(exact_margin(a - after[0], b - before[0]) for b, a in pairs)
    # Integer scores are exact in float64, and so are their differences from the largest.
    exponent = min(case.exponent, 1)
    error = (_softmax(after, exponent) - _softmax(before, exponent)).abs().sum().item()
    return min(differences, close_margin(error, 4 * len(before) * _EPS))


def _softmax_shift(case: _Attention) -> float:
    shifted = tuple(
        tuple(x - mu for x, mu in zip(key, case.shift, strict=True)) for key in case.keys
    )
    return _weights_agree(case, shifted)


def _softmax_token_shift(case: _Attention) -> float:
    """Subtracts from each key its own sum (d times its own mean), not a shared vector."""
    return _weights_agree(case, tuple(tuple(x - sum(key) for x in key) for key in case.keys))


def _reaches_lattice(key: Key) -> float:
    """The reflection that sends the key to (1, .., 1) is orthogonal and leaves cosine 1."""
    vector = key.tensor()
    rotation = householder_reflection(vector, torch.ones_like(vector))
    size = len(key.entries)
    defect = (rotation @ rotation.mT - torch.eye(size, dtype=torch.float64)).abs().max().item()
    rounding = 16 * (size + 2) * _EPS
    cosine = sign_cosine(rotation @ vector).item()
    return min(close_margin(defect, rounding), close_margin(abs(cosine - 1.0), rounding))


def _centering_reaches_lattice(key: Key) -> float:
    """Centers a key of integers (times d) and asks its 1-bit cosine, unless it was constant."""
    centered = tuple(len(key.entries) * x - sum(key.entries) for x in key.entries)
    if not any(centered):
        return 1.0
    cosine = sign_cosine(to_tensor(centered)).item()
    return close_margin(abs(cosine - 1.0), 16 * (len(centered) + 2) * _EPS)


CHECKS = (
    Check(
        name="rotating_keys_and_queries",
        arithmetic="float64",
        tried="up to 5 integer keys in up to R^5; products of rational reflections, Haar rotations",
        cases=_attentions(),
        margin=_gauge,
        mutant=Mutant(
            "The scores also survive I + S with S skew, the rotation to first order.",
            _first_order_rotation,
        ),
    ),
    Check(
        name="shifting_every_key",
        arithmetic="float64",
        tried="up to 5 integer keys in up to R^5 and a shared shift",
        cases=_attentions(),
        margin=_softmax_shift,
        mutant=Mutant(
            "The weights also survive subtracting from each key its own mean (times d).",
            _softmax_token_shift,
        ),
    ),
    Check(
        name="one_vector_reaches_the_lattice",
        arithmetic="float64",
        tried="integer keys of 1 to 7 entries at scales up to 2**560, each with its reflection",
        cases=keys(),
        margin=_reaches_lattice,
        mutant=Mutant(
            "Centering alone, without a rotation, brings a vector to the lattice.",
            _centering_reaches_lattice,
        ),
    ),
)
