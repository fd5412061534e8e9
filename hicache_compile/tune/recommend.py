"""Three policies to choose from, and what each promises, measured on pictures that nothing was chosen by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hicache_compile.evaluation.intervals import Interval95

LEVELS = ("conservative", "balanced", "aggressive")
AGAIN = 2**0.5  # how much wider: another measurement of as many pictures varies as much as this one


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A candidate for a level of error. ``error``: measured on fresh noise, with the interval in which another
    measurement of as many pictures falls 95 times of 100."""

    level: str
    most: float
    candidate: str
    error: Interval95
    flops_speedup: float
    computed: float

    def as_data(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "level": self.level,
            "most": self.most,
            "candidate": self.candidate,
            "error": self.error._asdict(),
            "flops_speedup": self.flops_speedup,
            "computed": self.computed,
            "policy": f"{self.level}.json",
        }


def choose(found: Mapping[str, Mapping[str, Interval95]], errors: Sequence[float]) -> dict[str, str]:
    """For each of ``LEVELS`` the fastest candidate whose error is at most that of ``errors`` at the upper end of its
    interval; a level that none serves is left out."""
    chosen = {}
    for level, most in zip(LEVELS, errors, strict=True):
        good = {name: one for name, one in found.items() if one["relative_error"].high <= most}
        if good:
            chosen[level] = max(good, key=lambda name, of=good: _rank(of[name]))  # type: ignore[misc]  # bound now
    return chosen


def _rank(found: Mapping[str, Interval95]) -> tuple[float, float]:
    return found["flops_speedup"].value, -found["relative_error"].value


def promise(error: Interval95) -> Interval95:
    """The interval of another measurement of as many pictures."""
    below, above = (AGAIN * (end - error.value) for end in (error.low, error.high))
    return Interval95(error.value, max(0.0, error.value + below), error.value + above)
