"""Executable checks: one module per family, all of them in one literal registry."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from gonio.theorems.checks import (
    attention,
    floors,
    gauge,
    lora,
    norms_and_ranks,
    overlap_and_stable_rank,
    residual,
    sign_quantization,
)
from gonio.theorems.checks.check import Check, Mutant

__all__ = ["CHECKS", "Check", "Mutant"]

CHECKS: Mapping[str, Check[Any]] = MappingProxyType(
    {
        check.name: check
        for check in (
            *norms_and_ranks.CHECKS,
            *overlap_and_stable_rank.CHECKS,
            *sign_quantization.CHECKS,
            *floors.CHECKS,
            *gauge.CHECKS,
            *residual.CHECKS,
            *attention.CHECKS,
            *lora.CHECKS,
        )
    }
)
