"""The step index decides: everything is known before the run starts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Protocol

import torch

from hicache_compile.errors import HiCacheError
from hicache_compile.passes.graph.choices import Choice, Phases
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.sparsity.chipmunk import Chipmunk
from hicache_compile.runtime.deciders.base import Decider, Decision, Inputs, letter_of
from hicache_compile.runtime.deciders.device_rows import POSITION, WEIGHTS, RowSpec
from hicache_compile.runtime.deciders.rows import AnchorRows

HORIZON = 64  # steps that are laid out at a time where the length of a run is unknown


class Branches(Protocol):
    """The programs there are: a ``Rewrite``, or the branches of an exported graph."""

    @property
    def tokenwise(self) -> Sequence[str]:
        """The sites that can compute some of their tokens."""
        ...

    def choice(self, forecasts: Sequence[str], phases: Phases = ()) -> Choice:
        """The choice to forecast the groups ``forecasts`` and to compute the others in ``phases``."""
        ...


class ScheduledDecider(Decider):
    """The decisions of a policy without guards.

    Args:
        policy: the policy in force.
        branches: the programs there are.
        spec: which row a slot reads.
        num_steps: length of the run, or ``None``: decisions are then made as steps come.
        start: the step at which the rings are empty: 0, or where a run had to start over because its shape or its
            parameters changed. It is always computed.
        sparsity: how sparse computed steps are.
    """

    def __init__(
        self,
        policy: Policy,
        branches: Branches,
        spec: RowSpec,
        num_steps: int | None,
        start: int = 0,
        sparsity: Chipmunk | None = None,
    ) -> None:
        super().__init__(num_steps, start)
        self.policy = policy
        self._branches = branches
        self.rows = AnchorRows(policy, spec, num_steps, start, sparsity)
        self._decisions: list[Decision] = [Decision(Choice.FORECAST, ".")] * start
        schedules = getattr(policy.schedule, "schedules", {})
        self._schedules = {group: schedules.get(group, policy.schedule) for group in spec.groups}
        self._reach(num_steps or start + 1)

    @property
    def shareable(self) -> bool:  # type: ignore[override]  # of a run whose weights are known before it
        return not self.rows.measures

    def _reach(self, steps: int) -> None:
        """Lay out the run up to ``steps``."""
        for step in range(len(self._decisions), steps):
            computed = [
                group
                for group, schedule in self._schedules.items()
                if schedule.computes(step, self.num_steps) or step == self.start
            ]
            rows = self.rows.lay(step, computed)
            choice = self._branches.choice(rows.forecasts, rows.phases)
            if self._branches.tokenwise:
                choice = self.rows.tokenwise(choice)
            self._decisions.append(Decision(choice, letter_of(choice)))

    def decide(self, step: int, forced: bool) -> Decision:
        self._reach(step + 1)
        return Decision(Choice.FULL, "F") if forced else self._decisions[step]

    def computes(self, step: int, group: str = "") -> bool:
        """Whether ``group`` is computed in ``step``."""
        self._reach(step + 1)
        return group not in self.rows.steps[step].forecasts

    def choices(self, num_steps: int) -> Iterable[Choice]:
        self._reach(num_steps)
        return dict.fromkeys(decision.choice for decision in self._decisions[self.start : num_steps])

    def known(self, step: int) -> Sequence[int]:
        return self.rows.known(step)

    def inputs(self, step: int, decision: Decision, device: torch.device, dtype: torch.dtype) -> Inputs:
        self._reach(step + 1)
        if self.num_steps is None:
            with suppress(HiCacheError):  # a mask ends: the step beyond it raises when it is asked for
                self._reach(-(-(step + 1) // HORIZON) * HORIZON)
        table = self.rows.table(device, dtype, step + 1)
        found = {POSITION: table.positions[step], WEIGHTS: table.weights[step]}
        return found if self.policy.tokens is None else found | self.rows.drawn(step, device)
