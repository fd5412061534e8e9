"""The forecaster protocol, the simplest forecaster, and the check of every result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

from hicache_compile.errors import HiCacheError
from hicache_compile.policy.compatibility import Trait, traits_of
from hicache_compile.policy.plain_data import plain_data

MAX_ORDER = 8
MOST_ANCHORS = 32  # maximum size of a ring


@runtime_checkable
class Forecaster(Protocol):
    """Converts anchor positions to weights."""

    def weights(self, anchors: Sequence[int], target: int) -> list[float]:
        """One weight per anchor read, newest first; at most ``len(anchors)`` of them."""
        ...


@plain_data
class Reuse:
    """The newest anchor, unchanged: FORA (2407.01425), and order 0 of all other forecasters."""

    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.REUSES})

    def weights(self, anchors: Sequence[int], target: int) -> list[float]:
        return [1.0]


def check_inner(owner: str, field: str, forecaster: object, shown: object = None) -> None:
    """Raise unless ``forecaster`` is one that another may be made of: of all slots, whole, and by steps alone.

    ``shown``: what the field holds, where that is a list.
    """
    by_steps = not isinstance(forecaster, type) and callable(getattr(forecaster, "weights", None))
    if not by_steps or {Trait.READS_ANCHORS, Trait.PER_SLOT, Trait.IN_PARTS} & traits_of(forecaster):
        raise HiCacheError(
            f"{owner}.{field} = {shown or forecaster!r}: must be an object with a method weights(anchors, target), "
            "of all slots and by steps alone"
        )


def checked(forecaster: Forecaster, row: object, most: int) -> list[float]:
    """``row`` as a list of 1 to ``most`` finite floats; raises ``HiCacheError`` if it is not."""
    name = type(forecaster).__name__
    try:
        numbers = [float(weight) for weight in row]  # type: ignore[attr-defined]  # checked by the except
    except (TypeError, ValueError):
        raise HiCacheError(f"{name}.weights returned {row!r}: must be a list of numbers") from None
    if not 1 <= len(numbers) <= most:
        raise HiCacheError(f"{name}.weights returned {len(numbers)} weights for {most} anchors: must be 1 to {most}")
    if not all(map(math.isfinite, numbers)):
        raise HiCacheError(f"{name}.weights returned {numbers}: must be finite")
    return numbers
