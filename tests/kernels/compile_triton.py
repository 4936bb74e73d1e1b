"""Compiles the Triton kernels for an H100 or H200 and prints the bytes of each; needs no GPU."""

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gonio.kernels import triton_kernels

TARGET = GPUTarget("cuda", 90, 32)
FLOATS = ["edges", "query", "key_levels", "value_levels", "bias", "mask", "out"]
INTEGERS = ["unit_dims", "unit_shifts", "unit_at", "keys", "key_at", "key_shift", "key_mask"]
SHAPE = {"DIM": 96, "VALUE_DIM": 96, "D": 128, "E": 128, "KEY_WIDTH": 256, "VALUE_WIDTH": 16}
FLAGS = dict.fromkeys(("HAS_BIAS", "HAS_MASK", "HAS_CAP"), True)
TYPES = {
    **dict.fromkeys([*FLOATS, "lse_out"], "*fp32"),
    **dict.fromkeys([*INTEGERS, "value_at", "value_shift", "value_mask"], "*i32"),
    "values": "*u8",
    "softcap": "fp32",
}


def compile_kernel(kernel, constants, **types):
    """Machine code, as ptxas makes it."""
    function = triton.jit(kernel)
    names = function.arg_names
    own = {**dict.fromkeys(names, "i32"), **TYPES, **types}
    signature = {name: "constexpr" if name in constants else own[name] for name in names}
    places = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(function, signature, places)
    code = triton.compile(source, target=TARGET).asm["cubin"]
    sys.stdout.write(f"{kernel.__name__} {constants} {len(code)}\n")


if __name__ == "__main__":
    compile_kernel(triton_kernels._encode, {"EDGES": 16, "SLOTS": 32}, rows="*fp32", data="*i32")
    compile_kernel(triton_kernels._encode, {"EDGES": 256, "SLOTS": 8}, rows="*fp32", data="*u8")
    for rows in (triton_kernels.DECODE_ROWS, triton_kernels.PREFILL_ROWS):
        compile_kernel(triton_kernels._attend, {**SHAPE, **FLAGS, "R": rows})
