"""Attention on packed codes: C kernels compiled at first use, torch where they cannot be."""

from gonio.kernels.attend import CodeRun, Parts, attend, merge_attention
from gonio.kernels.frame import Frame
from gonio.kernels.layout import BLOCK, CodePlan, make_plan
from gonio.kernels.native import KernelStatus, available_levels, kernel_status
from gonio.kernels.ops import attention, decode, encode, scores
from gonio.kernels.packed import PackedCodes
from gonio.kernels.raw import attend_raw

__all__ = [
    "BLOCK",
    "CodePlan",
    "CodeRun",
    "Frame",
    "KernelStatus",
    "PackedCodes",
    "Parts",
    "attend",
    "attend_raw",
    "attention",
    "available_levels",
    "decode",
    "encode",
    "kernel_status",
    "make_plan",
    "merge_attention",
    "scores",
]
