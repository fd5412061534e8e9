"""Workers on a Ray cluster: each has a pipeline of its own and makes items of its own.

Ray starts a process that dies again and has it make what it was at. What a worker fails at, others try; one that cannot
load the pipeline, or fails at what another then makes, gets no more items.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from hicache_compile.errors import HiCacheError
from hicache_compile.generate.cluster import connect
from hicache_compile.generate.items import Item
from hicache_compile.generate.maker import Made
from hicache_compile.generate.settings import Settings
from hicache_compile.generate.workers import Failed, Here, UnfitError

TRIES = 3  # of different workers at one item
PATIENCE = 60  # seconds for a worker to start before a log says that none has

log = logging.getLogger(__name__)


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
    gpus = connect(address, "generate", count, settings.device)
    import ray

    try:
        # A process may die as often as it likes; what it was at is made again once, then it is the item's fault too.
        actor = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=-1, max_task_retries=1)(Worker)
        settings = replace(settings, model=settings.model.resolve())  # workers have a working folder of their own
        yield RayWorkers([actor.remote(settings) for _ in range(count)])
    finally:
        ray.shutdown()


class RayWorkers:
    """Actors, each busy with one item at a time; those that the cluster has no room for yet wait, and have none."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self.actors = actors

    def follow(self) -> bool:
        return False

    def made(self, items: Iterable[Item]) -> Generator[tuple[Item, Made | Failed]]:
        left, idle = [_with_whole_path(item) for item in items], list[Any]()
        busy: dict[Any, tuple[Any, Item | None]] = {actor.name.remote(): (actor, None) for actor in self.actors}
        tried: dict[str, dict[Any, str]] = defaultdict(dict)  # by the file of an item: who failed at it, and why
        unfit: dict[Any, str] = {}
        while left or any(item is not None for _, item in busy.values()):
            fit = [actor for actor in idle if actor not in unfit]
            for actor in fit:
                item = next((item for item in left if actor not in tried[item.file]), None)
                if item is not None:
                    left.remove(item)
                    idle.remove(actor)
                    busy[actor.attempt.remote(item)] = (actor, item)
            starting = {actor for actor, item in busy.values() if item is None}
            if len(starting) == len(busy) and (fit or not busy):  # those who could make something have tried it all
                break
            actor, item, result = _next(busy)
            idle.append(actor)
            if item is None:  # it has started
                continue
            if isinstance(result, Made):
                unfit |= tried[item.file]
                yield item, result
                continue
            tried[item.file][actor] = str(result)
            if isinstance(result, UnfitError):
                unfit[actor] = str(result)
            others = {*self.actors} - {*tried[item.file], *unfit, *starting}
            again = bool(others) and len(tried[item.file]) < TRIES
            left[:0] = [item] if again else []  # next, to know soon whose fault it is
            yield item, Failed(str(result), f"worker {self.actors.index(actor) + 1}", again)
        if left and not fit:
            why = next(iter(unfit.values()))
            raise HiCacheError(f"generate.workers: none is left, {len(left)} items are: must be able to run ({why})")
        for item in left:  # those who could try it cannot work any more
            yield item, Failed([*tried[item.file].values()][-1], "every worker that is left")


def _with_whole_path(item: Item) -> Item:
    """``item``, whose picture is found from any working folder."""
    return replace(item, image=os.path.abspath(item.image)) if item.image and os.path.isfile(item.image) else item


def _next(busy: dict[Any, tuple[Any, Item | None]]) -> tuple[Any, Item | None, Made | str | UnfitError]:
    """The next actor that is done, its item and what came of it or why nothing did, out of ``busy``; an actor without
    an item once it has started.

    Raises:
        HiCacheError: no item can be made.
    """
    import ray

    done: Any = None
    while done is None:
        ready, _ = ray.wait([*busy], num_returns=1, timeout=PATIENCE)
        done = ready[0] if ready else None
        if done is None and all(item is None for _, item in busy.values()):
            log.warning("no worker could be started for %d s: the cluster has no room for one now", PATIENCE)
    actor, item = busy.pop(done)
    try:
        result = ray.get(done)
    except ray.exceptions.RayError as error:
        return actor, item, f"{type(error).__name__}: {error}"
    if isinstance(result, HiCacheError) and not isinstance(result, UnfitError):
        raise result
    return actor, item, result.error if isinstance(result, Failed) else result
