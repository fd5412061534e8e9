"""Workers on a Ray cluster: each has a pipeline of its own and makes items of its own.

Ray starts a process that dies again and has it make what it was at. What a worker fails at, others try; one that cannot
load the pipeline, or fails at what another then makes, gets no more items.
"""

from __future__ import annotations

import os
import socket
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from hicache_compile.errors import HiCacheError
from hicache_compile.generate.cluster import connect
from hicache_compile.generate.items import Item
from hicache_compile.generate.maker import Made
from hicache_compile.generate.settings import Settings
from hicache_compile.generate.workers import Failed, Here, UnfitError

TRIES = 3  # of different workers at one item, and of Ray to start a process that dies again


class Worker:
    """What Ray starts in a process."""

    def __init__(self, settings: Settings) -> None:
        self._here = Here(settings, quiet=True)

    def name(self) -> str:
        """Host and process."""
        return f"{socket.gethostname()}:{os.getpid()}"

    def attempt(self, item: Item) -> Made | Failed | HiCacheError:
        """What came of ``item``; errors that concern every item are handed over: raised, Ray would add to them."""
        try:
            return self._here.attempt(item, self.name())
        except HiCacheError as error:
            return type(error)(str(error))


@contextmanager
def ray_workers(settings: Settings, address: str, count: int) -> Iterator[RayWorkers]:
    """``count`` workers on the cluster at ``address`` (``cluster.HERE``: one that is started on this machine).

    Raises:
        HiCacheError: the cluster is not reached.
    """
    gpus = connect(address, "generate", count)
    import ray

    try:
        actor = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=TRIES, max_task_retries=TRIES)(Worker)
        yield RayWorkers([actor.remote(settings) for _ in range(count)])
    finally:
        ray.shutdown()


class RayWorkers:
    """Actors, each busy with one item at a time."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self.actors = actors

    def follow(self) -> bool:
        return False

    def made(self, items: Iterable[Item]) -> Iterator[tuple[Item, Made | Failed]]:
        left, idle = list(items), list(self.actors)
        busy: dict[Any, tuple[Any, Item]] = {}
        tried: dict[str, set[Any]] = defaultdict(set)  # by the file of an item, those that failed at it
        unfit: set[Any] = set()
        lost = ""
        while left or busy:
            idle = [actor for actor in idle if actor not in unfit]
            for actor in [*idle]:
                item = next((item for item in left if actor not in tried[item.file]), None)
                if item is not None:
                    left.remove(item)
                    idle.remove(actor)
                    busy[actor.attempt.remote(item)] = (actor, item)
            if not busy:
                raise HiCacheError(
                    f"generate.workers: none is left, {len(left)} items are: must be able to run ({lost})"
                )
            actor, item, result = _next(busy)
            if isinstance(result, UnfitError):
                unfit.add(actor)
                lost = str(result)
                left.insert(0, item)
                yield item, Failed(lost, "a worker", again=True)
                continue
            idle.append(actor)
            if isinstance(result, Failed):
                tried[item.file].add(actor)
                fresh = {*idle, *(actor for actor, _ in busy.values())} - tried[item.file] - unfit
                again = bool(fresh) and len(tried[item.file]) < TRIES
                left[:0] = [item] if again else []  # next, to know soon whose fault it is
                yield item, replace(result, again=again)
            else:
                unfit |= tried[item.file]
                yield item, result


def _next(busy: dict[Any, tuple[Any, Item]]) -> tuple[Any, Item, Made | Failed | UnfitError]:
    """The next actor that is done, its item and what came of it, out of ``busy``.

    Raises:
        HiCacheError: no item can be made.
    """
    import ray

    (done,), _ = ray.wait([*busy], num_returns=1)
    actor, item = busy.pop(done)
    try:
        result = ray.get(done)
    except ray.exceptions.RayError as error:
        return actor, item, UnfitError(f"{type(error).__name__}: {error}")
    if isinstance(result, HiCacheError) and not isinstance(result, UnfitError):
        raise result
    return actor, item, result
