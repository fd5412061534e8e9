"""Pages: the rings of one row, as views of pools that a batch of rows of several runs reads by index."""

from __future__ import annotations

import math
import threading
from collections.abc import Hashable

import torch

from hicache_compile.runtime.storage.rings import Kept, Page, Rings

FEWEST = 16  # pages that a pool is made for
KEPT = 1024  # indices that stay on the device


class Pool:
    """``capacity`` pages for what one row of one captured graph keeps.

    Args:
        kept: the shapes of one row.
    """

    def __init__(self, kept: Kept, capacity: int) -> None:
        self.kept = dict(kept)
        self.capacity = capacity
        with torch.inference_mode(False), torch.no_grad():
            self.tensors = [
                torch.zeros((capacity, *shape), dtype=dtype, device=device) for shape, dtype, device in kept.values()
            ]
        self._free = list(reversed(range(capacity)))

    @property
    def used(self) -> int:
        """Pages that hold something."""
        return self.capacity - len(self._free)

    @property
    def nbytes(self) -> int:
        return sum(pool.nbytes for pool in self.tensors)

    def adopt(self, rings: Rings) -> None:
        """Move what ``rings`` holds into a page, which is free again once ``rings`` are gone."""
        index = self._free.pop()
        views = [_page_of(pool, index) for pool in self.tensors]
        with torch.inference_mode(False), torch.no_grad():
            for view, held in zip(views, rings.tensors, strict=True):
                view.copy_(held)
        rings.tensors, rings.page = views, Page(self, index, self._free.append)


def _page_of(pool: torch.Tensor, index: int) -> torch.Tensor:
    """``pool[index]``, which autograd does not take for a view: AOTAutograd would make outputs anew from its base."""
    page = pool[index]
    made = torch.empty(0, dtype=pool.dtype, device=pool.device)
    return made.set_(pool.untyped_storage(), page.storage_offset(), page.shape, page.stride())


def nbytes_of(kept: Kept) -> int:
    """Bytes of a page."""
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype, _ in kept.values())


class Pools:
    """The pools of one compiled denoiser, by what a row keeps. ``capacity``: of each; it grows if it is too small."""

    def __init__(self, capacity: int = FEWEST) -> None:
        self.capacity = capacity
        self.limit: int | None = None  # bytes that all pools together should not exceed
        self._known: dict[Hashable, Pool] = {}
        self._rows: dict[tuple[tuple[int, ...], torch.device], torch.Tensor] = {}
        self._lock = threading.Lock()

    def admit(self, rows: list[Rings], of: Hashable = None) -> Pool:
        """Move ``rows``, which keep things of the same shapes, into pages of one pool. ``of``: whose alone it is, and
        then it has no more pages than it needs."""
        with self._lock:
            key = (of, rows[0].signature, *rows[0].kept.items())
            pool = self._known.get(key)
            outside = [rings for rings in rows if rings.page is None or rings.page.pool is not pool]
            if pool is None or len(outside) > pool.capacity - pool.used:
                exact = of is not None
                pool = self._with(key, rows[0].kept, len(rows)) if exact else self._larger(key, pool, rows)
                outside = rows
            for rings in outside:
                pool.adopt(rings)
            return pool

    def _with(self, key: Hashable, kept: Kept, capacity: int) -> Pool:
        """A new pool; pages move there when their rows are next admitted."""
        for other in [known for known, each in self._known.items() if known != key and not each.used]:
            del self._known[other]  # of shapes that nobody uses now
        made = self._known[key] = Pool(kept, capacity)
        return made

    def _larger(self, key: Hashable, pool: Pool | None, more: list[Rings]) -> Pool:
        """A pool with room for ``more``."""
        kept, rows = more[0].kept, len(more)
        used = 0 if pool is None else pool.used
        raise_to = self.capacity if pool is None else pool.capacity
        while raise_to < used + rows:
            raise_to *= 2
        if self.limit is not None:
            others = sum(each.nbytes for known, each in self._known.items() if known != key)
            raise_to = max(used + rows, min(raise_to, (self.limit - others) // max(1, nbytes_of(kept))))
        return self._with(key, kept, raise_to)

    def rows(self, places: tuple[int, ...], device: torch.device) -> torch.Tensor:
        """The pages ``places`` as an index on ``device``, each uploaded once."""
        found = self._rows.get((places, device))
        if found is None:
            if len(self._rows) >= KEPT:
                self._rows.clear()
            found = self._rows[places, device] = torch.tensor(places, device=device)
        return found

    @property
    def used(self) -> int:
        """Pages that hold something."""
        return sum(pool.used for pool in self._known.values())

    @property
    def pages(self) -> int:
        """Pages that there are."""
        return sum(pool.capacity for pool in self._known.values())

    def clear(self) -> None:
        """Drop the pools; pages that are in use stay with their runs."""
        with self._lock:
            self._known.clear()
