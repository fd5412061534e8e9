"""What a search tries: policies by family, each with the number that is turned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hicache_compile.policy.forecasters import Forecaster, Hermite, Reuse, Taylor
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.presets import FBCache, FBCacheTeaCache, TeaCache
from hicache_compile.policy.schedules.base import Interval

THRESHOLDS = (0.0, 0.05, 0.1, 0.12, 0.15, 0.2)
INTERVALS = (2, 3, 4, 5, 7, 9)
BASES: dict[str, Forecaster] = {
    "reuse": Reuse(),
    "Taylor 1": Taylor(1),
    "Taylor 2": Taylor(2),
    "Hermite 1": Hermite(1, 0.5),
    "Hermite 2": Hermite(2, 0.5),
    "Hermite 2, .71": Hermite(2, 0.7071),
}
HERMITE = BASES["Hermite 2, .71"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy to try. ``family``: what it is compared within; ``knob``: the number that is turned."""

    family: str
    knob: float
    policy: Policy

    @property
    def name(self) -> str:
        return f"{self.family} @ {self.knob:g}"


def grid(
    coefficients: Sequence[float],
    scopes: Sequence[str] = ("stack", "module"),
    thresholds: Sequence[float] = THRESHOLDS,
    intervals: Sequence[int] = INTERVALS,
) -> list[Candidate]:
    """Guards at every threshold, both guards at every two of them, and intervals with every basis and scope.

    Args:
        coefficients: of TeaCache's polynomial, fitted to the model.
    """
    tea = tuple(coefficients)
    found = []
    for threshold in thresholds:
        for name, forecaster in (("reuse", Reuse()), ("Hermite", HERMITE)):
            found.append(Candidate(f"FBCache, {name}", threshold, FBCache(threshold, forecaster=forecaster)))
            guarded = TeaCache(threshold, coefficients=tea, forecaster=forecaster)
            found.append(Candidate(f"TeaCache, {name}", threshold, guarded))
    for first in thresholds[1:]:
        for second in thresholds[1:]:
            both = FBCacheTeaCache(first, second, coefficients=tea, forecaster=HERMITE)
            found.append(Candidate(f"FBCache {first:g} + TeaCache", second, both))
    for scope in scopes:
        for name, basis in BASES.items():
            for interval in intervals:
                found.append(Candidate(f"{name}, {scope}", interval, Policy(Interval(interval), basis, scope)))
    return found
