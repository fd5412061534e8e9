"""A measurement: parts that are measured one after another, each of which can be kept when the rest is not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from hicache_compile.evaluation.journal import Journal, once
from hicache_compile.policy.progress import progress

Line = dict[str, Any]
Part = Callable[[], Line]


@dataclass(frozen=True, slots=True)
class Measurement:
    """What ``hicache bench`` measures under one name.

    ``parts()``: a function for each line of the result, always in the same order. What is costly belongs into these
    functions: of a part that is in the journal the function is not called. ``compare(lines)`` adds to the lines what
    takes all of them.
    """

    parts: Callable[[], Iterable[Part]]
    compare: Callable[[list[Line]], None] = lambda lines: None

    def run(self, name: str, journal: Journal | None) -> list[Line]:
        """Measure what is not in ``journal``; all lines."""
        lines: list[Line] = []
        with progress(what=name, unit="result") as bar:
            for place, part in enumerate(self.parts()):
                lines += once(journal, name, place, lambda part=part: [part()])  # type: ignore[misc]
                bar.update()
        self.compare(lines)
        return lines
