"""What a forecaster is, the simplest one, and what every one of them must return."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from hicache_compile.errors import HiCacheError
from hicache_compile.policy.compatibility import Trait

MAX_ORDER = 8
MOST_ANCHORS = 32  # that a ring may hold


@runtime_checkable
class Forecaster(Protocol):
    """Anything that can turn anchor positions into weights."""

    def weights(self, anchors: Sequence[int], target: int) -> list[float]:
        """One weight for each anchor that is read, newest first; at most ``len(anchors)`` of them."""
        ...


@dataclass(frozen=True, slots=True)
class Reuse:
    """The newest anchor, unchanged: FORA (2407.01425), and order 0 of everything else."""

    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.REUSES})

    def weights(self, anchors: Sequence[int], target: int) -> list[float]:
        return [1.0]


def checked(forecaster: Forecaster, row: object, most: int) -> list[float]:
    """``row`` as the list of 1 to ``most`` finite floats it must be; raises ``HiCacheError`` when it is not."""
    name = type(forecaster).__name__
    try:
        numbers = [float(weight) for weight in row]  # type: ignore[attr-defined]  # that is what is tried
    except (TypeError, ValueError):
        raise HiCacheError(f"{name}.weights returned {row!r}: must be a list of numbers") from None
    if not 1 <= len(numbers) <= most:
        raise HiCacheError(f"{name}.weights returned {len(numbers)} weights for {most} anchors: must be 1 to {most}")
    if not all(map(math.isfinite, numbers)):
        raise HiCacheError(f"{name}.weights returned {numbers}: must be finite")
    return numbers
