"""Many mixed requests: nothing is compiled again, no page is lost, and memory stays flat."""

from __future__ import annotations

import gc
import random

import psutil

from tests.serving.test_batcher import MOST_CAPTURES, NAMES, POLICIES, PROMPTS, Order, Served, served_by
from tests.stress.size import size

REQUESTS = size(40, 500)
A_ROUND = 20
GROWTH = 64  # MiB at most over all requests, after a warm-up of as many kinds


def drawn(source: random.Random) -> Order:
    cancelled = source.choice([None, None, None, 0, 2])
    where = source.randrange(len(POLICIES)), source.randrange(len(PROMPTS))
    return Order(source.randrange(3), source.randint(3, 9), *where, source.random() < 0.5, cancelled)


def make(served: Served, orders: list[Order]) -> None:
    """Have ``orders`` made, and one request that the pipeline refuses."""
    requests = [served.submit(order) for order in orders]
    refused = served.batcher.submit(**{**served.call(orders[0]), "prompt": 7})
    for order, request in zip(orders, requests, strict=True):
        served.ended(order, request)
    assert isinstance(refused.exception(timeout=300), ValueError)


def test_many_requests_leave_nothing() -> None:
    source = random.Random(0)
    for served in served_by(NAMES[0]):
        for policy in range(len(POLICIES)):  # every program there is, for one row and for several
            for prompt in range(len(PROMPTS)):
                make(served, [Order(0, 9, policy, prompt, True)] * 2)
        make(served, [drawn(source) for _ in range(A_ROUND)])
        before = psutil.Process().memory_info().rss
        for _ in range(REQUESTS // A_ROUND):
            make(served, [drawn(source) for _ in range(A_ROUND)])
        gc.collect()
        found = served.batcher.statistics()
        assert (found.waiting, found.running, found.pages_used) == (0, 0, 0)
        assert len(served.pipe.transformer._graphs) <= MOST_CAPTURES
        assert psutil.Process().memory_info().rss - before < GROWTH * 2**20
