"""Ranks tell one another where they are: two of them in one process, on one store."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hicache_compile import HiCache, HiCacheError, config
from hicache_compile.runtime import places
from hicache_compile.runtime.places import Places


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> list[Places]:
    store = torch.distributed.HashStore()
    monkeypatch.setattr(places, "members", lambda group: frozenset({0, 1}))
    monkeypatch.setattr(places, "BEAT", 0.01)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    made = []
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(places, "_made", Counter())
        made.append(Places(("group",), store))
    return made


def at(index: int, policy: Any = None) -> Any:
    context = SimpleNamespace(name="default", policy=policy or HiCache())
    return SimpleNamespace(index=index, num_steps=4, context=context)


def go(rank: Places, step: Any, what: str) -> None:
    rank.between = True
    rank.announce(step, what)


def test_a_rank_that_has_gone_on_was_there(pair: list[Places]) -> None:
    first, second = pair
    go(first, at(0), "full")
    go(second, at(0), "full")
    first.meet(in_run=False)
    go(first, at(1), "forecast")  # which waits for nobody
    assert not first._is_here(1)  # at the step after
    assert second._is_here(0)
    second.meet(in_run=False)
    second.explain(RuntimeError("out of memory"))  # it is no other step that the rank ahead makes
    for rank in pair:
        rank.end()


def test_another_step_is_an_error_that_names_both(pair: list[Places]) -> None:
    first, second = pair
    go(first, at(1), "forecast")
    go(second, at(1), "full")
    with pytest.raises(HiCacheError, match=r"rank 1 is at step 1 of 4 .*\(full.*, rank 0 at step 1 of 4 .*\(forecast"):
        second.meet(in_run=True)
    with pytest.raises(HiCacheError, match="rank 0 is at step 1 of 4") as raised:
        first.explain(error := RuntimeError("connection closed"))
    assert raised.value.__cause__ is error
    for rank in pair:
        rank.end()


def test_a_rank_that_makes_no_step_or_is_gone_is_an_error(pair: list[Places], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = pair
    go(second, at(2), "full")
    first.idle_since = 0.0  # of a clock that began long ago
    monkeypatch.setattr(config, "idle_rank_seconds", 1.0)
    with pytest.raises(HiCacheError, match=r"rank 0 has made no step for \d+ s"):
        second.meet(in_run=True)
    first.end()
    first.idle_since = None
    monkeypatch.setattr(places, "SILENT", 0.05)
    monkeypatch.setattr(config, "idle_rank_seconds", 1e9)
    with pytest.raises(HiCacheError, match="rank 0 has given no sign of life"):
        second.meet(in_run=True)
    second.end()


def test_a_policy_reads_the_same_on_every_rank(pair: list[Places]) -> None:
    class Mine:
        """Its text has an address."""

    first, second = pair
    assert first._short(Mine()) == second._short(Mine())  # type: ignore[arg-type]  # any policy
    for rank in pair:
        rank.end()
