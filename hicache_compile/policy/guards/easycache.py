"""EasyCache (2507.02860): how much the output follows the input, measured where both are computed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from hicache_compile.policy.guards.arithmetic import Arithmetic, Number, Numbers, Truth
from hicache_compile.policy.guards.base import Guard, Measure, Probe, Signal, nonnegative
from hicache_compile.policy.plain_data import plain_data


@plain_data
class EasyCacheGuard(Guard):
    """Skip while ``sum k mean|x - x before| / mean|y computed last|`` is below ``threshold``.

    ``x`` and ``y`` are the denoiser's input and output, ``k = mean|dy| / mean|dx|`` between the last two computed
    steps.

    Args:
        threshold: 0 computes every step.
    """

    threshold: float

    remembers: ClassVar[Mapping[str, float]] = {"computed": 0.0, "accumulated": 0.0}
    numbers_are_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.check()
        nonnegative("EasyCacheGuard", "threshold", self.threshold)

    @property
    def probe(self) -> Probe:
        return Probe(Measure.RATE, Signal.INPUT)

    def ask(self, m: Arithmetic, p: Numbers, s: Numbers, step: Number, seen: Sequence[Number]) -> tuple[Truth, Numbers]:
        rated = s.computed >= 2  # before, there is no rate
        total = m.where(rated, s.accumulated + seen[0], s.accumulated)
        return rated & (p.threshold > 0) & (total < p.threshold), s.replace(accumulated=total)

    def compared(self, s: Numbers, seen: Sequence[Number]) -> Number:
        return s.accumulated if s.computed >= 2 else math.inf  # before, nothing is

    def after_full(self, m: Arithmetic, p: Numbers, s: Numbers, step: Number, seen: Sequence[Number]) -> Numbers:
        return s.replace(computed=s.computed + 1, accumulated=0.0)
