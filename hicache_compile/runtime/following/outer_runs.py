"""Runs that wait: a pipeline's call that another pipeline's call is made in, as a callback does for a preview."""

from __future__ import annotations

from typing import Protocol

from hicache_compile.policy.policy import Policy
from hicache_compile.runtime.following.announced_run import AnnouncedRun
from hicache_compile.runtime.following.pipeline_calls import WatchedPipeline, is_running
from hicache_compile.runtime.step import Context


class Counter(Protocol):
    """Where a thread is: its run, the contexts of it, and their policy."""

    run: AnnouncedRun | None
    contexts: dict[str, Context]
    policy: Policy


class OuterRuns:
    """The runs of one thread that wait for a call inside of theirs to end, the innermost last."""

    def __init__(self) -> None:
        self._waiting: list[tuple[AnnouncedRun, dict[str, Context], Policy]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def follow(self, counter: Counter, inside: WatchedPipeline | None) -> None:
        """A call is made, in that of the pipeline ``inside``: ``counter`` is put where that is."""
        while self._waiting and not (inside is not None and self._is_within_newest(inside)):
            self._go_back(counter)
        run = counter.run
        if run is not None and run.inside is not inside and run.inside is not None and is_running(run.inside):
            self._waiting.append((run, counter.contexts, counter.policy))
            counter.run, counter.contexts = None, {}

    def _is_within_newest(self, inside: WatchedPipeline) -> bool:
        outer = self._waiting[-1][0].inside
        return outer is not None and outer is not inside and is_running(outer)

    def _go_back(self, counter: Counter) -> None:
        """What ran inside has ended, or all of it did."""
        for context in counter.contexts.values():
            context.free()
        counter.run, counter.contexts, counter.policy = self._waiting.pop()

    def clear(self) -> None:
        """Forget them, and free their memory."""
        for _, contexts, _ in self._waiting:
            for context in contexts.values():
                context.free()
        self._waiting = []
