"""Ways to share a total of bits over the units of a cache, from naive to searched.

- ``uniform``: every layer the same bits per element, of keys and of values.
- ``collapse-angle``: the published rule, 2 bits for a layer whose keys are up to 44 degrees from
  their signs (values from theirs), 3 above, 1 for heads of 512; scaled to the total that is asked
  for, which the rule does not name.
- ``shared``: keys and values get half each, and share their half over layers by the metric:
  what ``calibrate`` does with equal ``bits`` and ``value_bits``.
- ``metric``: all units share by predicted damage, keys against values too. No unit falls more
  than half a bit below ``uniform``: predictions hold for small errors, and farther down they can be
  far too low (values of SmolLM2's first layer cost nats, not millinats).
- ``searched``: a :class:`gonio.kvcache.sharing.Sharing` found on the whole compressed model.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from gonio.errors import SettingError
from gonio.kvcache.allocation import allocate_quanta
from gonio.kvcache.budget_problem import BudgetProblem
from gonio.kvcache.sharing import Sharing, sharing_quanta, target_quanta
from gonio.quant.sign import sign_cosine

__all__ = [
    "POLICIES",
    "SHARED",
    "Policy",
    "collapse_bits",
    "policy_quanta",
    "sign_angles",
]

Policy = Literal["uniform", "collapse-angle", "shared", "metric", "searched"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
SHARED = Sharing(keys=1.0, values=1.0)

Counts = NDArray[np.int64]
TRUSTED_BITS = 0.5  # per element, below uniform
CUTOFF = 44.0  # degrees between a vector and its signs
WIDE_HEAD = 512
ANGLE_WINDOWS = 2  # whose mean cosine is a unit's


def policy_quanta(
    policy: Policy, problem: BudgetProblem, total: int, searched: Sharing | None = None
) -> Counts:
    """Quanta of each unit under a policy.

    Args:
        policy: One of :data:`POLICIES`.
        problem: The units.
        total: Quanta to spend, see :meth:`BudgetProblem.total`.
        searched: What was found; ``searched`` needs it.

    Raises:
        SettingError: The policy is unknown, lacks its sharing, or the total does not fit the units.
    """
    if policy not in POLICIES:
        raise SettingError(f"policy must be one of {', '.join(POLICIES)}, found {policy!r}")
    if policy == "searched":
        if searched is None:
            raise SettingError("policy 'searched' needs the sharing that was found")
        return sharing_quanta(searched, problem, total)
    if policy == "shared":
        return sharing_quanta(SHARED, problem, total)
    if policy == "collapse-angle":
        bits = collapse_bits(sign_angles(problem), problem.layout.head_dim)
        return target_quanta(bits * problem.elements, problem, total)
    uniform = sharing_quanta(Sharing(), problem, total)
    if policy == "uniform":
        return uniform
    step = TRUSTED_BITS * problem.elements / problem.units[0].curve.quantum_bits
    least = np.maximum(problem.least, uniform - step.astype(np.int64))
    return allocate_quanta(problem.damages, total, least.tolist())


def collapse_bits(angles: NDArray[np.float64], head_dim: int) -> NDArray[np.float64]:
    """Bits of the rule for angles between vectors and their signs.

    Args:
        angles: Degrees.
        head_dim: Coordinates of a head.

    Source: moe-gauge (https://moe-gauge-paper.pages.dev); no theorem supports the cutoff.
    """
    if head_dim >= WIDE_HEAD:
        return np.ones(len(angles))
    return np.where(angles <= CUTOFF, 2.0, 3.0)


def sign_angles(problem: BudgetProblem) -> NDArray[np.float64]:
    """Angle of every unit between its vectors and their signs: of the mean cosine, degrees."""
    cosines = [
        sign_cosine(unit.vectors[:ANGLE_WINDOWS], math.nan).nanmean().item()
        for unit in problem.units
    ]
    return np.array([math.degrees(math.acos(min(1.0, cosine))) for cosine in cosines])
