"""SpeCa (2509.11628): forecasts are drafts, verified by really computing the last blocks on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from hicache_compile.errors import real_number, whole_number
from hicache_compile.policy.guards.arithmetic import Arithmetic, Number, Numbers, Truth
from hicache_compile.policy.guards.base import Guard, Measure, Probe, Signal, nonnegative
from hicache_compile.policy.plain_data import plain_data


@plain_data
class SpeCaGuard(Guard):
    """Draft at least ``least`` steps after each computed one, then until a draft errs by more than its threshold.

    The error of step ``s`` is ``change(computed, forecast)`` of the last blocks, which always run; where it exceeds
    ``max(floor, threshold * decay ** (s / num_steps))`` the next step is computed. There is no way back in a run, so a
    rejected draft stands, as published.

    Args:
        threshold: at the start of a run; 0 computes every step.
        decay: of the threshold over a run, in (0, 1].
        floor: it falls no lower.
        least: drafts after a computed step that are not judged.
        blocks: how many last blocks judge.
    """

    threshold: float = 7.0
    decay: float = 0.3
    floor: float = 0.1
    least: int = 2
    blocks: int = 1

    remembers: ClassVar[Mapping[str, float]] = {"row": 0.0, "rejected": 0.0}
    numbers_are_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.check()
        nonnegative("SpeCaGuard", "threshold", self.threshold)
        nonnegative("SpeCaGuard", "floor", self.floor)
        real_number("SpeCaGuard", "decay", self.decay, 0.0, 1.0)
        whole_number("SpeCaGuard", "least", self.least, 0)
        whole_number("SpeCaGuard", "blocks", self.blocks, 1)

    @property
    def probe(self) -> Probe:
        return Probe(Measure.VERIFY, Signal.RESIDUAL, self.blocks)

    def parameters(self, num_steps: int | None) -> Mapping[str, float | Sequence[float]]:
        return {
            "threshold": self.threshold,
            "decay": self.decay,
            "floor": self.floor,
            "least": self.least,
            "length": math.inf if num_steps is None else num_steps,
        }

    def ask(self, m: Arithmetic, p: Numbers, s: Numbers, step: Number, seen: Sequence[Number]) -> tuple[Truth, Numbers]:
        return (p.threshold > 0) & (s.rejected == 0), s

    def after_full(self, m: Arithmetic, p: Numbers, s: Numbers, step: Number, seen: Sequence[Number]) -> Numbers:
        return s.replace(row=0.0, rejected=0.0)

    def after_forecast(self, m: Arithmetic, p: Numbers, s: Numbers, step: Number, seen: Sequence[Number]) -> Numbers:
        limit = m.maximum(p.floor, p.threshold * p.decay ** (step / p.length))
        rejected = (s.row + 1 >= p.least) & m.negate(m.isfinite(seen[0]) & (seen[0] <= limit))
        return s.replace(row=s.row + 1, rejected=m.where(rejected, 1.0, 0.0))
