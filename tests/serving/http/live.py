"""A server on a free port of this machine, in a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn

from hicache_compile.serving.http import Limits, Service, Settings, create_app
from hicache_compile.serving.http import server as servers
from tests.serving.http.fake_service import POLICY, SECONDS_OF_A_TEST, FakeBatcher, fake_service

GENERATIONS = "/v1/images/generations"


@dataclass(frozen=True)
class Live:
    """A running service. ``http``: a client of it."""

    url: str
    http: httpx.Client
    batcher: FakeBatcher
    server: uvicorn.Server
    settings: Settings

    def post(self, **body: Any) -> httpx.Response:
        return self.http.post(GENERATIONS, json={"prompt": "a fox", "num_inference_steps": 4, **body})

    def metric(self, name: str) -> float:
        """The value of the metric that its line begins with."""
        lines = self.http.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@contextmanager
def live(
    service: Service | None = None, limits: Limits | None = None, grace: float = 5, **settings: Any
) -> Iterator[Live]:
    """Serve until the block ends; every picture's place is free by then."""
    service = service or fake_service()
    chosen = Settings(**{"model": "fake", "policy": POLICY, "limits": limits or Limits(), **settings})
    app, listening, started = create_app(service, chosen), servers.bind("127.0.0.1", 0), threading.Event()
    server = servers.made(app, chosen.limits, grace, started.set)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        assert started.wait(SECONDS_OF_A_TEST)
        url = servers.address_of(listening)
        with httpx.Client(base_url=url, timeout=SECONDS_OF_A_TEST) as http:
            yield Live(url, http, service.batcher, server, chosen)  # type: ignore[arg-type]
    finally:
        server.should_exit = True
        thread.join(SECONDS_OF_A_TEST)
        service.batcher.close()
    assert not thread.is_alive()
    assert app.state.gate.inside == 0
