"""The compiled kernels behind ctypes: which level runs here, or why none does."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from gonio.errors import SettingError
from gonio.kernels.build import BuildError, build_library, is_built
from gonio.kernels.layout import CodePlan

__all__ = [
    "LEVELS",
    "REFERENCE",
    "TRITON",
    "KernelStatus",
    "available_levels",
    "built_library",
    "compute_level",
    "forget",
    "kernel_status",
    "native_call",
    "native_library",
    "plan_pointer",
    "pointer",
    "ready",
    "resolve_level",
]

LEVELS = ("portable", "avx2", "avxvnni", "avx512", "neon")  # as in csrc/gonio_kernels.h
FASTER = {"portable": "avx2", "avx2": "avxvnni", "avxvnni": "avx512"}  # what a processor may lack
REFERENCE = "reference"
TRITON = "triton"
VARIABLE = "GONIO_KERNELS"

_INT, _LONG, _FLOAT, _POINTER = (*(ctypes.c_int, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p),)
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "gonio_has_level": (_INT, [_INT]),
    "gonio_scores": (
        _INT,
        [_POINTER] * 2 + [_LONG] * 3 + [_POINTER] + [_LONG] * 3 + [_INT] * 2 + [_POINTER],
    ),
    "gonio_attention": (
        _INT,
        [_POINTER] * 4
        + [_LONG] * 2
        + [_POINTER, _LONG, _POINTER, _POINTER, _LONG, _LONG, _FLOAT]
        + [_LONG] * 2
        + [_INT] * 2
        + [_POINTER] * 2,
    ),
    "gonio_raw_attention": (
        _INT,
        [_POINTER] * 2
        + [_INT]
        + [_LONG] * 5
        + [_POINTER, _LONG, _POINTER, _LONG, _LONG, _FLOAT, _INT]
        + [_POINTER] * 2,
    ),
    "gonio_merge": (None, [_POINTER] * 2 + [_LONG] * 3 + [_POINTER] * 2),
    "gonio_encode": (
        None,
        [_POINTER, _INT, _POINTER] + [_LONG] * 4 + [_POINTER] * 3 + [_LONG, _INT],
    ),
    "gonio_decode": (None, [_POINTER, _INT, _POINTER] + [_LONG] * 3 + [_POINTER]),
    "gonio_read": (ctypes.c_uint64, [_POINTER, _LONG, _INT]),
    "gonio_cells": (
        None,
        [_POINTER] * 2 + [_LONG] + [_POINTER] * 2 + [_LONG] + [_POINTER] * 2,
    ),
    "gonio_spectra": (_INT, [_POINTER] * 2 + [_LONG] + [_POINTER] * 2 + [_INT] + [_POINTER] * 3),
    "gonio_rans_decode": (_INT, [_POINTER] * 4),
    "gonio_rans_encode": (_INT, [_POINTER] * 5),
    "gonio_bf16_scores": (
        _INT,
        [_POINTER] + [_LONG] * 3 + [_POINTER, _LONG, _INT, _POINTER],
    ),
}


class _Plan(ctypes.Structure):
    """``plan`` of csrc/gonio_kernels.h."""

    _fields_ = (
        *((name, _LONG) for name in ("heads", "dim", "block_bytes")),
        *(
            (name, _POINTER)
            for name in (
                *("head", "dims", "shifts", "levels", "levels_int8"),
                *("wide_dims", "wide_bits", "wide_levels", "wide_bf16", "units"),
            )
        ),
    )


_plans: WeakKeyDictionary[CodePlan, Any] = WeakKeyDictionary()  # pointers to _Plan


@dataclass(frozen=True)
class KernelStatus:
    """What computes attention on packed codes.

    Attributes:
        level: ``avx512``, ``avxvnni``, ``avx2``, ``neon`` or ``portable`` (compiled C);
            ``reference`` (torch).
        reason: Why it is no higher than that; empty when nothing is amiss.
        library: Path of the compiled library, None without one.
    """

    level: str
    reason: str
    library: str | None


@cache
def _load() -> tuple[ctypes.CDLL | None, str, str | None]:
    """The library, or why there is none, and its path; compiled at most once in a process."""
    try:
        path = build_library()
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (BuildError, OSError, AttributeError) as error:
        return None, str(error), None
    return library, "", str(path)


def native_library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they cannot be compiled or loaded."""
    return _load()[0]


_was_built = cache(is_built)  # asks the compiler for its version


def built_library() -> ctypes.CDLL | None:
    """The kernels if this process has loaded them or an earlier one has compiled them, else None.

    For work that torch does well enough, so that nobody waits for a compiler.
    """
    return native_library() if _load.cache_info().currsize or _was_built() else None


def available_levels() -> tuple[str, ...]:
    """Levels that this machine can run, slowest first."""
    return _levels_of(native_library())


@cache
def _levels_of(library: ctypes.CDLL | None) -> tuple[str, ...]:
    if library is None:
        return (REFERENCE,)
    found = (name for number, name in enumerate(LEVELS) if library.gonio_has_level(number))
    return (REFERENCE, *found)


def kernel_status() -> KernelStatus:
    """Which kernels run here, or why torch computes in their place."""
    _, reason, path = _load()
    best = available_levels()[-1]
    level = resolve_level("auto")
    if level != best:
        reason = f"{VARIABLE}={level} asks for it; {best} is available"
    elif best in FASTER:
        reason = f"this processor has no {FASTER[best]} (see docs/kernels.md)"
    return KernelStatus(level, reason, path)


@cache  # a step of a model asks once for each layer, and the environment is slow to look into
def resolve_level(level: str) -> str:
    """A level that can run: the one named, or for ``auto`` $GONIO_KERNELS or the best.

    The variable counts as it was when a process first asked; :func:`forget` has it read again.

    Raises:
        SettingError: It is unknown or cannot run on this machine.
    """
    available = available_levels()
    if level == "auto":
        level = os.environ.get(VARIABLE) or available[-1]
    if level not in available:
        raise SettingError(
            f"kernels of level {level!r} cannot run here; available: {', '.join(available)}"
            + (f"\n{_load()[1]}" if _load()[1] else "")
        )
    return level


def forget() -> None:
    """Look for the library and for $GONIO_KERNELS again, as a new process would."""
    for found in (_load, _was_built, _levels_of, resolve_level):
        found.cache_clear()


def compute_level(level: str, tensor: Tensor) -> str:
    """What computes for a tensor: compiled kernels know the CPU only, Triton must be named.

    Raises:
        SettingError: The level cannot run, or not for this tensor.
    """
    if level == TRITON:
        from gonio.kernels.triton_kernels import why_no_triton  # imports Triton: a while

        if reason := why_no_triton(tensor.device):
            raise SettingError(reason)
        return TRITON
    return resolve_level(level) if tensor.is_cpu else REFERENCE


def native_call(name: str, *arguments: Any) -> None:
    """Call a compiled function whose result is void, or 0 unless memory ran out.

    Raises:
        MemoryError: The kernels cannot allocate their tables.
    """
    if getattr(native_library(), name)(*arguments):
        raise MemoryError(f"{name} cannot allocate its tables")


def plan_pointer(plan: CodePlan) -> Any:
    """A pointer to the plan as C sees it, valid as long as the plan is."""
    found = _plans.get(plan)
    if found is None:
        fields = plan.tensors[:10]
        numbers = (plan.heads, plan.dim, plan.block_bytes)
        found = ctypes.pointer(_Plan(*numbers, *(tensor.data_ptr() for tensor in fields)))
        _plans[plan] = found
    return found


def ready(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The same numbers, contiguous and of this dtype; the tensor itself where it is so.

    Raises:
        SettingError: The tensor is not on the CPU.
    """
    if not tensor.is_cpu:
        raise SettingError(f"kernels read tensors on the CPU, found one on {tensor.device}")
    if tensor.dtype == dtype and tensor.is_contiguous():
        return tensor
    return tensor.to(dtype).contiguous()


def pointer(tensor: Tensor | None, dtype: torch.dtype) -> int | None:
    """Address of a contiguous CPU tensor's data.

    Raises:
        SettingError: The tensor is not contiguous, of another dtype, or not on the CPU.
    """
    if tensor is None:
        return None
    if tensor.dtype != dtype or not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise SettingError(
            f"kernels read contiguous {dtype} on the CPU, found {tensor.dtype} on {tensor.device}"
        )
    return tensor.data_ptr()
