"""SpeCa (2509.11628): forecasts are drafts, verified by really computing the last blocks on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hicache_compile.errors import real_number, whole_number
from hicache_compile.policy.guards.base import Guard, Measure, Probe, Signal, Watcher, nonnegative


@dataclass(frozen=True, slots=True)
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

    def numbers(self, num_steps: int | None) -> list[float]:
        length = math.inf if num_steps is None else num_steps
        return [5, self.threshold, self.decay, self.floor, self.least, length]

    def watch(self, num_steps: int | None) -> Watcher:
        return _Verifier(self, num_steps)


class _Verifier(Watcher):
    def __init__(self, guard: SpeCaGuard, num_steps: int | None) -> None:
        super().__init__()
        self.guard = guard
        self.num_steps = num_steps
        self.state = {"row": 0, "rejected": 0}

    def skips(self, step: int, measured: Sequence[float]) -> bool:
        return self.guard.threshold > 0 and not self.state["rejected"]

    def after_full(self, step: int, measured: Sequence[float]) -> None:
        self.state = {"row": 0, "rejected": 0}

    def after_forecast(self, step: int, measured: Sequence[float]) -> None:
        self.state["row"] += 1
        progress = step / self.num_steps if self.num_steps else 0.0
        limit = max(self.guard.floor, self.guard.threshold * self.guard.decay**progress)
        judged = self.state["row"] >= self.guard.least
        self.state["rejected"] = int(judged and bool(measured) and not measured[0] <= limit)
