"""A policy with guards whose program decides by itself (``backend="cond"``): what it needs, and what it left behind.

Nothing is read back in a run. The decisions are on the device until a report asks for them.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch

from hicache_compile.errors import HiCacheError
from hicache_compile.operators import guard_state as rules
from hicache_compile.policy.policy import Policy

KEPT = 16384  # steps of which the decision is kept until it is asked for
DEPTH = 3  # anchors a table of weights can be made for
Noted = Callable[[int], None]  # told which guard ended a step (0: none did), once that is known


class DeviceCourse:
    """One run of one context. The counterpart of ``Course``.

    Args:
        policy, num_steps, depth, start: see ``Plan``.
        device, dtype: of the rings, and of the weights.
    """

    def __init__(
        self, policy: Policy, num_steps: int | None, depth: int, start: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.policy = policy
        self.num_steps = num_steps
        self.depth = depth
        self.start = start
        self.nonfinite = 0
        table = weight_table(policy, depth, num_steps or rules.GAPS)
        self.fixed = {"table": table.reshape(-1, depth).to(device, dtype)}
        self.vectors = {"course": torch.zeros(rules.HEAD + depth, dtype=torch.float64, device=device)}
        for number, guard in enumerate(policy.guards):
            most = math.inf if guard.max_skips is None else guard.max_skips
            kind, *others = guard.numbers(num_steps)
            given = torch.zeros(rules.RULE, dtype=torch.float64)
            given[: 2 + len(others)] = torch.tensor([kind, most, *others], dtype=torch.float64)
            watched = torch.zeros(rules.WATCHED, dtype=torch.float64)
            watched[: len(guard.watch(num_steps).state)] = torch.tensor(
                list(guard.watch(num_steps).state.values()), dtype=torch.float64
            )
            self.fixed[f"numbers_{number}"] = given.to(device)
            self.vectors[f"watched_{number}"] = watched.to(device)
        self._pending: deque[tuple[torch.Tensor, Noted]] = deque(maxlen=KEPT)

    def inherit(self, before: object) -> None:
        """Take over what the run before has not told yet."""
        if isinstance(before, DeviceCourse):
            self._pending.extend(before._pending)

    def inputs(self, step: int, forced: bool) -> dict[str, torch.Tensor]:
        """What the program of ``step`` reads besides the rings and what probes remember."""
        device = self.vectors["course"].device
        index = torch.tensor([step], dtype=torch.float64).to(device, non_blocking=True)
        computing = torch.tensor(forced or self.policy.forces(step, self.num_steps)).to(device, non_blocking=True)
        return {**self.fixed, **self.vectors, "step": index, "computing": computing}

    def take(self, vectors: list[torch.Tensor], noted: Noted) -> None:
        """Keep how the run stands after a step."""
        self.vectors = dict(zip(self.vectors, vectors, strict=True))
        self._pending.append((self.vectors["course"], noted))

    def settle(self) -> bool:
        """Read back what was decided since the last time, all at once; whether there was anything."""
        if not self._pending:
            return False
        found = torch.stack([course[2:4] for course, _ in self._pending]).tolist()
        for (_, noted), (_, code) in zip(self._pending, found, strict=True):
            noted(int(code))
        self.nonfinite = int(found[-1][0])
        self._pending.clear()
        return True

    def standing(self) -> dict[str, Any]:
        """All that the next decisions depend on, as plain data."""
        return {name: vector.tolist() for name, vector in self.vectors.items()}

    def restore(self, standing: Mapping[str, Any]) -> None:
        """Go on from what ``standing`` returned."""
        for name, values in standing.items():
            self.vectors[name].copy_(torch.tensor(values, dtype=torch.float64))


def weight_table(policy: Policy, depth: int, num_steps: int) -> torch.Tensor:
    """Weights ``[GAPS] * depth + [depth]`` by the gaps between a step and the newest computed ones (0: there is none).

    Raises:
        HiCacheError: the forecaster asks for more than ``DEPTH`` anchors, or goes by the steps and not by their gaps.
    """
    try:
        return _weight_table(policy, depth, min(num_steps, rules.GAPS))
    except TypeError:  # a forecaster of one's own that is not hashable
        return _weight_table.__wrapped__(policy, depth, min(num_steps, rules.GAPS))


@lru_cache(maxsize=16)
def _weight_table(policy: Policy, depth: int, num_steps: int) -> torch.Tensor:
    table = torch.zeros(*[rules.GAPS] * depth, depth, dtype=torch.float32)
    read = min(policy.depth, depth)
    for known in range(1, read + 1):
        for gaps in itertools.product(range(1, num_steps), repeat=known):
            if sum(gaps) < num_steps:
                weights = _weights(policy, gaps, 10 * num_steps)
                place = (*gaps, *[0] * (read - known)) if known < read else gaps
                row = torch.zeros(depth)
                row[: len(weights)] = torch.tensor(weights)
                table[place] = row  # whatever the gaps to anchors that are not read
    if num_steps > 2 and _weights(policy, (1,) * read, 100) != _weights(policy, (1,) * read, 101):
        raise HiCacheError(f"Policy.forecaster = {policy.forecaster!r}: must go by gaps where the program decides")
    return table


def _weights(policy: Policy, gaps: tuple[int, ...], step: int) -> list[float]:
    computed = list(itertools.accumulate(gaps, lambda at, gap: at - gap, initial=step))[1:]
    return policy.weights(computed[::-1], step, len(gaps))
