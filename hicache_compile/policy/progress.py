"""Long work shows how far it is, a bar on a terminal and a line every 30 seconds in a log, and can be interrupted."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Event, current_thread, main_thread
from typing import Any, TextIO

EVERY = 30.0  # seconds between two lines of a log


class _Lines:
    """A stream to which each state of a bar is written as a line of its own."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        state = text.strip()
        if state:
            self.stream.write(f"{state}\n")

    def flush(self) -> None:
        self.stream.flush()


def look(what: str, unit: str, *, within: bool = False, quiet: bool = False) -> dict[str, Any]:
    """The arguments of ``tqdm`` for a bar on stderr; ``within``: it is of one item of other work, shown below its bar.

    Of one item a log says nothing in the first 30 seconds.
    """
    about: dict[str, Any] = {"desc": what, "unit": unit, "disable": quiet, "leave": not within}
    if sys.stderr.isatty():
        return about | {"file": sys.stderr, "position": int(within), "dynamic_ncols": True}
    waiting = EVERY if within else 0.0
    return about | {
        "file": _Lines(sys.stderr),
        "ncols": 0,
        "mininterval": EVERY,
        "maxinterval": EVERY,
        "delay": waiting,
    }


def progress(
    items: Iterable[Any] | None = None, *, total: int | None = None, initial: int = 0, what: str, **more: Any
) -> Any:
    """A ``tqdm`` over ``items``, or to ``update`` by hand from ``initial`` on; ``more``: see ``look``."""
    from tqdm import tqdm

    return tqdm(items, total=total, initial=initial, **look(what, **more))


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, during work of which something is kept; the message says where."""


@contextmanager
def kept(where: str) -> Iterator[None]:
    """Inside, Ctrl-C becomes ``Interrupted``, which says what is kept ``where``."""
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt:
        raise Interrupted(where) from None


@contextmanager
def stopping_between_steps() -> Iterator[Event]:
    """Inside, Ctrl-C sets an event, which is to be looked at between two steps; a second Ctrl-C is as ever.

    For work that cannot be kept in the middle of a step. In another thread than the main one nothing changes.
    """
    asked = Event()
    if current_thread() is not main_thread():
        yield asked
        return

    def ask(*_: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def script() -> Iterator[None]:
    """A whole script: Ctrl-C ends it with one line and exit status 130."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        print(f"\ninterrupted; {str(interrupt) or 'nothing was kept'}", file=sys.stderr)
        raise SystemExit(130) from None
