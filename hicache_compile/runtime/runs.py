"""Runs as objects: trajectories of one compiled denoiser that take turns, each with anchors of its own.

``with run:`` says of which run the calls inside are. Where several are entered at once, by generators that yield inside
of it or by tasks of asyncio, a call belongs to the run that was entered by a function which the call is made from.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass
from types import FrameType, TracebackType

from hicache_compile.errors import HiCacheError
from hicache_compile.policy.policy import Policy
from hicache_compile.runtime.options import CompileOptions, Shared
from hicache_compile.runtime.per_thread import PerThread
from hicache_compile.runtime.rows.session import Member, RowsSession
from hicache_compile.runtime.session import Session


@dataclass(eq=False, slots=True)
class _Entry:
    """A ``with run:`` that was entered. ``frame``: of the function that did; ``None`` once it was left."""

    run: Run | Inside
    frame: FrameType | None


# A task of asyncio has a copy of its own: what others enter is not in it.
_entered: ContextVar[tuple[_Entry, ...]] = ContextVar("hicache_compile.runs", default=())


class Sessions(PerThread[Session]):
    """The sessions of one compiled denoiser: one a thread, and one a run."""

    def __init__(self, make: Callable[[], Session], make_rows: Callable[[], RowsSession]) -> None:
        super().__init__(make)
        self._of_runs: weakref.WeakSet[Session] = weakref.WeakSet()
        self._of_rows: PerThread[RowsSession] = PerThread(make_rows)

    def mine(self) -> Session:
        """That of the run this thread is in, else that of the thread."""
        entered = _entered.get()
        run = self._run_among(entered) if entered else None
        return super().mine() if run is None else run.session

    def of_rows(self) -> RowsSession:
        """That of batches of several runs, in this thread."""
        return self._of_rows.mine()

    def _run_among(self, entered: Sequence[_Entry]) -> Run | Inside | None:
        # A generator may be closed in another context than it was begun in, where its entry is not seen.
        inside = [entry for entry in entered if entry.frame is not None and not entry.run.closed]
        entries = [entry for entry in inside if entry.run.sessions is self]
        if len(entries) < 2:  # the frame may be that of a context manager around the run
            return entries[0].run if entries else None
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            for entry in reversed(entries):
                if entry.frame is frame:
                    return entry.run
            frame = frame.f_back
        return entries[-1].run

    def of_a_run(self) -> Session:
        """A new one."""
        made = self._make()
        self._of_runs.add(made)
        return made

    def all(self) -> list[Session]:
        """Those of all threads that live and of all runs that are kept."""
        return [*super().all(), *self._of_runs]

    def clear(self) -> None:
        """Drop them all."""
        super().clear()
        self._of_runs.clear()
        self._of_rows.clear()


class Inside:
    """``with Inside(sessions, session):`` calls of the denoiser inside are of ``session``."""

    closed = False

    def __init__(self, sessions: Sessions, session: Session) -> None:
        self.sessions, self.session = sessions, session
        self._entry: _Entry | None = None

    def __enter__(self) -> None:
        self.enter(sys._getframe(1))

    def enter(self, frame: FrameType) -> None:
        """Be entered by the function of ``frame``."""
        self._entry = _Entry(self, frame)
        _entered.set((*_still_inside(), self._entry))

    def __exit__(self, *_: object) -> None:
        if self._entry is not None:
            self._entry.frame = None
        _entered.set(_still_inside())


class Rows(Inside):
    """``with compiled.rows(runs):`` the rows of calls inside are of ``members``."""

    session: RowsSession

    def __init__(self, sessions: Sessions, members: Sequence[Member]) -> None:
        super().__init__(sessions, sessions.of_rows())
        self.members = tuple(members)
        self._outer: Sequence[Member] = ()

    def __enter__(self) -> None:
        self._outer, self.session.members = self.session.members, self.members
        self.enter(sys._getframe(1))

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.session.members = self._outer


class Run:
    """One trajectory. ``with run:`` may be entered any number of times, around a step or around all, by one thread at a
    time; an exception that leaves it closes the run. A run that is dropped takes its anchors with it.

    Args:
        sessions: of the denoiser.
        num_steps, policy, timesteps: see ``Session.open``.
    """

    def __init__(
        self, sessions: Sessions, num_steps: int, policy: Policy | None, timesteps: Sequence[float] | None
    ) -> None:
        self.sessions = sessions
        self.session = sessions.of_a_run()
        self._trajectory = ExitStack()
        self._trajectory.enter_context(self.session.open(num_steps, policy, timesteps))
        self._thread: threading.Thread | None = None  # the one that is inside
        self._depth = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Run:
        with self._lock:
            if self.closed:
                raise HiCacheError("a run that is closed was entered: must be a new one, compiled.run(num_steps)")
            if self._thread not in (None, threading.current_thread()):
                raise HiCacheError("a run was entered in two threads: must be in one at a time")
            self._thread = threading.current_thread()
            self._depth += 1
        _entered.set((*_still_inside(), _Entry(self, sys._getframe(1))))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        mine = [entry for entry in _entered.get() if entry.run is self and entry.frame is not None]
        same = [entry for entry in mine if entry.frame is sys._getframe(1)]
        for entry in (same or mine)[-1:]:  # none where a generator is closed in another context
            entry.frame = None
        _entered.set(_still_inside())
        with self._lock:
            self._depth -= 1
            self._thread = self._thread if self._depth else None
        if error is not None:
            self.close()

    @property
    def num_steps(self) -> int | None:
        """``None`` once it is closed."""
        return self.session.num_steps

    @property
    def policy(self) -> Policy:
        """That of all its steps."""
        return self.session.policy

    @property
    def closed(self) -> bool:
        """Whether no more steps can be made."""
        return self.session.trajectory is None

    def decisions(self, context: str | None = None) -> str:
        """A letter for each step so far, see ``Report.decisions``; by default of the first guidance branch.

        Raises:
            HiCacheError: there is no such branch.
        """
        contexts = self.session.contexts
        if context is not None and context not in contexts:
            raise HiCacheError(f"decisions.context = {context!r}: must be one of {', '.join(contexts) or 'none yet'}")
        if not contexts:
            return ""
        return (contexts[context] if context is not None else next(iter(contexts.values()))).letters()

    def close(self) -> None:
        """Free its anchors. What it decided stays to be read."""
        self._trajectory.close()
        self.session.free_if_idle()


def members_of(sessions: Sessions, runs: Sequence[Run], contexts: Sequence[str] | None) -> list[Member]:
    """The members of a batch of ``runs``.

    Raises:
        HiCacheError: see ``Handle.rows``.
    """
    if not isinstance(runs, Sequence) or not runs or not all(isinstance(run, Run) for run in runs):
        raise HiCacheError("rows.runs: must be a list of one or more runs, as compiled.run(num_steps) returns them")
    if contexts is not None and (isinstance(contexts, str) or len(contexts) != len(runs)):
        raise HiCacheError(f"rows.contexts: must be a list of {len(runs)} names, one for each run")
    for number, run in enumerate(runs):
        if run.closed:
            raise HiCacheError(f"rows.runs[{number}]: is closed, must be a run with steps left")
        if run.sessions is not sessions:
            raise HiCacheError(f"rows.runs[{number}]: is of another denoiser")
    return [(run.session, name) for run, name in zip(runs, contexts or [""] * len(runs), strict=True)]


def _still_inside() -> tuple[_Entry, ...]:
    return tuple(entry for entry in _entered.get() if entry.frame is not None)


def sessions(options: CompileOptions) -> Sessions:
    """The sessions of one compiled denoiser."""
    shared = Shared(options.policy)
    made = Sessions(lambda: Session(options, shared), lambda: RowsSession(options, shared))
    shared.sessions = made
    return made
