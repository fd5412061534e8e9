"""Around the whole application: what is counted and logged of each request, and clients that do not read."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import anyio

from hicache_compile.serving.http.errors import CLIENT_LEFT, ApiError
from hicache_compile.serving.http.metrics import Metrics

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

GENERATIONS = "/v1/images/generations"
COUNTED = ("/", "/healthz", "/metrics", "/v1/models", GENERATIONS)  # others are one, whatever clients think of


class Journal:
    """An ASGI application around ``app``.

    Args:
        metrics: where requests are counted by address and status.
        write_seconds: in which a client has to take a piece of a response; then the connection is closed.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, write_seconds: float) -> None:
        self._app, self._metrics, self._write_seconds = app, metrics, write_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, statuses = time.perf_counter(), [0]

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
            try:
                with anyio.fail_after(self._write_seconds):
                    await send(message)
            except TimeoutError:
                raise OSError("the client does not read") from None

        try:
            await self._app(scope, receive, sending)
        except OSError:
            statuses.append(CLIENT_LEFT)
            raise
        except Exception:
            statuses.append(500)
            raise
        finally:
            self._note(scope, statuses[-1] or CLIENT_LEFT, time.perf_counter() - began)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        state: dict[str, Any] = scope.get("state", {})
        making, path = state.get("making"), scope["path"]
        ended: ApiError | None = None if making is None else making.ended
        status = status if ended is None else ended.status
        known = path if path in COUNTED else "/images" if path.startswith("/images/") else "other"
        self._metrics.requests.labels(known, status).inc()
        if path != GENERATIONS:
            log.debug("%s %s %d %.3f s", scope["method"], path[:100], status, seconds)
            return
        made = "" if making is None else f" {making.order.steps} steps {' '.join(making.letters)}"
        log.info("%s %s %d%s %.2f s", scope["method"], path, status, made, seconds)
