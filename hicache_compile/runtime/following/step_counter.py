"""The step counter: which run a call of the denoiser belongs to, which step of it, which guidance branch.

The signals, in the order they are asked:

1. ``with compiled.trajectory(num_steps)``: calls are counted, in each ``cache_context``.
2. A pipeline whose call is running in this thread: its scheduler says which run it was set to and which step it is at.
   A scheduler of a compiled pipeline that a loop of one's own drives says the same.
3. The timestep of the call, and what the call is conditioned on (see ``timed_run``).

Each thread is followed by itself. Where the signals do not settle it, the step is computed, and one warning says which
signal was missing.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from hicache_compile import config
from hicache_compile.errors import HiCacheError
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.run import DEFAULT_CONTEXT
from hicache_compile.runtime.call_arguments import TIME_NAMES, Call, as_number, time_argument
from hicache_compile.runtime.following.announced_run import AnnouncedRun, ids
from hicache_compile.runtime.following.outer_runs import OuterRuns
from hicache_compile.runtime.following.pipeline_calls import running
from hicache_compile.runtime.following.timed_run import TimedRuns
from hicache_compile.runtime.options import CompileOptions, Shared
from hicache_compile.runtime.step import Context, Step

log = logging.getLogger(__name__)


class StepCounter:
    """The contexts of one compiled denoiser in one thread, and where each is. ``shared``: with other threads."""

    def __init__(self, options: CompileOptions, shared: Shared) -> None:
        self.options = options
        self.shared = shared
        self.policy = shared.policy
        self.own_policy: Policy | None = None  # of the runs of this thread, in place of the denoiser's
        self.contexts: dict[str, Context] = {}
        self.context_name = DEFAULT_CONTEXT
        self.num_steps: int | None = None
        self.trajectory: int | None = None
        self.run: AnnouncedRun | None = None
        self.uncached = False
        self.syncs = 0
        self._outer = OuterRuns()
        self._seen: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()  # timesteps of schedulers
        self._timed = TimedRuns()

    def fit_to(self, model: object) -> None:
        """Take what is published for ``model`` where a policy leaves values open."""
        self.options.check_model(model)
        self.policy, self.shared.policy = (self.shared.fitted(p, model) for p in (self.policy, self.shared.policy))

    @property
    def next_policy(self) -> Policy:
        """That of the next run."""
        policy = self.own_policy or self.shared.policy
        return policy.in_full() if self.uncached else policy

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

    def next_step(self, call: Call) -> Step:
        """The step that begins now with ``call``."""
        step = self._next_step(call)
        step.uncached = step.uncached or not config.caching()
        return step

    def _next_step(self, call: Call) -> Step:
        if self.trajectory is not None:
            return self._counted(self.trajectory)
        return self._announced(call) or self._timed_step(call)

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

    def _announced(self, call: Call) -> Step | None:
        """In a run of a scheduler, which counts; a branch nobody names is told by its conditioning."""
        watched = self.shared.watched()
        inside = self.shared.watch(running(watched), begun=True)  # maybe one that nobody compiled: a copy, lent parts
        if not inside and not watched:
            return None
        self._outer.follow(self, inside)
        found = [pair for each in ([inside] if inside else watched) for pair in each.announced()]
        fresh = [pair for pair in found if self._seen.get(pair[0]) is not pair[1]]
        if self.run is not None and (fresh or not self.run.goes_on(inside)):
            self.end_run()
        for scheduler, timesteps in fresh:
            self._seen[scheduler] = timesteps
        if fresh and (inside or len({id(timesteps) for _, timesteps in fresh}) == 1):
            self._free_idle()
            self.run = AnnouncedRun(*fresh[0], inside, self.next_policy, call)
        if (run := self.run) is None:
            return None
        followed = run.follow(call, self.context_name, self.read)
        if followed is None:
            self.end_run()
            return None
        self._free(run.drop_replaced())
        name, certain = followed
        context = self._context(name)
        if context.trajectory != run.id:
            self.policy = run.policy
            context.begin(run.id, run.policy)
        if not certain and not context.ambiguous:
            self.shared.warn_once(
                "the calls of one step are conditioned alike, so context %r may be another guidance branch and nothing "
                "is forecast until the run ends; use cache_context(name) for each branch, or trajectory(num_steps)",
                name,
            )
            context.ambiguous = True
        return Step(context, run.index, run.num_steps, self.uncached)

    def _free(self, ended: Sequence[str]) -> None:
        """Free the anchors of guidance branches that ended."""
        for branch in ended:
            for name, context in self.contexts.items():
                if name == branch or name.startswith(f"{branch}["):  # and its samples
                    context.states = {}

    def _timed_step(self, call: Call) -> Step:
        """In a loop of one's own: the timestep and the conditioning tell."""
        if self.uncached:
            return Step(Context("uncached", self.policy), 0, None, uncached=True)
        arguments = call.arguments()
        name, moment = time_argument(arguments)
        if moment is None:
            raise HiCacheError(
                "a call outside `with compiled.trajectory(num_steps):` needs an argument named "
                f"{', '.join(TIME_NAMES[:-1])} or {TIME_NAMES[-1]}, to see where a trajectory starts; it has none of "
                "them. A block by itself (compile_repeated_blocks) has no steps: compile the whole denoiser"
            )
        time = self.read(moment)
        branches = self._timed.inside(self.context_name)
        found = branches.find(arguments, name, time)
        self._free(branches.drop_ended())
        context = self._context(found.name)
        if found.begins or not context.follows:
            self.next_policy.check_open_ended()
            context.begin(self._timed.of_branch(context.trajectory, partial(next, ids)), self.next_policy)
            context.follows = True
        found.say_what_is_missing(context.name, time, self.shared.warn_once)
        context.ambiguous = context.ambiguous or found.alike
        return Step(context, context.step, None, doubtful=found.doubtful)

    def read(self, moment: Any) -> float:
        """A timestep as a number, read back from the device."""
        value, waited = as_number(moment)
        self.syncs += waited
        return value

    def live_contexts(self) -> int:
        """How many contexts the newest trajectory has so far."""
        trajectories = [context.trajectory for context in self.contexts.values()]
        return max(len(self._timed), trajectories.count(max(trajectories, default=-1)))

    def _free_idle(self) -> None:
        """Free the rings of contexts that the newest trajectory did not use."""
        newest = max((context.trajectory for context in self.contexts.values()), default=-1)
        self._timed.clear()
        for context in self.contexts.values():
            if context.trajectory != newest:
                context.states = {}

    def end_run(self) -> None:
        """The announced run is over, or was given up: nothing continues it."""
        if self.run is not None:
            self.run = None
            self.invalidate()

    @property
    def is_idle(self) -> bool:
        """Whether no run can be under way here."""
        announced = self.run is not None and self.run.has_steps_left(self.contexts.values())
        return self.trajectory is None and not self._timed and not announced and not self._outer

    def free_if_idle(self) -> None:
        """Free the anchors of runs that are over."""
        with self.shared.lock:
            if self.is_idle:
                for context in self.contexts.values():
                    context.free()

    def invalidate(self) -> None:
        """Every anchor of every context is stale."""
        for context in self.contexts.values():
            context.invalidate()

    def reset(self) -> None:
        """Forget contexts, anchors and history, and free their memory."""
        for context in self.contexts.values():  # the traceback of an error may hold one
            context.free()
        self.contexts, self.run = {}, None
        self._outer.clear()
        self._timed.clear()
