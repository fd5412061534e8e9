"""The planner: which steps are anchors, and which groups of which attention are computed in the step after.

The plan of a step follows from what the step before it measured, so that there is one look at the device a step.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from hicache_compile.key_partitions import Code, Split
from hicache_compile.policy.schedules.ditango import DiTangoSchedule

log = logging.getLogger(__name__)

ANCHOR_THRESHOLD = 0.6  # times the cache ratio


class DiTangoCourse:
    """One run of one context.

    Args:
        schedule, split: see there.
        num_steps: length of the run.
        layers: how many attentions are split.
        start: the step at which nothing is remembered yet.
    """

    def __init__(
        self, schedule: DiTangoSchedule, split: Split, num_steps: int | None, layers: int, start: int = 0
    ) -> None:
        self.schedule = schedule
        self.split = split
        self.num_steps = num_steps
        self.layers = layers
        self.start = start
        self.depth = 1
        self.anchors = [max(schedule.warmup, start)]
        self.threshold = 0.0
        self.nonfinite = 0
        self.reuses: list[list[bool]] = self._all(False)  # by layer and group, of the next step
        self.history: dict[int, list[list[int]]] = {}

    def codes(self, step: int) -> list[list[int]]:
        """What happens to each group of each attention in ``step``, ``[L][G]``."""
        if step not in self.history:
            self.history[step] = [[int(code) for code in row] for row in self._codes(step)]
        return self.history[step]

    def _codes(self, step: int) -> list[list[Code]]:
        if self.schedule.computes(step, self.num_steps):
            return [[Code.FORCED] * self.split.groups] * self.layers
        if step in self.anchors:
            return [[Code.ANCHOR] * self.split.groups] * self.layers
        return [[Code.REUSED if reused else Code.COMPUTED for reused in row] for row in self.reuses]

    def after(self, step: int, measured: Sequence[Sequence[float]]) -> None:
        """Plan the next step by what ``step``, which was not forced, measured: of each attention the error of each
        group's reuse and, last, how far the local attention is from the anchor's, ``[L][G + 1]``."""
        if not all(math.isfinite(value) for row in measured for value in row):
            self.nonfinite += 1
            log.warning("step %d: DiTango measured what is no finite number: the next step is computed", step)
            self.anchors.append(step + 1)
            return
        decided = self.split.decided
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
        decided = self.split.decided
        return [[reused and group in decided for group in range(self.split.groups)] for _ in range(self.layers)]

    def _below(self, measured: Sequence[Sequence[float]]) -> list[list[bool]]:
        decided = self.split.decided
        return [
            [group in decided and row[group] < self.threshold for group in range(self.split.groups)] for row in measured
        ]

    def reused(self, step: int) -> float:
        """The share of all keys, over queries and attentions, that ``step`` did not look at."""
        size = {group: len(self.split.members(0, group)) for group in range(self.split.groups)}
        cells = [size[group] for row in self.codes(step) for group, code in enumerate(row) if code == Code.REUSED]
        return sum(cells) / (self.split.partitions * max(1, self.layers))

    def letter(self, step: int) -> str:
        """``F``: every key is looked at; ``.``: of each group there is a choice of, none; ``p``: some."""
        reused = {row[group] == Code.REUSED for row in self.codes(step) for group in self.split.decided}
        return "p" if len(reused) > 1 else "." if True in reused else "F"

    def standing(self) -> dict[str, Any]:
        """All that the next plans depend on, as plain data."""
        kept = {"anchors": self.anchors, "threshold": self.threshold, "nonfinite": self.nonfinite}
        return {**kept, "reuses": self.reuses}

    def restore(self, standing: Mapping[str, Any]) -> None:
        """Go on from what ``standing`` returned."""
        self.anchors, self.reuses = list(standing["anchors"]), [list(row) for row in standing["reuses"]]
        self.threshold, self.nonfinite = float(standing["threshold"]), int(standing["nonfinite"])
