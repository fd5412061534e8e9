"""Numbers of fixed bases, fitted step by step to the measured distances: Hermite's scale, gates, MeanCache's spans."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hicache_compile.policy.forecasters import Forecaster, Gated, Hermite, MeanVelocity, SteppedHermite, weights
from hicache_compile.policy.forecasters.kriging import cross_product, squared_error
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.schedules.base import Schedule

SIGMAS = tuple(round(0.1 + 0.02 * number, 2) for number in range(46))  # .1 to 1
SPANS = (1, 2, 3, 4, 5, 6)  # as MeanCache tries


def stepped_hermite(distances: np.ndarray, schedule: Schedule, order: int = 2) -> SteppedHermite:
    """Hermite with the ``sigma`` of each step under which its forecast errs least, out of ``SIGMAS``.

    Args:
        distances: squared, between the features of all steps, ``[T, T]``.
        schedule: which steps are computed.
    """
    sigmas = [0.5] * len(distances)
    for step, anchors in forecasts(schedule, Hermite(order), len(distances)):
        rows = {sigma: weights(Hermite(order, sigma), anchors, step) for sigma in SIGMAS}
        sigmas[step] = min(SIGMAS, key=lambda sigma: squared_error(distances, anchors, rows[sigma], step))  # called now
    return SteppedHermite(order, tuple(sigmas))


def gated(distances: np.ndarray, schedule: Schedule, forecaster: Forecaster) -> Gated:
    """``forecaster`` with the gate of each step that is the least-squares share of its forecast, within ``[0, 1]``."""
    gates = [1.0] * len(distances)
    for step, anchors in forecasts(schedule, forecaster, len(distances)):
        row = weights(forecaster, anchors, step)
        drafted = [(-1.0, anchors[0]), *zip(row, anchors, strict=False)]
        moved = [(1.0, step), (-1.0, anchors[0])]
        size = cross_product(distances, drafted, drafted)
        share = cross_product(distances, drafted, moved) / size if size > 0 else 1.0
        gates[step] = min(1.0, max(0.0, share))
    return Gated(forecaster, tuple(gates))


def mean_velocity(distances: np.ndarray, schedule: Schedule, times: Sequence[float] | None) -> MeanVelocity:
    """MeanCache's forecast with the span of each step under which it errs least, out of ``SPANS``.

    The spans are found from the first step to the last: what was forecast before is in the window of a step.

    Args:
        times: of each step; ``None``: evenly spaced.
    """
    spans = [1] * len(distances)
    known = None if times is None else tuple(times)

    def error(step: int, anchors: Sequence[int], span: int) -> float:
        spans[step] = span
        row = weights(MeanVelocity(tuple(spans), times=known), anchors, step)
        return squared_error(distances, anchors, row, step)

    for step, anchors in forecasts(schedule, MeanVelocity(), len(distances)):
        errors = {span: error(step, anchors, span) for span in SPANS}
        spans[step] = min(SPANS, key=errors.__getitem__)
    return MeanVelocity(tuple(spans))


def forecasts(schedule: Schedule, forecaster: Forecaster, num_steps: int) -> list[tuple[int, list[int]]]:
    """The steps ``schedule`` does not compute, each with the anchors it may read, newest first."""
    policy = Policy(schedule, forecaster, "stack")
    computed: list[int] = []
    found = []
    for step in range(num_steps):
        if policy.forces(step, num_steps) or not computed:
            computed.append(step)
        else:
            found.append((step, policy.eligible(computed)))
    return found
