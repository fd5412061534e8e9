"""What ``disabled``, ``cache_context`` and ``observed`` set in a session, handed on to those of runs entered inside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hicache_compile.runtime.session import Session

_MODES = ("context_name", "uncached", "observer")


def hand_on(outer: Session, session: Session) -> tuple[Any, ...]:
    """``session`` gets the modes of ``outer``; returns its own, for ``give_back``."""
    own = tuple(getattr(session, name) for name in _MODES)
    give_back(session, tuple(getattr(outer, name) for name in _MODES))
    return own


def give_back(session: Session, modes: tuple[Any, ...]) -> None:
    """``session`` has ``modes``."""
    for name, value in zip(_MODES, modes, strict=True):
        setattr(session, name, value)


@contextmanager
def handed_on(outer: Session, session: Session) -> Iterator[None]:
    """Inside, ``session`` has the modes of ``outer``."""
    own = hand_on(outer, session)
    try:
        yield
    finally:
        give_back(session, own)
