"""Rotating a model's residual stream without changing what it computes.

With x the residual stream and R orthogonal, ``x -> R x`` is carried through the whole model:

- RMS normalisation commutes with R once its gain is folded into the matrices that read it:
  ``W diag(g) x/rms(x)`` with ``rms(R x) = rms(x)``;
- embeddings ``E -> E R^T``; matrices that read ``W -> W diag(g) R^T``; matrices that write
  ``W -> R W`` and their biases ``b -> R b``; the output head reads after the last norm.

The head carries the last gain and the embeddings do not, so tied embeddings are untied.

Source: the rotation of SliceGPT (arXiv:2401.15024), QuaRot (arXiv:2404.00456) and R1 of SpinQuant
(arXiv:2405.16406).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from gonio.errors import ModelError, SettingError
from gonio.linalg.hadamard import randomized_hadamard
from gonio.linalg.rotations import haar_rotation, learned_sign_rotation

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "FAMILIES",
    "Rotation",
    "StreamMatrix",
    "require_rotatable",
    "rotate_stream",
    "stream_matrices",
    "stream_rotation",
]

Rotation = Literal["haar", "hadamard", "learned"]

# Pre-norm decoders with plain RMS norms that differ, for this purpose, only in their experts.
FAMILIES = ("llama", "mistral", "mixtral", "olmoe", "qwen2", "qwen3", "qwen3_moe")
_FIT_ROWS_PER_DIM = 32  # rows a learned rotation is fitted on, in units of the dimension


@dataclass(frozen=True)
class StreamMatrix:
    """A matrix that touches the residual stream.

    Attributes:
        name: Name of the parameter in the model.
        layer: Number of the layer, None for the embeddings and the head.
        side: ``reads`` (rotated on its input) or ``writes`` (rotated on its output).
        parameter: Shape (out, in), or (num_experts, out, in).
        gain: Weight of the norm whose output it reads, None where there is none.
        bias: Bias that goes to the residual stream, None where there is none.
    """

    name: str
    layer: int | None
    side: Literal["reads", "writes"]
    parameter: nn.Parameter
    gain: nn.Parameter | None = None
    bias: nn.Parameter | None = None

    @property
    def projection(self) -> str:
        """Parent and own name without numbers, for example ``self_attn.q_proj``."""
        parts = [part for part in self.name.removesuffix(".weight").split(".") if part != "model"]
        return ".".join([part for part in parts if not part.isdigit()][-2:])

    def rows(self, *, folded: bool = False) -> Tensor:
        """Its rows, experts one after another, float32; with the gain folded in if asked."""
        matrix = self.parameter.detach().float()
        if folded and self.gain is not None:
            matrix = matrix * self.gain.detach().float()
        return matrix.reshape(-1, matrix.shape[-1])


def require_rotatable(family: str) -> None:
    """Refuse models whose residual stream cannot be rotated as it stands, by name.

    Args:
        family: ``model_type`` of the configuration.

    Raises:
        ModelError: The architecture is not one of :data:`FAMILIES`.
    """
    if family in FAMILIES:
        return
    raise ModelError(
        f"cannot rotate the residual stream of a {family} model\n"
        "  its norms must be RMS norms before each sublayer, so that their gains fold into what\n"
        "  reads them; a LayerNorm also subtracts the mean, which a rotation does not respect\n"
        f"Known to be exact: {', '.join(FAMILIES)}."
    )


def stream_matrices(model: PreTrainedModel) -> tuple[StreamMatrix, ...]:
    """Every matrix that reads or writes the residual stream, embeddings first, head last.

    Raises:
        ModelError: The architecture is not supported.
    """
    require_rotatable(str(model.config.model_type))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decoder: Any = model.model
    head = model.get_output_embeddings().weight
    found = [_matrix(names, None, "reads", decoder.embed_tokens.weight)]
    for layer, block in enumerate(decoder.layers):
        found += [_matrix(names, layer, *rest) for rest in _block_matrices(block)]
    # Tied, the parameter bears the embeddings' name; here it stands for the head, with its gain.
    return (*found, StreamMatrix("lm_head.weight", None, "reads", head, decoder.norm.weight))


@torch.no_grad()
def rotate_stream(model: PreTrainedModel, rotation: Tensor) -> None:
    """Rotate the residual stream of a model in place; its logits stay what they were.

    Gains of the norms become 1, tied embeddings are untied, and the configuration says so.
    Products are formed in float64 and stored in the model's dtype.

    Args:
        model: A decoder of one of :data:`FAMILIES`.
        rotation: R, orthogonal, shape (hidden_size, hidden_size).

    Raises:
        ModelError: The architecture is not supported.
        SettingError: The rotation has another shape, or is not orthogonal.
    """
    require_rotatable(str(model.config.model_type))
    _check_rotation(rotation, int(model.config.hidden_size))
    _untie(model)
    r = rotation.double()
    matrices = stream_matrices(model)
    for matrix in matrices:
        weight = matrix.parameter.double()
        if matrix.side == "writes":
            matrix.parameter.copy_(r @ weight)
            if matrix.bias is not None:
                matrix.bias.copy_(r @ matrix.bias.double())
        else:
            gain = 1.0 if matrix.gain is None else matrix.gain.double()
            matrix.parameter.copy_((weight * gain) @ r.mT)
    for matrix in matrices:  # only now: several matrices read behind one norm
        if matrix.gain is not None:
            matrix.gain.fill_(1.0)


def stream_rotation(
    model: PreTrainedModel, kind: Rotation, *, iterations: int = 30, seed: int = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    """A rotation for the residual stream.

    Args:
        model: A decoder of one of :data:`FAMILIES`.
        kind: ``hadamard`` (random signs before a Hadamard matrix), ``haar`` or ``learned``:
            fitted, from a Haar start, on rows of the matrices that read the
            stream, gains folded in; at most half of the rows of each, spread over all of them.
        iterations: Steps of the learned rotation.
        seed: Seed of everything random.

    Returns:
        R, float32, and per matrix name the numbers of the rows it was fitted on (learned only).

    Raises:
        ModelError: The architecture is not supported.
        SettingError: The kind is unknown.
        ShapeError: No Hadamard matrix of the model's hidden size is known here.
    """
    matrices = stream_matrices(model)
    n = int(model.config.hidden_size)
    generator = torch.Generator().manual_seed(seed)
    if kind == "haar":
        return haar_rotation(n, generator), {}
    if kind == "hadamard":
        return randomized_hadamard(n, generator), {}
    if kind != "learned":
        raise SettingError(f"rotation is {kind!r}, expected 'haar', 'hadamard' or 'learned'")
    readers = [one for one in matrices if one.side == "reads" and one.layer is not None]
    quota = max(1, _FIT_ROWS_PER_DIM * n // len(readers))
    fitted, parts = {}, []
    for matrix in readers:
        rows = matrix.rows(folded=True)
        chosen = torch.randperm(len(rows), generator=generator)[: min(quota, len(rows) // 2)]
        fitted[matrix.name] = chosen
        parts.append(rows[chosen])
    start = haar_rotation(n, generator)
    rotation, _ = learned_sign_rotation(torch.cat(parts), iterations=iterations, initial=start)
    return rotation, fitted


def _block_matrices(
    block: Any,
) -> Iterator[tuple[Literal["reads", "writes"], nn.Parameter, nn.Parameter | None, Any]]:
    """Side, weight, gain and bias of the matrices of one decoder layer."""
    attention, mlp = block.self_attn, block.mlp
    gain = block.input_layernorm.weight
    for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
        yield "reads", linear.weight, gain, None
    yield "writes", attention.o_proj.weight, None, attention.o_proj.bias
    gain = block.post_attention_layernorm.weight
    if hasattr(mlp, "experts"):
        yield "reads", mlp.gate.weight, gain, None
        yield "reads", mlp.experts.gate_up_proj, gain, None
        yield "writes", mlp.experts.down_proj, None, None
    else:
        yield "reads", mlp.gate_proj.weight, gain, None
        yield "reads", mlp.up_proj.weight, gain, None
        yield "writes", mlp.down_proj.weight, None, mlp.down_proj.bias


def _matrix(
    names: dict[int, str],
    layer: int | None,
    side: Literal["reads", "writes"],
    parameter: nn.Parameter,
    gain: nn.Parameter | None = None,
    bias: nn.Parameter | None = None,
) -> StreamMatrix:
    return StreamMatrix(names[id(parameter)], layer, side, parameter, gain, bias)


def _untie(model: PreTrainedModel) -> None:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head.weight is embedding.weight:
        head.weight = nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False


def _check_rotation(rotation: Tensor, n: int) -> None:
    if tuple(rotation.shape) != (n, n):
        raise SettingError(f"rotation has shape {tuple(rotation.shape)}, expected ({n}, {n})")
    identity = torch.eye(n, dtype=torch.float64)
    error = float((rotation.double() @ rotation.double().mT - identity).abs().max())
    if not error < 1e-4:  # float32 rotations are orthogonal to about 1e-6
        raise SettingError(f"not a rotation: R R^T differs from the identity by {error:.1e}")
