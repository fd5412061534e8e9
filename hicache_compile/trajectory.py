"""The step counter: trajectories, the contexts inside them, and where one ends and the next begins."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch.utils._python_dispatch import TorchDispatchMode

from hicache_compile.errors import HiCacheError, whole_number
from hicache_compile.plan import Plan
from hicache_compile.policy import Policy
from hicache_compile.state import AnchorState

log = logging.getLogger(__name__)

HISTORY = 256
DEFAULT_CONTEXT = "default"
_ids = itertools.count()


@dataclass(slots=True)
class Context:
    """One sequence of steps: the run itself, or one guidance branch of it."""

    name: str
    policy: Policy
    trajectory: int = -1
    step: int = 0
    last_time: float | None = None
    ambiguous: bool = False
    history: deque[list[str]] = field(default_factory=lambda: deque(maxlen=HISTORY))
    states: dict[Hashable, AnchorState] = field(default_factory=dict)

    def begin(self, trajectory: int, policy: Policy) -> None:
        """Start over under ``policy``: step 0, no anchors."""
        self.trajectory = trajectory
        self.policy = policy
        self.step = 0
        self.last_time = None
        self.ambiguous = False
        self.history.append([])

    def drop_stale(self) -> None:
        """Free the rings this trajectory has not used."""
        self.states = {key: state for key, state in self.states.items() if state.trajectory == self.trajectory}

    def letters(self) -> str:
        """The decisions of the newest trajectory."""
        return "".join(self.history[-1]) if self.history else ""

    def invalidate(self) -> None:
        """The anchors are no longer what they should be: the next step starts over."""
        self.last_time = None
        for state in self.states.values():
            state.invalidate()


@dataclass(slots=True)
class Step:
    """One denoiser call in progress, which the compiled graphs read to know what to do.

    ``letter`` and ``graphs`` are written by the graphs: what was decided, and which of them ran.
    ``modes`` are the caller's dispatch modes, set aside until a program runs.
    """

    context: Context
    index: int
    num_steps: int | None
    uncached: bool = False
    letter: str = "."
    graphs: list[object] = field(default_factory=list)
    modes: list[TorchDispatchMode] = field(default_factory=list)


@dataclass(slots=True)
class Settings:
    """What the threads of one compiled denoiser share: the policy of the next trajectory."""

    policy: Policy


class Session(threading.local):
    """The trajectories of one compiled denoiser. Each thread has its own: only ``settings`` is shared."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.policy = settings.policy
        self.contexts: dict[str, Context] = {}
        self.context_name = DEFAULT_CONTEXT
        self.num_steps: int | None = None
        self.trajectory: int | None = None
        self.step: Step | None = None
        self.uncached = False
        self.syncs = 0
        self.last_graphs: list[object] = []
        self.most_graphs = 0
        self.warned_eager = False
        self._plans: list[Plan] = []

    @contextmanager
    def open(self, num_steps: int) -> Iterator[None]:
        """A trajectory of ``num_steps`` steps in every context.

        Raises:
            HiCacheError: ``num_steps`` is not a positive integer, the policy's mask has another length,
                or a trajectory is open already.
        """
        whole_number("trajectory", "num_steps", num_steps, 1)
        if self.trajectory is not None:
            raise HiCacheError(f"trajectory({num_steps}): a trajectory of {self.num_steps} steps is open already")
        self.settings.policy.decisions(num_steps)  # a policy that cannot serve it says so now
        self.policy = self.settings.policy
        self.num_steps, self.trajectory = num_steps, next(_ids)
        try:
            yield
        except BaseException:
            self.invalidate()
            raise
        finally:
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

    def next_step(self, time: Callable[[], float | None]) -> Step:
        """The step that begins now. ``time`` reads its timestep, which is needed only outside ``open``."""
        if self.uncached and self.trajectory is None:
            return Step(Context("uncached", self.policy), 0, None, uncached=True)
        context = self.contexts.setdefault(self.context_name, Context(self.context_name, self.policy))
        if self.trajectory is not None:
            if context.trajectory != self.trajectory:
                context.begin(self.trajectory, self.policy)
            if context.step >= self.num_steps:  # type: ignore[operator]  # set together with trajectory
                raise HiCacheError(
                    f"step {context.step} of context {context.name!r}: the trajectory has {self.num_steps} steps; "
                    "open one `with compiled.trajectory(num_steps):` per run, and give each guidance branch its own "
                    "`with compiled.cache_context(name):`"
                )
        else:
            self._follow_time(context, time())
        return Step(context, context.step, self.num_steps, self.uncached)

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
            context.begin(next(_ids), self.settings.policy)
        elif time == context.last_time and not context.ambiguous:
            log.warning(
                "timestep %g came twice in a row in context %r: two branches may share it, so nothing is forecast "
                "until the timestep goes back up; use cache_context(name) for each branch, or trajectory(num_steps)",
                time,
                context.name,
            )
            context.ambiguous = True
        context.last_time = time

    def finish(self, step: Step) -> None:
        """The call returned: count it."""
        self.last_graphs = step.graphs
        self.most_graphs = max(self.most_graphs, len(step.graphs))
        if step.context.history:
            step.context.step += 1
            step.context.history[-1].append(step.letter)

    def plan(self, step: Step, depth: int) -> Plan:
        """The plan from ``step`` on, shared by everything that starts at the same step."""
        wanted = (step.context.policy, step.num_steps, depth, step.index)
        for plan in self._plans:
            if (plan.policy, plan.num_steps, plan.depth, plan.start) == wanted:
                return plan
        self._plans = [*self._plans[-7:], Plan(*wanted)]
        return self._plans[-1]

    def invalidate(self) -> None:
        """Every anchor of every context is stale."""
        for context in self.contexts.values():
            context.invalidate()

    def reset(self) -> None:
        """Forget contexts, anchors and history, and free their memory."""
        self.contexts = {}
