"""The fixed side data of a model's codecs: what layers share is written, and counted, once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from gonio.errors import CodecError
from gonio.kvcache.affine_codec import AffineCodec
from gonio.kvcache.contract import TensorCodec
from gonio.kvcache.control_codecs import LosslessCodec, ZeroCodec
from gonio.kvcache.entropy_codec import EntropyCodec
from gonio.kvcache.pre_rope_codec import PreRopeCodec
from gonio.kvcache.refined_codec import RefinedCodec
from gonio.kvcache.residual_sign_codec import ResidualSignCodec
from gonio.kvcache.scalar_codec import ScalarCodec
from gonio.kvcache.sign_codec import SignCodec
from gonio.kvcache.transform_codec import TransformCodec

__all__ = ["CodecState", "pack_codecs", "side_bytes", "side_fingerprint", "unpack_codecs"]

_CODECS: dict[str, type[TensorCodec]] = {
    AffineCodec.method: AffineCodec,
    EntropyCodec.method: EntropyCodec,
    LosslessCodec.method: LosslessCodec,
    PreRopeCodec.method: PreRopeCodec,
    RefinedCodec.method: RefinedCodec,
    ResidualSignCodec.method: ResidualSignCodec,
    ScalarCodec.method: ScalarCodec,
    SignCodec.method: SignCodec,
    TransformCodec.method: TransformCodec,
    ZeroCodec.method: ZeroCodec,
}


class CodecState(BaseModel):
    """One codec as written: its method, its settings, and where its tensors are in the file."""

    model_config = ConfigDict(extra="forbid")

    method: str
    settings: dict[str, Any]
    tensors: dict[str, str]  # the codec's name of a tensor -> the file's


def pack_codecs(
    groups: Mapping[str, Sequence[TensorCodec]],
) -> tuple[dict[str, list[CodecState]], dict[str, Tensor]]:
    """Codecs as JSON and tensors.

    Args:
        groups: Codecs per layer, by what they code (``keys``, ``values``).

    Returns:
        One state per codec, and the distinct tensors under the name of their first use.
    """
    names: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    states: dict[str, list[CodecState]] = {}
    for group, codecs in groups.items():
        states[group] = []
        for layer, codec in enumerate(codecs):
            settings, own = codec.state()
            for name, tensor in own.items():
                if id(tensor) not in names:
                    names[id(tensor)] = f"{group}.{layer}.{name}"
                    tensors[names[id(tensor)]] = tensor
            where = {name: names[id(tensor)] for name, tensor in own.items()}
            states[group].append(CodecState(method=codec.method, settings=settings, tensors=where))
    return states, tensors


def unpack_codecs(
    states: Sequence[CodecState], tensors: Mapping[str, Tensor]
) -> tuple[TensorCodec, ...]:
    """The codecs of one group.

    Raises:
        CodecError: A method is unknown, or a tensor or setting is missing or not understood.
    """
    codecs = []
    for layer, state in enumerate(states):
        if state.method not in _CODECS:
            raise CodecError(
                f"layer {layer} uses method {state.method!r}; "
                f"this version reads {', '.join(sorted(_CODECS))}"
            )
        absent = sorted(set(state.tensors.values()) - tensors.keys())
        if absent:
            raise CodecError(f"layer {layer} needs tensor {absent[0]!r}, which the file lacks")
        own = {name: tensors[where] for name, where in state.tensors.items()}
        try:
            codecs.append(_CODECS[state.method].from_state(state.settings, own))
        except (TypeError, KeyError) as error:  # a setting unknown to this version, or absent
            raise CodecError(
                f"settings of layer {layer} ({state.method}) are not understood: {error}"
            ) from error
    return tuple(codecs)


def side_bytes(codecs: Sequence[TensorCodec]) -> int:
    """Bytes of the distinct side tensors of the codecs."""
    found = {id(tensor): tensor for codec in codecs for tensor in codec.state()[1].values()}
    return sum(tensor.nbytes for tensor in found.values())


def side_fingerprint(groups: Mapping[str, Sequence[TensorCodec]]) -> str:
    """SHA-256 of all settings and side tensors: equal for codecs that decode alike."""
    states, tensors = pack_codecs(groups)
    digest = hashlib.sha256()
    listed = {group: [state.model_dump() for state in each] for group, each in states.items()}
    digest.update(json.dumps(listed, sort_keys=True).encode())
    for name in sorted(tensors):
        raw = tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(raw.numpy().tobytes())
    return digest.hexdigest()
