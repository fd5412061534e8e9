"""Optimisation fuel: how many sites may be rewritten, so that a wrong picture is bisected by an integer.

``HICACHE_FUEL=7`` lets the first seven sites of each graph be guarded; the others are computed at every step.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from hicache_compile.errors import CannotRewrite, HiCacheError
from hicache_compile.passes.analysis.sites import Site

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
    if text and not text.isdecimal():
        raise HiCacheError(f"HICACHE_FUEL = {text!r}: must be a whole number of sites")
    return int(text) if text else None


def spend(sites: Sequence[Site]) -> tuple[list[Site], list[CannotRewrite]]:
    """The sites there is fuel for, and those that stay as they are."""
    left = fuel()
    if left is None:
        return list(sites), []
    unfuelled = [CannotRewrite(site.name, f"the fuel for {left} sites was spent") for site in sites[left:]]
    return list(sites[:left]), unfuelled
