"""First-block caching (ParaAttention) and DBCache: what the first blocks add tells whether the others change."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from hicache_compile.errors import true_or_false, whole_number
from hicache_compile.policy.guards.arithmetic import Arithmetic, Number, Numbers, Truth
from hicache_compile.policy.guards.base import Guard, Measure, Probe, Signal, nonnegative
from hicache_compile.policy.plain_data import plain_data


@plain_data
class FirstBlockGuard(Guard):
    """Skip while the residual of the first blocks is within ``threshold`` of that of the last computed step.

    Args:
        threshold: relative L1 change, strictly less skips; 0 computes every step, from 1 on with ``blind`` set
            nothing is asked.
        downsample: only every so many-th channel is compared.
        blocks: how many first blocks always run.
        max_cached: steps of a run that may be skipped in all; -1: any number.
        max_continuous: steps in a row that may be; where it is reached, the next step is computed and the count
            starts over. -1: any number.
        max_accumulated: what the changes since the last computed step may sum up to; ``None``: anything.
        blind: a threshold of 1 or more skips without looking (DBCache).
    """

    threshold: float
    downsample: int = 1
    blocks: int = 1
    max_cached: int = -1
    max_continuous: int = -1
    max_accumulated: float | None = None
    blind: bool = False

    remembers: ClassVar[Mapping[str, float]] = {"cached": 0.0, "row": 0.0, "accumulated": 0.0, "change": 0.0}
    numbers_are_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.check()
        nonnegative("FirstBlockGuard", "threshold", self.threshold)
        whole_number("FirstBlockGuard", "downsample", self.downsample, 1)
        whole_number("FirstBlockGuard", "blocks", self.blocks, 1)
        whole_number("FirstBlockGuard", "max_cached", self.max_cached, -1)
        whole_number("FirstBlockGuard", "max_continuous", self.max_continuous, -1)
        true_or_false("FirstBlockGuard", "blind", self.blind)
        if self.max_accumulated is not None:
            nonnegative("FirstBlockGuard", "max_accumulated", self.max_accumulated)

    @property
    def probe(self) -> Probe:
        return Probe(Measure.CHANGE, Signal.RESIDUAL, self.blocks, self.downsample, every_step=False)

    def parameters(self, num_steps: int | None) -> Mapping[str, float | Sequence[float]]:
        return {
            "threshold": self.threshold,
            "max_cached": _or_infinite(self.max_cached),
            "max_continuous": _or_infinite(self.max_continuous),
            "max_accumulated": math.inf if self.max_accumulated is None else self.max_accumulated,
            "blind": self.blind,
        }

    def ask(self, m: Arithmetic, p: Numbers, s: Numbers, step: Number, seen: Sequence[Number]) -> tuple[Truth, Numbers]:
        within = (s.cached < p.max_cached) & (s.row < p.max_continuous) & (s.accumulated < p.max_accumulated)
        similar = ((p.blind > 0) & (p.threshold >= 1)) | (seen[0] < p.threshold)
        return within & (p.threshold > 0) & similar, s.replace(change=seen[0])

    def compared(self, s: Numbers, seen: Sequence[Number]) -> Number:
        return seen[0]

    def after_full(self, m: Arithmetic, p: Numbers, s: Numbers, step: Number, seen: Sequence[Number]) -> Numbers:
        return s.replace(row=0.0, accumulated=0.0)

    def after_forecast(self, m: Arithmetic, p: Numbers, s: Numbers, step: Number, seen: Sequence[Number]) -> Numbers:
        return s.replace(cached=s.cached + 1, row=s.row + 1, accumulated=s.accumulated + s.change)


def _or_infinite(most: int) -> float:
    return math.inf if most < 0 else most
