"""What was entered by ``with``, and so the run that a call is of.

A call belongs to the run that was entered by a function which the call is made from. Where there is none it belongs to
the newest that was entered: by a context manager around the run, or by the task that waits for the thread of the call.
A generator that has yielded inside of its run is another thing: what the function does that it yielded to is none of
the run.
"""

from __future__ import annotations

import inspect
import sys
from contextvars import ContextVar
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any, Protocol

GENERATORS = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
COMPREHENSIONS = {"<listcomp>", "<setcomp>", "<dictcomp>"}  # functions of their own before Python 3.12

FrameKey = tuple[int, CodeType]  # of a frame while it runs


class Enterable(Protocol):
    """What is entered. ``sessions``: of the denoiser whose calls it is about; ``closed``: it has no calls any more."""

    sessions: Any

    @property
    def closed(self) -> bool: ...


@dataclass(eq=False, slots=True)
class Entry:
    """Something that was entered.

    ``frame``: of the function that did; ``None`` once it was left. ``consumer``: where that is a generator, the key of
    the frame that began it. The frame itself would keep the generator that is in one of its variables.
    """

    what: Enterable
    frame: FrameType | None
    consumer: FrameKey | None


# A task of asyncio has a copy of its own: what others enter is not in it.
_entered: ContextVar[tuple[Entry, ...]] = ContextVar("hicache_compile.entered", default=())


def enter(what: Enterable, frame: FrameType) -> Entry:
    """``what`` is entered by the function of ``frame``."""
    consumer = _consumer(frame)
    entry = Entry(what, frame, None if consumer is None else _key(consumer))
    _entered.set((*_inside(), entry))
    return entry


def leave(entry: Entry | None) -> None:
    """``entry`` is left; ``None``: it was not seen here."""
    if entry is not None:
        entry.frame = entry.consumer = None
    _entered.set(_inside())


def entry_of(what: Enterable, frame: FrameType) -> Entry | None:
    """The newest of ``what`` by the function of ``frame``, else by any; none where a generator is closed in another
    context than it was begun in."""
    mine = [entry for entry in _inside() if entry.what is what]
    same = [entry for entry in mine if entry.frame is frame]
    return next(reversed(same or mine), None)


def entered(sessions: object) -> Any:
    """That of ``sessions`` which a call made now belongs to, or ``None``."""
    if not _entered.get():  # as in most steps
        return None
    entries = [entry for entry in _inside() if entry.what.sessions is sessions and not entry.what.closed]
    if not entries:
        return None
    running: set[FrameKey] = set()  # no frames: a list of them would hold what they hold
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        for entry in reversed(entries):
            if entry.frame is frame:
                return entry.what
        running.add(_key(frame))
        frame = frame.f_back
    left = [entry.what for entry in entries if entry.consumer not in running]
    return left[-1] if left else None


def _inside() -> tuple[Entry, ...]:
    # A generator may be closed in another context than it was begun in, where its entry is not seen.
    return tuple(entry for entry in _entered.get() if entry.frame is not None)


def _key(frame: FrameType) -> FrameKey:
    return id(frame), frame.f_code


def _consumer(frame: FrameType) -> FrameType | None:
    """The function that begins the generator of ``frame``; ``None``: it is none."""
    if not frame.f_code.co_flags & GENERATORS:
        return None
    found = frame.f_back
    while found is not None and (found.f_code.co_flags & GENERATORS or found.f_code.co_name in COMPREHENSIONS):
        found = found.f_back
    return found
