"""Shrinking an adapter by the error of its outputs instead of the error of its entries.

For inputs x with second moment ``C = E[x x^T]`` the mean squared error of a module's output is
``E|(D' - D) x|^2 = |(D' - D) C^{1/2}|_F^2``. Among all D' of rank at most k it is least for
``D' = U_k U_k^T D``, with U_k the top k left singular vectors of ``D C^{1/2}``: that D' leaves the
residual ``(I - U_k U_k^T) D C^{1/2}``, the least any matrix of rank k leaves (Eckart & Young 1936),
and D'C^{1/2} has no larger rank than D'. C is never inverted, so it may be singular; where several
D' are optimal, this one is the closest to D among those with columns in the span of U_k.

With ``D = U S V^T`` the left singular vectors are ``U W``, W the eigenvectors of the q x q matrix
``S V^T C V S``, so neither D nor the square root of C is formed.

Theorem: ``residual_topk_eckart_young``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from gonio.adapters.adapter import Adapter
from gonio.adapters.allocation import allocate_parameters, ranks_for_energy
from gonio.adapters.resize import Resized, stored_parameters, truncate
from gonio.adapters.update import LoraUpdate, with_factors
from gonio.errors import SettingError, ShapeError

__all__ = ["resize_weighted"]

_ROUNDING = 1e-6  # relative asymmetry or negative eigenvalue that sums in float32 may leave


def resize_weighted(
    adapter: Adapter | Sequence[LoraUpdate],
    moments: Mapping[str, Tensor],
    *,
    rank: int | None = None,
    energy: float | None = None,
    parameters: int | None = None,
    held_out: Mapping[str, Tensor] | None = None,
) -> Resized:
    """The adapter of smaller ranks with the least output error on given inputs.

    Args:
        adapter: An adapter, or updates of distinct modules.
        moments: Second moment of each module's inputs, ``(in_features, in_features)``, see
            :func:`gonio.models.activations.input_second_moments`. Its scale does not matter to
            the result of one module, but it does to ``parameters``, which adds modules up.
        rank: Every module's rank, at least 1; a module of smaller rank keeps its own.
        energy: Share of each module's output energy to keep, in (0, 1].
        parameters: Total parameters allowed; ranks then minimise the total output error.
        held_out: Second moments of other inputs, on which both truncations are judged too.

    Returns:
        The resized updates. The table has the columns of :class:`gonio.adapters.resize.Resized`,
        with ``energy`` and ``discarded_energy`` those of the entries as ever, and further
        ``discarded_energy_plain`` (of the plain truncation to the same ranks), ``output_energy``
        (``E|D x|^2``, mean over tokens), ``output_error`` (``E|(D' - D) x|^2``) and
        ``output_error_plain``; with ``held_out`` the last three again as ``held_out_...``.
        ``output_error <= output_error_plain`` on ``moments``; on held-out inputs either may win.

    Raises:
        SettingError: Not exactly one rule is given, one is out of range, a module has no moment,
            or a moment is not finite, symmetric and positive semidefinite.
        ShapeError: A moment does not fit its module.
    """
    rules = {"rank": rank, "energy": energy, "parameters": parameters}
    given = [name for name, value in rules.items() if value is not None]
    if len(given) != 1:
        raise SettingError(f"give exactly one of rank, energy and parameters, found {given}")
    if rank is not None and rank < 1:
        raise SettingError(f"rank must be at least 1, found {rank}")
    updates = tuple(adapter.updates.values()) if isinstance(adapter, Adapter) else tuple(adapter)
    for source in (moments, held_out):
        if source is not None:
            _check_names(updates, source)
    modules = [_Weighted.of(update, moments[update.module]) for update in updates]
    spectra = [module.spectrum.numpy() for module in modules]
    if rank is not None:
        ranks = [min(rank, len(sigma)) for sigma in spectra]
    elif energy is not None:
        ranks = ranks_for_energy(spectra, energy)
    else:
        assert parameters is not None
        ranks = allocate_parameters(spectra, [sum(update.shape) for update in updates], parameters)
    rows = []
    for module, k in zip(modules, ranks, strict=True):
        row = module.row(k)
        if held_out is not None:
            errors = module.errors(module.core(held_out[module.update.module]), k)
            row |= {f"held_out_{name}": value for name, value in errors.items()}
        rows.append(row)
    kept = [module.keep(k) for module, k in zip(modules, ranks, strict=True) if k > 0]
    return Resized(tuple(kept), pd.DataFrame(rows))


@dataclass(frozen=True)
class _Weighted:
    """One update in coordinates where both truncations are diagonal blocks.

    Attributes:
        update: The update ``D = left @ diag(sigma) @ right``.
        left: ``(m, q)``, orthonormal columns.
        sigma: ``(q,)``, descending.
        right: ``(q, n)``, orthonormal rows.
        inputs: ``sigma * right @ C @ right^T * sigma``, ``(q, q)``: the second moment of the
            outputs ``D x`` in the basis ``left``.
        turn: Its eigenvectors, largest eigenvalue first, ``(q, q)``.
        spectrum: Singular values of ``D C^{1/2}``, descending, ``(q,)``.
    """

    update: LoraUpdate
    left: Tensor
    sigma: Tensor
    right: Tensor
    inputs: Tensor
    turn: Tensor
    spectrum: Tensor

    @classmethod
    def of(cls, update: LoraUpdate, moment: Tensor) -> _Weighted:
        left, sigma, right = update.svd()
        inputs = _core(update.module, sigma, right, moment)
        values, vectors = torch.linalg.eigh(inputs)
        if float(values[0]) < -_ROUNDING * float(values[-1].abs()):
            raise SettingError(f"the second moment of {update.module} has negative eigenvalues")
        spectrum = values.flip(-1).clamp(min=0.0).sqrt()
        return cls(update, left, sigma, right, inputs, vectors.flip(-1), spectrum)

    def core(self, moment: Tensor) -> Tensor:
        return _core(self.update.module, self.sigma, self.right, moment)

    def keep(self, k: int) -> LoraUpdate:
        """``U_k U_k^T D`` with ``U_k = left @ turn[:, :k]``, factors balanced."""
        turn = self.turn[:, :k]
        lora_a = turn.mT @ (self.sigma[:, None] * self.right)
        return truncate(with_factors(self.update, self.left @ turn, lora_a), k)

    def errors(self, inputs: Tensor, k: int) -> dict[str, float]:
        """Output energy, and the output errors of both truncations, under ``inputs``."""
        rest = self.turn[:, k:]
        return {
            "output_energy": float(inputs.trace()),
            "output_error": max(0.0, float((rest * (inputs @ rest)).sum())),
            "output_error_plain": float(inputs.diagonal()[k:].sum()),
        }

    def row(self, k: int) -> dict[str, object]:
        update, squares = self.update, self.sigma.square()
        return {
            "module": update.module,
            "layer": update.layer,
            "projection": update.projection,
            "rank_before": update.rank,
            "rank_after": k,
            "parameters_before": stored_parameters(update),
            "parameters_after": k * sum(update.shape),
            "energy": float(squares.sum()),
            "discarded_energy": float((squares @ self.turn[:, k:].square()).sum()),
            "discarded_energy_plain": float(squares[k:].sum()),
            **self.errors(self.inputs, k),
        }


def _core(module: str, sigma: Tensor, right: Tensor, moment: Tensor) -> Tensor:
    """``diag(sigma) right C right^T diag(sigma)``, symmetric, float64."""
    n = right.shape[1]
    if moment.shape != (n, n):
        raise ShapeError(
            f"the second moment of {module} has shape {tuple(moment.shape)}, expected {(n, n)}"
        )
    moment = moment.to(right.dtype)
    asymmetry = float((moment - moment.mT).abs().max())
    if not asymmetry <= _ROUNDING * float(moment.abs().max()):  # also false for NaN
        raise SettingError(f"the second moment of {module} is not a finite symmetric matrix")
    rows = sigma[:, None] * right
    core = rows @ moment @ rows.mT
    return (core + core.mT) / 2


def _check_names(updates: Sequence[LoraUpdate], moments: Mapping[str, Tensor]) -> None:
    missing = [update.module for update in updates if update.module not in moments]
    if missing:
        raise SettingError(
            f"no second moment for {len(missing)} of {len(updates)} modules, first {missing[0]}\n"
            "Observe the inputs of every module that the adapter changes."
        )
