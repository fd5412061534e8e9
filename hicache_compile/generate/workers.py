"""Who makes the items: workers take them one at a time and hand back what came of them.

``Here`` is this process, ``OverRanks`` the processes of ``torchrun`` that sample one item together; ``ray_workers.py``
has processes of a Ray cluster that make different items.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist

from hicache_compile.errors import HiCacheError
from hicache_compile.generate.items import Item
from hicache_compile.generate.maker import Made, Maker
from hicache_compile.generate.settings import Settings


@dataclass(frozen=True, slots=True)
class Failed:
    """An item that a worker did not make.

    Args:
        error: why.
        worker: which one.
        again: another worker tries it.
    """

    error: str
    worker: str
    again: bool = False


class UnfitError(HiCacheError):
    """This worker can make nothing; another one perhaps can."""


class Workers(Protocol):
    """Whoever makes items."""

    def made(self, items: Iterable[Item]) -> Generator[tuple[Item, Made | Failed]]:
        """Every item with what came of it, in the order in which they are ready.

        Raises:
            HiCacheError: no item can be made: the folder is no pipeline, the policy is refused, no worker is left, ...
        """

    def follow(self) -> bool:
        """Whether another process leads; if so, what it asked for is made when this returns."""


class Here:
    """This process."""

    def __init__(self, settings: Settings, quiet: bool = False) -> None:
        self._settings, self._quiet = settings, quiet
        self._maker: Maker | None = None

    def made(self, items: Iterable[Item]) -> Generator[tuple[Item, Made | Failed]]:
        for item in items:
            yield item, self.attempt(item)

    def follow(self) -> bool:
        return False

    def attempt(self, item: Item, worker: str = "this process") -> Made | Failed:
        """Make ``item``; what a prompt or a picture is to blame for stops no other.

        Raises:
            HiCacheError: no item can be made.
        """
        self._maker = self._maker or _loaded(self._settings, self._quiet)
        try:
            return self._maker.make(item)
        except HiCacheError:
            raise
        except Exception as error:
            return Failed(f"{type(error).__name__}: {error}", worker)


def _loaded(settings: Settings, quiet: bool) -> Maker:
    try:
        return Maker(settings, quiet)
    except (MemoryError, RuntimeError) as error:
        kind = type(error).__name__
        raise UnfitError(f"generate.model = {str(settings.model)!r}: cannot be loaded ({kind}: {error})") from error


class OverRanks:
    """The processes that ``torchrun`` started: all make each item together, rank 0 says which and has it then."""

    def __init__(self, settings: Settings) -> None:
        self._leads = dist.get_rank() == 0
        self._here = Here(settings, quiet=not self._leads)

    def made(self, items: Iterable[Item]) -> Generator[tuple[Item, Made | Failed]]:
        for item in items:
            _told(item)
            result = self._attempt(item)
            try:
                yield item, result
            except GeneratorExit:  # it could not be written, or Ctrl-C: the others need not wait
                _told(None)
                raise
        _told(None)

    def follow(self) -> bool:
        if not self._leads:
            while (item := _told(None)) is not None:
                self._attempt(item)
        return not self._leads

    def _attempt(self, item: Item) -> Made | Failed:
        """Raises ``HiCacheError`` where ranks end differently: those that sample one thing have parted."""
        result = self._here.attempt(item, "every rank")
        errors: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(errors, result.error if isinstance(result, Failed) else None)
        if any(errors) and None in errors:
            told = "; ".join(f"rank {rank}: {error}" for rank, error in enumerate(errors) if error)
            raise HiCacheError(f"generate: {item.file} failed on some ranks only: must be made by all ({told})")
        return result


def _told(item: Item | None) -> Item | None:
    """What rank 0 has for ``item``."""
    message = [item]
    dist.broadcast_object_list(message)
    return message[0]


def processes() -> int:
    """How many ``torchrun`` started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def workers_of_this_process(settings: Settings) -> Iterator[Here | OverRanks]:
    """This process, or all that ``torchrun`` started.

    Raises:
        HiCacheError: as many are not what the sampling is to be spread over.
    """
    started = processes()
    settings.spread.check(started)
    if started == 1:
        yield Here(settings)
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group()
    try:
        yield OverRanks(settings)
    finally:
        dist.destroy_process_group()
