"""Attention on packed codes: C kernels compiled at first use, torch where they cannot be."""

from gonio.kernels.attend import Parts, attend, merge_attention
from gonio.kernels.layout import BLOCK, CodePlan, make_plan
from gonio.kernels.native import KernelStatus, available_levels, kernel_status
from gonio.kernels.ops import attention, decode, encode, scores
from gonio.kernels.packed import PackedCodes

__all__ = [
    "BLOCK",
    "CodePlan",
    "KernelStatus",
    "PackedCodes",
    "Parts",
    "attend",
    "attention",
    "available_levels",
    "decode",
    "encode",
    "kernel_status",
    "make_plan",
    "merge_attention",
    "scores",
]
