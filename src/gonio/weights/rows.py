"""The projection matrices of a model's layers, as rows: one vector of R^in per output.

Read from the tensor names and shapes of the files, without building the model. Linear layers,
GPT-2's transposed ``Conv1D``, experts stored one by one (Mixtral, OLMoE, Qwen3-MoE) and experts
fused into one 3-D tensor (gpt-oss, Granite) come out the same: (out_features, in_features).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from gonio.errors import ModelError
from gonio.models import WeightReader
from gonio.models.orientation import is_stored_transposed

__all__ = ["StoredMatrix", "input_groups", "list_matrices", "read_matrices"]

_FLOATS = ("F64", "F32", "F16", "BF16")
_ROUTERS = ("gate", "router", "shared_expert_gate")
_FUSED_PAIRS = {"gate_up_proj": "down_proj", "input_linear": "output_linear"}
# Projections of one module that read the same input.
_SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))


@dataclass(frozen=True)
class StoredMatrix:
    """One projection matrix and where it lies.

    Attributes:
        tensor: Name of the tensor in the files.
        layer: Number of the layer.
        projection: Parent and own name without numbers, for example ``self_attn.q_proj``.
        expert: Number of the expert, None outside experts.
        shape: (out_features, in_features).
        is_transposed: The tensor is stored as (in_features, out_features).
        is_fused: The tensor holds all experts along its first axis.
    """

    tensor: str
    layer: int
    projection: str
    expert: int | None
    shape: tuple[int, int]
    is_transposed: bool
    is_fused: bool

    @property
    def name(self) -> str:
        """The tensor's name; of fused experts with the expert's number in brackets."""
        return f"{self.tensor}[{self.expert}]" if self.is_fused else self.tensor


def list_matrices(
    weights: WeightReader, layers: Collection[int] | None = None
) -> tuple[tuple[StoredMatrix, ...], tuple[tuple[str, str], ...]]:
    """The projection matrices of a model, and what else it stores in two or more dimensions.

    Args:
        weights: The model's tensors.
        layers: Numbers of the layers wanted; all unless given.

    Returns:
        Matrices in layer order, and (tensor, reason) for every tensor left out of the wanted
        layers and outside layers.

    Raises:
        ModelError: A weight is packed, the orientation of fused experts cannot be told, a layer
            does not exist, or there is no projection matrix.
    """
    found: list[StoredMatrix] = []
    turned: dict[str, bool] = {}
    left_out: list[tuple[str, str]] = []
    for tensor in weights.names:
        shape = weights.shape(tensor)
        layer = _first_number(tensor)
        if len(shape) < 2 or (layer is not None and layers is not None and layer not in layers):
            continue
        _refuse_packed(weights, tensor)
        reason = _reason_to_leave_out(tensor, shape, layer)
        if reason is not None or layer is None:
            left_out.append((tensor, reason or "outside layers"))
        else:
            block = tensor.partition(f".{layer}.")[0] + f".{layer}"
            if block not in turned:
                turned[block] = is_stored_transposed(weights, tensor) is True
            found += _matrices_of(weights, tensor, shape, layer, turned[block])
    missing = sorted(set(layers or ()) - {matrix.layer for matrix in found})
    if missing or not found:
        wanted = f"layer {missing[0]}" if missing else "its layers"
        raise ModelError(f"no projection matrix in {wanted} of {weights.folder}")
    found.sort(key=lambda matrix: (matrix.layer, matrix.projection, matrix.expert or 0))
    return tuple(found), tuple(left_out)


def read_matrices(
    weights: WeightReader, matrices: Sequence[StoredMatrix]
) -> Iterator[tuple[StoredMatrix, Tensor]]:
    """Matrices one after another, float32, shape (out_features, in_features).

    A tensor that holds several experts is read once when its experts follow each other.
    """
    name, tensor = "", None
    for matrix in matrices:
        if tensor is None or matrix.tensor != name:
            name, tensor = matrix.tensor, weights.get(matrix.tensor)
        one = tensor[matrix.expert] if matrix.is_fused else tensor
        yield matrix, (one.mT if matrix.is_transposed else one).float()


def input_groups(matrices: Sequence[StoredMatrix]) -> list[list[StoredMatrix]]:
    """Matrices that read the same vector, by name: q, k and v; gate and up. Others stay alone."""
    groups: dict[tuple[str, int], list[StoredMatrix]] = {}
    for place, matrix in enumerate(matrices):
        parent, _, leaf = matrix.tensor.removesuffix(".weight").rpartition(".")
        kind = next((i for i, names in enumerate(_SAME_INPUT) if leaf in names), None)
        alone = (matrix.name, -1 - place)
        groups.setdefault(alone if kind is None else (parent, kind), []).append(matrix)
    return list(groups.values())


def _first_number(tensor: str) -> int | None:
    return next((int(part) for part in tensor.split(".") if part.isdigit()), None)


def _reason_to_leave_out(tensor: str, shape: tuple[int, ...], layer: int | None) -> str | None:
    leaf = tensor.removesuffix(".weight").rpartition(".")[2]
    if layer is None:
        return "embedding or output head, outside the layers"
    if leaf in _ROUTERS:
        return "router: chooses experts, not a projection"
    if leaf.endswith("bias"):
        return "bias"
    if len(shape) == 3 and leaf in (*_FUSED_PAIRS, *_FUSED_PAIRS.values()):
        return None
    if len(shape) > 2:
        return f"{len(shape)}-dimensional and not known as fused experts"
    return None


def _matrices_of(
    weights: WeightReader, tensor: str, shape: tuple[int, ...], layer: int, turned: bool
) -> list[StoredMatrix]:
    path = tensor.removesuffix(".weight").split(".")
    projection = ".".join([part for part in path if not part.isdigit()][-2:])
    if len(shape) == 2:
        out, inner = shape[::-1] if turned else shape
        numbers = [int(part) for part in path if part.isdigit()]
        expert = numbers[1] if len(numbers) > 1 and "experts" in path else None
        return [StoredMatrix(tensor, layer, projection, expert, (out, inner), turned, False)]
    turned = _fused_is_transposed(weights, tensor)
    out, inner = shape[:0:-1] if turned else shape[1:]
    return [
        StoredMatrix(tensor, layer, projection, expert, (out, inner), turned, True)
        for expert in range(shape[0])
    ]


def _fused_is_transposed(weights: WeightReader, tensor: str) -> bool:
    """From the shapes of both: the first puts out 2 i numbers, the second reads i of them."""
    suffix = ".weight" if tensor.endswith(".weight") else ""
    parent, _, leaf = tensor.removesuffix(".weight").rpartition(".")
    first = next(one for one, two in _FUSED_PAIRS.items() if leaf in (one, two))
    names = [f"{parent}.{name}{suffix}" for name in (first, _FUSED_PAIRS[first])]
    shapes = [weights.shape(name)[1:] if name in weights else () for name in names]
    if all(len(shape) == 2 for shape in shapes):
        (a, b), (c, d) = shapes
        if (a, b) == (2 * d, c):
            return False
        if (a, b) == (d, 2 * c):
            return True
    raise ModelError(
        f"cannot tell which way round the experts of {tensor} are stored in {weights.folder}\n"
        f"  found {names[0]} {shapes[0]} and {names[1]} {shapes[1]} per expert\n"
        "  expected (2 i, h) and (h, i), or (h, 2 i) and (i, h)"
    )


def _refuse_packed(weights: WeightReader, tensor: str) -> None:
    dtype = weights.dtype(tensor)
    if dtype in _FLOATS:
        return
    is_mxfp4 = tensor.endswith(("_blocks", "_scales"))
    raise ModelError(
        f"{'MXFP4-packed' if is_mxfp4 else 'packed'} weights: {tensor} in {weights.folder}\n"
        f"  found dtype {dtype}, expected one of {', '.join(_FLOATS)}\n"
        "Load the model dequantized and save it again in bfloat16."
    )
