"""DiCache (2508.17356): the first blocks probe how far the trajectory went, and align the forecast with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from hicache_compile.errors import HiCacheError, one_of, true_or_false, whole_number
from hicache_compile.policy.guards.base import Guard, Measure, Probe, Signal, Watcher, nonnegative


@dataclass(frozen=True, slots=True)
class DiCacheGuard(Guard):
    """Skip while the summed change of the probe is below ``threshold``; the probe is the first ``blocks`` blocks.

    Args:
        threshold: 0 computes every step.
        blocks: how many blocks make the probe, and always run.
        error: ``"end"``: the change of the probe's output (FLUX). ``"excess"``: by how much it differs from that of
            its input.
        aligned: forecast ``r2 + g (r1 - r2)`` from the last two computed residuals, ``g`` being how far the probe's
            residual went from the one to the other and beyond; else the policy's forecaster is used.
        limits: of ``g``.
    """

    threshold: float
    blocks: int = 1
    error: str = "end"
    aligned: bool = True
    limits: tuple[float, float] = (1.0, 1.5)

    depth: ClassVar[int] = 2

    def __post_init__(self) -> None:
        self.check()
        nonnegative("DiCacheGuard", "threshold", self.threshold)
        whole_number("DiCacheGuard", "blocks", self.blocks, 1)
        one_of("DiCacheGuard", "error", self.error, ("end", "excess"))
        true_or_false("DiCacheGuard", "aligned", self.aligned)
        low_high = tuple(self.limits) if isinstance(self.limits, list | tuple) else ()
        if len(low_high) != 2 or not low_high[0] <= low_high[1]:
            raise HiCacheError(f"DiCacheGuard.limits = {self.limits!r}: must be two numbers, the least first")
        object.__setattr__(self, "limits", low_high)

    @property
    def probe(self) -> Probe:
        return Probe(Measure(self.error), Signal.RESIDUAL, self.blocks)

    def numbers(self, num_steps: int | None) -> list[float]:
        return [3, self.threshold, float(self.aligned), *self.limits]

    def watch(self, num_steps: int | None) -> Watcher:
        return _Aligned(self)


class _Aligned(Watcher):
    def __init__(self, guard: DiCacheGuard) -> None:
        super().__init__()
        self.guard = guard
        self.state = {"computed": 0, "accumulated": 0.0, "progress": 1.0}

    def skips(self, step: int, measured: Sequence[float]) -> bool:
        self.state["accumulated"] += measured[0]
        self.state["progress"] = measured[1]
        return self.guard.threshold > 0 and self.state["accumulated"] < self.guard.threshold

    def after_full(self, step: int, measured: Sequence[float]) -> None:
        self.state["computed"] += 1
        self.state["accumulated"] = 0.0

    def weights(self) -> list[float] | None:
        if not self.guard.aligned or self.state["computed"] < 2:
            return None
        low, high = self.guard.limits
        progress = self.state["progress"]
        gamma = low if math.isnan(progress) else min(max(progress, low), high)  # nan: the residual did not move
        return [gamma, 1.0 - gamma]
