"""Where the denoiser's calls of all requests meet: one of their threads at a time makes them, those that are alike as
one."""

from __future__ import annotations

import logging
import threading
import time
from bisect import insort
from collections import Counter
from collections.abc import Callable, Hashable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from hicache_compile.frontend.denoiser import CompiledDenoiser
from hicache_compile.runtime.rows.arguments import by_sample, taken_apart
from hicache_compile.runtime.rows.row import Row
from hicache_compile.runtime.rows.session import RowsSession
from hicache_compile.serving.calls import Alike, Arguments, key_of, stacked
from hicache_compile.serving.request import Request

log = logging.getLogger(__name__)

FAILURES = 2  # in turn, until calls of a kind are made one by one


@dataclass(eq=False, slots=True)
class Call:
    """A call that waits to be made.

    Args:
        request, denoiser, arguments: whose, of what, with what.
        rows: the steps that it is.
        forecast: its step is known to be forecast.
        key: the same for calls that may be made as one; ``None`` of a call that is alone.
        inference: it is made in inference mode.
        since: when it began to wait, on the clock of the meeting.
        woken: its thread has something to look at.
    """

    request: Request
    denoiser: CompiledDenoiser
    arguments: Arguments
    rows: list[Row]
    forecast: bool
    key: Hashable = None
    inference: bool = False
    since: float = 0.0
    output: Any = None
    error: BaseException | None = None
    ended: bool = False
    woken: threading.Event = field(default_factory=threading.Event)


class Meeting:
    """Makes calls: steps that are forecast at once; steps that are computed wait for company. The oldest request comes
    first: where a batch saves nothing, requests end one after another, and not all of them late.

    The thread of one of the calls leads: it makes what is due, until its own call was made, and hands on to the thread
    of the oldest that waits. So a call that is alone changes no threads.

    Args:
        max_batch: rows in one call.
        max_wait: seconds that a step waits at most for others.
        running: how many requests may still come to call.
        told: of the rows of each call, once it was made.
        in_one_thread: whoever leads, one thread makes the calls: CUDA graphs are kept by the thread that recorded them.
        clock: seconds.
    """

    def __init__(
        self,
        max_batch: int,
        max_wait: float,
        running: Callable[[], int],
        told: Callable[[list[Call]], None],
        in_one_thread: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_batch, self.max_wait = max_batch, max_wait
        self._running, self._told, self._clock = running, told, clock
        self._calls: list[Call] = []
        self._lock = threading.Lock()
        self._leader: Call | None = None
        self._sessions: dict[int, RowsSession] = {}  # of batches, by denoiser: the leader's
        self._maker = ThreadPoolExecutor(1, "hicache-batcher") if in_one_thread else None
        self._alike = Alike()
        self._failures: Counter[Hashable] = Counter()  # in turn, of shared calls by their key
        self._closed = False

    def make(self, call: Call) -> Any:
        """Have ``call`` made, and return what the denoiser does.

        Raises:
            CancelledError: its request was cancelled, or the meeting closed.
            BaseException: what the denoiser raised.
        """
        call.inference = torch.is_inference_mode_enabled()
        with self._lock:
            if self._running() > 1:  # else it is alone, and reading all its arguments would cost it something
                alike = key_of(call.arguments, len(call.rows), self._alike)
                key = id(call.denoiser), call.forecast, call.inference, alike
                call.key = key if self._failures[key] < FAILURES else None
            if self._closed or call.request.stopped:
                raise CancelledError
            call.since = self._clock()
            insort(self._calls, call, key=lambda each: each.request.number)
            if self._leader is None:
                self._leader = call
            self._leader.woken.set()
        try:
            while not call.ended:
                call.woken.wait()
                if self._leader is call:
                    self._lead(call)
        finally:
            self._hand_on(call)
        if call.error is not None:
            raise call.error
        return call.output

    def drop(self, request: Request) -> None:
        """``request`` was cancelled: its calls that wait are not made."""
        with self._lock:
            dropped = [call for call in self._calls if call.request is request]
            self._calls = [call for call in self._calls if call.request is not request]
        for call in dropped:
            _end(call, CancelledError())
        self.look()

    def look(self) -> None:
        """Something changed outside: nobody may be left to wait for."""
        with self._lock:
            if self._leader is not None:
                self._leader.woken.set()

    def close(self) -> None:
        """Make no more calls."""
        with self._lock:
            self._closed = True
            left, self._calls = self._calls, []
        for call in left:
            _end(call, CancelledError())
        if self._maker is not None:
            self._maker.shutdown(wait=False)

    def _lead(self, call: Call) -> None:
        """Make what is due until ``call`` was, in its thread."""
        while not call.ended:
            with self._lock:
                call.woken.clear()
                calls, patience = self._next(), self._patience()
                self._calls = [each for each in self._calls if each not in calls]
            if calls:
                self._make(calls)
            elif not call.ended:
                call.woken.wait(patience)

    def _hand_on(self, call: Call) -> None:
        """``call`` has ended, maybe before its thread came to lead: the oldest that waits leads."""
        with self._lock:
            if self._leader is call:
                self._leader = self._calls[0] if self._calls else None
                if self._leader is not None:
                    self._leader.woken.set()

    def _next(self) -> list[Call]:
        """The calls to make now as one; none: there is nothing, or it is worth while to wait."""
        ready = [call for call in self._calls if call.forecast]
        due = self._due([call for call in self._calls if not call.forecast])
        if ready and not (due and due[0].request.number < ready[0].request.number):
            return self._company(ready)
        return due

    def _due(self, full: list[Call]) -> list[Call]:
        """The computed step of the oldest request with its company, if that is complete or one waited long enough."""
        if not full:
            return []
        company = self._company(full)
        complete = sum(len(call.rows) for call in company) >= self.max_batch
        nobody_else = len(self._calls) >= self._running()
        waited = self._clock() - min(call.since for call in full)
        return company if complete or nobody_else or waited >= self.max_wait else []

    def _company(self, calls: list[Call]) -> list[Call]:
        """The oldest of ``calls`` and those that can be made with it."""
        company, rows = [calls[0]], len(calls[0].rows)
        for call in calls[1:] if calls[0].key is not None else ():
            if call.key == calls[0].key and rows + len(call.rows) <= self.max_batch:
                company.append(call)
                rows += len(call.rows)
        return company

    def _patience(self) -> float | None:
        """Seconds until a step that waits for company is made without."""
        since = [call.since for call in self._calls if not call.forecast]
        return max(0.0, min(since) + self.max_wait - self._clock()) if since else None

    def _make(self, calls: list[Call]) -> None:
        try:
            if self._maker is None:
                self._made_together(calls)
            else:
                self._maker.submit(self._made_together, calls).result()
        except Exception as error:
            if len(calls) == 1:
                return _end(calls[0], error)
            log.warning("a call for %d requests failed, so each is made by itself: %s", len(calls), error)
            self._failures[calls[0].key] += 1
            for call in calls:
                self._make([call])
            return None
        except BaseException as error:  # an interrupt of the thread that leads: the others would wait for ever
            for call in calls:
                _end(call, error)
            raise
        if len(calls) > 1:
            self._failures.pop(calls[0].key, None)
        self._told(calls)
        for call in calls:
            _end(call, call.error)
        return None

    def _made_together(self, calls: list[Call]) -> None:
        rows = [row for call in calls for row in call.rows]
        counts = [len(call.rows) for call in calls]
        denoiser = calls[0].denoiser
        if id(denoiser) not in self._sessions:
            self._sessions[id(denoiser)] = denoiser._sessions.of_rows()
        session = self._sessions[id(denoiser)]
        with torch.inference_mode(calls[0].inference):
            args, kwargs = stacked([call.arguments for call in calls], counts)
            output = denoiser.together(rows, args, dict(kwargs), session=session)
        if len(calls) == 1:
            calls[0].output = output
            return
        for call, mine in zip(calls, taken_apart(output, counts, by_sample(args, kwargs)), strict=True):
            call.output = mine


def _end(call: Call, error: BaseException | None) -> None:
    call.error = error
    call.ended = True
    call.woken.set()
