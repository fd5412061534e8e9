"""A service with a pack: promises over HTTP, from the command, in this process, and in a replica."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from hicache_compile import FORA, HiCacheError, hicache_compile
from hicache_compile.serving import serve
from hicache_compile.serving.batcher import Batcher
from hicache_compile.serving.http.service import Abilities, Service
from hicache_compile.serving.http.settings import Settings, Size
from hicache_compile.serving.http.source import Source, open_service
from hicache_compile.serving.ray_batcher import RayBatcher, RemoteRequest
from hicache_compile.serving.replica import Done, Replica, Taken
from tests.pipelines import by_name
from tests.serving.http.fake_service import SECONDS_OF_A_TEST
from tests.serving.http.live import GENERATIONS, Live, live
from tests.serving.http.test_bad_requests import told
from tests.serving.http.test_pictures import events
from tests.serving.packs import DECISIONS, PACK, STEPS, TRUE

CALL = {"max_sequence_length": 48}
SIZE = Size(16, 16)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = by_name("FluxPipeline").saved(tmp_path_factory.mktemp("flux"))
    return Source(folder=folder, policy=TRUE.policy, pack=PACK, max_error=0.1, backend="eager", device="cpu")


@pytest.fixture(scope="module")
def service(source: Source) -> Service:
    return open_service(source, Settings(model="tiny", steps=STEPS, size=SIZE, call=CALL), warm=False)


@contextmanager
def listening(service: Service, **settings: Any) -> Iterator[Live]:
    """``service`` stays open when it ends."""
    kept = Service(
        SimpleNamespace(
            **{name: getattr(service.batcher, name) for name in ("submit", "statistics")}, close=lambda: None
        ),
        service.abilities,
    )  # type: ignore[arg-type]
    given = {"policy": TRUE.policy, "policy_name": "true", "steps": STEPS, "size": SIZE, "call": CALL, **settings}
    with live(kept, **given) as running:
        yield running


@pytest.fixture(scope="module")
def running(service: Service) -> Iterator[Live]:
    with listening(service) as made:
        yield made
    service.batcher.close()


def ask(running: Live, **body: Any) -> httpx.Response:
    return running.post(num_inference_steps=STEPS, **body)


@pytest.mark.parametrize(
    ("body", "policy"),
    [
        ({}, "true"),
        ({"cache": {"max_error": 0.5}}, "fast"),
        ({"cache": '{"max_error": 0.5}'}, "fast"),
        ({"cache": {"max_error": 0.001}}, "in full"),
        ({"cache": {"max_seconds": 5, "max_error": 0.5}}, "true"),
    ],
)
def test_the_answer_says_what_served_it(running: Live, body: dict[str, Any], policy: str) -> None:
    name = f'hicache_pack_pictures_total{{policy="{policy}"}}'
    before = running.metric(name)
    said = ask(running, **body).json()["hicache"]
    assert (said["policies"], said["decisions"]) == ([policy], [DECISIONS[policy]])
    assert running.metric(name) == before + 1


def test_a_stream_says_it_too(running: Live) -> None:
    *_, last = events(ask(running, cache={"max_error": 0.5}, stream=True).text)
    assert (last["hicache"]["policy"], last["hicache"]["decisions"]) == ("fast", DECISIONS["fast"])


def test_policies_of_no_pack_are_called_what_the_request_calls_them(running: Live) -> None:
    own = {"schedule": {"type": "Interval", "interval": 2}, "forecaster": {"type": "Reuse"}, "scope": "module"}
    for cache, policy in (("off", "off"), ("fora", "FORA"), ({"preset": "FORA"}, "FORA"), (own, "of the request")):
        assert ask(running, cache=cache).json()["hicache"]["policies"] == [policy]


@pytest.mark.parametrize(
    ("cache", "steps", "says"),
    [
        ({"max_seconds": 1}, STEPS, "pack.max_seconds = 1: must be 1.5 or more"),
        ({"max_error": 0.1, "max_seconds": 2}, STEPS, "pack.max_error = 0.1: must be 0.39 or more"),
        ({"max_error": -1}, STEPS, "pack.max_error = -1: must be a number"),
        ({"max_error": 0.1, "interval": 3}, STEPS, "cache.interval: must be left out"),
        ({"max_error": 0.1}, 8, "num_inference_steps = 8: must be 5"),
    ],
)
def test_what_cannot_be_promised(running: Live, cache: Any, steps: int, says: str) -> None:
    error = told(running.post(cache=cache, num_inference_steps=steps), 400)
    assert says in error["message"]
    assert (error["param"], error["code"]) == ("cache", "invalid_policy")


def test_a_service_without_a_pack_says_how_to_start_with_one(served: Live) -> None:
    error = told(served.post(cache={"max_error": 0.02}), 400)
    assert "cache.max_error = 0.02" in error["message"]
    assert "hicache serve --pack" in error["message"]
    assert error["param"] == "cache"


def test_a_fixed_policy_leaves_the_promises(service: Service, running: Live) -> None:
    with listening(service, fixed_policy=True) as fixed:
        assert "a promise" in told(ask(fixed, cache="FORA"), 400)["message"]
        assert ask(fixed, cache={"max_error": 0.5}).json()["hicache"]["policies"] == ["fast"]
        assert fixed.http.get("/v1/models").json()["data"][0]["hicache"]["policies"] == []


def test_the_model_says_what_can_be_promised(running: Live, served: Live) -> None:
    card = running.http.get("/v1/models").json()["data"][0]["hicache"]
    assert card["policy"] == "true"
    assert card["promises"] == [
        {"policy": "fast", "max_error": 0.39, "seconds": 1.5, "num_inference_steps": STEPS},
        {"policy": "true", "max_error": 0.039, "seconds": 4.0, "num_inference_steps": STEPS},
        {"policy": "in full", "max_error": 0.0, "seconds": 8.0, "num_inference_steps": STEPS},
    ]
    assert served.http.get("/v1/models").json()["data"][0]["hicache"]["promises"] == []


def test_the_schema_says_what_a_promise_is(served: Live) -> None:
    body = served.http.get("/openapi.json").json()["paths"][GENERATIONS]["post"]["requestBody"]
    assert "max_error" in body["content"]["application/json"]["schema"]["properties"]["cache"]["description"]


def test_in_this_process() -> None:
    pipe = by_name("FluxPipeline").build()
    with serve(pipe, PACK, max_seconds=2.0, backend="eager", size="16x16", call=CALL) as server:
        body = {"prompt": "a fox", "cache": {"max_error": 0.1}}
        said = [
            httpx.post(f"{server.url}{GENERATIONS}", json=each, timeout=SECONDS_OF_A_TEST).json()["hicache"]
            for each in ({"prompt": "a fox"}, body)
        ]
    assert [each["policies"] for each in said] == [["fast"], ["true"]]
    assert said[0]["num_inference_steps"] == STEPS  # those of the pack
    with serve(pipe, FORA(), backend="eager") as server:  # its pack stays
        card = httpx.get(f"{server.url}/v1/models", timeout=SECONDS_OF_A_TEST).json()["data"][0]["hicache"]
        assert [each["policy"] for each in card["promises"]] == ["fast", "true", "in full"]
    for given, says in (
        ({"policy": PACK}, "max_error or max_seconds must be given"),
        ({"policy": PACK, "max_error": 0.1, "steps": 9}, "serve.steps = 9: must be 5 with this pack"),
        ({"policy": "HiCache", "max_error": 0.1}, "serve.max_error = 0.1: must be given with a pack"),
    ):
        with pytest.raises(HiCacheError, match=says), serve(pipe, **given):
            pass


def test_what_travels_to_a_replica(source: Source, service: Service) -> None:
    assert pickle.loads(pickle.dumps(source)) == source
    assert pickle.loads(pickle.dumps(service.abilities)) == service.abilities
    assert service.abilities.pack == PACK


def test_a_replica_tells_the_front_what_it_picked() -> None:
    async def made(replica: Replica, cache: Any) -> list[Any]:
        call = {"prompt": "a fox", "num_inference_steps": STEPS, "height": 16, "width": 16, **CALL}
        return [news async for news in replica.make(cache, 0, call)]

    pipe = hicache_compile(by_name("FluxPipeline").build(), PACK, max_error=0.1, backend="eager")
    replica = Replica(lambda: Service(Batcher(pipe), Abilities.of(pipe)))
    first, *_, done = asyncio.run(made(replica, {"max_error": 0.5}))
    refused = asyncio.run(made(replica, {"max_seconds": 0.5}))[-1]
    assert isinstance(first, Taken)
    assert (done.entry, done.decisions, done.error) == ("fast", DECISIONS["fast"], None)
    assert isinstance(refused.error, HiCacheError)
    front = RayBatcher(SimpleNamespace(options=lambda stream: None), lambda: None)
    request = RemoteRequest(lambda _: None)
    front._result(request, "one", Done(None, None, done.decisions, done.entry, done.numbers))
    front.close()
    assert (request.entry, request.decisions) == ("fast", DECISIONS["fast"])
