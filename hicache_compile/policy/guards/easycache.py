"""EasyCache (2507.02860): how much the output follows the input, measured where both are computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hicache_compile.policy.guards.base import Guard, Measure, Probe, Signal, Watcher, nonnegative


@dataclass(frozen=True, slots=True)
class EasyCacheGuard(Guard):
    """Skip while ``sum k mean|x - x before| / mean|y computed last|`` is below ``threshold``.

    ``x`` and ``y`` are the denoiser's input and output, ``k = mean|dy| / mean|dx|`` between the last two computed
    steps.

    Args:
        threshold: 0 computes every step.
    """

    threshold: float

    def __post_init__(self) -> None:
        self.check()
        nonnegative("EasyCacheGuard", "threshold", self.threshold)

    @property
    def probe(self) -> Probe:
        return Probe(Measure.RATE, Signal.INPUT)

    def numbers(self, num_steps: int | None) -> list[float]:
        return [2, self.threshold]

    def watch(self, num_steps: int | None) -> Watcher:
        return _Rate(self)


class _Rate(Watcher):
    def __init__(self, guard: EasyCacheGuard) -> None:
        super().__init__()
        self.guard = guard
        self.state = {"computed": 0, "accumulated": 0.0}

    def skips(self, step: int, measured: Sequence[float]) -> bool:
        if self.state["computed"] < 2:
            return False  # there is no rate yet
        self.state["accumulated"] += measured[0]
        return self.guard.threshold > 0 and self.state["accumulated"] < self.guard.threshold

    def after_full(self, step: int, measured: Sequence[float]) -> None:
        self.state["computed"] += 1
        self.state["accumulated"] = 0.0
