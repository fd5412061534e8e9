"""How many pictures are asked for and not yet made, and whether the service takes more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import anyio

from hicache_compile.serving.http.errors import LIMITED, ApiError, closing
from hicache_compile.serving.http.settings import whole_seconds


class Stoppable(Protocol):
    """Work that can be told to end."""

    def stop(self, error: ApiError) -> None: ...


class Gate:
    """The door that every request for pictures goes through.

    Args:
        most: pictures inside at any time.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.inside = 0
        self.closed = False
        self._work: set[Stoppable] = set()

    @contextmanager
    def admitted(self, pictures: int, seconds_each: float) -> Iterator[None]:
        """Hold the places of ``pictures``. ``seconds_each``: how fast places become free, for ``Retry-After``.

        Raises:
            ApiError: 429 where there are not as many left, 503 once the service is closing.
        """
        if self.closed:
            raise closing()
        if self.inside + pictures > self.most:
            message = (
                f"n = {pictures}: {self.inside} pictures are waiting or being made; must be asked again when no more "
                f"than {self.most - pictures} are"
            )
            wait = whole_seconds(seconds_each * (self.inside + pictures - self.most))
            raise ApiError(429, message, code="queue_full", kind=LIMITED, retry_after=wait)
        self.inside += pictures
        try:
            yield
        finally:
            self.inside -= pictures

    @contextmanager
    def known(self, work: Stoppable) -> Iterator[None]:
        """Have ``work`` stopped if the service has to end before it does."""
        self._work.add(work)
        try:
            yield
        finally:
            self._work.discard(work)

    def close(self) -> None:
        """Take no more; what is inside goes on."""
        self.closed = True

    def stop(self) -> None:
        """End what is inside, each with the answer that the service is closing."""
        for work in list(self._work):
            work.stop(closing())

    async def empty(self, seconds: float) -> bool:
        """Whether everything inside ended within ``seconds``."""
        with anyio.move_on_after(seconds):
            while self.inside:
                await anyio.sleep(0.02)
        return not self.inside
