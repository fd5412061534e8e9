"""The batcher: requests of one pipeline that are under way at once and share calls of its denoiser."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import ExitStack
from typing import Any

from hicache_compile.errors import HiCacheError, whole_number
from hicache_compile.frontend.denoiser import CompiledDenoiser
from hicache_compile.frontend.pipeline import denoisers_of
from hicache_compile.frontend.watched_callback import length_of
from hicache_compile.runtime.call_arguments import DenoiserCall
from hicache_compile.runtime.rows.arguments import rows_in
from hicache_compile.runtime.rows.siblings import finish, rows_of
from hicache_compile.runtime.step import Step
from hicache_compile.runtime.storage.budget import parse_bytes
from hicache_compile.serving.changing_calls import changes_denoiser, put_back
from hicache_compile.serving.meeting import Call, Meeting
from hicache_compile.serving.memory import Memory
from hicache_compile.serving.pipeline_copy import OneAtATime, copy_of
from hicache_compile.serving.progress import Progress
from hicache_compile.serving.request import Request
from hicache_compile.serving.served_policy import OFF, chosen, compiled
from hicache_compile.serving.statistics import Counts, Statistics
from hicache_compile.serving.workers import Workers

__all__ = ["OFF", "Batcher"]


class Batcher:
    """Serves requests with ``pipe``, each as in a call by itself, however they share calls of the denoiser.

    Each request runs the pipeline's own ``__call__`` in a thread of its own, on a copy with a scheduler of its own; so
    every diffusers pipeline is served as it is. The denoiser's calls of all requests meet: rows that are forecast are
    made at once, rows that are computed wait at most ``max_wait`` for company. Tokenizers, text encoders
    and autoencoders are called by one request at a time.

    Args:
        pipe: a diffusers pipeline, compiled by ``hicache_compile`` or not (then it is now, in place).
        policy: of its requests, in any form that ``hicache_compile`` takes, a pack too; ``None``: that of ``pipe``, or
            ``"HiCache"``.
        max_error, max_seconds: the promise, with a pack, as of ``hicache_compile``.
        max_batch: rows in one call of the denoiser.
        max_wait: seconds.
        max_requests: under way at once; others wait in the queue. One, where the pipeline's call sets attention
            processors or hooks of the denoiser for its time (perturbed attention, skipped layers).
        memory_budget: of the anchors of all requests, bytes or like ``"8GiB"``; requests without room wait.

    Raises:
        HiCacheError: ``pipe`` is no pipeline or has no denoiser, or an argument is not what it may be.
    """

    def __init__(
        self,
        pipe: Any,
        policy: Any = None,
        *,
        max_error: float | None = None,
        max_seconds: float | None = None,
        max_batch: int = 8,
        max_wait: float = 0.02,
        max_requests: int = 32,
        memory_budget: int | str | None = None,
    ) -> None:
        whole_number("Batcher", "max_batch", max_batch, 1)
        whole_number("Batcher", "max_requests", max_requests, 1)
        if isinstance(max_wait, bool) or not isinstance(max_wait, int | float) or not 0 <= max_wait < float("inf"):
            raise HiCacheError(f"Batcher.max_wait = {max_wait!r}: must be a number of seconds >= 0")
        budget = parse_bytes(memory_budget, "Batcher")
        self._pipe, self._policy = compiled(pipe, policy, {"max_error": max_error, "max_seconds": max_seconds})
        self._denoisers = denoisers_of(self._pipe)
        self._limits: list[tuple[Any, int | None]] = []  # of pools, before
        for denoiser in self._denoisers:
            pools = denoiser._session.shared.pools
            pools.capacity = max(pools.capacity, 2 * max_requests)
            if budget is not None:
                self._limits.append((pools, pools.limit))
                pools.limit = budget
        self._alone = changes_denoiser(self._pipe)
        self._max_requests = 1 if self._alone else max_requests
        self._waiting: deque[Request] = deque()
        self._running: set[Request] = set()
        self._memory = Memory(budget, lambda: self._policy or self._denoisers[0].policy)
        self._counts = Counts()
        self._closed = False
        self._threads = Workers("hicache-request")
        self._of_thread = threading.local()  # ``request``: that runs in it
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._components = OneAtATime()
        graphed = any(denoiser._inner.graphed for denoiser in self._denoisers)
        self._meeting = Meeting(max_batch, max_wait, lambda: len(self._running), self._count, graphed)

    def submit(self, *, cache: Any = None, on_step: Callable[[Progress], None] | None = None, **call: Any) -> Request:
        """Queue a request.

        Args:
            cache: its policy, in any form that ``hicache_compile`` takes; ``"off"``: none; by default that of ``pipe``.
                Or a promise, ``{"max_error": .02}``, ``{"max_seconds": 1.2}`` or both, of the pack of ``pipe``.
            on_step: told of each step once it was made, from another thread.
            call: the arguments of the pipeline's call; give each request a ``generator`` of its own.

        Returns:
            A ``concurrent.futures.Future`` of what the pipeline returns, which can also be cancelled while it runs.

        Raises:
            HiCacheError: ``cache`` is no policy, cannot be used or kept here, or the batcher is closed.
        """
        if on_step is not None and not callable(on_step):
            raise HiCacheError(f"Batcher.on_step = {on_step!r}: must be a function that takes a Progress")
        given = self._policy if cache is None else cache
        picked = chosen(self._denoisers[0], given, length_of(self._pipe, (), call))
        request = Request(call, picked.policy, on_step, picked.entry)
        request.when_stopped(functools.partial(self._stopped, request))
        with self._lock:
            if self._closed:
                raise HiCacheError("Batcher.submit(): the batcher is closed")
            self._waiting.append(request)
        self._admit()
        return request

    async def generate(self, **given: Any) -> Any:
        """``submit`` for asyncio: what the pipeline returns. A task that is cancelled cancels its request."""
        return await asyncio.wrap_future(self.submit(**given))

    def statistics(self) -> Statistics:
        """What was done so far, and how things stand."""
        pools = [denoiser._session.shared.pools for denoiser in self._denoisers]
        with self._lock:
            return Statistics(
                len(self._waiting),
                len(self._running),
                sum(each.pages for each in pools),
                sum(each.used for each in pools),
                dict(self._counts.batches),
                self._counts.full_rows,
                self._counts.forecast_rows,
            )

    def close(self) -> None:
        """Take no more requests, cancel those that are left, and wait until their threads have ended; but for that of a
        request which calls this itself, from ``on_step`` or a callback of its pipeline."""
        with self._lock:
            self._closed = True
            left = [*self._waiting, *self._running]
        for request in left:
            request.cancel()
        with self._idle:
            own = {getattr(self._of_thread, "request", None)}
            self._idle.wait_for(lambda: self._running <= own)
        self._meeting.close()
        self._threads.close()
        for pools, limit in self._limits:
            pools.limit = limit

    def __enter__(self) -> Batcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _admit(self) -> None:
        """Start the requests for which there is room, the oldest first."""
        while True:
            with self._lock:
                while self._waiting and self._waiting[0].cancelled():
                    self._waiting.popleft()
                if not self._waiting or not self._has_room(self._waiting[0]):
                    return
                request = self._waiting.popleft()
                self._running.add(request)
            if request.set_running_or_notify_cancel():
                self._threads.run(functools.partial(self._serve, request))
            else:
                self._ended(request)

    def _has_room(self, request: Request) -> bool:
        if not self._running:
            return True
        if len(self._running) >= self._max_requests:
            return False
        return self._memory.has_room((*self._running, request))

    def _serve(self, request: Request) -> None:
        """Run the pipeline for ``request``, in a thread that it has for itself."""
        output, error = None, None
        self._of_thread.request = request
        try:
            output = self._called(request)
        except BaseException as raised:
            error = raised
        self._of_thread.request = None
        for denoiser in self._denoisers:
            denoiser._session.forget()
        self._ended(request)
        if error is None and request.stopped:
            error = CancelledError()
        if error is not None:
            request.set_exception(error)
        else:
            request.set_result(output)
        self._admit()

    def _called(self, request: Request) -> Any:
        pipe = copy_of(self._pipe, self._components)
        with ExitStack() as stack:
            if self._alone:
                stack.enter_context(put_back(self._denoisers))
            for denoiser in self._denoisers:
                denoiser._session.own_policy = request.policy
                stack.enter_context(denoiser.observed(functools.partial(self._meet, request, denoiser)))
            return pipe(**request.call)

    def _meet(
        self, request: Request, denoiser: CompiledDenoiser, step: Step, call: DenoiserCall, make: Callable[[], Any]
    ) -> Any:
        """A call of the denoiser in the thread of ``request``."""
        session = denoiser._session
        rows = rows_of(session, step, rows_in(*call.given))
        output = self._meeting.make(Call(request, denoiser, call.given, rows, step.known_to_skip))
        finish(rows)
        if self._memory.learn(request, self._denoisers):
            self._admit()
        request.made(Progress(step.index, step.num_steps, step.letter, step.context.name))
        return output

    def _count(self, calls: list[Call]) -> None:
        with self._lock:
            rows = [row for call in calls for row in call.rows]
            self._counts.batches[len(rows)] += 1
            forecast = sum(row.step.letter in ".sp" for row in rows)
            self._counts.forecast_rows += forecast
            self._counts.full_rows += len(rows) - forecast

    def _stopped(self, request: Request) -> None:
        self._meeting.drop(request)
        self._admit()

    def _ended(self, request: Request) -> None:
        with self._idle:
            self._running.discard(request)
            self._idle.notify_all()
        self._meeting.look()
