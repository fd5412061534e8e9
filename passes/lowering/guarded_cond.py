"""Guards in ``torch.cond``: probe, ask each guard in turn, and branch on its answer, all on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from hicache_compile.operators import guard_state as rules
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.choices import Choice
from hicache_compile.passes.graph.inputs import MEASURED, Role, StateInput, memory
from hicache_compile.passes.lowering.branch_writer import Part
from hicache_compile.passes.lowering.cond_graph import (
    COMPUTING,
    POSITION,
    RUN,
    STEP,
    TABLE,
    WEIGHTS,
    CondGraph,
    parameters,
    remembered,
)
from hicache_compile.passes.work import Rewrite
from hicache_compile.policy.guards import Guard, Numbers


class GuardedCond(CondGraph):
    """Guards decide in the graph: probe, ask, branch; which branch is taken never reaches the host."""

    rows = ()

    def __init__(self, rewrite: Rewrite, guards: Sequence[Guard]) -> None:
        self.rules = [rules.TensorRule(guard, Numbers) for guard in guards]
        self.stage_of = {stage.guard: stage for stage in rewrite.stages}
        used = [choice for stage in rewrite.stages for choice in (stage.probe, stage.skip)] or [Choice.FORECAST]
        super().__init__(rewrite, [rewrite.programs[choice] for choice in dict.fromkeys([*used, Choice.FULL])])
        self.depth = int(self.like.shape[0])
        self.state = [RUN, *(remembered(n) for n in range(len(guards)))]

    def returned(self) -> list[StateInput]:
        return [*self.kept, *self.state]

    def declared(self) -> dict[StateInput, torch.Tensor]:
        device = self.like.device
        weights = ops.value(self.given[WEIGHTS])
        made = {
            COMPUTING: torch.empty((), dtype=torch.bool, device=device),
            STEP: torch.empty(1, dtype=torch.float64, device=device),
            TABLE: torch.empty(rules.GAPS**self.depth, *weights.shape, dtype=weights.dtype, device=device),
            RUN: torch.empty(rules.HEAD + self.depth, dtype=torch.float64, device=device),
        }
        for number, rule in enumerate(self.rules):
            for state, length in (
                (parameters(number), len(rule.parameters(None))),
                (remembered(number), len(rule.first_remembered())),
            ):
                made[state] = torch.empty(length, dtype=torch.float64, device=device)
        return made

    def outputs(self, part: Part) -> list[fx.Node]:
        given = [part.names[parameters(number)] for number in range(len(self.rules))]
        names = part.names
        forced = part.call(rules.starts_forced, names.pop(COMPUTING), names[RUN], names[STEP], *given)
        return self._ask(part, 0, forced, Choice.FORECAST)

    def _ask(self, part: Part, number: int, forced: fx.Node, skip: Choice) -> list[fx.Node]:
        """Probe, ask guard ``number``, and branch; returns the outputs of the step. ``skip``: what ends it."""
        stage = self.stage_of.get(number)
        if stage is not None:
            part.inline(self.rewrite.programs[stage.probe])
            skip = stage.skip
        names, rule = part.names, self.rules[number]
        measured = part.names[memory(MEASURED, number)] if stage is not None else _nothing(part)
        given = (names[parameters(number)], names[remembered(number)], forced, names[STEP], measured)
        answer = part.call(rule.ask, *given)
        names[RUN] = part.call(rules.counted, names[RUN], answer)
        names[remembered(number)] = part.call(rules.remembered_after, answer)
        still = part.call(rules.still_forced, answer)
        forced_key = StateInput(Role.VALUE, "forced")
        names[forced_key] = still
        skipped = part.branch(lambda inner: self._end(inner, number, skip))
        if number + 1 < len(self.rules):
            rest = part.branch(lambda inner: self._ask(inner, number + 1, inner.names[forced_key], skip))
        else:
            rest = part.branch(lambda inner: self._end(inner, number, None))
        return part.cond(part.call(rules.skips, answer), skipped, rest, ("skip", "rest"))

    def _end(self, part: Part, number: int, skip: Choice | None) -> list[fx.Node]:
        names = part.names
        if skip is None:
            names[POSITION] = part.call(rules.position_of, names[RUN])
        else:
            given = (names[parameters(number)], names[remembered(number)], names[RUN], names[STEP], names[TABLE])
            names[WEIGHTS] = part.call(self.rules[number].weights, *given)
        outputs = part.inline(self.rewrite.programs[skip or Choice.FULL])
        for n, rule in enumerate(self.rules):
            late = memory(MEASURED, n)
            measured = names[late] if n not in self.stage_of and late in part.written else _nothing(part)
            after = rule.after_full if skip is None else rule.after_forecast
            names[remembered(n)] = part.call(after, names[parameters(n)], names[remembered(n)], names[STEP], measured)
        if skip is None:
            names[RUN] = part.call(rules.run_after_full, names[RUN], names[STEP])
        else:
            names[RUN] = part.call(rules.run_after_forecast, names[RUN], number + 1)
        return part.owned([*outputs, *(names[state] for state in self.returned())])


def _nothing(part: Part) -> fx.Node:
    """A measurement of a guard that has none here."""
    return part.call(torch.full_like, part.names[STEP], float("nan"))
