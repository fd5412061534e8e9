"""A policy laid out over the steps of one trajectory: decisions, ring positions, weights in ring order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
import torch

from hicache_compile.errors import HiCacheError
from hicache_compile.policy.forecasters import MeasuredForecaster
from hicache_compile.policy.forecasters.base import checked
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.sparsity.chipmunk import Chipmunk
from hicache_compile.runtime.deciders.computed_steps import Anchors

HORIZON = 64
Namer = Callable[[Sequence[str]], str]  # the choice to forecast these groups
Inputs = dict[str, torch.Tensor]  # what a program reads besides the rings: position [1] int64 and weights [K]


class Plan:
    """What happens at each step, known before the trajectory starts.

    Args:
        policy: the policy in force.
        num_steps: length of the trajectory, or ``None``: the plan then grows as steps come.
        depth: anchors a ring holds, which limits the order where it is less than ``policy.depth``.
        start: the step at which the rings are empty: 0, or where a trajectory had to start over because
            its shape or the weights changed. It is always computed.
        sparsity: how sparse computed steps are.
    """

    def __init__(
        self, policy: Policy, num_steps: int | None, depth: int, start: int = 0, sparsity: Chipmunk | None = None
    ) -> None:
        self.policy = policy
        self.num_steps = num_steps
        self.depth = depth
        self.start = start
        self.sparsity = sparsity
        self._sized = policy.sized(num_steps)
        self.choices: list[str] = ["forecast"] * start
        self.full: list[bool] = [False] * start
        self.positions: list[int] = [0] * start
        self.known: list[int] = [0] * start  # anchors there are after each step
        self.rows: list[list[float]] = [[0.0] * depth] * start  # float64, columns in ring order
        self._anchors = Anchors(sparsity)
        self._on_device: dict[tuple[torch.device, torch.dtype], DeviceTable] = {}
        self._reach(num_steps or start + 1)

    def computes(self, step: int) -> bool:
        """Whether ``step`` is computed in full."""
        self._reach(step + 1)
        return self.full[step]

    def choice(self, step: int) -> str:
        """Which program ``step`` runs."""
        self._reach(step + 1)
        return self.choices[step]

    def inputs(self, step: int, device: torch.device, dtype: torch.dtype) -> Inputs:
        """What the programs of ``step`` read."""
        table = self.on_device(device, dtype, step)
        return {"position": table.positions[step], "weights": table.rows[step]}

    def _reach(self, steps: int) -> None:
        """Lay out the plan up to ``steps``."""
        for step in range(len(self.full), steps):
            full = self.policy.schedule.computes(step, self.num_steps) or step == self.start
            self.choices.append(self._anchors.compute(step) if full else "forecast")
            row = [0.0] * self.depth
            if not full:
                row = self._in_ring_order(
                    len(self._anchors.steps), self._anchors.weights(self._sized, step, self.depth)
                )
            self.full.append(full)
            self.positions.append((len(self._anchors.steps) - 1) % self.depth)
            self.known.append(len(self._anchors.steps))
            self.rows.append(row)

    def _in_ring_order(self, computed: int, weights: Sequence[float]) -> list[float]:
        """``weights``, newest first, as a row of the ring after ``computed`` anchors were written."""
        row = [0.0] * self.depth
        for age, weight in enumerate(weights):
            row[(computed - 1 - age) % self.depth] = weight
        return row

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


class OwnPlan(Plan):
    """A plan of one context alone, whose weights are found as the run goes along. See ``Plan``."""

    _measured: np.ndarray | None = None

    def anchors(self, step: int) -> list[int]:
        """The steps whose values a forecast of ``step`` may read, newest first."""
        self._reach(step + 1)
        return self.policy.eligible(self._anchors.steps[: self.known[step]])[: self.depth]

    def assign(self, step: int, weights: Sequence[float]) -> None:
        """Forecast ``step`` with ``weights`` of the anchors it may read, newest first."""
        row = self.rows[step] = self._in_ring_order(self.known[step], weights)
        for uploaded in self._on_device.values():
            if step < len(uploaded.rows):
                uploaded.rows[step].copy_(torch.tensor(row, dtype=torch.float64))

    def measure(self, rings: Sequence[torch.Tensor], step: int) -> int:
        """Fit the weights of ``step`` to what ``rings`` hold, where that is its forecaster's way.

        Returns how often the host waited for the device: once for each computed step.
        """
        forecaster = self.policy.forecaster
        if not isinstance(forecaster, MeasuredForecaster):
            return 0
        read = self.anchors(step)
        reads = self._measured is None or self.computes(step - 1)
        if reads:
            places = [(self.known[step] - 1 - age) % self.depth for age in range(len(read))]
            self._measured = torch.stack([_gram(ring[places]) for ring in rings]).sum(0).double().cpu().numpy()
        assert self._measured is not None
        self.assign(step, checked(forecaster, forecaster.weights_from(self._measured, read, step), len(read)))
        return int(reads)


class SlotPlan(OwnPlan):
    """A plan in which each of ``slots`` slots has weights of its own. See ``Plan``.

    Raises:
        HiCacheError: the forecaster has weights for another number of slots.
    """

    def __init__(self, policy: Policy, num_steps: int | None, depth: int, start: int, slots: int) -> None:
        known = policy.forecaster.table.slots  # type: ignore[attr-defined]  # a Calibrated
        if known != slots:
            raise HiCacheError(
                f"Calibrated.table.slots = {known}: must be {slots}, the slots of this denoiser at scope "
                f"{policy.scope!r}"
            )
        super().__init__(policy, num_steps, depth, start)
        self.slots = slots
        self._rows: dict[int, torch.Tensor] = {}
        self._tables: dict[tuple[torch.device, torch.dtype, int], torch.Tensor] = {}

    def assign_each(self, step: int, weights: Sequence[Sequence[float]]) -> None:
        """Forecast ``step`` with ``weights``, of each slot those of the anchors it may read, newest first."""
        rows = [self._in_ring_order(self.known[step], one) for one in weights]
        self._rows[step] = torch.tensor(rows, dtype=torch.float64)
        for (_, _, at), uploaded in self._tables.items():
            if at == step:
                uploaded.copy_(self._rows[step])

    def each(self, step: int) -> torch.Tensor:
        """The weights of ``step`` ``[slots, K]`` in ring order, float64."""
        if self.computes(step):
            return torch.zeros(self.slots, self.depth, dtype=torch.float64)
        if step not in self._rows:
            forecaster = self._sized.forecaster
            self.assign_each(step, forecaster.slot_weights(self.anchors(step), step))  # type: ignore[attr-defined]
        return self._rows[step]

    def inputs(self, step: int, device: torch.device, dtype: torch.dtype) -> Inputs:
        position = super().inputs(step, device, dtype)["position"]
        if (device, dtype, step) not in self._tables:
            self._tables[device, dtype, step] = self.each(step).to(device, dtype, non_blocking=True)
        return {"position": position, "weights": self._tables[device, dtype, step]}


def _gram(anchors: torch.Tensor) -> torch.Tensor:
    flat = anchors.flatten(1).to(torch.promote_types(anchors.dtype, torch.float32))
    return flat @ flat.T


class GroupPlan:
    """A plan for each group of sites that is decided apart (``PerKind``). See ``Plan``."""

    def __init__(
        self, policy: Policy, num_steps: int | None, depth: int, start: int, groups: Sequence[str], name: Namer
    ) -> None:
        self.policy = policy
        self.num_steps = num_steps
        self.depth = depth
        self.start = start
        self._name = name
        schedules = policy.schedule.schedules  # type: ignore[attr-defined]  # a PerKind
        self.plans = {g: Plan(replace(policy, schedule=schedules[g]), num_steps, depth, start) for g in groups}

    def computes(self, step: int) -> bool:
        """Whether every group is computed in ``step``."""
        return all(plan.computes(step) for plan in self.plans.values())

    def choice(self, step: int) -> str:
        """Which program ``step`` runs."""
        return self._name([group for group, plan in self.plans.items() if not plan.computes(step)])

    def inputs(self, step: int, device: torch.device, dtype: torch.dtype) -> Inputs:
        """What the programs of ``step`` read, of each group."""
        return {
            f"{name}:{group}": value
            for group, plan in self.plans.items()
            for name, value in plan.inputs(step, device, dtype).items()
        }


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
