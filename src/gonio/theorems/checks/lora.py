"""Family J: gradients, initialization and number of the factors of a low-rank update."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from hypothesis import strategies as st
from torch import Tensor

from gonio.theorems.checks.cases import IntMatrix, int_matrices, to_tensor
from gonio.theorems.checks.check import Check, Mutant, close_margin, exact_margin, iff_margin

__all__ = ["CHECKS"]

_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class _Layer:
    """A layer ``(W + s B A) x`` with inputs and targets; ``s = numerator / denominator``."""

    weight: IntMatrix
    lora_b: IntMatrix
    lora_a: IntMatrix
    inputs: IntMatrix
    targets: IntMatrix
    numerator: int
    denominator: int

    @property
    def scaling(self) -> float:
        return self.numerator / self.denominator


@st.composite
def _layers(draw: st.DrawFn) -> _Layer:
    out_features, in_features = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    rank, tokens = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return _Layer(
        draw(int_matrices(rows=out_features, cols=in_features)),
        draw(int_matrices(rows=out_features, cols=rank)),
        draw(int_matrices(rows=rank, cols=in_features)),
        draw(int_matrices(rows=in_features, cols=tokens)),
        draw(int_matrices(rows=out_features, cols=tokens)),
        draw(st.integers(1, 8)),
        draw(st.integers(1, 8)),
    )


def _loss(weight: Tensor, case: _Layer) -> Tensor:
    """A loss with a curvature: half the squared error plus the log-sum-exp of the outputs."""
    outputs = weight @ to_tensor(case.inputs)
    error = outputs - to_tensor(case.targets)
    return 0.5 * error.square().sum() + torch.logsumexp(outputs, dim=0).sum()


@dataclass(frozen=True)
class _Gradients:
    """Factors and all three gradients: G of the loss in the full weight, dB and dA by autograd."""

    lora_b: Tensor
    lora_a: Tensor
    full: Tensor
    lora_b_grad: Tensor
    lora_a_grad: Tensor


def _gradients(case: _Layer, lora_b: Tensor, lora_a: Tensor) -> _Gradients:
    lora_b, lora_a = lora_b.requires_grad_(), lora_a.requires_grad_()
    base = to_tensor(case.weight)
    loss = _loss(base + case.scaling * lora_b @ lora_a, case)
    lora_b_grad, lora_a_grad = torch.autograd.grad(loss, (lora_b, lora_a))
    weight = (base + case.scaling * lora_b @ lora_a).detach().requires_grad_()
    (full,) = torch.autograd.grad(_loss(weight, case), weight)
    return _Gradients(lora_b.detach(), lora_a.detach(), full, lora_b_grad, lora_a_grad)


def _agree(actual: Tensor, expected: Tensor, reach: float) -> float:
    """Closeness up to the rounding of sums whose terms reach ``reach``."""
    return close_margin((actual - expected).abs().max().item(), 256 * _EPS * reach)


def _gradient_formulas(case: _Layer, scaling: float) -> float:
    g = _gradients(case, to_tensor(case.lora_b), to_tensor(case.lora_a))
    size = 1.0 + g.full.abs().sum().item() * case.scaling
    return min(
        _agree(
            g.lora_b_grad, scaling * g.full @ g.lora_a.mT, size * (1 + g.lora_a.abs().sum().item())
        ),
        _agree(
            g.lora_a_grad, scaling * g.lora_b.mT @ g.full, size * (1 + g.lora_b.abs().sum().item())
        ),
    )


def _is_zero(tensor: Tensor) -> bool:
    return not bool(tensor.any())


def _zero_init(case: _Layer) -> float:
    """B = 0, then A = 0, then both: which gradients vanish, decided by G, A and B alone."""
    b, a = to_tensor(case.lora_b), to_tensor(case.lora_a)
    zero_b, zero_a = torch.zeros_like(b), torch.zeros_like(a)
    by_b, by_a = _gradients(case, zero_b, a.clone()), _gradients(case, b.clone(), zero_a)
    both = _gradients(case, zero_b.clone(), zero_a.clone())
    base = to_tensor(case.weight)
    unchanged = base + case.scaling * zero_b.detach() @ a
    return min(
        iff_margin(bool(torch.equal(unchanged, base)), True),
        iff_margin(_is_zero(by_b.lora_a_grad), True),
        iff_margin(_is_zero(by_a.lora_b_grad), True),
        _vanishes_with(by_b.lora_b_grad, by_b.full @ a.mT),
        _vanishes_with(by_a.lora_a_grad, b.mT @ by_a.full),
        iff_margin(_is_zero(both.lora_a_grad) and _is_zero(both.lora_b_grad), True),
    )


def _vanishes_with(gradient: Tensor, product: Tensor) -> float:
    """The gradient of the zero factor vanishes only if G A^T (or B^T G) does."""
    floor = 1e-9
    return iff_margin(gradient.norm().item() < floor, product.norm().item() < floor)


def _zero_factor_keeps_still(case: _Layer) -> float:
    b = torch.zeros_like(to_tensor(case.lora_b))
    g = _gradients(case, b, to_tensor(case.lora_a))
    return iff_margin(g.lora_b_grad.norm().item() < 1e-9, True)


@dataclass(frozen=True)
class _Shape:
    """Output and input features of a weight, and the rank of its update."""

    out_features: int
    in_features: int
    rank: int


_features = st.sampled_from((1, 2, 3, 7, 64, 1000, 4096))
_shapes = st.builds(_Shape, _features, _features, st.integers(1, 64))


def _parameter_gain(case: _Shape, gain: Fraction) -> float:
    """Numbers of the weight over those of the factors, counted; above 1 below a rank."""
    m, n = case.out_features, case.in_features
    weight = torch.empty(m, n, device="meta")
    factors = torch.empty(m, case.rank, device="meta"), torch.empty(case.rank, n, device="meta")
    counted = Fraction(weight.numel(), sum(factor.numel() for factor in factors))
    is_smaller = case.rank * (m + n) < m * n
    return min(exact_margin(counted, gain), iff_margin(counted > 1, is_smaller))


CHECKS = (
    Check(
        name="gradients_of_factors",
        arithmetic="float64",
        tried="layers up to 4 x 4 with integer factors, against automatic differentiation",
        cases=_layers(),
        margin=lambda case: _gradient_formulas(case, case.scaling),
        mutant=Mutant(
            "The gradients are G A^T and B^T G, without the scaling alpha/r.",
            lambda case: _gradient_formulas(case, 1.0),
        ),
    ),
    Check(
        name="one_zero_factor",
        arithmetic="float64",
        tried="layers up to 4 x 4 with B, A or both zero, by automatic differentiation",
        cases=_layers(),
        margin=_zero_init,
        mutant=Mutant("With B = 0 it is B's own gradient that vanishes.", _zero_factor_keeps_still),
    ),
    Check(
        name="parameters_saved",
        arithmetic="exact",
        tried="weights of 1 to 4096 features either way, ranks 1 to 64, counted",
        cases=_shapes,
        margin=lambda case: _parameter_gain(
            case,
            Fraction(
                case.out_features * case.in_features,
                case.rank * (case.out_features + case.in_features),
            ),
        ),
        mutant=Mutant(
            "The gain is min(m, n)/r: 100 for m = n = 1000 and r = 10.",
            lambda case: _parameter_gain(
                case, Fraction(min(case.out_features, case.in_features), case.rank)
            ),
        ),
    ),
)
