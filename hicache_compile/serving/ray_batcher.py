"""The interface of a Batcher, over replicas on a Ray cluster.

What a replica that dies had in the making is made again on another: a picture follows from its seed.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any

from hicache_compile.serving.http.errors import SERVER, ApiError
from hicache_compile.serving.http.service import Pending
from hicache_compile.serving.progress import Progress
from hicache_compile.serving.replica import Done, Taken
from hicache_compile.serving.replica_numbers import Numbers
from hicache_compile.serving.statistics import Statistics

TRIES = 3

log = logging.getLogger(__name__)


class RemoteRequest(Future):  # type: ignore[type-arg]  # of whatever the pipeline returns
    """A request that a replica has. ``decisions``: so far. ``entry``: as of a Request, once it was made."""

    def __init__(self, stop: Callable[[RemoteRequest], None]) -> None:
        super().__init__()
        self.decisions = self.entry = ""
        self._stop = stop

    def cancel(self) -> bool:
        """Also once it runs; it ends at its next step."""
        if self.done():
            return False
        self._stop(self)
        return True


class RayBatcher:
    """A Batcher whose rows are on replicas.

    Args:
        handle: of the deployment.
        close: ends it.
    """

    def __init__(self, handle: Any, close: Callable[[], None]) -> None:
        self._handle, self._close = handle.options(stream=True), close
        self._numbers = Numbers()
        self._tasks: dict[RemoteRequest, asyncio.Task[None]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="hicache-ray", daemon=True)
        self._thread.start()

    def submit(self, *, cache: Any = None, on_step: Callable[[Progress], None] | None = None, **call: Any) -> Pending:
        """As a Batcher's; a policy that is refused says so in the result."""
        request = RemoteRequest(self._stop)
        generator = call.pop("generator", None)
        seed = None if generator is None else generator.initial_seed()  # a generator does not travel
        self._numbers.submitted += 1
        self._loop.call_soon_threadsafe(self._start, request, (cache, seed, call), on_step or _nobody)
        return request

    def statistics(self) -> Statistics:
        """Of all replicas, each as it was when it last finished a picture."""
        return self._numbers.together()

    def replicas(self) -> list[str]:
        """Host and process of each that was heard of and is not known to be dead."""
        return list(self._numbers.alive)

    def close(self) -> None:
        """Cancel what runs, and end the replicas."""
        for request in list(self._tasks):
            request.cancel()
        self._close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def _start(self, request: RemoteRequest, message: tuple[Any, ...], on_step: Callable[[Progress], None]) -> None:
        self._tasks[request] = self._loop.create_task(self._follow(request, message, on_step))

    def _stop(self, request: RemoteRequest) -> None:
        self._loop.call_soon_threadsafe(self._cancel, request)

    def _cancel(self, request: RemoteRequest) -> None:
        if request in self._tasks:
            self._tasks[request].cancel()

    async def _follow(
        self, request: RemoteRequest, message: tuple[Any, ...], on_step: Callable[[Progress], None]
    ) -> None:
        error: Exception
        try:
            output = await self._made(request, message, on_step)
        except asyncio.CancelledError:
            error = CancelledError()
        except Exception as problem:
            error = problem
        else:
            self._ended(request)
            request.set_result(output)
            return
        self._ended(request)
        request.set_exception(error)

    def _ended(self, request: RemoteRequest) -> None:
        del self._tasks[request]
        self._numbers.ended += 1

    async def _made(self, request: RemoteRequest, message: tuple[Any, ...], on_step: Callable[[Progress], None]) -> Any:
        from ray.exceptions import RayError

        for attempt in range(TRIES):
            replica = [""]
            try:
                return await self._tried(request, message, on_step, replica)
            except RayError as error:
                self._numbers.died(replica[0])
                log.warning("replica %s was lost (%s), try %d", replica[0], type(error).__name__, attempt + 1)
        text = f"{TRIES} replicas were lost while they made it: must be asked again"
        raise ApiError(503, text, code="replica_lost", kind=SERVER, retry_after=5)

    async def _tried(
        self,
        request: RemoteRequest,
        message: tuple[Any, ...],
        on_step: Callable[[Progress], None],
        replica: list[str],
    ) -> Any:
        """``replica`` gets its name once one has the request."""
        answers = self._handle.make.remote(*message)
        context = None
        try:
            async for news in answers:
                if isinstance(news, Taken):
                    replica[0], request.decisions = news.replica, ""
                    self._numbers.heard(news.replica)
                elif isinstance(news, Progress):
                    context = news.context if context is None else context
                    request.decisions += news.decision if news.context == context else ""
                    on_step(news)
                else:
                    return self._result(request, replica[0], news)
        finally:
            answers.cancel()
        raise ApiError(503, "the replica ended: must be asked again", code="replica_lost", kind=SERVER, retry_after=5)

    def _result(self, request: RemoteRequest, replica: str, done: Done) -> Any:
        self._numbers.told(replica, done.numbers)
        request.decisions, request.entry = done.decisions, done.entry
        if done.error is not None:
            raise done.error
        return done.output


def _nobody(_: Progress) -> None:
    """Nobody asked to be told."""
