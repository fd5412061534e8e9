"""DiCache (2508.17356): the first blocks probe how far the trajectory went, and align the forecast with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from hicache_compile.errors import HiCacheError, one_of, true_or_false, whole_number
from hicache_compile.policy.guards.arithmetic import Arithmetic, Number, Numbers, Truth
from hicache_compile.policy.guards.base import Guard, Measure, Probe, Signal, nonnegative
from hicache_compile.policy.plain_data import plain_data


@plain_data
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
    remembers: ClassVar[Mapping[str, float]] = {"computed": 0.0, "accumulated": 0.0, "progress": 1.0}
    numbers_are_data: ClassVar[bool] = True

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

    def ask(self, m: Arithmetic, p: Numbers, s: Numbers, step: Number, seen: Sequence[Number]) -> tuple[Truth, Numbers]:
        total = s.accumulated + seen[0]
        return (p.threshold > 0) & (total < p.threshold), s.replace(accumulated=total, progress=seen[1])

    def after_full(self, m: Arithmetic, p: Numbers, s: Numbers, step: Number, seen: Sequence[Number]) -> Numbers:
        return s.replace(computed=s.computed + 1, accumulated=0.0)

    def weights(self, m: Arithmetic, p: Numbers, s: Numbers) -> tuple[Truth, Sequence[Number]]:
        low, high = p.limits
        within = m.minimum(m.maximum(s.progress, low), high)
        gamma = m.where(m.isnan(s.progress), low, within)  # nan: the residual did not move
        return (p.aligned > 0) & (s.computed >= 2), [gamma, 1.0 - gamma]
