"""Passes of your own: functions that change each straight-line program before it is compiled."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from hicache_compile.errors import HiCacheError

ProgramPass = Callable[[Any], Any]  # of a torch.fx.GraphModule, changed in place (None is returned) or returned


def as_program_passes(owner: str, given: object) -> tuple[ProgramPass, ...]:
    """``given`` as a tuple of functions.

    Raises:
        HiCacheError: it is no list of functions.
    """
    if given is None:
        return ()
    passes = tuple(given) if isinstance(given, list | tuple) else (None,)
    if not all(map(callable, passes)):
        raise HiCacheError(
            f"{owner}.program_passes = {given!r}: must be a list of functions that take a torch.fx.GraphModule"
        )
    for own in passes:
        try:
            hash(own)
        except TypeError as error:
            raise HiCacheError(
                f"{owner}.program_passes: {name_of_pass(own)} has no hash ({error}): must have one, programs are found "
                "by their passes"
            ) from None
    return passes


def name_of_pass(own: ProgramPass) -> str:
    """The name of a function; of an object that is called, that of its class."""
    while isinstance(own, functools.partial):
        own = own.func
    return str(getattr(own, "__name__", type(own).__name__))
