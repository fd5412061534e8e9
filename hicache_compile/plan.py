"""A policy laid out over the steps of one trajectory: decisions, ring positions, weights in ring order."""

from __future__ import annotations

from contextlib import suppress

import torch

from hicache_compile.errors import HiCacheError
from hicache_compile.policy import Policy

HORIZON = 64


class Plan:
    """What happens at each step, known before the trajectory starts.

    Args:
        policy: the policy in force.
        num_steps: length of the trajectory, or ``None``: the plan then grows as steps come.
        depth: anchors a ring holds, which limits the order where it is less than ``policy.depth``.
        start: the step at which the rings are empty: 0, or where a trajectory had to start over because
            its shape or the weights changed. It is always computed.
    """

    def __init__(self, policy: Policy, num_steps: int | None, depth: int, start: int = 0) -> None:
        self.policy = policy
        self.num_steps = num_steps
        self.depth = depth
        self.start = start
        self.full: list[bool] = [False] * start
        self.positions: list[int] = [0] * start
        self.rows: list[list[float]] = [[0.0] * depth] * start  # float64, columns in ring order
        self._computed: list[int] = []
        self._on_device: dict[tuple[torch.device, torch.dtype], DeviceTable] = {}
        self._reach(num_steps or start + 1)

    def computes(self, step: int) -> bool:
        """Whether ``step`` is computed in full."""
        self._reach(step + 1)
        return self.full[step]

    def _reach(self, steps: int) -> None:
        """Lay out the plan up to ``steps``."""
        for step in range(len(self.full), steps):
            full = self.policy.schedule.computes(step, self.num_steps) or step == self.start
            row = [0.0] * self.depth
            if full:
                self._computed.append(step)
            else:
                newest = len(self._computed) - 1
                for age, weight in enumerate(self.policy.weights(self._computed, step, self.depth)):
                    row[(newest - age) % self.depth] = weight
            self.full.append(full)
            self.positions.append((len(self._computed) - 1) % self.depth)
            self.rows.append(row)

    def _reach_far(self, step: int) -> None:
        """Lay out ``step`` and, where the length is unknown, as many more as the schedule knows of."""
        self._reach(step + 1)
        with suppress(HiCacheError):  # a mask ends: the step beyond it raises when it is asked for
            self._reach(step + 1 if self.num_steps else step + HORIZON)

    def on_device(self, device: torch.device, dtype: torch.dtype, step: int) -> DeviceTable:
        """The table and the positions on ``device``, long enough for ``step``; uploaded once a trajectory."""
        uploaded = self._on_device.get((device, dtype))
        if uploaded is None or step >= len(uploaded.rows):
            self._reach_far(step)
            uploaded = DeviceTable(self, device, dtype)
            self._on_device[device, dtype] = uploaded
        return uploaded


class DeviceTable:
    """``rows[step]``: weights ``[K]``; ``positions[step]``: the ring row to write, ``[1]`` int64."""

    def __init__(self, plan: Plan, device: torch.device, dtype: torch.dtype) -> None:
        # Rows start at multiples of 16 bytes: a misaligned input would be copied before every forecast.
        width = -(-plan.depth // 4) * 4
        padded = torch.zeros(len(plan.rows), width, dtype=dtype)
        padded[:, : plan.depth] = torch.tensor(plan.rows, dtype=torch.float64)
        places = torch.zeros(len(plan.positions), 2, dtype=torch.int64)
        places[:, 0] = torch.tensor(plan.positions)
        self.rows = [row[: plan.depth] for row in padded.to(device, non_blocking=True)]
        self.positions = [place[:1] for place in places.to(device, non_blocking=True)]
