"""Optimisation fuel: how many sites may be rewritten, so that a wrong picture is bisected by an integer.

``HICACHE_FUEL=7`` lets the first seven sites of each graph be guarded; the others are computed at every step.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from hicache_compile.errors import CannotRewrite, HiCacheError
from hicache_compile.passes.work import Work

_fuel: ContextVar[int | None] = ContextVar("fuel", default=None)


@contextmanager
def limited(rewrites: int) -> Iterator[None]:
    """Graphs rewritten inside get fuel for so many sites."""
    token = _fuel.set(rewrites)
    try:
        yield
    finally:
        _fuel.reset(token)


def fuel() -> int | None:
    """What ``limited`` or ``HICACHE_FUEL`` allows; ``None``: everything.

    Raises:
        HiCacheError: the variable is no whole number.
    """
    given = _fuel.get()
    if given is not None:
        return given
    text = os.environ.get("HICACHE_FUEL", "")
    if text and not (text.isdecimal() and len(text) < 10):  # digits that int() reads
        raise HiCacheError(f"HICACHE_FUEL = {text!r:.60}: must be a whole number of rewrites")
    return int(text) if text else None


def spend(work: Work, names: Sequence[str]) -> int:
    """How many of the rewrites ``names``, in graph order, there is fuel for; the others are declined."""
    left = fuel()
    if left is None:
        return len(names)
    spent = sum(map(len, (work.sparse, work.partitioned)))
    allowed = max(0, left - spent)
    work.refused += [CannotRewrite(name, f"the fuel for {left} rewrites was spent") for name in names[allowed:]]
    return min(allowed, len(names))


def spend_on_passes(work: Work, names: Sequence[str]) -> int:
    """How many of the own passes ``names`` there is fuel for when all sites are rewritten; the others are declined."""
    left = fuel()
    if left is None:
        return len(names)
    allowed = max(0, left - len(work.sparse) - len(work.partitioned) - len(work.sites))
    work.refused += [CannotRewrite(name, f"the fuel for {left} rewrites was spent") for name in names[allowed:]]
    return min(allowed, len(names))


def spend_fuel(work: Work) -> int:
    """Keep the sites there is fuel for; returns how many."""
    work.sites = work.sites[: spend(work, [site.name for site in work.sites])]
    return len(work.sites)
