"""An update known as a whole matrix: of a DoRA module, a saved module or a full fine-tune."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from gonio.adapters.stored import all_finite
from gonio.adapters.update import LoraUpdate, ModuleKind, split_module_name
from gonio.errors import AdapterError

__all__ = ["DenseUpdate"]


class DenseUpdate(LoraUpdate):
    """A change of a weight that has no small factors, computed anew whenever it is asked for.

    It holds no matrix: ``read`` computes it from files, so that a model's updates can be walked
    through with one of them in memory. As factors it is the matrix beside an identity on its
    smaller side, of rank ``min(m, n)`` and scaling 1.

    Args:
        module: Name of the changed module in the base model.
        shape: ``(out_features, in_features)``.
        read: Computes the change, float64, of that shape.
        module_kind: What the module is; ``kind`` itself is ``dense``.
        kernel: Kernel size of a convolution.
        operand_norm: Frobenius norm of the larger term if ``read`` computes the change as a
            rounded difference, in the unit of the update; 0 if the difference is exact.
    """

    _shape: tuple[int, int]
    _read: Callable[[], Tensor]
    _module_kind: ModuleKind
    _operand_norm: float

    def __init__(
        self,
        module: str,
        shape: tuple[int, int],
        read: Callable[[], Tensor],
        *,
        module_kind: ModuleKind = "linear",
        kernel: tuple[int, ...] = (),
        operand_norm: float = 0.0,
    ) -> None:
        layer, projection = split_module_name(module)
        fields: dict[str, object] = {
            "module": module,
            "scaling": 1.0,
            "layer": layer,
            "projection": projection,
            "kind": "dense",
            "kernel": kernel,
            "_module_kind": module_kind,
            "_shape": shape,
            "_read": read,
            "_operand_norm": operand_norm,
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)  # as the frozen parent's own __init__ does

    def matrix(self) -> Tensor:
        """The change, float64, shape ``(m, n)``; computed on every call.

        Raises:
            AdapterError: It holds NaN or infinite entries.
        """
        matrix = self._read()
        assert matrix.shape == self.shape, self.module
        if not all_finite(matrix):
            raise AdapterError(
                f"the update of {self.module} holds NaN or infinite entries\n"
                "The training run diverged; use an earlier checkpoint."
            )
        return matrix

    @property
    def module_kind(self) -> ModuleKind:
        """What the module is: ``linear``, ``embedding`` or ``convolution``."""
        return self._module_kind

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features)``."""
        return self._shape

    @property
    def out_features(self) -> int:
        """Rows m of the update."""
        return self._shape[0]

    @property
    def in_features(self) -> int:
        """Columns n of the update."""
        return self._shape[1]

    @property
    def rank(self) -> int:
        """``min(m, n)``: nothing limits the rank of a dense update but its shape."""
        return min(self._shape)

    @property
    def lora_a(self) -> Tensor:
        """``(rank, n)``, float64: the identity if n is the smaller side, else the matrix."""
        m, n = self._shape
        return torch.eye(n, dtype=torch.float64) if n <= m else self.matrix()

    @property
    def lora_b(self) -> Tensor:
        """``(m, rank)``, float64: the matrix if n is the smaller side, else the identity."""
        m, n = self._shape
        return self.matrix() if n <= m else torch.eye(m, dtype=torch.float64)

    def singular_values(self) -> Tensor:
        """Singular values, descending, float64, shape ``(min(m, n),)``."""
        sigma: Tensor = torch.linalg.svdvals(self.matrix())
        return sigma

    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """``(u, sigma, vh)`` in float64 with q = min(m, n): ``(m, q)``, ``(q,)``, ``(q, n)``."""
        u, sigma, vh = torch.linalg.svd(self.matrix(), full_matrices=False)
        return u, sigma, vh

    @cached_property
    def frobenius_norm(self) -> float:
        """Frobenius norm of the update; the matrix is computed once for it."""
        return float(torch.linalg.vector_norm(self.matrix()))

    def norm_bound(self) -> float:
        """``sqrt(rank)`` times the Frobenius norm: at least the nuclear norm."""
        return math.sqrt(self.rank) * self.frobenius_norm

    def noise_floor(self) -> float:
        """What rounding alone may give a singular value.

        ``max(m, n) * eps64`` times the Frobenius norm, for the decomposition, and times the norm
        of the terms where the matrix is a rounded difference; plus the smallest normal float64.

        Source: Higham 2002 (doi:10.1137/1.9780898718027), section 3.5 and theorem 19.4:
        orthogonal transformations are backward stable in the norm of the whole matrix.
        """
        limits = torch.finfo(torch.float64)
        size = self.frobenius_norm + self._operand_norm
        return max(self._shape) * limits.eps * size + limits.tiny
