"""A run that a scheduler was set to: the scheduler tells the steps apart, so a step may have several calls."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from hicache_compile.policy.policy import Policy
from hicache_compile.policy.run import RunInfo
from hicache_compile.runtime.call_arguments import Call, time_argument
from hicache_compile.runtime.following.conditioning import Branches, Leaves, leaves_of, most_alike
from hicache_compile.runtime.following.pipeline_calls import (
    WatchedPipeline,
    begin_of,
    position_of,
    times_from,
    timesteps_of,
)
from hicache_compile.runtime.step import Context

ids = itertools.count()  # of trajectories


class AnnouncedRun:
    """One run of a scheduler, as one denoiser and one thread see it: from the denoiser's first call on.

    Args:
        scheduler: it; it is read at every call, and never changed.
        timesteps: those it was set to.
        inside: the pipeline whose call is running; ``None``: a loop of one's own drives the scheduler.
        policy: the policy in force.
        call: the first call.

    Raises:
        HiCacheError: the policy cannot serve that many steps.
    """

    def __init__(
        self, scheduler: Any, timesteps: Any, inside: WatchedPipeline | None, policy: Policy, call: Call
    ) -> None:
        self.id = next(ids)
        self.index = 0
        self._scheduler = scheduler
        self._timesteps = timesteps
        self.inside = inside
        self._moment = time_argument(call.arguments())[1]  # of the first call of the step in progress, unread
        self._position = position_of(scheduler, timesteps, self._moment)
        first = self._position or 0
        self._counts = getattr(scheduler, "step_index", None) is not None  # it has made a step already
        self._ticked = False
        self.num_steps = max(1, len(timesteps) - first)
        start = max(0, first - begin_of(scheduler)) if self._counts else 0
        self.policy = policy.bind(RunInfo(start=start, times=partial(times_from, timesteps, first)))
        self.policy.decisions(self.num_steps)  # a policy that cannot serve it says so now
        self._branches: dict[str, Branches] = {}

    def drop_replaced(self) -> list[str]:
        """Forget the guidance branches in whose place others are called; returns their names."""
        return [name for branches in self._branches.values() for name in branches.drop_replaced(self.index)]

    def goes_on(self, inside: WatchedPipeline | None) -> bool:
        """Whether the scheduler still is in this run, and the call that drives it has not ended."""
        current = timesteps_of(self._scheduler) is self._timesteps and inside is self.inside
        return current and self.index < self.num_steps

    def has_steps_left(self, contexts: Iterable[Context]) -> bool:
        """Whether there are steps left, or a guidance branch among ``contexts`` has the last one left."""
        made = {context.step for context in contexts if context.trajectory == self.id}
        return self.index + 1 < self.num_steps or (bool(made) and max(made) - min(made) == 1)

    def follow(self, call: Call, context: str, read: Callable[[Any], float]) -> tuple[str, bool] | None:
        """Count the step of ``call``, made inside ``cache_context(context)`` or none.

        Args:
            read: a timestep as a number; asked only where the scheduler does not tell steps apart.

        Returns:
            Its branch and whether that is certain; ``None``: the call is not of this run.
        """
        arguments = call.arguments()
        moment = time_argument(arguments)[1]
        position = position_of(self._scheduler, self._timesteps, moment)
        if position != self._position and not self._advance(position, moment):
            return None
        leaves = leaves_of(arguments)
        branches = self._branches.setdefault(context, Branches(context))
        found = branches.waiting(leaves, self.index)
        if (
            found is None
            and branches.known
            and (self._time_moved(moment, read) or self._again(branches, leaves, moment))
        ):
            if self._ticked and self.inside is None:
                return None  # the scheduler counts, and this call is of another loop
            self.index, self._moment = self.index + 1, moment
            found = branches.waiting(leaves, self.index)
        if self.index >= self.num_steps:
            return None
        return found or (branches.new(leaves, self.index), True)

    def _advance(self, position: int | None, moment: Any) -> bool:
        """The scheduler made steps. False where it went back: that is another run."""
        moved = 1
        if position is not None and self._position is not None and self._counts:
            moved = position - self._position
        # A counter that had not begun shows its true place only after the first step.
        self._counts = True
        self._position, self._moment, self._ticked = position, moment, True
        self.index += moved
        return moved > 0

    def _again(self, branches: Branches, leaves: Leaves, moment: Any) -> bool:
        """Whether nothing tells the time, as where masked tokens are filled in, and only the state is another one."""
        if moment is not None or self._position is not None:
            return False
        return any(len(leaves) - len(common) <= 1 for _, common in most_alike(branches.known, leaves))

    def _time_moved(self, moment: Any, read: Callable[[Any], float]) -> bool:
        """Whether the timestep is another one in the same step of the scheduler: the loop makes the steps itself."""
        if moment is None or self._moment is None or moment is self._moment:
            return False
        return read(moment) != read(self._moment)
