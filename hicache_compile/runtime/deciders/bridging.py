"""Forecasts from anchors some of which are sparse: the step to the next dense one is no motion of the features.

From a dense step on, sparse steps go on from its value: what is remembered was made at it. The longer it is ago the
more they drift off, and the next dense step takes that back at once. A difference over that step would be taken for
motion and carried on, so it is replaced by the nearest difference that is over none.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence


def bridged(weights: Sequence[float], anchors: Sequence[int], refreshed: Collection[int]) -> list[float]:
    """``weights`` over ``anchors`` (steps, newest first) that take no difference up to a step in ``refreshed``.

    A weighted sum that gives constants back is its newest anchor and differences of neighbours,
    ``a_0 + sum_i c_i (a_i - a_(i+1))`` with ``c_i = -(w_(i+1) + w_(i+2) + ...)``. A difference to be replaced takes
    the slope of the nearest that stays, the newer one of two; where none stays it is left out.
    """
    count = len(weights)
    factors = [-sum(weights[i + 1 :]) for i in range(count - 1)]
    bad = [anchors[i] in refreshed and anchors[i + 1] not in refreshed for i in range(count - 1)]
    good = [i for i in range(count - 1) if not bad[i]]
    slopes = [0.0] * (count - 1)
    for i, factor in enumerate(factors):
        gap = anchors[i] - anchors[i + 1]
        if not bad[i]:
            slopes[i] += factor
        elif good:
            nearest = min(good, key=lambda j: abs(j - i))
            slopes[nearest] += factor * gap / (anchors[nearest] - anchors[nearest + 1])
    found = [0.0] * count
    found[0] = sum(weights)
    for i, slope in enumerate(slopes):
        found[i] += slope
        found[i + 1] -= slope
    return found if any(bad) else list(weights)
