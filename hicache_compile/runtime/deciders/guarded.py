"""Guards decide on the host, by what probes measure in the middle of a step."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from hicache_compile.passes.graph.choices import Choice, Kind
from hicache_compile.passes.work import Rewrite
from hicache_compile.policy.guards import Measure, Signal
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.schedules.base import Free
from hicache_compile.policy.sparsity.chipmunk import Chipmunk
from hicache_compile.runtime.deciders.base import Ask, Asking, Decider, Decision, Inputs, Measured, letter_of
from hicache_compile.runtime.deciders.device_rows import RowSpec
from hicache_compile.runtime.deciders.rows import AnchorRows

log = logging.getLogger(__name__)


class GuardedDecider(Decider):
    """The decisions of one run under guards, made as it goes along.

    Args: see ``ScheduledDecider``.
    """

    def __init__(
        self,
        policy: Policy,
        rewrite: Rewrite,
        spec: RowSpec,
        num_steps: int | None,
        start: int = 0,
        sparsity: Chipmunk | None = None,
    ) -> None:
        super().__init__(num_steps, start)
        self.policy = policy
        self.rewrite = rewrite
        self.rows = AnchorRows(policy, spec, num_steps, start, sparsity)
        self.rules = [guard.watch(num_steps) for guard in policy.guards]
        self.skipped = 0  # in a row
        self.seen: dict[int, Measured] = {}  # what was measured after each step
        self._stages = {stage.guard: stage for stage in rewrite.stages}
        schedules = getattr(policy.schedule, "schedules", {})
        self._schedules = {group: schedules.get(group, policy.schedule) for group in spec.groups}

    @property
    def computed(self) -> list[int]:
        """The computed steps so far."""
        return next(iter(self.rows.tracks.values())).steps

    def forces(self, step: int) -> bool:
        """Whether ``step`` is computed whatever is measured."""
        capped = any(g.max_skips is not None and self.skipped >= g.max_skips for g in self.policy.guards)
        return not self.computed or capped or self.policy.forces(step, self.num_steps)

    def decide(self, step: int, forced: bool) -> Asking:
        forced = whole = forced or self.forces(step)
        skip = Choice.FORECAST
        for number, rule in enumerate(self.rules):
            measured: Measured = []
            if number in self._stages:
                stage = self._stages[number]
                measured = yield Ask(stage.probe, number, not forced)
                skip = stage.skip
            if forced:
                continue
            if not self.is_finite(measured[:1], step, number):
                forced = True
            elif rule.skips(step, measured):
                return self._skip(step, number, skip)
        return self._compute(step, whole)

    def _skip(self, step: int, number: int, choice: Choice) -> Decision:
        self.skipped += 1
        own = self.rules[number].weights()
        if own is not None and len(own) > len(self.computed):
            own = None
        self.rows.lay(step, (), own)
        if self.rewrite.tokenwise and self.rules[number].polishes():
            choice = self.rows.tokenwise(choice)
        letter = "t" if choice.tokens else "s" if number else "."
        return Decision(choice, letter, self._late(Measure.VERIFY, Signal.RESIDUAL))

    def _compute(self, step: int, whole: bool) -> Decision:
        """No guard skipped: kinds that are decided each by itself follow their schedules, all else is computed."""
        computed = [g for g, s in self._schedules.items() if whole or self._free(s) or s.computes(step, self.num_steps)]
        rows = self.rows.lay(step, computed)
        choice = self.rewrite.choice(rows.forecasts, rows.phases)
        if not choice.forecasts:
            self.skipped = 0
        measured = self._late(Measure.CHANGE, Signal.SITES) + self._late(Measure.OBSERVE, None)
        return Decision(choice, letter_of(choice), measured if len(self.computed) > 1 and not choice.forecasts else ())

    def _free(self, schedule: object) -> bool:
        return len(self.rows.spec.groups) == 1 or isinstance(schedule, Free)

    def _late(self, measure: Measure, signal: Signal | None) -> tuple[int, ...]:
        """The guards that measure such steps when they are made."""
        probes = enumerate(guard.probe for guard in self.policy.guards)
        return tuple(n for n, probe in probes if probe.measure is measure and signal in (None, probe.signal))

    def is_finite(self, measured: Sequence[float], step: int, number: int) -> bool:
        """Whether a measurement can be decided by; one that cannot is counted, and warned about."""
        if all(math.isfinite(value) for value in measured):
            return True
        self.nonfinite += 1
        name = type(self.policy.guards[number]).__name__
        log.warning("step %d: %s measured %s, which is no finite number: the step is computed", step, name, measured)
        return False

    def after(self, step: int, decision: Decision, measured: Mapping[int, Measured]) -> None:
        full = decision.choice.kind is not Kind.FORECAST
        for number, rule in enumerate(self.rules):
            found = measured.get(number, [])
            if found:
                self.seen[step] = found
            if found and not self.is_finite(found, step, number):
                found = [] if full else [math.inf]
            (rule.after_full if full else rule.after_forecast)(step, found)

    def smallest(self) -> Mapping[int, float]:
        return {number: rule.smallest for number, rule in enumerate(self.rules) if math.isfinite(rule.smallest)}

    def choices(self, num_steps: int) -> Iterable[Choice]:
        return [choice for choice in self.rewrite.programs if choice != Choice.PLAIN]

    def known(self, step: int) -> Sequence[int]:
        return self.rows.known(step)

    def inputs(self, step: int, decision: Decision, device: torch.device, dtype: torch.dtype) -> Inputs:
        return self.rows.inputs(step, device, dtype)

    def state_dict(self) -> dict[str, Any]:
        rules = [rule.state for rule in self.rules]
        kept = {"skipped": self.skipped, "nonfinite": self.nonfinite, "rules": rules, "step": len(self.rows.steps)}
        return {**self.rows.state_dict(), **kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rows.load_state_dict(state, int(state["step"]))
        self.skipped, self.nonfinite = int(state["skipped"]), int(state["nonfinite"])
        for rule, remembered in zip(self.rules, state["rules"], strict=True):
            rule.load(remembered)
