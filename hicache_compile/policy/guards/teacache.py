"""TeaCache (2411.19108): the rescaled changes of a cheap signal are added up until they reach a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hicache_compile.errors import HiCacheError, numbers, one_of, true_or_false
from hicache_compile.policy.guards.base import Guard, Measure, Probe, Signal, Watcher, nonnegative

TERMS = 10  # of the polynomial, at most
SIGNALS = (Signal.MODULATED, Signal.MODULATION, Signal.TIME, Signal.RESIDUAL)


@dataclass(frozen=True, slots=True)
class TeaCacheGuard(Guard):
    """Skip while ``sum poly(change(signal))`` since the last computed step is below ``threshold``.

    Args:
        threshold: 0 computes every step.
        coefficients: of the polynomial, highest power first, fitted to one model (``TEACACHE_MODELS``); ``(1, 0)``
            takes the change as it is.
        signal: ``"modulated"`` (the modulated input of block 0: FLUX, HunyuanVideo, ...), ``"modulation"`` (the
            projected time embedding: Wan with ret steps), ``"time"`` (the time embedding: Wan, CogVideoX, HiDream) or
            ``"residual"`` (of block 0, which then always runs: Z-Image).
        exact: the polynomial as published, which is negative in places, so that the sum goes down; by default it is
            cut off at 0.
        reference: ``"previous"``: changes from step to step. ``"computed"``: from the last computed step, and added up
            all the same (the first FlexCache).
    """

    threshold: float
    coefficients: tuple[float, ...] = (1.0, 0.0)
    signal: str = "modulated"
    exact: bool = False
    reference: str = "previous"

    def __post_init__(self) -> None:
        self.check()
        nonnegative("TeaCacheGuard", "threshold", self.threshold)
        object.__setattr__(self, "coefficients", numbers("TeaCacheGuard", "coefficients", self.coefficients))
        if len(self.coefficients) > TERMS:
            raise HiCacheError(f"TeaCacheGuard.coefficients: {len(self.coefficients)} of them, must be at most {TERMS}")
        true_or_false("TeaCacheGuard", "exact", self.exact)
        one_of("TeaCacheGuard", "signal", self.signal, SIGNALS)
        one_of("TeaCacheGuard", "reference", self.reference, ("previous", "computed"))

    @property
    def probe(self) -> Probe:
        signal = Signal(self.signal)
        blocks = 1 if signal is Signal.RESIDUAL else 0
        return Probe(Measure.CHANGE, signal, blocks, every_step=self.reference == "previous")

    def watch(self, num_steps: int | None) -> Watcher:
        return _Accumulator(self)

    def numbers(self, num_steps: int | None) -> list[float]:
        powers = [0.0] * (TERMS - len(self.coefficients)) + list(self.coefficients)
        return [0, self.threshold, float(self.exact), *powers]

    def rescaled(self, change: float) -> float:
        """The polynomial at ``change``."""
        total = 0.0
        for coefficient in self.coefficients:
            total = total * change + coefficient
        return total if self.exact else max(0.0, total)


class _Accumulator(Watcher):
    def __init__(self, guard: TeaCacheGuard) -> None:
        super().__init__()
        self.guard = guard
        self.state = {"accumulated": 0.0}

    def skips(self, step: int, measured: Sequence[float]) -> bool:
        self.state["accumulated"] += self.guard.rescaled(measured[0])
        return self.guard.threshold > 0 and self.state["accumulated"] < self.guard.threshold

    def after_full(self, step: int, measured: Sequence[float]) -> None:
        self.state["accumulated"] = 0.0
