"""What a forecaster is, the simplest one, and the pure function under every forecast."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from hicache_compile.errors import HiCacheError

if TYPE_CHECKING:
    from hicache_compile.forecasters.smoothing import Smoothing

MOST_ANCHORS = 32
MAX_ORDER = 8


@runtime_checkable
class Forecaster(Protocol):
    """Anything that can turn anchor positions into weights."""

    def weights(self, anchors: Sequence[int], target: int) -> list[float]:
        """One weight for each anchor that is read, newest first; at most ``len(anchors)`` of them."""
        ...


@dataclass(frozen=True, slots=True)
class Reuse:
    """The newest anchor, unchanged: FORA (2407.01425), and order 0 of everything else."""

    def weights(self, anchors: Sequence[int], target: int) -> list[float]:
        return [1.0]


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
        smoothing: optionally smooth the anchors first.

    Returns:
        One weight per anchor that is read, newest first: ``F^(target) = sum_j w_j * F(anchors[j])``.

    Raises:
        HiCacheError: there is no anchor, the anchors are not in order, the target is not later than
            them, or the forecaster returns more weights than anchors or a weight that is not finite.
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


def checked(forecaster: Forecaster, row: object, most: int) -> list[float]:
    """``row`` as the list of 1 to ``most`` finite floats it must be; raises ``HiCacheError`` when it is not."""
    name = type(forecaster).__name__
    try:
        numbers = [float(weight) for weight in row]  # type: ignore[attr-defined]  # that is what is tried
    except (TypeError, ValueError):
        raise HiCacheError(f"{name}.weights returned {row!r}: must be a list of numbers") from None
    if not 1 <= len(numbers) <= most:
        raise HiCacheError(f"{name}.weights returned {len(numbers)} weights for {most} anchors: must be 1 to {most}")
    if not all(map(math.isfinite, numbers)):
        raise HiCacheError(f"{name}.weights returned {numbers}: must be finite")
    return numbers


def depth(forecaster: Forecaster, smoothing: Smoothing | None = None) -> int:
    """How many anchors the forecaster reads when it may read as many as it likes: the size of the ring.

    Raises:
        HiCacheError: it reads every anchor there is, so no ring could hold them.
    """
    plenty = range(MOST_ANCHORS, -1, -1)
    read = len(weights(forecaster, plenty, MOST_ANCHORS + 1, smoothing))
    if read > MOST_ANCHORS:
        raise HiCacheError(
            f"{type(forecaster).__name__}.weights reads every anchor it is given: must read at most {MOST_ANCHORS}"
        )
    return read
