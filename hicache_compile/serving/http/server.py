"""The server: uvicorn, patient for a while with slow clients, and that lets what runs finish before it ends."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import sys
from collections.abc import Callable
from http import HTTPStatus

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from hicache_compile.errors import HiCacheError, whole_number
from hicache_compile.serving.http.errors import SERVER, ApiError
from hicache_compile.serving.http.gate import Gate
from hicache_compile.serving.http.settings import OWNER, Limits

HEAD_BYTES = 64 * 1024
CONNECTIONS = 1000

log = logging.getLogger(__name__)


class PatientProtocol(H11Protocol):
    """HTTP/1.1 whose clients have ``head_seconds`` to send the head of a request, the first or a later one.

    What is said of a connection has the form of other errors.
    """

    head_seconds = 20.0
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            self._end_with(
                ApiError(503, f"more than {CONNECTIONS} connections: must be fewer", code="busy", kind=SERVER)
            )
        else:
            self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:  # the head is whole
            self._stop_waiting()
        elif self._waiting is None:
            self._wait()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:  # the next head has begun to arrive
            self._stop_waiting()
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What cannot be read is no HTTP."""
        self._end_with(ApiError(400, "the connection must speak HTTP/1.1", code="invalid_http"))

    def _wait(self) -> None:
        self._waiting = self.loop.call_later(self.head_seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _give_up(self) -> None:
        message = f"the head of the request did not arrive within {self.head_seconds:g} seconds: must be sent faster"
        self._end_with(ApiError(408, message, code="slow_head"))

    def _end_with(self, error: ApiError) -> None:
        if self.transport.is_closing():
            return
        body = json.dumps(error.as_data()).encode()
        lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}", "Content-Type: application/json"]
        lines += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
        self.transport.write("\r\n".join(lines).encode() + body)
        self.transport.close()


class Server(uvicorn.Server):
    """Once told to end: no more pictures, those being made get ``grace`` seconds, then the rest is stopped.

    Args:
        config: uvicorn's.
        gate: of the application.
        grace: seconds. A second Ctrl-C ends them.
        started: called once it listens.
    """

    def __init__(self, config: uvicorn.Config, gate: Gate, grace: float, started: Callable[[], object]) -> None:
        super().__init__(config)
        self._gate, self._grace, self._tell_started = gate, grace, started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._tell_started()

    async def main_loop(self) -> None:
        await super().main_loop()
        self._gate.close()
        if self._gate.inside:
            log.info("closing: %d pictures have %g seconds to be finished", self._gate.inside, self._grace)
        emptied = asyncio.ensure_future(self._gate.empty(self._grace))
        while not emptied.done() and not self.force_exit:
            await asyncio.wait([emptied], timeout=0.1)
        emptied.cancel()
        self._gate.stop()


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; ``port`` 0 takes a free one.

    Raises:
        HiCacheError: the address is none of this machine's, or taken.
    """
    whole_number(OWNER, "port", port, 0, 65535)
    if not isinstance(host, str):
        raise HiCacheError(f"{OWNER}.host = {host!r}: must be the name or address of this machine")
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, number)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        reason = error.strerror or error
        raise HiCacheError(
            f"serve.host, port = {host}:{port}: must be a free address of this machine ({reason})"
        ) from None
    return listening


def made(app: FastAPI, limits: Limits, grace: float, started: Callable[[], object]) -> Server:
    """The server of ``app``; its ``run`` takes what ``bind`` returns, and raises again the signal that ends it.

    Args:
        app: of ``create_app``.
        limits: of slow clients.
        grace: seconds for what is being made, once it is to end.
        started: called once it listens.
    """
    protocol = type("Protocol", (PatientProtocol,), {"head_seconds": limits.body_seconds})
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=2,  # for answers to be read: nothing is being made by then
        h11_max_incomplete_event_size=HEAD_BYTES,
    )
    return Server(config, app.state.gate, grace, started)


def end_at_sigterm() -> None:
    """Have SIGTERM end the process as an exit does, so that what is open is closed; status 143."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def log_requests() -> None:
    """Write one line a request for pictures on stderr, and what went wrong inside."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("hicache_compile.serving")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def address_of(listening: socket.socket) -> str:
    """The URL that ``listening`` is reached at."""
    host, port, *_ = listening.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
