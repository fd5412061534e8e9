"""Schedulers that announce their runs: ``set_timesteps`` starts one, each ``step`` counts one step of it.

Read off the scheduler on the host, so nothing is synchronised. A scheduler is given a subclass of its own class
with the same name, so that it is saved, loaded, compared and inspected as before; copies of it announce nothing.
"""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Iterable
from functools import cache
from typing import Any

from hicache_compile.runtime.session import Session

_LISTENERS = "_hicache_listeners"


def connect(scheduler: Any, sessions: Iterable[Session]) -> None:
    """Let ``scheduler`` announce its runs to ``sessions``, besides those it announces to already."""
    if _LISTENERS not in vars(scheduler):
        scheduler.__class__ = _announcing(type(scheduler))  # type: ignore[arg-type]  # classes are hashable
        vars(scheduler)[_LISTENERS] = weakref.WeakSet()
    vars(scheduler)[_LISTENERS].update(sessions)


def can_announce(scheduler: Any) -> bool:
    return callable(getattr(scheduler, "set_timesteps", None)) and callable(getattr(scheduler, "step", None))


def steps_left(scheduler: Any) -> int | None:
    """How many steps ``scheduler`` will make from where the pipeline told it to begin; None when it cannot tell."""
    timesteps = getattr(scheduler, "timesteps", None)
    begin = getattr(scheduler, "begin_index", None) or 0
    return None if timesteps is None else len(timesteps) - begin


def times_left(scheduler: Any) -> list[float] | None:
    """The timesteps of those steps; read back from the device they are on."""
    timesteps = getattr(scheduler, "timesteps", None)
    begin = getattr(scheduler, "begin_index", None) or 0
    return None if timesteps is None else [float(time) for time in timesteps[begin:].tolist()]


@cache
def _announcing(cls: Any) -> type:
    """A subclass of the scheduler class ``cls`` that announces."""

    @functools.wraps(cls.set_timesteps)  # pipelines read its signature
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = cls.set_timesteps(self, *args, **kwargs)
        for session in vars(self).get(_LISTENERS, ()):
            session.announce(lambda: steps_left(self), lambda: times_left(self))
        return result

    @functools.wraps(cls.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = cls.step(self, *args, **kwargs)
        for session in vars(self).get(_LISTENERS, ()):
            session.tick()
        return result

    def deepcopy(self: Any, memo: dict[int, Any]) -> Any:
        plain: Any = object.__new__(cls)
        memo[id(self)] = plain
        vars(plain).update(copy.deepcopy({k: v for k, v in vars(self).items() if k != _LISTENERS}, memo))
        return plain

    body = {"set_timesteps": set_timesteps, "step": step, "__deepcopy__": deepcopy, "__doc__": cls.__doc__}
    return type(cls.__name__, (cls,), {**body, "__module__": cls.__module__, "__qualname__": cls.__qualname__})
