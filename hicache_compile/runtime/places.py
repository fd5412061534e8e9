"""Ranks that sample one thing tell one another where they are, so that one that goes another way is an error.

A collective that one rank is alone in waits for the others until the process group gives up, after minutes. So each
rank writes down which step it makes and how, in the store by which ``torch.distributed`` met, and reads what the others
wrote before it runs what communicates inside of the denoiser. A forecast only writes, which costs microseconds.
"""

from __future__ import annotations

import atexit
import itertools
import re
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hicache_compile import config, internals
from hicache_compile.errors import HiCacheError
from hicache_compile.operators.collectives import Ranks, members
from hicache_compile.policy.policy import Policy
from hicache_compile.runtime.step import Step

BEAT = 2.0  # seconds between signs of life
SILENT = 12.0  # seconds without one, after which a rank is taken for dead
LONGEST = 1800.0  # seconds that a rank waits for one that has not begun
REMEMBERED = 512  # steps
LONGEST_NAP = 0.05

_known: dict[Ranks, Places] = {}
_made: Counter[str] = Counter()  # by the sizes of their groups


@contextmanager
def same_place(ranks: Ranks, step: Step, what: str, communicates: bool) -> Iterator[None]:
    """Inside, ``step`` is made on all ``ranks``.

    Args:
        what: how it is made.
        communicates: also inside of the denoiser; else the ranks meet in what enters it and leaves it.

    Raises:
        HiCacheError: another rank makes another step, or none.
    """
    places = _places_of(tuple(ranks))
    if places is None:
        yield
        return
    places.announce(step, what)
    if communicates:
        places.meet(in_run=step.index > 0)
    try:
        yield
    except HiCacheError:
        raise
    except Exception as error:
        places.explain(error)
        raise


@contextmanager
def call_under_way() -> Iterator[None]:
    """Inside, this rank is in a call of a denoiser, which may take long to compile, and not between two steps."""
    for places in _known.values():
        places.idle_since = None
    try:
        yield
    finally:
        for places in _known.values():
            places.between, places.idle_since = True, time.monotonic()


class Places:
    """Where this rank and the others of ``ranks`` are."""

    def __init__(self, ranks: Ranks, store: Any) -> None:
        self.mine = torch.distributed.get_rank()
        groups = [members(group) for group in ranks]
        self.others = sorted(frozenset().union(*groups) - {self.mine})
        self.of = store
        # The groups of a mesh have other names on other ranks, but the same sizes, and meshes are met in one order.
        sizes = "x".join(str(len(group)) for group in groups)
        self._store: Any = torch.distributed.PrefixStore(  # type: ignore[attr-defined]  # public
            f"hicache_compile/{sizes}/{_made[sizes]}", store
        )
        _made[sizes] += 1
        self._calls, self._times = 0, 0
        self._key = ""
        self._place = ""
        self._policy: tuple[Policy, str] | None = None
        self.between = True  # two calls, of which the next has not said where it is
        self.idle_since: float | None = None  # None: a call is under way
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="hicache_compile ranks", daemon=True)
        self._heart.start()

    def announce(self, step: Step, what: str) -> None:
        """This rank makes ``step``, or the next graph of it, or makes it again."""
        self._times = 0 if self.between else self._times + 1
        self._calls += self.between
        self.between = False
        of = "" if step.num_steps is None else f" of {step.num_steps}"
        policy = self._short(step.context.policy)
        self._place = f"step {step.index}{of} of context {step.context.name!r} ({what}, policy {policy})"
        self._key = f"{self._calls % REMEMBERED}.{self._times}"  # others may be some forecasts behind
        self._store.set(f"at/{self.mine}/{self._key}", f"{self._calls} {self._place}")

    def _short(self, policy: Policy) -> str:
        """A policy as a few letters, the same on all ranks."""
        if self._policy is None or self._policy[0] is not policy:
            text = re.sub(" at 0x[0-9a-f]+", "", repr(policy))
            self._policy = policy, f"{zlib.crc32(text.encode()):08x}"
        return self._policy[1]

    def meet(self, in_run: bool) -> None:
        """Return once all others are where this rank is; ``in_run``: they have made a step of this run.

        Raises:
            HiCacheError: one is somewhere else, or does not come.
        """
        began, nap, heard = time.monotonic(), 0.0002, dict[int, tuple[str, float]]()
        waiting = list(self.others)
        try:
            while waiting := [rank for rank in waiting if not self._is_here(rank)]:
                for rank in waiting:
                    self._check_comes(rank, heard, in_run, began)
                time.sleep(nap)
                nap = min(2 * nap, LONGEST_NAP)
        except HiCacheError:
            raise
        except Exception as error:
            raise HiCacheError(
                f"rank {self.mine} is at {self._place}: the store of torch.distributed is gone, and with it the rank "
                "that kept it (rank 0, or torchrun)"
            ) from error

    def explain(self, error: Exception) -> None:
        """Raise a ``HiCacheError`` from ``error``, which ended the step, if another rank made another one."""
        try:
            for rank in self.others:
                self._is_here(rank)
        except HiCacheError as parted:
            raise parted from error
        except Exception:  # the store is gone with the rank that kept it
            return

    def _is_here(self, rank: int) -> bool:
        call, _, place = self._read(f"at/{rank}/{self._key}").partition(" ")
        if call != str(self._calls):
            return False
        if place != self._place:
            raise HiCacheError(
                f"rank {self.mine} is at {self._place}, rank {rank} at {place}: ranks that sample one thing must make "
                "the same steps under the same policy; give all of them the same arguments"
            )
        return True

    def _check_comes(self, rank: int, heard: dict[int, tuple[str, float]], in_run: bool, began: float) -> None:
        sign, now = self._read(f"alive/{rank}"), time.monotonic()
        before, when = heard.setdefault(rank, (sign, now))
        if sign != before:
            heard[rank] = sign, now
        idle = float(sign.partition(" ")[2] or 0)
        why = ""
        if sign and sign == before and now - when > SILENT:
            why = f"has given no sign of life for {SILENT:.0f} s"
        elif in_run and idle > config.idle_rank_seconds:
            why = f"has made no step for {idle:.0f} s (hicache_compile.config.idle_rank_seconds)"
        elif now - began > LONGEST:
            why = f"has not come in {LONGEST / 60:.0f} minutes"
        if why:
            raise HiCacheError(
                f"rank {self.mine} is at {self._place}: rank {rank} {why}; all ranks must make all steps of a run"
            )

    def _read(self, key: str) -> str:
        """What is written under ``key``; empty where nothing is. It never waits, for the signs of life wait for it."""
        return str(self._store.get(key).decode()) if self._store.check([key]) else ""

    def _beat(self) -> None:
        """Give signs of life."""
        for number in itertools.count():
            since = self.idle_since
            idle = 0.0 if since is None else time.monotonic() - since
            try:
                self._store.set(f"alive/{self.mine}", f"{number} {idle:.1f}")
            except Exception:  # the rank that kept the store is gone
                return
            if self._ended.wait(BEAT):
                return
            if not torch.distributed.is_initialized():
                _forget(self)
                return

    def end(self) -> None:
        """No more signs of life. A thread that Python ends while it writes would leave the store locked."""
        self._ended.set()
        self._heart.join()


def _places_of(ranks: Ranks) -> Places | None:
    """Where ``ranks`` are; ``None`` where there is one, or the others do not exist."""
    if not ranks or torch.distributed.get_backend() == "fake":
        return None
    store = internals.default_store()
    found = _known.get(ranks)
    if found is None or found.of is not store:
        if found is not None:
            found.end()
        found = _known[ranks] = Places(ranks, store)
    return found


def _forget(gone: Places) -> None:
    """The process group is gone, and with the last that knows its store the store."""
    for ranks, places in list(_known.items()):
        if places is gone:
            del _known[ranks]


@atexit.register
def _end_all() -> None:
    while _known:
        _known.popitem()[1].end()
