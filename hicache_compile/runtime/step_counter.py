"""The step counter: which step of which context a call of the denoiser is.

Three things can say so. ``with compiled.trajectory(num_steps)`` counts calls. A scheduler that announces its runs (see
``announce``) counts its own steps, so that a step may have several calls, one for each guidance branch. With neither, a
timestep that goes back up starts a new trajectory.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from hicache_compile import config
from hicache_compile.errors import HiCacheError
from hicache_compile.runtime.options import CompileOptions, Shared
from hicache_compile.runtime.scheduled_run import ScheduledRun, ids
from hicache_compile.runtime.step import Context, Step

log = logging.getLogger(__name__)

DEFAULT_CONTEXT = "default"


class Call(Protocol):
    """What a call of the denoiser can be asked; nothing is read from a device unless it is."""

    def time(self) -> float | None:
        """Its timestep, or None when it has none."""
        ...

    def arguments(self) -> Mapping[str, Any]:
        """Its arguments by name."""
        ...


class StepCounter(threading.local):
    """The contexts of one compiled denoiser, and where each of them is. Each thread has its own: only ``options`` and
    ``shared`` are not.
    """

    def __init__(self, options: CompileOptions, shared: Shared) -> None:
        self.options = options
        self.shared = shared
        self.policy = shared.policy
        self.contexts: dict[str, Context] = {}
        self.context_name = DEFAULT_CONTEXT
        self.num_steps: int | None = None
        self.trajectory: int | None = None
        self.run: ScheduledRun | None = None
        self.uncached = False

    @contextmanager
    def in_context(self, name: str) -> Iterator[None]:
        """Steps inside belong to the context ``name``."""
        if not isinstance(name, str) or not name:
            raise HiCacheError(f"cache_context.name = {name!r}: must be a non-empty string")
        outer, self.context_name = self.context_name, name
        try:
            yield
        finally:
            self.context_name = outer

    @contextmanager
    def without_cache(self) -> Iterator[None]:
        """Steps inside run uncached. Inside a trajectory they still count."""
        outer, self.uncached = self.uncached, True
        try:
            yield
        finally:
            self.uncached = outer

    def announce(
        self, length: Callable[[], int | None], times: Callable[[], Sequence[float] | None] = lambda: None
    ) -> None:
        """A scheduler starts a run: earlier anchors are forgotten. ``length``, ``times``: see ``ScheduledRun``."""
        self._free_idle()
        self.run = ScheduledRun(length, times, self.shared.policy)

    def tick(self) -> None:
        """The scheduler that announced the run made a step."""
        if self.run is not None:
            self.run.tick += 1

    def end_run(self) -> None:
        """The announced run is over, or was given up: nothing continues it."""
        if self.run is not None:
            self.run = None
            self.invalidate()

    def next_step(self, call: Call) -> Step:
        """The step that begins now with ``call``."""
        step = self._next_step(call)
        step.uncached = step.uncached or not config.caching()
        step.together = self.options.decide_together
        return step

    def _next_step(self, call: Call) -> Step:
        if self.run is not None and self.run.is_over():
            self.end_run()
        if self.trajectory is not None:
            return self._counted(self.trajectory)
        if self.run is not None:
            return self._ticked(self.run, call)
        if self.uncached:
            return Step(Context("uncached", self.policy), 0, None, uncached=True)
        context = self._context(self.context_name)
        self._follow_time(context, call.time())
        return Step(context, context.step, None)

    def _context(self, name: str) -> Context:
        return self.contexts.setdefault(name, Context(name, self.policy))

    def _counted(self, trajectory: int) -> Step:
        """Inside ``open``: the calls are counted, in each context."""
        context = self._context(self.context_name)
        if context.trajectory != trajectory:
            context.begin(trajectory, self.policy)
        if context.step >= self.num_steps:  # type: ignore[operator]  # set together with trajectory
            raise HiCacheError(
                f"step {context.step} of context {context.name!r}: the trajectory has {self.num_steps} steps; "
                "open one `with compiled.trajectory(num_steps):` per run, and give each guidance branch its own "
                "`with compiled.cache_context(name):`"
            )
        return Step(context, context.step, self.num_steps, self.uncached)

    def _ticked(self, run: ScheduledRun, call: Call) -> Step:
        """In an announced run: the scheduler counts, and a branch nobody names is told by its conditioning."""
        run.begin()
        name, certain = run.branch(self.context_name, call.arguments())
        context = self._context(name)
        if context.trajectory != run.id:
            self.policy = run.policy
            context.begin(run.id, run.policy)
        assert run.origin is not None
        if not certain and not context.ambiguous:
            log.warning(
                "the calls of one step are conditioned alike, so context %r may be another guidance branch and nothing "
                "is forecast until the run ends; use cache_context(name) for each branch, or trajectory(num_steps)",
                name,
            )
            context.ambiguous = True
        return Step(context, run.tick - run.origin, run.num_steps, self.uncached)

    def _follow_time(self, context: Context, time: float | None) -> None:
        """Without an open trajectory, a timestep that goes back up starts a new one."""
        if time is None:
            raise HiCacheError(
                "a call outside `with compiled.trajectory(num_steps):` needs an argument named timestep, timesteps, t, "
                "sigma or time, to see where a trajectory starts; it has none of them"
            )
        if context.last_time is None or context.trajectory < 0 or time > context.last_time:
            if context.last_time is not None and context.step == 1:
                log.warning(
                    "the timestep went up from %g to %g after a single step of context %r, which starts a new "
                    "trajectory: where time runs upwards nothing is ever forecast; use trajectory(num_steps)",
                    context.last_time,
                    time,
                    context.name,
                )
            context.begin(next(ids), self.shared.policy)
        elif time == context.last_time and not context.ambiguous:
            log.warning(
                "timestep %g came twice in a row in context %r: two branches may share it, so nothing is forecast "
                "until the timestep goes back up; use cache_context(name) for each branch, or trajectory(num_steps)",
                time,
                context.name,
            )
            context.ambiguous = True
        context.last_time = time

    def live_contexts(self) -> int:
        """How many contexts the newest trajectory has so far."""
        newest = max((context.trajectory for context in self.contexts.values()), default=-1)
        return sum(context.trajectory == newest for context in self.contexts.values())

    def _free_idle(self) -> None:
        """Free the rings of contexts that the newest trajectory did not use."""
        newest = max((context.trajectory for context in self.contexts.values()), default=-1)
        for context in self.contexts.values():
            if context.trajectory != newest:
                context.states = {}

    def invalidate(self) -> None:
        """Every anchor of every context is stale."""
        for context in self.contexts.values():
            context.invalidate()

    def reset(self) -> None:
        """Forget contexts, anchors and history, and free their memory."""
        self.contexts = {}
        self.run = None
