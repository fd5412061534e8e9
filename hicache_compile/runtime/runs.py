"""Runs as objects: trajectories of one compiled denoiser that take turns, each with anchors of its own."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import FrameType, TracebackType
from typing import Any

from hicache_compile.errors import HiCacheError
from hicache_compile.policy.policy import Policy
from hicache_compile.runtime.entered import Entry, enter, entered, entry_of, leave
from hicache_compile.runtime.modes import give_back, hand_on
from hicache_compile.runtime.options import CompileOptions, Shared
from hicache_compile.runtime.per_thread import PerThread
from hicache_compile.runtime.rows.session import Member, RowsSession
from hicache_compile.runtime.session import Session


class Sessions(PerThread[Session]):
    """The sessions of one compiled denoiser: one a thread, and one a run."""

    def __init__(self, make: Callable[[], Session], make_rows: Callable[[], RowsSession]) -> None:
        super().__init__(make)
        self._of_runs: weakref.WeakSet[Session] = weakref.WeakSet()
        self._of_rows: PerThread[RowsSession] = PerThread(make_rows)

    def mine(self) -> Session:
        """That of the run this thread is in, else that of the thread."""
        run = entered(self)
        return super().mine() if run is None else run.session

    def of_rows(self) -> RowsSession:
        """That of batches of several runs, in this thread."""
        return self._of_rows.mine()

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
        self._entry: Entry | None = None
        self._modes: tuple[Any, ...] = ()

    def __enter__(self) -> None:
        self.enter(sys._getframe(1))

    def enter(self, frame: FrameType) -> None:
        """Be entered by the function of ``frame``."""
        self._modes = hand_on(self.sessions.mine(), self.session)
        self._entry = enter(self, frame)

    def __exit__(self, *_: object) -> None:
        leave(self._entry)
        give_back(self.session, self._modes)


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
        self.sessions: Sessions | None = sessions
        self._session: Session | None = sessions.of_a_run()
        self._trajectory = ExitStack()
        self._trajectory.enter_context(self._session.open(num_steps, policy, timesteps))
        self._policy = self._session.policy
        self._decided: dict[str, str] = {}  # of a run that is closed
        self._thread: threading.Thread | None = None  # the one that is inside
        self._depth = 0
        self._modes: list[tuple[Any, ...]] = []  # its own, before each time it was entered
        self._lock = threading.Lock()

    def __enter__(self) -> Run:
        with self._lock:
            session, sessions = self.session, self.sessions
            if self._thread not in (None, threading.current_thread()):
                raise HiCacheError("a run was entered in two threads: must be in one at a time")
            self._thread = threading.current_thread()
            self._depth += 1
        if sessions is not None:
            self._modes.append(hand_on(sessions.mine(), session))
        enter(self, sys._getframe(1))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        leave(entry_of(self, sys._getframe(1)))
        with self._lock:
            self._depth -= 1
            self._thread = self._thread if self._depth else None
        if self._modes and self._session is not None:
            give_back(self._session, self._modes.pop())
        if error is not None:
            self.close()

    @property
    def session(self) -> Session:
        """That of its steps.

        Raises:
            HiCacheError: it is closed, as another thread may do at any time.
        """
        session = self._session
        if session is None:
            raise HiCacheError("a run that is closed was entered: must be a new one, compiled.run(num_steps)")
        return session

    @property
    def num_steps(self) -> int | None:
        """``None`` once it is closed."""
        return None if self._session is None else self._session.num_steps

    @property
    def policy(self) -> Policy:
        """That of all its steps."""
        return self._policy if self._session is None else self._session.policy

    @property
    def closed(self) -> bool:
        """Whether no more steps can be made."""
        return self._session is None

    def decisions(self, context: str | None = None) -> str:
        """A letter for each step so far, see ``Report.decisions``; by default of the first guidance branch.

        Raises:
            HiCacheError: there is no such branch.
        """
        decided = self._decided if self._session is None else _decided(self._session)
        if context is not None and context not in decided:
            raise HiCacheError(f"decisions.context = {context!r}: must be one of {', '.join(decided) or 'none yet'}")
        return decided[context] if context is not None else next(iter(decided.values()), "")

    def close(self) -> None:
        """Free its anchors, and hold nothing of the denoiser any more. What it decided stays to be read."""
        if self._session is None:
            return
        session, self._decided = self._session, _decided(self._session)
        self._trajectory.close()
        session.free_if_idle()
        self._policy = session.policy
        self._session = self.sessions = None


def _decided(session: Session) -> dict[str, str]:
    """The letters of each branch."""
    return {name: context.letters() for name, context in session.contexts.items()}


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


def sessions(options: CompileOptions) -> Sessions:
    """The sessions of one compiled denoiser."""
    shared = Shared(options.policy)
    made = Sessions(lambda: Session(options, shared), lambda: RowsSession(options, shared))
    shared.sessions = made
    return made
