"""Replicas on Ray, where it is installed: one is killed and every request is answered."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import pytest

from hicache_compile.generate.cluster import HERE
from hicache_compile.serving.http import Limits
from tests.serving.http.fake_service import SECONDS_OF_A_TEST, fake_service
from tests.serving.http.live import GENERATIONS, Live, live
from tests.serving.http.test_bad_requests import told
from tests.serving.http.test_pictures import events

pytest.importorskip("ray")
REQUESTS = 100


@pytest.fixture(scope="module")
def running() -> Iterator[Live]:
    from hicache_compile.serving.ray_serve import open_replicas

    service = open_replicas(partial(fake_service, 0.02), HERE, 2, 2)
    with live(service, Limits(queue=REQUESTS, seconds=120)) as served:
        yield served


def test_it_is_the_same_service(running: Live) -> None:
    answer = running.post(n=2, seed=7).json()
    assert answer["hicache"]["decisions"] == ["F..F"] * 2
    assert answer["data"] == running.post(n=2, seed=7).json()["data"]
    *steps, last = events(running.post(stream=True, seed=7).text)
    assert [step["step"] for step in steps] == [0, 1, 2, 3]
    assert last["b64_json"] == answer["data"][0]["b64_json"]
    assert "for this model" in told(running.post(cache={"preset": "HiCache", "scope": "block"}), 400)["message"]
    told(running.post(prompt="break it"), 500)
    assert "has to be another" in told(running.post(prompt="refuse it"), 400)["message"]
    assert running.metric("hicache_rows_total") > 0


def test_a_client_that_leaves_frees_the_replica(running: Live) -> None:
    with running.http.stream("POST", GENERATIONS, json={"prompt": "wait", "stream": True}) as answer:
        next(answer.iter_lines())
    assert running.post().status_code == 200


def test_a_replica_that_is_killed_costs_no_answer(running: Live) -> None:
    batcher: Any = running.batcher
    made = running.metric("hicache_pictures_total")
    answered = threading.Semaphore(0)

    def ask(seed: int) -> httpx.Response:
        body = {"prompt": "a fox", "seed": seed, "num_inference_steps": 12}
        answer = httpx.post(f"{running.url}{GENERATIONS}", json=body, timeout=4 * SECONDS_OF_A_TEST)
        answered.release()
        return answer

    with ThreadPoolExecutor(24) as clients:
        asked = [clients.submit(ask, seed) for seed in range(REQUESTS)]
        for _ in range(REQUESTS // 4):
            answered.acquire(timeout=SECONDS_OF_A_TEST)
        victim = batcher.replicas()[0]
        os.kill(int(victim.rpartition(":")[2]), signal.SIGKILL)
        answers = [each.result() for each in asked]
    statuses = Counter(answer.status_code for answer in answers)
    assert statuses[200] + statuses[503] == REQUESTS, statuses
    assert running.metric("hicache_pictures_total") == made + statuses[200]
    assert statuses[200] > REQUESTS // 2
    for seed, answer in enumerate(answers):
        if answer.status_code == 200:
            assert answer.json()["hicache"]["seeds"] == [seed]
            assert answer.json()["hicache"]["decisions"] == ["F..F..F..F.."]
        else:
            told(answer, 503)
    assert victim not in batcher.replicas()
    assert running.post().status_code == 200
