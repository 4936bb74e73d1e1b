"""One weight matrix under one bit: signs and a scale per row, after a choice of rotation or center.

The vectors are the rows of W (out_features vectors of R^in), so that a rotation of the input,
``W x = (W R^T)(R x)``, is a rotation of every row. Two figures that are not the same:

- cosine: mean over rows of the 1-bit cosine of the row as signs see it (rotated or centered);
- beta: share of the energy of W that is kept, ``1 - |W - W^|_F^2 / |W|_F^2``. What is stored
  beside the signs (means, low-rank factors) counts as kept.

Chance is a matrix whose rows point in uniformly random directions, with the same energies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gonio.errors import SettingError, ZeroMatrixError
from gonio.linalg.chance import sign_cosine_of_random_direction
from gonio.linalg.hadamard import hadamard_transform, has_hadamard
from gonio.linalg.rotations import haar_rotation, learned_sign_rotation
from gonio.quant import StoredBits, population_beta, sign_cosine
from gonio.weights.residual import random_top_share, top_energy_share

__all__ = [
    "SignFigure",
    "SignSettings",
    "WeightSigns",
    "centered_direction_beta",
    "random_direction_beta",
    "sign_residual",
    "sign_storage",
    "split_rows",
]

_HALF = 2  # bytes of a scale, mean, factor or rotation entry: float16


@dataclass(frozen=True)
class SignSettings:
    """What is measured on every matrix.

    Attributes:
        haar_draws: Random rotations averaged, at least 1.
        iterations: Steps of the learned rotation, at least 1.
        rank: Directions of the residual correction, at least 1.
        max_dim: Work that grows with the cube of a dimension is left out, by name, above this
            one: random and learned rotations of R^in, and the residual's spectrum when both
            sides are longer.
        seed: Seed of rotations, starts and the split of the rows.
    """

    haar_draws: int = 3
    iterations: int = 20
    rank: int = 16
    max_dim: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("haar_draws", 1), ("iterations", 1), ("rank", 1), ("max_dim", 0)):
            if getattr(self, name) < least:
                raise SettingError(f"{name} is {getattr(self, name)}, expected at least {least}")


@dataclass(frozen=True)
class SignFigure:
    """What one choice gives on one matrix. Shares and cosines are dimensionless.

    The learned rotation's ``cosine`` and ``beta`` are those of rows it was not fitted on; its
    figures on the rows it was fitted on, and on random rows of that number, stand beside them.
    """

    choice: str
    cosine: float
    cosine_chance: float
    beta: float
    beta_chance: float
    stored: StoredBits
    cosine_train: float = math.nan
    cosine_train_chance: float = math.nan
    beta_train: float = math.nan

    @property
    def bits_per_weight(self) -> float:
        """Everything stored, per weight: signs, scales, means, factors, share of a rotation."""
        return self.stored.bits_per_element + self.stored.side_bits_per_element


class WeightSigns:
    """Measures matrices; draws each random rotation once per dimension.

    Args:
        settings: What is measured.
    """

    def __init__(self, settings: SignSettings | None = None) -> None:
        self.settings = settings or SignSettings()
        self._haar: dict[int, list[Tensor]] = {}
        self._null: dict[tuple[int, int], float] = {}

    def measure(
        self, matrices: Sequence[Tensor]
    ) -> tuple[list[list[SignFigure]], list[list[tuple[str, str]]]]:
        """Every choice on matrices that share one learned rotation.

        Args:
            matrices: Float matrices that read the same input, each of shape (rows, n). Zero
                rows are ignored.

        Returns:
            Per matrix, its figures, and what was left out as (choice, reason).

        Raises:
            ZeroMatrixError: A matrix is zero.
        """
        whole = [_nonzero_rows(matrix) for matrix in matrices]
        n = whole[0].shape[1]
        figures, left_out = [], []
        learned = self._learned(whole)
        for rows, fitted in zip(whole, learned, strict=True):
            one = [*self._fixed(rows)]
            missing = []
            if not has_hadamard(n):
                missing.append(("hadamard", f"no Hadamard matrix of order {n} is known here"))
            if n > self.settings.max_dim:
                reason = f"in_features {n} above the limit of {self.settings.max_dim}"
                missing += [("haar", reason), ("learned", reason)]
            one += [fitted] if fitted is not None else []
            corrected, reason = self._corrected(rows, one)
            one += corrected
            missing += [("rank correction", reason)] if reason else []
            figures.append(one)
            left_out.append(missing)
        return figures, left_out

    def _fixed(self, rows: Tensor) -> Iterator[SignFigure]:
        """No rotation, Haar and Hadamard, then the two centers."""
        count, n = rows.shape
        yield _figure("none", rows, sign_storage(count, n))
        if n <= self.settings.max_dim:
            drawn = [_figure("haar", rows @ r.mT, sign_storage(count, n)) for r in self._draws(n)]
            seed = sign_storage(count, n, side_bytes=8)
            yield replace(
                drawn[0],
                cosine=math.fsum(one.cosine for one in drawn) / len(drawn),
                beta=math.fsum(one.beta for one in drawn) / len(drawn),
                stored=seed,
            )
        if has_hadamard(n):
            yield _figure("hadamard", hadamard_transform(rows), sign_storage(count, n))
        yield _centered("column_centered", rows, rows.mean(dim=0, keepdim=True), n)
        if n > 1:
            yield _centered("row_centered", rows, rows.mean(dim=1, keepdim=True), n - 1)

    def _draws(self, n: int) -> list[Tensor]:
        if n not in self._haar:
            generator = torch.Generator().manual_seed(self.settings.seed)
            draws = range(self.settings.haar_draws)
            self._haar[n] = [haar_rotation(n, generator) for _ in draws]
        return self._haar[n]

    def _learned(self, matrices: Sequence[Tensor]) -> list[SignFigure | None]:
        """Fitted on half of the rows of all matrices together, judged on the rest of each."""
        n = matrices[0].shape[1]
        if n > self.settings.max_dim or min(len(rows) for rows in matrices) < 2:
            return [None] * len(matrices)
        generator = torch.Generator().manual_seed(self.settings.seed)
        halves = [split_rows(rows, generator) for rows in matrices]
        train = torch.cat([fit for fit, _ in halves])
        start = self._draws(n)[0]
        settings = self.settings
        rotation, _ = learned_sign_rotation(train, iterations=settings.iterations, initial=start)
        null = self._train_chance(len(train), n)
        bytes_per_weight = _HALF * n * n / sum(rows.numel() for rows in matrices)
        found = []
        for rows, (fit, held_out) in zip(matrices, halves, strict=True):
            side = round(bytes_per_weight * rows.numel())
            on_held_out = _figure(
                "learned", held_out @ rotation.mT, sign_storage(*rows.shape, side_bytes=side)
            )
            on_train = fit @ rotation.mT
            found.append(
                replace(
                    on_held_out,
                    cosine_train=sign_cosine(on_train).mean().item(),
                    cosine_train_chance=null,
                    beta_train=population_beta(on_train).item(),
                )
            )
        return [*found]

    def _train_chance(self, count: int, n: int) -> float:
        """Cosine that the same fit reaches on its own rows when they are random directions."""
        if (count, n) not in self._null:
            generator = torch.Generator().manual_seed(self.settings.seed)
            rows = torch.randn((count, n), generator=generator)
            start = haar_rotation(n, generator)
            steps = self.settings.iterations
            _, trace = learned_sign_rotation(rows, iterations=steps, initial=start)
            self._null[count, n] = trace.max().item()
        return self._null[count, n]

    def _corrected(
        self, rows: Tensor, figures: Sequence[SignFigure]
    ) -> tuple[list[SignFigure], str]:
        """Signs of the raw and the Hadamard-turned rows, plus the residual's best rank r."""
        count, n = rows.shape
        rank = min(self.settings.rank, count, n)
        if min(count, n) > self.settings.max_dim:
            return [], f"both sides of {count} x {n} above the limit of {self.settings.max_dim}"
        null = random_top_share(count, n, rank)
        found = []
        for base in figures:
            if base.choice not in ("none", "hadamard"):
                continue
            turned = rows if base.choice == "none" else hadamard_transform(rows)
            gamma = top_energy_share(sign_residual(turned), rank)
            factors = StoredBits(0, _HALF * rank * (count + n), 0, 0)
            found.append(
                replace(
                    base,
                    choice=f"{base.choice}+rank{rank}",
                    beta=1.0 - (1.0 - base.beta) * (1.0 - gamma),
                    beta_chance=1.0 - (1.0 - base.beta_chance) * (1.0 - null),
                    stored=base.stored + factors,
                )
            )
        return found, ""


def random_direction_beta(n: int) -> float:
    """Mean beta of a uniformly random direction of R^n: ``2/pi + (1 - 2/pi)/n``.

    ``E|u|_1^2 / n`` with ``E u_i^2 = 1/n`` and ``E|u_i u_j| = 2/(pi n)``; larger than the square
    of the mean cosine c_n by its variance.

    Args:
        n: Dimension, at least 1.

    Returns:
        In (2/pi, 1], dimensionless.
    """
    return 2.0 / math.pi + (1.0 - 2.0 / math.pi) / n


def centered_direction_beta(n: int) -> float:
    """Mean beta of a uniformly random direction of R^n whose entries sum to 0, n at least 2.

    Its entries are those of a Gaussian vector with correlations ``rho = -1/(n-1)``, for which
    ``E|x y| = (2/pi)(sqrt(1 - rho^2) + rho asin(rho))`` per unit variance. Its mean cosine is
    c_(n-1) exactly.

    Returns:
        In [2/pi, 1], dimensionless.
    """
    rho = -1.0 / (n - 1)
    mean_product = 2.0 / math.pi * (math.sqrt(1.0 - rho * rho) + rho * math.asin(rho))
    return (1.0 + (n - 1) * mean_product) / n


def sign_residual(rows: Tensor) -> Tensor:
    """Rows minus their signs times the least-squares scale ``|w|_1 / n``, in float64."""
    rows = rows.double()
    scale = rows.abs().mean(dim=1, keepdim=True)
    return rows - torch.where(rows >= 0, scale, -scale)


def sign_storage(count: int, n: int, *, side_bytes: int = 0) -> StoredBits:
    """Bytes of a matrix as packed signs (rows padded to bytes) and one float16 scale per row."""
    return StoredBits(count * -(-n // 8), _HALF * count, side_bytes, count * n)


def split_rows(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two random halves of the rows, the first to fit on and the second to judge."""
    order = torch.randperm(rows.shape[0], generator=generator)
    half = rows.shape[0] // 2
    return rows[order[:half]], rows[order[half:]]


def _nonzero_rows(matrix: Tensor) -> Tensor:
    rows = matrix[matrix.abs().amax(dim=1) > 0]
    if rows.shape[0] == 0:
        raise ZeroMatrixError(f"a weight of shape {tuple(matrix.shape)} is zero: it has no signs")
    return rows


def _figure(choice: str, rows: Tensor, stored: StoredBits) -> SignFigure:
    n = rows.shape[1]
    return SignFigure(
        choice,
        sign_cosine(rows, zero_value=0.0).mean().item(),
        sign_cosine_of_random_direction(n),
        population_beta(rows).item(),
        random_direction_beta(n),
        stored,
    )


def _centered(choice: str, rows: Tensor, mean: Tensor, free: int) -> SignFigure:
    """Signs of rows minus a mean that is stored; rows live in ``free`` dimensions after that."""
    count, n = rows.shape
    centered = rows - mean
    share = float(centered.double().square().sum() / rows.double().square().sum())
    moved = mean.shape[1] == 1
    metadata, side = (_HALF * count, 0) if moved else (0, _HALF * n)
    stored = sign_storage(count, n, side_bytes=side) + StoredBits(0, metadata, 0, 0)
    nonzero = bool(centered.any())
    cosine = sign_cosine(centered, zero_value=1.0).mean().item()
    beta = population_beta(centered).item() if nonzero else 1.0
    chance = random_direction_beta(n) if free == n else centered_direction_beta(n)
    return SignFigure(
        choice,
        cosine,
        sign_cosine_of_random_direction(free),
        1.0 - (1.0 - beta) * share,
        1.0 - (1.0 - chance) * share,
        stored,
    )
