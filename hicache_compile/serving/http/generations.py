"""``POST /v1/images/generations``: from the bytes of a request to its pictures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from hicache_compile.serving.http.body import read_body
from hicache_compile.serving.http.errors import client_left
from hicache_compile.serving.http.gate import Gate
from hicache_compile.serving.http.kept import KeptPictures
from hicache_compile.serving.http.making import Making, Picture
from hicache_compile.serving.http.metrics import Metrics
from hicache_compile.serving.http.order import Order, order_of
from hicache_compile.serving.http.replies import as_events, as_object
from hicache_compile.serving.http.schema import read_request
from hicache_compile.serving.http.service import Service
from hicache_compile.serving.http.settings import Settings
from hicache_compile.serving.http.timings import Timings


@dataclass(frozen=True, slots=True)
class Generations:
    """Makes pictures for requests."""

    service: Service
    settings: Settings
    gate: Gate
    kept: KeptPictures
    timings: Timings
    metrics: Metrics

    async def __call__(self, request: Request) -> Response:
        """The answer to ``request``.

        Raises:
            ApiError: it cannot be served; of a stream that has begun, its last event says so.
        """
        body = await read_body(request, self.settings.limits)
        order = order_of(read_request(body), self.settings, self.service.abilities)
        held = ExitStack()
        try:
            making = self._begin(request, order, held)
            if order.stream:
                return EventStream(self._streamed(request, making), held.pop_all())
            return JSONResponse(await self._made(request, making))
        finally:
            held.close()

    def _begin(self, request: Request, order: Order, held: ExitStack) -> Making:
        """Submit the pictures; ``held`` gives their places back, and has them cancelled if the client leaves."""
        held.enter_context(self.gate.admitted(len(order.seeds), self.timings.picture()))
        making = Making(self.service, order, self.settings.limits.seconds, self.timings, self.metrics)
        request.state.making = making
        making.submit()
        held.callback(making.cancel)
        held.enter_context(self.gate.known(making))
        held.callback(asyncio.create_task(_stop_when_left(request, making)).cancel)
        return making

    async def _made(self, request: Request, making: Making) -> dict[str, object]:
        made = [event async for event in making.events() if isinstance(event, Picture)]
        self.metrics.request_seconds.observe(making.seconds_so_far())
        made.sort(key=lambda picture: picture.index)
        return as_object(making.order, made, lambda data, kind: self._address(request, data, kind))

    async def _streamed(self, request: Request, making: Making) -> AsyncIterator[bytes]:
        async for piece in as_events(making, lambda data, kind: self._address(request, data, kind)):
            yield piece
        self.metrics.request_seconds.observe(making.seconds_so_far())

    def _address(self, request: Request, data: bytes, kind: str) -> str:
        return f"{request.base_url}images/{self.kept.keep(data, kind)}"


class EventStream(StreamingResponse):
    """Server-sent events.

    Args:
        events: as bytes.
        held: what is given back when the last is sent, or the client left, before the first too.
    """

    def __init__(self, events: AsyncIterator[bytes], held: ExitStack) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            await super().__call__(scope, receive, send)


async def _stop_when_left(request: Request, making: Making) -> None:
    """The body is read, so what the server says next of the client is that it left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    making.stop(client_left())
