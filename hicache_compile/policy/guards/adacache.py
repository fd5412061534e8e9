"""AdaCache (2411.02397): how much the cached residual changed at a computed step says when to compute next."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from hicache_compile.errors import HiCacheError
from hicache_compile.policy.guards.base import Guard, Measure, Probe, Signal, Watcher

PAIRS = 16  # of a codebook, at most
FAST_30 = ((0.08, 6), (0.16, 5), (0.24, 4), (0.32, 3), (0.40, 2), (1.0, 1))
SLOW_30 = ((0.08, 3), (0.16, 2), (1.0, 1))
STEPS_100 = ((0.03, 12), (0.05, 10), (0.07, 8), (0.09, 6), (0.11, 4), (1.0, 3))


@dataclass(frozen=True, slots=True)
class AdaCacheGuard(Guard):
    """At each computed step ``c = change(residual) / steps since the one before``; the codebook maps it to an interval.

    Published for the residual of one attention; here it is that of the cached blocks, of which there is one at stack
    scope.

    Args:
        codebook: pairs of the largest ``c`` and the interval it means, in rising order; beyond the last: 1.
    """

    codebook: tuple[tuple[float, int], ...] = FAST_30

    def __post_init__(self) -> None:
        self.check()
        try:
            book = tuple((float(most), int(interval)) for most, interval in self.codebook)
        except (TypeError, ValueError):
            book = ()
        rising = all(a[0] < b[0] for a, b in itertools.pairwise(book))
        if not book or len(book) > PAIRS or not rising or any(interval < 1 for _, interval in book):
            raise HiCacheError(
                f"AdaCacheGuard.codebook = {self.codebook!r}: must be at most {PAIRS} pairs (largest change, "
                "interval >= 1), rising"
            )
        object.__setattr__(self, "codebook", book)

    @property
    def probe(self) -> Probe:
        return Probe(Measure.CHANGE, Signal.SITES, every_step=False)

    def numbers(self, num_steps: int | None) -> list[float]:
        unused = [(-1.0, 1)] * (PAIRS - len(self.codebook))
        return [4, *(number for pair in (*self.codebook, *unused) for number in pair)]

    def watch(self, num_steps: int | None) -> Watcher:
        return _Codebook(self)


class _Codebook(Watcher):
    def __init__(self, guard: AdaCacheGuard) -> None:
        super().__init__()
        self.guard = guard
        self.state = {"last": -1, "next": 0}

    def skips(self, step: int, measured: Sequence[float]) -> bool:
        return step < self.state["next"]

    def after_full(self, step: int, measured: Sequence[float]) -> None:
        last, interval = self.state["last"], 1
        if last >= 0 and measured:
            change = measured[0] / (step - last)
            interval = next((n for most, n in self.guard.codebook if change <= most), 1)
        self.state = {"last": step, "next": step + interval}
