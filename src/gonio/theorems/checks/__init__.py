"""Executable checks: one module per topic, all of them in one literal registry."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from gonio.theorems.checks import (
    amplification,
    attention,
    capacity,
    floors,
    gains,
    gauge,
    lattice,
    lora,
    low_rank_energy,
    moments,
    norms,
    overlap,
    ranks,
    residual,
    rope,
    selection,
    sign_quantization,
    stable_rank,
    updates,
    weight_rotations,
)
from gonio.theorems.checks.check import Check, Mutant

__all__ = ["CHECKS", "Check", "Mutant"]

CHECKS: Mapping[str, Check[Any]] = MappingProxyType(
    {
        check.name: check
        for check in (
            *norms.CHECKS,
            *ranks.CHECKS,
            *stable_rank.CHECKS,
            *low_rank_energy.CHECKS,
            *updates.CHECKS,
            *overlap.CHECKS,
            *gains.CHECKS,
            *sign_quantization.CHECKS,
            *moments.CHECKS,
            *floors.CHECKS,
            *gauge.CHECKS,
            *rope.CHECKS,
            *selection.CHECKS,
            *lattice.CHECKS,
            *residual.CHECKS,
            *amplification.CHECKS,
            *attention.CHECKS,
            *weight_rotations.CHECKS,
            *lora.CHECKS,
            *capacity.CHECKS,
        )
    }
)
