"""AdaCache (2411.02397): how much the cached residual changed at a computed step says when to compute next."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import ClassVar

from hicache_compile.errors import HiCacheError
from hicache_compile.policy.guards.arithmetic import Arithmetic, Number, Numbers, Truth
from hicache_compile.policy.guards.base import Guard, Measure, Probe, Signal
from hicache_compile.policy.plain_data import plain_data

PAIRS = 16  # of a codebook, at most
FAST_30 = ((0.08, 6), (0.16, 5), (0.24, 4), (0.32, 3), (0.40, 2), (1.0, 1))


@plain_data
class AdaCacheGuard(Guard):
    """At each computed step ``c = change(residual) / steps since the one before``; the codebook maps it to an interval.

    Published for the residual of one attention; here it is that of the cached blocks, of which there is one at stack
    scope.

    Args:
        codebook: pairs of the largest ``c`` and the interval it means, in rising order; beyond the last: 1.
    """

    codebook: tuple[tuple[float, int], ...] = FAST_30

    remembers: ClassVar[Mapping[str, float]] = {"last": -1.0, "next": 0.0}
    numbers_are_data: ClassVar[bool] = True

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

    def parameters(self, num_steps: int | None) -> Mapping[str, float | Sequence[float]]:
        pairs = [*self.codebook, *[(-1.0, 1)] * (PAIRS - len(self.codebook))]  # nothing is below -1
        return {"largest": tuple(most for most, _ in pairs), "intervals": tuple(float(every) for _, every in pairs)}

    def ask(self, m: Arithmetic, p: Numbers, s: Numbers, step: Number, seen: Sequence[Number]) -> tuple[Truth, Numbers]:
        return step < s.next, s

    def after_full(self, m: Arithmetic, p: Numbers, s: Numbers, step: Number, seen: Sequence[Number]) -> Numbers:
        known = (s.last >= 0) & m.isfinite(seen[0])
        change = seen[0] / m.maximum(step - s.last, 1.0)
        interval: Number = 1.0
        for most, every in zip(reversed(p.largest), reversed(p.intervals), strict=True):
            interval = m.where(change <= most, every, interval)
        return s.replace(last=1.0 * step, next=step + m.where(known, interval, 1.0))
