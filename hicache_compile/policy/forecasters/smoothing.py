"""Smoothing of the anchors before forecasting, as a transform of the weights.

The published method (the smoothing branch of Cache4Diffusion) smooths the last three features ``r_0 (oldest) .. r_2``
and takes differences of the smoothed values:

    exponential       S_0 = r_0,  S_i = alpha r_i + (1 - alpha) S_{i-1}
    moving average    S_0 = r_0,  S_i = (r_i + r_{i-1}) / 2
    global            D_0 = S_2,  D_1 = (S_2 - S_1) / h,  higher orders by the ordinary recursion
    hybrid            D_0 = r_2,  D_1 = (r_2 - r_1) / h,  D_2 = ((S_2 - S_1) - (S_1 - S_0)) / h^2

Smoothing is linear in the anchors, so it can be folded into the weights. This is the documented rule; the code of that
branch stores the smoothed value as history, which causes a lag, and is not copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from hicache_compile.errors import HiCacheError, one_of, real_number
from hicache_compile.policy.forecasters.base import Forecaster, checked
from hicache_compile.policy.forecasters.differences import DifferenceForecaster, Vector, difference_table
from hicache_compile.policy.plain_data import plain_data

WINDOW = 3


@plain_data
class Smoothing:
    """Smooth the anchors that a forecaster reads.

    Args:
        method: ``"exponential"`` or ``"moving_average"``.
        alpha: weight of the newer value, in (0, 1]; exponential only.
        hybrid: smooth only the second difference, not the newest value and the slope; no effect below order 2. Requires
            a forecaster on differences (Taylor, Hermite, ScaledTaylor).
    """

    method: str = "exponential"
    alpha: float = 0.8
    hybrid: bool = False

    def __post_init__(self) -> None:
        one_of("Smoothing", "method", self.method, ("exponential", "moving_average"))
        real_number("Smoothing", "alpha", self.alpha, 0, 1)
        if not isinstance(self.hybrid, bool):
            raise HiCacheError(f"Smoothing.hybrid = {self.hybrid!r}: must be true or false")

    def weights(self, forecaster: Forecaster, anchors: Sequence[int], target: int) -> list[float]:
        """The weights of ``forecaster`` on smoothed anchors, newest first."""
        if isinstance(forecaster, DifferenceForecaster):
            if self.hybrid and forecaster.order < 2:
                return forecaster.weights(anchors, target)
            return self._on_differences(forecaster, anchors, target)
        if self.hybrid:
            raise HiCacheError(
                f"Smoothing.hybrid = True: must be false with {type(forecaster).__name__}, "
                "which is not a forecaster on differences"
            )
        raw = checked(forecaster, forecaster.weights(anchors, target), len(anchors))
        reach = min(len(anchors), len(raw) + WINDOW - 1)
        smooth: list[float] = (np.array(raw) @ self.matrix(len(raw), reach)).tolist()
        return smooth

    def matrix(self, count: int, reach: int) -> np.ndarray:
        """The ``count`` newest smoothed anchors as rows over ``reach`` anchors, newest first, ``[count, reach]``."""
        rows = [self._smoothed(reach - 1 - position, reach)[-1][::-1] for position in range(count)]
        return np.array(rows)

    def _on_differences(self, forecaster: DifferenceForecaster, anchors: Sequence[int], target: int) -> list[float]:
        # D_m needs the smoothed slope at m anchors, each from a full window.
        read = list(anchors[: forecaster.order + (WINDOW - 1 if forecaster.order else WINDOW)])
        count = len(read)
        unit = np.eye(count)

        def first_terms(index: int, gap: float) -> list[Vector]:
            if index < WINDOW - 1:
                return [unit[index]]
            older, old, new = self._smoothed(index, count)
            if self.hybrid:
                slope = (unit[index] - unit[index - 1]) / gap
                return [unit[index], slope, ((new - old) - (old - older)) / gap**2]
            return [new, (new - old) / gap]

        table = difference_table(read[::-1], forecaster.order, first_terms)
        return forecaster.combine(table, target - read[0])

    def _smoothed(self, index: int, count: int) -> list[Vector]:
        """``S_0 .. S_2`` of the window that ends at anchor ``index`` (oldest first), as vectors."""
        unit = np.eye(count)
        window = [unit[i] for i in range(max(0, index - WINDOW + 1), index + 1)]
        smooth = [window[0]]
        for older, newer in pairwise(window):
            if self.method == "exponential":
                smooth.append(self.alpha * newer + (1 - self.alpha) * smooth[-1])
            else:
                smooth.append((newer + older) / 2)
        return smooth
