"""A sampling run that a scheduler announced: it counts its own steps, so a step may have several calls."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hicache_compile.policy.policy import Policy
from hicache_compile.policy.run import RunInfo
from hicache_compile.runtime.guidance_branches import Branches

ids = itertools.count()  # of trajectories


class ScheduledRun:
    """A sampling run that a scheduler announced: ``tick`` counts the scheduler's steps.

    Args:
        length: how many steps there are, or None when the scheduler cannot tell; asked at the first call, when
            the pipeline has cut off the steps it skips.
        times: their timesteps, in 0..1000; asked where the policy is made of timesteps.
        policy: the policy in force.
    """

    def __init__(
        self, length: Callable[[], int | None], times: Callable[[], Sequence[float] | None], policy: Policy
    ) -> None:
        self.id = next(ids)
        self.tick = 0
        self.policy = policy
        self.num_steps: int | None = None
        self.origin: int | None = None
        self._length = length
        self._times = times
        self._branches: dict[str, Branches] = {}

    def begin(self) -> None:
        """The first call of this denoiser: it may take over from another one in the middle of the run."""
        if self.origin is None:
            self.origin = self.tick
            length = self._length()
            self.num_steps = None if length is None else max(1, length - self.origin)
            self.policy = self.policy.bind(RunInfo(start=self.origin, times=self._times_left))
            if self.num_steps is not None:
                self.policy.decisions(self.num_steps)  # a policy that cannot serve it says so now

    def _times_left(self) -> Sequence[float] | None:
        times = self._times()
        return times and times[self.origin :]

    def is_over(self) -> bool:
        """Whether the scheduler has made all its steps."""
        return self.origin is not None and self.num_steps is not None and self.tick - self.origin >= self.num_steps

    def branch(self, context: str, arguments: Mapping[str, Any]) -> tuple[str, bool]:
        """The context of a call made inside ``cache_context(context)`` (or none), and whether it is certain."""
        return self._branches.setdefault(context, Branches(context)).name_of(arguments, self.tick)
