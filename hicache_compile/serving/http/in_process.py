"""The server of a pipeline in a thread of this process: what ``hicache_compile.serving.serve`` opens."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from hicache_compile.errors import HiCacheError, is_real
from hicache_compile.frontend.compile import hicache_compile
from hicache_compile.frontend.pipeline import denoisers_of, is_pipeline
from hicache_compile.serving.batcher import Batcher
from hicache_compile.serving.http import server as servers
from hicache_compile.serving.http.app import create_app
from hicache_compile.serving.http.keys import as_keys
from hicache_compile.serving.http.served import Served
from hicache_compile.serving.http.service import Abilities, Service
from hicache_compile.serving.http.settings import OWNER, Settings, Size
from hicache_compile.serving.http.source import check_call
from hicache_compile.serving.http.source import warm_up as make_first_pictures


@dataclass(frozen=True, slots=True)
class Serving:
    """A server that listens. ``url``: its address, to which clients of OpenAI add ``/v1``."""

    url: str


@dataclass(frozen=True, slots=True)
class Batches:
    """How the pipeline is run: see ``serve``."""

    backend: str
    max_batch: int
    max_wait: float
    max_requests: int

    def service(self, pipe: Any, policy: Served) -> Service:
        """``pipe`` behind a Batcher, which is the caller's to close."""
        if not is_pipeline(pipe):
            raise HiCacheError(f"{OWNER}.pipe = {type(pipe).__name__}: must be a diffusers pipeline")
        given = policy.policy if policy.pack is None else policy.pack
        if not denoisers_of(pipe):
            hicache_compile(pipe, given, backend=self.backend, **policy.promise)
        batcher = Batcher(
            pipe,
            given,
            max_error=policy.max_error,
            max_seconds=policy.max_seconds,
            max_batch=self.max_batch,
            max_wait=self.max_wait,
            max_requests=self.max_requests,
        )
        return Service(batcher, Abilities.of(pipe))


@dataclass(frozen=True, slots=True)
class Offer:
    """What requests are told and given: see ``serve``."""

    name: str | None
    steps: int | None
    size: str | None
    call: Mapping[str, Any]
    keys: Sequence[str]
    fixed_policy: bool

    def settings(self, pipe: Any, policy: Served) -> Settings:
        """The same for the application."""
        if not isinstance(self.call, Mapping):
            raise HiCacheError(
                f"{OWNER}.call is a {type(self.call).__name__}: must be a dict of arguments of the pipeline"
            )
        size = None if self.size is None else Size.parse(str(self.size))
        if self.size is not None and size is None:
            raise HiCacheError(f"{OWNER}.size = {self.size!r}: must be WIDTHxHEIGHT, like '1024x768'")
        return Settings(
            model=self.name or type(pipe).__name__,
            policy=policy.policy,
            policy_name=policy.name,
            steps=policy.steps(self.steps),
            size=size,
            keys=as_keys(self.keys),
            call=self.call,
            fixed_policy=self.fixed_policy,
        )


@contextmanager
def serving(
    pipe: Any, wanted: Served, batches: Batches, offer: Offer, address: tuple[str, int], *, warm_up: bool, grace: float
) -> Iterator[Serving]:
    """See ``hicache_compile.serving.serve``."""
    if not is_real(grace) or grace < 0:
        raise HiCacheError(f"{OWNER}.grace = {grace!r}: must be a number >= 0")
    settings = offer.settings(pipe, wanted)
    with ExitStack() as opened:
        listening = opened.enter_context(servers.bind(*address))
        service = batches.service(pipe, wanted)
        opened.callback(service.batcher.close)
        check_call(settings.call, service.abilities)
        if warm_up:
            make_first_pictures(service, settings, batches.max_batch)
        opened.enter_context(_running(service, settings, listening, grace))
        yield Serving(servers.address_of(listening))


@contextmanager
def _running(service: Service, settings: Settings, listening: Any, grace: float) -> Iterator[None]:
    """The application, answering in a thread until the block ends."""
    known = threading.Event()  # it listens, or has ended
    server = servers.made(create_app(service, settings), settings.limits, grace, known.set)

    def run() -> None:
        try:
            server.run([listening])
        finally:
            known.set()

    thread = threading.Thread(target=run, name="hicache serve", daemon=True)
    thread.start()
    known.wait()
    try:
        if not server.started:
            raise HiCacheError("serve(): the server ended before it listened; its log says why")
        yield
    finally:
        server.should_exit = True
        thread.join()
