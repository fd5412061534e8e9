"""The step counter: where a trajectory begins and ends, and which step of which context a call is.

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

import torch

from hicache_compile import config
from hicache_compile.errors import HiCacheError, numbers, whole_number
from hicache_compile.policy.layout import Layout
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.run import RunInfo
from hicache_compile.runtime.deciders.base import Decider
from hicache_compile.runtime.options import CompileOptions, Shared
from hicache_compile.runtime.replay.dispatch_modes import set_aside
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


Output = Any
Observer = Callable[[Step, Call, Callable[[], Output]], Output]  # makes a call of the denoiser, once or several times


class Session(threading.local):
    """The trajectories of one compiled denoiser. Each thread has its own: only ``options`` and ``shared`` are not.

    ``live``: how each captured graph was used last.
    """

    def __init__(self, options: CompileOptions, shared: Shared) -> None:
        self.options = options
        self.shared = shared
        self.policy = shared.policy
        self.live: dict[object, Any] = {}
        self.contexts: dict[str, Context] = {}
        self.context_name = DEFAULT_CONTEXT
        self.num_steps: int | None = None
        self.trajectory: int | None = None
        self.run: ScheduledRun | None = None
        self.step: Step | None = None
        self.latest: Step | None = None  # the step of the call before
        self.uncached = False
        self.syncs = 0
        self.last_graphs: list[object] = []
        self.most_graphs = 0
        self.warned_eager = False
        self.observer: Observer | None = None
        self._deciders: list[tuple[object, Decider]] = []
        self._layout: tuple[Policy, Layout] | None = None

    @contextmanager
    def open(
        self, num_steps: int, policy: Policy | None = None, timesteps: Sequence[float] | None = None
    ) -> Iterator[None]:
        """A trajectory of ``num_steps`` steps in every context, by default under the policy of ``shared``.

        ``timesteps``: of each step, for policies that are made of them.

        Raises:
            HiCacheError: ``num_steps`` is not a positive integer, the policy's mask has another length,
                or a trajectory is open already.
        """
        whole_number("trajectory", "num_steps", num_steps, 1)
        if self.trajectory is not None:
            raise HiCacheError(f"trajectory({num_steps}): a trajectory of {self.num_steps} steps is open already")
        policy = policy or self.shared.policy
        if timesteps is not None:
            times = checked_times(timesteps, num_steps)
            policy = policy.bind(RunInfo(times=lambda: times))
        policy.decisions(num_steps)  # a policy that cannot serve it says so now
        self._free_idle()
        self.policy = policy
        self.num_steps, self.trajectory = num_steps, next(ids)
        try:
            yield
        except BaseException:
            self.invalidate()
            raise
        finally:
            self.num_steps = self.trajectory = None

    @contextmanager
    def open_again(self, num_steps: int, policy: Policy, contexts: list[Context]) -> Iterator[None]:
        """A trajectory that ``contexts`` are in the middle of.

        Raises:
            HiCacheError: a trajectory is open already.
        """
        if self.trajectory is not None:
            raise HiCacheError(f"resume(): must not be called while a trajectory of {self.num_steps} steps is open")
        with self.open(num_steps, policy):
            assert self.trajectory is not None
            self.contexts = {context.name: context for context in contexts}
            for context in contexts:
                context.trajectory = self.trajectory
                for state in context.states.values():
                    state.trajectory = state.run = self.trajectory
            yield

    @contextmanager
    def rehearse(self, policy: Policy, num_steps: int) -> Iterator[None]:
        """A trajectory of ``num_steps`` steps under ``policy``, of which nothing stays."""
        if self.trajectory is not None or self.run is not None:
            raise HiCacheError("warmup(): must not be called inside a trajectory")
        kept = self.contexts, self.policy
        self.contexts = {}
        self.policy, self.num_steps, self.trajectory = policy, num_steps, next(ids)
        try:
            yield
        finally:
            self.contexts, self.policy = kept
            self.num_steps = self.trajectory = None

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

    @contextmanager
    def observed(self, observer: Observer) -> Iterator[None]:
        """Every call inside is made by ``observer(step, call, make)``."""
        outer, self.observer = self.observer, observer
        try:
            yield
        finally:
            self.observer = outer

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

    def run_step(self, call: Call, make: Callable[[Step], Output], step: Step | None = None) -> Output:
        """Make one step with ``make``: count it, run it without gradients, keep what it leaves behind.

        Args:
            call: the denoiser's call.
            make: makes it, once or, where it is observed, several times.
            step: the step in progress, where another part of its call runs.
        """
        if self.step is not None:
            raise HiCacheError("the compiled denoiser was called from inside its own call")
        again = step is not None
        current = self.step = self.next_step(call) if step is None else step
        try:
            with torch.no_grad(), set_aside() as current.modes:
                if self.observer is None or again:
                    output = make(current)
                else:
                    output = self.observer(current, call, lambda: make(current))
        except BaseException:
            current.context.invalidate()
            raise
        finally:
            self.step = None
        self.finish(current, again)
        return output

    def finish(self, step: Step, again: bool = False) -> None:
        """The call returned: count it. ``again``: it was counted, and another of its graphs ran."""
        self.latest = step
        self.last_graphs = step.graphs
        self.syncs += step.syncs
        step.context.choices.update(step.choices)
        step.choices, step.syncs = [], 0
        self.most_graphs = max(self.most_graphs, len(step.graphs))
        if step.context.history and again:
            step.context.history[-1][-1] = step.letter
        elif step.context.history:
            step.context.step += 1
            step.context.history[-1].append(step.letter)
            self._say_what_never_hit(step)

    def _say_what_never_hit(self, step: Step) -> None:
        """A run in which no guard ever skipped was as slow as without: say so."""
        context = step.context
        unknown = step.letter == "?"  # on the device
        if unknown or not context.policy.guards or step.num_steps is None or step.index + 1 != step.num_steps:
            return
        letters = context.letters()
        free = context.policy.decisions(step.num_steps).count(".")
        if free and letters and not set(letters) - set("FS") and not step.uncached:
            names = ", ".join(type(guard).__name__ for guard in context.policy.guards)
            log.warning(
                "0 hits: %s skipped none of the %d steps of context %r, of which %d were free to be; the run was as "
                "slow as without a cache. In a run of few steps too much changes from one to the next: raise the "
                "threshold, or drop the guard",
                names,
                step.num_steps,
                context.name,
                free,
            )

    def layout_of(self, policy: Policy) -> Layout:
        """The layout of ``policy``; the same object while the policy is."""
        if self._layout is None or self._layout[0] is not policy:
            self._layout = policy, self.options.layout(policy)
        return self._layout[1]

    def shared_decider(self, key: object, make: Callable[[], Decider]) -> Decider:
        """The decider of ``key``; shared by contexts where the step index alone decides and nobody observes."""
        for known, decider in self._deciders:
            if known == key:
                return decider
        made = make()
        if made.shareable and self.observer is None:
            self._deciders = [*self._deciders[-7:], (key, made)]
        return made

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


def checked_times(timesteps: Sequence[float], num_steps: int) -> tuple[float, ...]:
    """``timesteps`` as numbers.

    Raises:
        HiCacheError: they are none, or not ``num_steps``.
    """
    times = numbers("trajectory", "timesteps", timesteps)
    if len(times) != num_steps:
        raise HiCacheError(f"trajectory.timesteps: {len(times)} of them, must be {num_steps}")
    return times
