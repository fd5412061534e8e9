"""DiTango: which steps are anchors, and which groups of keys of which attention are computed in the step after.

The plan of a step follows from what the step before it measured, so that there is one read from the device a step.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from hicache_compile.key_partitions import Code, KeyPartitions
from hicache_compile.passes.graph.choices import Choice
from hicache_compile.passes.graph.inputs import Role, StateInput
from hicache_compile.passes.work import Rewrite
from hicache_compile.policy.schedules.ditango import DiTangoSchedule
from hicache_compile.policy.sparsity.chipmunk import Chipmunk
from hicache_compile.policy.sparsity.phases import Phase
from hicache_compile.runtime.deciders.base import Decider, Decision, Inputs, Measured
from hicache_compile.runtime.deciders.sparse_phases import Ageing

log = logging.getLogger(__name__)

ANCHOR_THRESHOLD = 0.6  # times the cache ratio
PLAN = StateInput(Role.PLAN)


class PartitionDecider(Decider):
    """One run of one context.

    Args:
        schedule: the policy's.
        partitions: how the keys are partitioned.
        num_steps: length of the run.
        layers: how many attentions are partitioned.
        start: the step at which nothing is remembered yet.
        sparsity: how sparse MLPs are.
        rewrite: the programs.
    """

    def __init__(
        self,
        schedule: DiTangoSchedule,
        partitions: KeyPartitions,
        num_steps: int | None,
        layers: int,
        start: int = 0,
        sparsity: Chipmunk | None = None,
        rewrite: Rewrite | None = None,
    ) -> None:
        super().__init__(num_steps, start)
        self.schedule = schedule
        self.partitions = partitions
        self.layers = layers
        self.spans_ranks = partitions.distributed
        self.anchors = [max(schedule.warmup, start)]
        self.threshold = 0.0
        self.reuses: list[list[bool]] = self._all(False)  # by layer and group, of the next step
        self.history: dict[int, list[list[int]]] = {}
        self._ageing = Ageing(sparsity) if sparsity is not None and rewrite is not None and rewrite.sparse else None

    def decide(self, step: int, forced: bool) -> Decision:
        phase = Phase.DENSE if self._ageing is None else self._ageing.compute(step)
        phases = () if phase is Phase.DENSE else (("", phase),)
        if forced or Code.FORCED in self.codes(step)[0]:
            self.history[step] = [[int(Code.FORCED)] * self.partitions.groups] * self.layers
            if self.spans_ranks:
                return Decision(replace(Choice.FORECAST, phases=phases), "F")
            return Decision(
                replace(Choice.FULL, phases=phases) if phases else Choice.PLAIN, "S" if phase.is_sparse else "F"
            )
        choice = replace(Choice.FORECAST, phases=phases)
        return Decision(choice, self.letter(step), (0,), self.reused(step))

    def choices(self, num_steps: int) -> Iterable[Choice]:
        return [Choice.FORECAST] if self.spans_ranks else [Choice.PLAIN, Choice.FORECAST]

    def inputs(self, step: int, decision: Decision, device: torch.device, dtype: torch.dtype) -> Inputs:
        return {PLAN: torch.tensor(self.codes(step))}

    def after(self, step: int, decision: Decision, measured: Mapping[int, Measured]) -> None:
        if 0 in measured:
            self.plan_next(step, measured[0])

    def codes(self, step: int) -> list[list[int]]:
        """What happens to each group of each attention in ``step``, ``[L][G]``."""
        if step not in self.history:
            self.history[step] = [[int(code) for code in row] for row in self._codes(step)]
        return self.history[step]

    def _codes(self, step: int) -> list[list[Code]]:
        if self.schedule.computes(step, self.num_steps):
            return [[Code.FORCED] * self.partitions.groups] * self.layers
        if step in self.anchors:
            return [[Code.ANCHOR] * self.partitions.groups] * self.layers
        return [[Code.REUSED if reused else Code.COMPUTED for reused in row] for row in self.reuses]

    def plan_next(self, step: int, measured: Sequence[Sequence[float]]) -> None:
        """Plan the next step by what ``step``, which was not forced, measured: of each attention the error of each
        group's reuse and, last, how far the local attention is from the anchor's, ``[L][G + 1]``."""
        if not all(math.isfinite(value) for row in measured for value in row):
            self.nonfinite += 1
            log.warning("step %d: DiTango measured what is no finite number: the next step is computed", step)
            self.anchors.append(step + 1)
            return
        decided = self.partitions.decided
        ratio = self.schedule.cache_ratio
        is_anchor = step in self.anchors
        drifted = sum(row[-1] for row in measured) / max(1, len(measured))
        if not is_anchor and drifted >= ANCHOR_THRESHOLD * ratio:
            self.anchors.append(step + 1)
        if step - 1 in self.anchors:
            errors = sorted(row[group] for row in measured for group in decided)
            self.threshold = errors[min(len(errors) - 1, int(len(errors) * ratio))] if errors else math.inf
        self.reuses = self._all(True) if is_anchor else self._below(measured)

    def _all(self, reused: bool) -> list[list[bool]]:
        decided = self.partitions.decided
        return [[reused and group in decided for group in range(self.partitions.groups)] for _ in range(self.layers)]

    def _below(self, measured: Sequence[Sequence[float]]) -> list[list[bool]]:
        decided = self.partitions.decided
        return [
            [group in decided and row[group] < self.threshold for group in range(self.partitions.groups)]
            for row in measured
        ]

    def reused(self, step: int) -> float:
        """The share of all keys, over queries and attentions, that ``step`` did not look at."""
        size = {group: len(self.partitions.members(0, group)) for group in range(self.partitions.groups)}
        cells = [size[group] for row in self.codes(step) for group, code in enumerate(row) if code == Code.REUSED]
        return sum(cells) / (self.partitions.partitions * max(1, self.layers))

    def letter(self, step: int) -> str:
        """``F``: every key is looked at; ``.``: of each group there is a choice of, none; ``p``: some."""
        reused = {row[group] == Code.REUSED for row in self.codes(step) for group in self.partitions.decided}
        return "p" if len(reused) > 1 else "." if True in reused else "F"

    def state_dict(self) -> dict[str, Any]:
        kept = {"anchors": self.anchors, "threshold": self.threshold, "nonfinite": self.nonfinite}
        aged = {} if self._ageing is None else {"ageing": self._ageing.state_dict()}
        return {**kept, "reuses": self.reuses, **aged}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.anchors, self.reuses = list(state["anchors"]), [list(row) for row in state["reuses"]]
        self.threshold, self.nonfinite = float(state["threshold"]), int(state["nonfinite"])
        if self._ageing is not None:
            self._ageing.load_state_dict(state["ageing"])
