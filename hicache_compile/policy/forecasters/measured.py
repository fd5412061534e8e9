"""Weights that depend on the anchors' values: fitted in each run to the contents of its rings.

Such a forecaster reads the Gram matrix of the anchors, ``gram[i, j] = <F_i, F_j>`` summed over slots, newest first. It
is copied from the device once per computed step (``host_syncs``); the program does not change.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from hicache_compile.errors import whole_number
from hicache_compile.policy.compatibility import Trait, traits_of
from hicache_compile.policy.forecasters.base import MOST_ANCHORS, Forecaster, check_inner
from hicache_compile.policy.plain_data import plain_data
from hicache_compile.policy.run import RunInfo, bound


class MeasuredForecaster(ABC):
    """A forecaster that depends on the anchors' values."""

    __slots__ = ()
    reads: int
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.READS_ANCHORS})

    def weights(self, anchors: Sequence[int], target: int) -> list[float]:
        """Weights before any measurement: the newest anchor, zero for the others it will read."""
        return [1.0, *[0.0] * (min(len(anchors), self.reads) - 1)]

    @abstractmethod
    def weights_from(self, gram: np.ndarray, anchors: Sequence[int], target: int) -> list[float]:
        """Weights from ``gram`` ``[n, n]``, float64, of the ``n`` newest anchors."""


@plain_data
class DMD(MeasuredForecaster):
    """Dynamic mode decomposition (Schmid, J. Fluid Mech. 656, 2010; for caches: HiCache++).

    The anchors are snapshots of a linear system ``F_{k+1} = A F_k``. ``A`` is fitted in the space of their ``rank``
    strongest directions and raised to the power of the distance. Snapshots must be evenly spaced: those before a change
    of spacing are ignored, and with fewer than three the newest is reused.

    Args:
        rank: number of directions, at most one less than the snapshots.
        reads: the maximum number of snapshots.
    """

    rank: int = 3
    reads: int = 5

    def __post_init__(self) -> None:
        whole_number("DMD", "rank", self.rank, 1, MOST_ANCHORS)
        whole_number("DMD", "reads", self.reads, 3, MOST_ANCHORS)

    def weights_from(self, gram: np.ndarray, anchors: Sequence[int], target: int) -> list[float]:
        count = _evenly_spaced(anchors[: self.reads])
        if count < 3:
            return [1.0]
        gap = anchors[0] - anchors[1]
        ordered = gram[:count, :count][::-1, ::-1]  # oldest first
        first, second = ordered[:-1, :-1], ordered[:-1, 1:]  # <x_i, x_j>, <x_i, x_{j+1}>
        values, vectors = np.linalg.eigh(first)
        kept = np.argsort(values)[::-1][: self.rank]
        kept = kept[values[kept] > 1e-9 * values.max()]
        if not len(kept):
            return [1.0]
        modes = vectors[:, kept] / np.sqrt(values[kept])  # orthonormal directions, as weights over x_0 .. x_{m-1}
        step = modes.T @ second @ modes
        eigenvalues, right = np.linalg.eig(step)
        powered = right * eigenvalues.astype(complex) ** ((target - anchors[0]) / gap) @ np.linalg.inv(right)
        weights = modes @ (powered @ (modes.T @ second[:, -1])).real
        return [0.0, *weights[::-1].tolist()]


@plain_data
class ResidualGate(MeasuredForecaster):
    """A forecast damped by the gate that would have been best at the last computed step.

    The newest anchor is forecast from those before it. The gate is the least-squares fraction of that forecast's
    change, clipped to ``[0, 1]``, and applies to the following forecasts: ``anchor + gate * (forecast - anchor)``. With
    two anchors no comparison is possible, and the gate is 1.

    Args:
        forecaster: the forecaster to damp.
        reads: the maximum number of anchors: one more than ``forecaster`` reads.
    """

    forecaster: Forecaster
    reads: int = 4

    def __post_init__(self) -> None:
        check_inner("ResidualGate", "forecaster", self.forecaster)
        whole_number("ResidualGate", "reads", self.reads, 2, MOST_ANCHORS)

    @property
    def traits(self) -> frozenset[Trait]:  # type: ignore[override]  # those of what is damped too
        return (traits_of(self.forecaster) | {Trait.READS_ANCHORS}) - {Trait.REUSES}

    def bind(self, run: RunInfo) -> ResidualGate:
        """The forecaster for ``run``."""
        return ResidualGate(bound(self.forecaster, run), self.reads)

    def weights_from(self, gram: np.ndarray, anchors: Sequence[int], target: int) -> list[float]:
        count = min(len(anchors), self.reads)
        gate = 1.0
        if count > 2:
            earlier = self.forecaster.weights(anchors[1:count], anchors[0])
            drafted, moved = np.zeros(count), np.zeros(count)
            drafted[1 : 1 + len(earlier)] = earlier
            drafted[1] -= 1.0
            moved[0], moved[1] = 1.0, -1.0
            size = float(drafted @ gram[:count, :count] @ drafted)
            gate = min(1.0, max(0.0, float(moved @ gram[:count, :count] @ drafted) / size)) if size > 0 else 1.0
        newest, *older = self.forecaster.weights(anchors[: max(1, count - 1)], target)
        return [1.0 - gate + gate * newest, *(gate * weight for weight in older)]


def _evenly_spaced(anchors: Sequence[int]) -> int:
    """The number of evenly spaced anchors, counted from the newest."""
    count = min(2, len(anchors))
    while 2 <= count < len(anchors) and anchors[count - 1] - anchors[count] == anchors[0] - anchors[1]:
        count += 1
    return count
