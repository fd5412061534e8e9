"""The weights of a forecast as one row: the pure function behind every forecast."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from hicache_compile.errors import HiCacheError
from hicache_compile.policy.forecasters.base import MOST_ANCHORS, Forecaster, checked
from hicache_compile.policy.forecasters.measured import MeasuredForecaster
from hicache_compile.policy.forecasters.parts import ByBand, ByChannel
from hicache_compile.policy.forecasters.smoothing import Smoothing


def weights(
    forecaster: Forecaster,
    anchors: Sequence[int],
    target: int,
    smoothing: Smoothing | None = None,
) -> list[float]:
    """The weights of ``anchors`` in the forecast of step ``target``, in float64.

    Args:
        forecaster: any object with a ``weights`` method.
        anchors: step indices of the computed steps, newest first, strictly decreasing.
        target: the step to forecast, later than every anchor.
        smoothing: optional smoothing of the anchors.

    Returns:
        One weight per anchor read, newest first: ``F^(target) = sum_j w_j * F(anchors[j])``.

    Raises:
        HiCacheError: there is no anchor, the anchors are not in order, the target is not later than them, or the
            forecaster returns more weights than anchors or a weight that is not finite.
    """
    if not anchors:
        raise HiCacheError("anchors = []: must hold at least one step; there is nothing to forecast from")
    if any(newer <= older for newer, older in pairwise(anchors)):
        raise HiCacheError(f"anchors = {list(anchors)}: must be strictly decreasing, newest first")
    if target <= anchors[0]:
        raise HiCacheError(f"target = {target}: must be later than the newest anchor, {anchors[0]}")
    if smoothing is None:
        return checked(forecaster, forecaster.weights(anchors, target), len(anchors))
    return checked(forecaster, smoothing.weights(forecaster, anchors, target), len(anchors))


def rows_of(
    forecaster: Forecaster, anchors: Sequence[int], target: int, smoothing: Smoothing | None = None
) -> list[list[float]]:
    """The same for each part of a value, where ``forecaster`` is one of parts (``ByBand``); else one row."""
    each = forecaster.forecasters if isinstance(forecaster, ByBand | ByChannel) else (forecaster,)
    return [weights(one, anchors, target, smoothing) for one in each]


def measured_weights(
    forecaster: MeasuredForecaster,
    gram: np.ndarray,
    anchors: Sequence[int],
    target: int,
    smoothing: Smoothing | None = None,
) -> list[float]:
    """The same of a forecaster that is fitted to the anchors, from their Gram matrix ``gram`` ``[n, n]``, newest
    first. Smoothed anchors are ``S F``, so their Gram matrix is ``S G S^T`` and weights ``w`` over them ``w S``."""
    if smoothing is None:
        return checked(forecaster, forecaster.weights_from(gram, anchors, target), len(anchors))
    smooth = smoothing.matrix(len(anchors), len(anchors))
    found = checked(forecaster, forecaster.weights_from(smooth @ gram @ smooth.T, anchors, target), len(anchors))
    return checked(forecaster, (np.array(found) @ smooth[: len(found)]).tolist(), len(anchors))


def depth(forecaster: Forecaster, smoothing: Smoothing | None = None) -> int:
    """The number of anchors the forecaster reads when enough are available: the size of the ring.

    Raises:
        HiCacheError: it reads all available anchors, whatever their number.
    """
    plenty = range(MOST_ANCHORS, -1, -1)
    read = len(weights(forecaster, plenty, MOST_ANCHORS + 1, smoothing))
    if read > MOST_ANCHORS:
        raise HiCacheError(
            f"{type(forecaster).__name__}.weights reads every anchor it is given: must read at most "
            f"{MOST_ANCHORS}; the length of what it returns is how many are kept, so bound it: anchors[:3]"
        )
    return read
