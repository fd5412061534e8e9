"""A policy with guards, as one run of one context goes along: what was measured, decided and computed so far."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hicache_compile.policy.policy import Policy
from hicache_compile.policy.sparsity.chipmunk import Chipmunk
from hicache_compile.runtime.deciders.computed_steps import Anchors
from hicache_compile.runtime.deciders.scheduled import Inputs

log = logging.getLogger(__name__)


class Course:
    """The decisions of one run, made as it goes. The counterpart of ``Plan`` for policies with guards.

    Args:
        policy, num_steps, depth, start, sparsity: see ``Plan``.
    """

    def __init__(
        self, policy: Policy, num_steps: int | None, depth: int, start: int = 0, sparsity: Chipmunk | None = None
    ) -> None:
        self.policy = policy.sized(num_steps)
        self.num_steps = num_steps
        self.depth = depth
        self.start = start
        self.watchers = [guard.watch(num_steps) for guard in policy.guards]
        self.anchors = Anchors(sparsity)
        self.skipped = 0  # in a row
        self.nonfinite = 0
        self.rows: dict[int, list[float]] = {}
        self.positions: dict[int, int] = {}
        self._uploaded: dict[tuple[float, ...] | int, torch.Tensor] = {}

    def standing(self) -> dict[str, Any]:
        """All that the next decisions depend on, as plain data."""
        watched = [dict(watcher.state) for watcher in self.watchers]
        return {**self.anchors.standing(), "skipped": self.skipped, "nonfinite": self.nonfinite, "watched": watched}

    def restore(self, standing: Mapping[str, Any]) -> None:
        """Go on from what ``standing`` returned."""
        self.anchors.restore(standing)
        self.skipped, self.nonfinite = int(standing["skipped"]), int(standing["nonfinite"])
        for watcher, state in zip(self.watchers, standing["watched"], strict=True):
            watcher.state.update(state)

    def forces(self, step: int) -> bool:
        """Whether ``step`` is computed whatever is measured."""
        capped = any(g.max_skips is not None and self.skipped >= g.max_skips for g in self.policy.guards)
        return not self.anchors.steps or capped or self.policy.forces(step, self.num_steps)

    def skips(self, number: int, step: int, measured: Sequence[float]) -> bool:
        """Whether guard ``number`` ends ``step`` in a forecast. What is no finite number never does."""
        if not self.is_finite(measured[:1], step, number):
            return False
        return self.watchers[number].skips(step, measured)

    def is_finite(self, measured: Sequence[float], step: int, number: int) -> bool:
        """Whether a measurement can be decided by; one that cannot is counted, and warned about."""
        if all(math.isfinite(value) for value in measured):
            return True
        self.nonfinite += 1
        name = type(self.policy.guards[number]).__name__
        log.warning("step %d: %s measured %s, which is no finite number: the step is computed", step, name, measured)
        return False

    def compute(self, step: int) -> str:
        """``step`` is computed, by the program that is returned."""
        choice = self.anchors.compute(step)
        self.skipped = 0
        self.positions[step] = (len(self.anchors.steps) - 1) % self.depth
        self.rows[step] = [0.0] * self.depth
        return choice

    def forecast(self, step: int, number: int = 0) -> None:
        """``step`` is forecast, by leave of guard ``number``."""
        self.skipped += 1
        newest = len(self.anchors.steps) - 1
        weights = self.watchers[number].weights() if self.watchers else None
        if weights is None or len(weights) > len(self.anchors.steps):
            weights = self.anchors.weights(self.policy, step, self.depth)
        row = [0.0] * self.depth
        for age, weight in enumerate(weights[: self.depth]):
            row[(newest - age) % self.depth] = weight
        self.rows[step] = row
        self.positions[step] = newest % self.depth

    def after(self, step: int, full: bool, measured: Sequence[float] = ()) -> None:
        """``step`` was made; ``measured``: by the guard that measures such steps."""
        if measured and not self.is_finite(measured, step, 0):
            measured = () if full else (math.inf,)
        for watcher in self.watchers:
            (watcher.after_full if full else watcher.after_forecast)(step, measured)

    def inputs(self, step: int, device: torch.device, dtype: torch.dtype) -> Inputs:
        """What a program of ``step`` reads, once it is decided."""
        place = self.positions[step]
        if place not in self._uploaded:
            self._uploaded[place] = torch.tensor([place], device=device)
        row = tuple(self.rows[step])
        if row not in self._uploaded:
            while len(self._uploaded) > 64 + self.depth:
                del self._uploaded[next(key for key in self._uploaded if isinstance(key, tuple))]
            # A multiple of 16 bytes: a misaligned input would be copied before every forecast.
            padded = torch.zeros(-(-self.depth // 4) * 4, dtype=dtype)
            padded[: self.depth] = torch.tensor(row, dtype=torch.float64)
            self._uploaded[row] = padded.to(device, non_blocking=True)[: self.depth]
        return {"position": self._uploaded[place], "weights": self._uploaded[row]}
