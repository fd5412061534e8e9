"""How long a run is that nobody said the length of."""

from __future__ import annotations

from typing import Any

from hicache_compile.policy.policy import Policy

USUAL = 50  # steps


def usual_length(policy: Policy) -> int:
    """The length that a mask of ``policy`` is made for; of a policy without one, ``USUAL``."""
    return next(iter(_lengths(policy.schedule)), USUAL)


def _lengths(schedule: Any) -> list[int]:
    """Of the masks in ``schedule``, and in what it has for kinds, ranges and branches."""
    mask = getattr(schedule, "mask", None)
    if isinstance(mask, str):
        return [len(mask)]
    inner = getattr(schedule, "schedules", ())
    each = [*inner.values()] if hasattr(inner, "values") else [*inner]
    return [
        length for one in [*each, getattr(schedule, "default", None)] if one is not None for length in _lengths(one)
    ]
