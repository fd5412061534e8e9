"""The numbers of several Batchers, as one's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from hicache_compile.serving.statistics import Statistics


class Numbers:
    """What replicas told last. Those that died keep what they counted, and no longer have pages or requests."""

    def __init__(self) -> None:
        self.submitted = self.ended = 0
        self.alive: dict[str, Statistics] = {}
        self._dead: list[Statistics] = []

    def heard(self, replica: str) -> None:
        """Note that ``replica`` is there."""
        self.alive.setdefault(replica, Statistics())

    def told(self, replica: str, numbers: Statistics) -> None:
        """Note its numbers."""
        self.alive[replica] = numbers

    def died(self, replica: str) -> None:
        """Note that it is not there any longer."""
        if replica in self.alive:
            self._dead.append(self.alive.pop(replica))

    def together(self) -> Statistics:
        """Of all. Waiting is what was submitted and no replica runs."""
        alive = list(self.alive.values())
        running = min(sum(each.running for each in alive), self.submitted - self.ended)
        counted = [*alive, *self._dead]
        return Statistics(
            waiting=self.submitted - self.ended - running,
            running=running,
            pages=sum(each.pages for each in alive),
            pages_used=sum(each.pages_used for each in alive),
            batches=_sum(each.batches for each in counted),
            full_rows=sum(each.full_rows for each in counted),
            forecast_rows=sum(each.forecast_rows for each in counted),
        )


def _sum(batches: Iterable[dict[int, int]]) -> dict[int, int]:
    total: Counter[int] = Counter()
    for each in batches:
        total.update(each)
    return dict(total)
