"""The pictures of one request while they are made: submitted together, told of step by step, cancelled together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio.to_thread
import torch

from hicache_compile.errors import HiCacheError
from hicache_compile.serving.http.encode import file_of
from hicache_compile.serving.http.errors import SERVER, ApiError, client_left, closing, internal
from hicache_compile.serving.http.metrics import Metrics
from hicache_compile.serving.http.order import Order
from hicache_compile.serving.http.service import Pending, Service
from hicache_compile.serving.http.timings import Clock, Timing, Timings
from hicache_compile.serving.progress import Progress

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stepped:
    """A step of the picture with this number. ``estimate``: seconds of the whole picture without a cache."""

    index: int
    progress: Progress
    estimate: float | None


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that is made, as a file. ``policy``: how the one that it was made under is called."""

    index: int
    data: bytes
    policy: str
    decisions: str
    timing: Timing


@dataclass(frozen=True, slots=True)
class _News:
    """A step, a picture that ended, or why all of them do."""

    index: int
    what: Any
    at: float


class Making:
    """The pictures of ``order``, for one client.

    Args:
        service: who makes them.
        order: what is wanted.
        seconds: in which all of them have to be made.
        timings: of this service; they learn from every picture.
        metrics: likewise.
    """

    def __init__(self, service: Service, order: Order, seconds: float, timings: Timings, metrics: Metrics) -> None:
        self.order = order
        self.letters = ["" for _ in order.seeds]
        self.missing = len(order.seeds)
        self.ended: ApiError | None = None  # why, where it is not that all were made
        self._service, self._seconds, self._timings, self._metrics = service, seconds, timings, metrics
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[_News] = asyncio.Queue()
        self._began = time.perf_counter()
        self._clocks = [Clock(self._began) for _ in order.seeds]
        self._pending: list[Pending] = []

    def submit(self) -> None:
        """Hand every picture to the Batcher.

        Raises:
            ApiError: 400 where it refuses one; then none is made.
        """
        try:
            for index, seed in enumerate(self.order.seeds):
                generator = torch.Generator(device="cpu").manual_seed(seed)
                pending = self._service.batcher.submit(
                    cache=self.order.cache, on_step=partial(self._tell, index), generator=generator, **self.order.call
                )
                self._pending.append(pending)
                pending.add_done_callback(partial(self._tell, index))
        except HiCacheError as error:
            param = "cache" if self.order.cache is not None else None
            self.ended = ApiError(400, str(error), param=param, code="invalid_policy")
        except Exception as error:
            log.error("a request could not be handed on", exc_info=error)
            self.ended = internal()
        if self.ended is not None:
            self.cancel()
            raise self.ended

    def cancel(self) -> None:
        """Have every picture that is not made end at its next step."""
        if self.missing and self.ended is None:
            self.ended = client_left()
        for pending in self._pending:
            pending.cancel()

    def stop(self, error: ApiError) -> None:
        """End it all with ``error`` for the client. Call it in the event loop."""
        self._news.put_nowait(_News(0, error, time.perf_counter()))

    def seconds_so_far(self) -> float:
        """Since it was accepted."""
        return time.perf_counter() - self._began

    async def events(self, heartbeat: float | None = None) -> AsyncIterator[Stepped | Picture | None]:
        """Steps and pictures as they come, until all are made. Whoever stops listening has to ``cancel``.

        Args:
            heartbeat: seconds of silence after which ``None`` comes.

        Raises:
            ApiError: a picture could not be made; 504 where the time is over.
        """
        try:
            while self.missing:
                news = await self._next(heartbeat)
                event = None if news is None else await self._event(news)
                if event is None and news is not None:
                    continue
                self.missing -= isinstance(event, Picture)
                yield event
        except ApiError as error:
            self.ended = error
            raise

    async def _next(self, heartbeat: float | None) -> _News | None:
        left = self._seconds - self.seconds_so_far()
        patience = left if heartbeat is None else min(left, heartbeat)
        with contextlib.suppress(asyncio.TimeoutError):
            return await asyncio.wait_for(self._news.get(), max(0.0, patience))
        if heartbeat is not None and heartbeat < left:
            return None
        message = f"not made within {self._seconds:g} seconds: must be asked for with fewer steps or pictures, or later"
        raise ApiError(504, message, code="timeout", kind=SERVER)

    async def _event(self, news: _News) -> Stepped | Picture | None:
        if isinstance(news.what, ApiError):
            raise news.what
        if isinstance(news.what, Progress):
            return self._stepped(news.index, news.what, news.at)
        return await self._picture(news.index, news.what, news.at)

    def _stepped(self, index: int, progress: Progress, at: float) -> Stepped | None:
        clock = self._clocks[index]
        first = clock.first is None
        if not clock.step(progress.step, progress.context, progress.decision, at):
            return None
        if first:
            self._metrics.first_step_seconds.observe(at - self._began)
        self.letters[index] = ("" if progress.step == 0 else self.letters[index]) + progress.decision
        self._metrics.steps.labels(progress.decision).inc()
        return Stepped(index, progress, self._uncached(clock))

    async def _picture(self, index: int, pending: Any, at: float) -> Picture:
        try:
            output = pending.result(0)
            data = await anyio.to_thread.run_sync(file_of, output, self.order.format, self.order.quality)
        except Exception as error:  # one of a future that was cancelled too
            raise self._failure(error) from None
        seconds = at - self._began
        self._timings.note(self.order.alike, self._clocks[index], seconds)
        self._metrics.pictures.inc()
        if pending.entry:
            self._metrics.of_pack.labels(pending.entry).inc()
        self.letters[index] = pending.decisions or self.letters[index]
        timing = Timing(seconds, self._clocks[index].first, self._uncached(self._clocks[index]))
        return Picture(index, data, pending.entry or self.order.policy, self.letters[index], timing)

    def _uncached(self, clock: Clock) -> float | None:
        return self._timings.uncached(self.order.alike, self.order.steps, clock)

    def _failure(self, error: Exception) -> ApiError:
        """What the client is told: of a value that the pipeline refuses its own words, of anything else nothing."""
        if isinstance(error, ApiError):
            return error
        if isinstance(error, CancelledError):
            return closing()
        if isinstance(error, HiCacheError) and self.order.cache is not None:
            return ApiError(400, f"cache: {error}", param="cache", code="invalid_policy")
        if isinstance(error, ValueError) and not isinstance(error, HiCacheError):
            return ApiError(400, f"the pipeline refused a value: {error}", code="refused_by_pipeline")
        log.error("a picture could not be made", exc_info=error)
        return internal()

    def _tell(self, index: int, what: Any) -> None:
        """Called in other threads. Where the event loop has ended, nobody listens."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._news.put_nowait, _News(index, what, time.perf_counter()))
