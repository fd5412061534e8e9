"""Guards decide in the graph (the cond backends): the inputs of its program, and what it leaves behind.

Nothing is read back in a run. The decisions stay on the device until a report asks for them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch

from hicache_compile.operators import guard_state as rules
from hicache_compile.passes.graph.choices import Choice
from hicache_compile.passes.graph.inputs import StateInput
from hicache_compile.passes.lowering.cond_graph import COMPUTING, RUN, STEP, TABLE, parameters, remembered
from hicache_compile.policy.guards import Numbers
from hicache_compile.policy.policy import Policy
from hicache_compile.runtime.deciders.base import Decider, Decision, Inputs, Resolve

KEPT = 16384  # steps of which the decision is kept until it is asked for


class InGraphDecider(Decider):
    """One run of one context.

    Args:
        policy, num_steps, start: see ``ScheduledDecider``.
        depth: anchors a ring holds.
        device, dtype: of the rings, and of the weights.
    """

    def __init__(
        self, policy: Policy, num_steps: int | None, depth: int, start: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__(num_steps, start)
        self.policy = policy
        self._forced = False
        table = _weight_table(policy, depth, min(num_steps or rules.GAPS, rules.GAPS))
        self.fixed: dict[StateInput, torch.Tensor] = {TABLE: table.flatten(0, depth - 1).to(device, dtype)}
        self.vectors = {RUN: torch.zeros(rules.HEAD + depth, dtype=torch.float64, device=device)}
        for number, guard in enumerate(policy.guards):
            rule = rules.TensorRule(guard, Numbers)
            given = torch.tensor(rule.parameters(num_steps), dtype=torch.float64)
            self.fixed[parameters(number)] = given.to(device)
            first = torch.tensor(rule.first_remembered(), dtype=torch.float64)
            self.vectors[remembered(number)] = first.to(device)
        self._pending: deque[tuple[torch.Tensor, Resolve]] = deque(maxlen=KEPT)

    def carry_over(self, before: Decider | None) -> None:
        if isinstance(before, InGraphDecider):
            self._pending.extend(before._pending)

    def decide(self, step: int, forced: bool) -> Decision:
        self._forced = forced
        return Decision(Choice.EITHER, "?", pending=True)

    def choices(self, num_steps: int) -> Iterable[Choice]:
        return [Choice.EITHER]

    def inputs(self, step: int, decision: Decision, device: torch.device, dtype: torch.dtype) -> Inputs:
        index = torch.tensor([step], dtype=torch.float64).to(device, non_blocking=True)
        forced = torch.tensor(self._forced or self.policy.forces(step, self.num_steps)).to(device, non_blocking=True)
        return {**self.fixed, **self.vectors, STEP: index, COMPUTING: forced}

    def take(self, after: Inputs, resolve: Resolve) -> None:
        self.vectors = {state: after[state] for state in self.vectors}
        self._pending.append((self.vectors[RUN], resolve))

    def settle(self) -> bool:
        """Read back what was decided since the last time, all at once."""
        if not self._pending:
            return False
        found = torch.stack([run[2:4] for run, _ in self._pending]).tolist()
        for (_, resolve), (_, code) in zip(self._pending, found, strict=True):
            resolve(int(code))
        self.nonfinite = int(found[-1][0])
        self._pending.clear()
        return True

    def known(self, step: int) -> Sequence[int]:
        return [int(self.vectors[RUN][0])]

    def state_dict(self) -> dict[str, Any]:
        return {str(state): vector.tolist() for state, vector in self.vectors.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, vector in self.vectors.items():
            values = torch.tensor(state[str(name)][: len(vector)], dtype=torch.float64)
            vector[: len(values)].copy_(values)  # fewer, of shallower rings


def _weight_table(policy: Policy, depth: int, num_steps: int) -> torch.Tensor:
    try:
        return _cached_table(policy, depth, num_steps)
    except TypeError:  # a forecaster of your own that is not hashable
        return rules.weight_table(policy, depth, num_steps)


_cached_table = lru_cache(maxsize=16)(rules.weight_table)
