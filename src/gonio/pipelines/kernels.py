"""What computes attention on packed codes on this machine."""

from __future__ import annotations

import pandas as pd

from gonio.kernels import available_levels, kernel_status
from gonio.kernels.build import BuildError, compile_flags, find_compiler
from gonio.kernels.native import LEVELS
from gonio.records import Measurement, make_measurement, make_value

__all__ = ["describe_kernels"]

_WHAT = {
    "reference": "torch, in float32",
    "portable": "compiled C for any processor",
    "avx2": "compiled C, 256-bit vectors",
    "avxvnni": "the same with AVX-VNNI",
    "avx512": "compiled C, 512-bit vectors with VBMI, VNNI and BF16",
    "neon": "compiled C, 128-bit vectors of 64-bit ARM processors",
}


def describe_kernels() -> Measurement:
    """The kernels that run here, and why no faster ones do.

    Returns:
        Kind ``kernels``; table ``levels``: what each level is and whether it can run.
    """
    status, available = kernel_status(), available_levels()
    try:
        compiler = find_compiler().version
    except BuildError as error:
        compiler = f"none: {error}"
    rows = [
        {"level": name, "runs_here": "yes" if name in available else "no", "what": _WHAT[name]}
        for name in ("reference", *LEVELS)
    ]
    return make_measurement(
        "kernels",
        "Attention on packed codes",
        settings={"flags": list(compile_flags())},
        values=[
            make_value("level", status.level),
            make_value("why_not_faster", status.reason or "nothing faster exists"),
            make_value("library", status.library, note="compiled at first use"),
            make_value("compiler", compiler),
        ],
        tables={"levels": pd.DataFrame(rows)},
    )
