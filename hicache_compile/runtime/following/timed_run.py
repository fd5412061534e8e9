"""Runs that nobody announces, in a loop of one's own: followed by the timestep, each guidance branch by itself.

A branch is told by its conditioning. In it the time runs one way; where it jumps back, where the conditioning is
another one, or where the sample has nothing to do with that of the call before, a run begins. In doubt it begins:
nothing is forecast from anchors of another run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from hicache_compile.runtime.call_arguments import SAMPLE_NAMES
from hicache_compile.runtime.following.conditioning import Leaves, leaves_of, most_alike

ALIKE = 0.3  # the cosine of two samples of one run is larger; that of noise and anything else is near 0
IDLE = 2  # a branch that was not called in so many rounds of the others has ended
SHORT = 2  # runs of so few calls forecast nothing


@dataclass(slots=True)
class TimedBranch:
    """One guidance branch: where it is in its run, and what tells it from others."""

    name: str
    constant: Leaves
    time: float
    sample: torch.Tensor | None
    calls: int = 1
    seen: int = 0  # the call, of all branches, that was its newest
    direction: int = 0  # of time: -1, 1, or 0 while that is not known
    steps: int = 1  # of its run so far
    short: int = 0  # how many runs in turn were short

    def turns(self, time: float, otherwise: int = 0) -> bool:
        """Whether ``time`` lies against the direction it runs in, or against ``otherwise`` while that is not known."""
        return (time - self.time) * (self.direction or otherwise) < 0


@dataclass(frozen=True, slots=True)
class Found:
    """The branch a call belongs to. ``begins``: a run begins with it; ``alike``: it could be another branch's, too;
    ``doubtful``: whether it goes on is only known later; ``unrelated``: its sample is that of another run.
    """

    name: str
    begins: bool = False
    alike: bool = False
    doubtful: bool = False
    unrelated: bool = False
    restless: bool = False

    def say_what_is_missing(self, context: str, time: float, warn_once: Callable[..., None]) -> None:
        """Warn of what did not tell the run of a call at ``time``."""
        if self.alike:
            warn_once(
                "timestep %g came twice in a row in context %r: two branches may share it, so nothing is forecast "
                "until the timestep goes back; use cache_context(name) for each branch, or trajectory(num_steps)",
                time,
                context,
            )
        if self.unrelated:
            warn_once(
                "the sample at timestep %g in context %r has nothing to do with that of the call before: a run begins; "
                "use trajectory(num_steps) where it does not",
                time,
                context,
            )
        if self.restless:
            warn_once(
                "the timesteps of context %r keep going back after a call or two: each time a run begins, and nothing "
                "is forecast; use trajectory(num_steps) where they are of one run",
                context,
            )


@dataclass(slots=True)
class TimedBranches:
    """The guidance branches of the runs of one thread inside ``cache_context(base)``, or none.

    Each run shows by itself which way its time goes: an inversion may come before sampling, and a run is as it would be
    without those before it.
    """

    base: str
    known: list[TimedBranch] = field(default_factory=list)
    _calls: int = 0

    def find(self, arguments: Mapping[str, Any], time_name: str, time: float) -> Found:
        """The branch of a call at ``time``, which the argument ``time_name`` says."""
        self._calls += 1
        sample_name = _sample_name(arguments, time_name)
        leaves = {
            path: leaf
            for path, leaf in leaves_of(arguments).items()
            if getattr(path[0], "key", None) not in (time_name, sample_name)
        }
        sample = arguments.get(sample_name)
        best = self._best(leaves, time)
        if best is None:
            return self._begin(leaves, time, sample)
        branch, common = best
        before = branch.sample
        branch.sample, branch.seen, branch.calls = sample, self._calls, branch.calls + 1
        if time == branch.time:
            return Found(branch.name, alike=True)
        changed = branch.calls == 2 and len(common) < max(len(leaves), len(branch.constant))
        branch.constant = common
        turns = branch.turns(time)
        unrelated = not turns and _unrelated(before, sample)
        if changed or unrelated or turns:
            branch.short = branch.short + 1 if branch.steps <= SHORT else 0
            branch.time, branch.direction, branch.steps = time, 0, 1
            return Found(branch.name, begins=True, unrelated=unrelated, restless=branch.short > SHORT)
        return self._go_on(branch, time)

    def _best(self, leaves: Leaves, time: float) -> tuple[TimedBranch, Leaves] | None:
        """The branch that shares most with a call; none where it is another one's, called at the same ``time``."""
        best = [
            (branch, common) for branch, common in most_alike(self.known, leaves, read=True) if common or not leaves
        ]
        moved = [(branch, common) for branch, common in best if branch.time != time]
        if moved:
            return moved[0]
        # At the same time: the same call once more where nothing tells them apart, else another branch.
        return next(((branch, common) for branch, common in best if len(common) == len(leaves)), None)

    def _go_on(self, branch: TimedBranch, time: float) -> Found:
        direction = 1 if time > branch.time else -1
        doubtful = direction > 0 and not branch.direction
        branch.time, branch.direction, branch.steps = time, direction, branch.steps + 1
        return Found(branch.name, doubtful=doubtful)

    def _begin(self, leaves: Leaves, time: float, sample: Any) -> Found:
        """A branch that was not known: in place of one whose run has ended, if there is one."""
        ended = [branch for branch in self.known if branch.turns(time, -1)]
        old = min(ended, key=lambda branch: branch.seen, default=None)
        name = old.name if old is not None else self._free_name()
        self.known = [branch for branch in self.known if branch is not old]
        self.known.append(TimedBranch(name, leaves, time, sample, seen=self._calls))
        return Found(name, begins=True)

    def _free_name(self) -> str:
        taken = {branch.name for branch in self.known}
        names = (f"{self.base}.{number}" if number else self.base for number in range(len(taken) + 1))
        return next(name for name in names if name not in taken)

    def drop_ended(self) -> list[str]:
        """Forget the branches that were not called for a while; returns their names."""
        longest = IDLE * len(self.known) + IDLE
        ended = [branch for branch in self.known if self._calls - branch.seen > longest]
        self.known = [branch for branch in self.known if branch not in ended]
        return [branch.name for branch in ended]


class TimedRuns:
    """What one thread runs without announcing it: its guidance branches, and the run that began last."""

    def __init__(self) -> None:
        self._branches: dict[str, TimedBranches] = {}  # by the ``cache_context`` they are called in
        self._newest: int | None = None

    def inside(self, context: str) -> TimedBranches:
        """The branches inside ``cache_context(context)``."""
        return self._branches.setdefault(context, TimedBranches(context))

    def of_branch(self, trajectory: int, new: Callable[[], int]) -> int:
        """The run that a branch begins with which was last in ``trajectory``: the newest, which others began, unless it
        was in that already."""
        if self._newest is None or trajectory == self._newest:
            self._newest = new()
        return self._newest

    def __len__(self) -> int:
        return sum(len(branches.known) for branches in self._branches.values())

    def clear(self) -> None:
        self._branches.clear()
        self._newest = None


def _sample_name(arguments: Mapping[str, Any], time_name: str) -> str:
    """The name of the noisy input."""
    tensors = [name for name, value in arguments.items() if isinstance(value, torch.Tensor) and name != time_name]
    return next((name for name in SAMPLE_NAMES if name in tensors), tensors[0] if tensors else "")


def _unrelated(before: Any, sample: Any) -> bool:
    """Whether two samples in turn cannot be of one run."""
    if not (isinstance(before, torch.Tensor) and isinstance(sample, torch.Tensor)) or before is sample:
        return False
    if before.shape != sample.shape or before.device != sample.device or not sample.is_floating_point():
        return False
    if sample.is_nested:
        return False
    left, right = before.detach().double().flatten(), sample.detach().double().flatten()
    cosine = torch.nn.functional.cosine_similarity(left, right, dim=0)
    return bool(cosine < ALIKE)
