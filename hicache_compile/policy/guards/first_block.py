"""First-block caching (ParaAttention) and DBCache: what the first blocks add tells whether the others change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hicache_compile.errors import true_or_false, whole_number
from hicache_compile.policy.guards.base import Guard, Measure, Probe, Signal, Watcher, nonnegative


@dataclass(frozen=True, slots=True)
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

    def numbers(self, num_steps: int | None) -> list[float]:
        most = math.inf if self.max_accumulated is None else self.max_accumulated
        return [1, self.threshold, self.max_cached, self.max_continuous, most, float(self.blind)]

    def watch(self, num_steps: int | None) -> Watcher:
        return _Similarity(self)


class _Similarity(Watcher):
    """DBCache's order of tests: the budget, the row, the sum of changes, then the change itself."""

    def __init__(self, guard: FirstBlockGuard) -> None:
        super().__init__()
        self.guard = guard
        self.state = {"cached": 0, "row": 0, "accumulated": 0.0, "change": 0.0}

    def skips(self, step: int, measured: Sequence[float]) -> bool:
        guard, state = self.guard, self.state
        state["change"] = measured[0]
        if 0 <= guard.max_cached <= state["cached"] or 0 <= guard.max_continuous <= state["row"]:
            return False
        if guard.max_accumulated is not None and state["accumulated"] >= guard.max_accumulated:
            return False
        if guard.threshold <= 0:
            return False
        return (guard.blind and guard.threshold >= 1) or measured[0] < guard.threshold

    def after_full(self, step: int, measured: Sequence[float]) -> None:
        self.state["row"] = 0
        self.state["accumulated"] = 0.0

    def after_forecast(self, step: int, measured: Sequence[float]) -> None:
        self.state["cached"] += 1
        self.state["row"] += 1
        self.state["accumulated"] += self.state["change"]
