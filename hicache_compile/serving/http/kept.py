"""Pictures that wait in memory under an address of their own, a few and for a while."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from hicache_compile.serving.http.settings import Limits


@dataclass(frozen=True, slots=True)
class Kept:
    """One picture. ``until``: of the clock."""

    data: bytes
    kind: str
    until: float


class KeptPictures:
    """Those that may still be fetched; the oldest go first.

    Args:
        limits: how many, how large together, how long.
        clock: seconds.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._pictures: OrderedDict[str, Kept] = OrderedDict()
        self._bytes = 0

    def keep(self, data: bytes, kind: str) -> str:
        """The name, which cannot be guessed, under which ``data`` waits. It is there even where it is larger than all
        together may be; the others are not."""
        name = f"{secrets.token_urlsafe(18)}.{kind}"
        self._pictures[name] = Kept(data, kind, self._clock() + self._limits.kept_seconds)
        self._bytes += len(data)
        while len(self._pictures) > 1 and self._too_many():
            self._drop(next(iter(self._pictures)))
        return name

    def find(self, name: str) -> Kept | None:
        """The picture, unless its time is over."""
        while self._pictures and next(iter(self._pictures.values())).until <= self._clock():
            self._drop(next(iter(self._pictures)))
        return self._pictures.get(name)

    def _too_many(self) -> bool:
        return len(self._pictures) > self._limits.kept or self._bytes > self._limits.kept_bytes

    def _drop(self, name: str) -> None:
        self._bytes -= len(self._pictures.pop(name).data)
