"""Linear multistep predictors: features as the solution of an ODE, with slopes from backward differences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hicache_compile.errors import whole_number
from hicache_compile.policy.forecasters.newton import lagrange
from hicache_compile.policy.plain_data import plain_data

ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def _integrate(anchors: Sequence[int], x: float, coefficients: Sequence[float]) -> list[float]:
    """``F_n + x * sum_i b_i f_i`` as weights, with slopes ``f_i = (F_i - F_{i+1}) / (t_i - t_{i+1})``."""
    total = np.zeros(len(coefficients) + 1)
    total[0] = 1.0
    for i, coefficient in enumerate(coefficients):
        slope = x * coefficient / (anchors[i] - anchors[i + 1])
        total[i] += slope
        total[i + 1] -= slope
    return total.tolist()


@plain_data
class AdamsBashforth:
    """Adams-Bashforth with ``order`` slopes (so ``order + 1`` anchors) and **fixed-step coefficients**.

    Order 2 is ``F_n + x (3/2 f_n - 1/2 f_{n-1})``. The coefficients assume that the step ``x`` and all gaps are equal;
    otherwise see ``VariableAdamsBashforth``. With fewer anchors the order is reduced.
    """

    order: int = 2

    def __post_init__(self) -> None:
        whole_number("AdamsBashforth", "order", self.order, 1, max(ADAMS_BASHFORTH))

    def weights(self, anchors: Sequence[int], target: int) -> list[float]:
        slopes = min(self.order, len(anchors) - 1)
        return _integrate(anchors, target - anchors[0], ADAMS_BASHFORTH.get(slopes, ()))


@plain_data
class VariableAdamsBashforth:
    """The corrected ``AdamsBashforth``: the slopes' interpolating polynomial, integrated over the actual step.

    Coefficients are ``1/x * integral_0^x L_i(t) dt`` at the true anchor positions (Hairer, Norsett and Wanner, "Solving
    ODEs I", III.5); for equal steps they are the classical ones.
    """

    order: int = 2

    def __post_init__(self) -> None:
        whole_number("VariableAdamsBashforth", "order", self.order, 1, max(ADAMS_BASHFORTH))

    def weights(self, anchors: Sequence[int], target: int) -> list[float]:
        x = float(target - anchors[0])
        slopes = min(self.order, len(anchors) - 1)
        nodes = [float(step - anchors[0]) for step in anchors[:slopes]]
        integrals = [basis.integ() for basis in lagrange(nodes)] if nodes else []
        return _integrate(anchors, x, [float(area(x) - area(0.0)) / x for area in integrals])


@plain_data
class BDF2:
    """FoCa's predictor (2508.16211) **as published**: ``4/3 F_n - 1/3 F_{n-1} + 2/3 x f_n``.

    ``f_n = (F_n - F_{n-1}) / d1``. The constants are for equal steps (``x = d1``): only then is it exact for linear
    functions. ``VariableBDF2`` is correct for every ``x``. A single anchor is reused.
    """

    def weights(self, anchors: Sequence[int], target: int) -> list[float]:
        if len(anchors) < 2:
            return [1.0]
        slope = 2 / 3 * (target - anchors[0]) / (anchors[0] - anchors[1])
        return [4 / 3 + slope, -1 / 3 - slope]


@plain_data
class VariableBDF2:
    """The corrected ``BDF2``: variable-step coefficients with ``r = x / d1``, exact for linear functions for every
    ``x``.

    ``((1+r)^2 F_n - r^2 F_{n-1} + x (1+r) f_n) / (1+2r)``; at ``r = 1`` it is the published rule.
    """

    def weights(self, anchors: Sequence[int], target: int) -> list[float]:
        if len(anchors) < 2:
            return [1.0]
        ratio = (target - anchors[0]) / (anchors[0] - anchors[1])
        slope = ratio * (1 + ratio)
        return [
            ((1 + ratio) ** 2 + slope) / (1 + 2 * ratio),
            (-(ratio**2) - slope) / (1 + 2 * ratio),
        ]
