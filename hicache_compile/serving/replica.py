"""A Batcher on a machine of a Ray cluster, and what it tells the front of each request."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

import torch

from hicache_compile.errors import HiCacheError
from hicache_compile.serving.http.service import Abilities, Pending, Service
from hicache_compile.serving.progress import Progress
from hicache_compile.serving.statistics import Statistics


@dataclass(frozen=True, slots=True)
class Taken:
    """A replica has the request."""

    replica: str


@dataclass(frozen=True, slots=True)
class Done:
    """How a request ended: ``output`` or ``error``; and the replica's numbers then.

    ``entry``: the name of its policy in the pack that it was picked from, ``""`` where it is of none.
    """

    output: Any
    error: Exception | None
    decisions: str
    entry: str
    numbers: Statistics


News = Taken | Progress | Done


class Replica:
    """Owns one Batcher; what Ray Serve starts on a machine.

    Args:
        opener: loads the pipeline there.
    """

    def __init__(self, opener: Callable[[], Service]) -> None:
        self._service = opener()
        self._name = f"{socket.gethostname()}:{os.getpid()}"

    async def abilities(self) -> Abilities:
        """What the pipeline can be asked for."""
        return self._service.abilities

    async def make(self, cache: Any, seed: int | None, call: dict[str, Any]) -> AsyncIterator[News]:
        """Make a picture; a caller that stops listening has it cancelled."""
        yield Taken(self._name)
        loop, news = asyncio.get_running_loop(), asyncio.Queue[Any]()
        if seed is not None:
            call = {**call, "generator": torch.Generator(device="cpu").manual_seed(seed)}

        def tell(what: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the replica is ending
                loop.call_soon_threadsafe(news.put_nowait, what)

        try:
            pending = self._service.batcher.submit(cache=cache, on_step=tell, **call)
        except Exception as error:
            yield self._done(None, error)
            return
        pending.add_done_callback(tell)
        try:
            while isinstance(step := await news.get(), Progress):
                yield step
            yield self._done(pending, None)
        finally:
            pending.cancel()

    def _done(self, pending: Pending | None, error: Exception | None) -> Done:
        output, decisions, entry = None, "", ""
        if pending is not None:
            decisions, entry = pending.decisions, pending.entry
        try:
            output = None if pending is None else pending.result(0)
        except Exception as problem:
            error = problem
        return Done(output, _portable(error), decisions, entry, self._service.batcher.statistics())

    def __del__(self) -> None:
        service = getattr(self, "_service", None)
        if service is not None:
            service.batcher.close()


def _portable(error: Exception | None) -> Exception | None:
    """Of errors that the front tells apart, one of their class; of others the text, whose class may not be known."""
    for kind in (HiCacheError, CancelledError, ValueError):
        if isinstance(error, kind):
            return kind(str(error))
    return None if error is None else RuntimeError(f"{type(error).__name__}: {error}")
