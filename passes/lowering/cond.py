"""cond: every branch of a step in one graph, ``torch.cond`` choosing, with state as inputs and outputs.

before   full:      y = ...; remember(anchors_0, position, value)
         forecast:  y = ...forecast(anchors_0, weights)...
after    y, next_anchors_0 = cond(computing, full, forecast, [x, ..., position, weights, anchors_0])

Guards     probe, ask and branch: m = probe(...); answer = ask(parameters, m); cond(answer, forecast, rest, [...])
Groups     that are decided each by itself: one cond a site; with passes of your own, which change whole programs, one
           branch for each choice of groups (``cond_choices.py``)
Phases     of sparse steps: a chain of conds

Requires   the programs of one guarded graph
Ensures    nothing outside a branch is written to; inputs are the denoiser's own, then what decides, position and
           weights, memory and rings; outputs are the denoiser's own, contiguous and no views, then everything that is
           kept (``graph.meta["kept"]``) as it is after the step
Refuses    programs without rings: there is nothing to choose
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from hicache_compile.operators.anchors import forecast
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.choices import Choice
from hicache_compile.passes.graph.contexts import write_back
from hicache_compile.passes.graph.graphs import placeholders
from hicache_compile.passes.graph.inputs import Role, StateInput
from hicache_compile.passes.graph.parts import how
from hicache_compile.passes.graph.quantised_rings import to_forecast, to_remember
from hicache_compile.passes.lowering.branch_writer import Names, Part, key_of
from hicache_compile.passes.lowering.cond_choices import PerChoice
from hicache_compile.passes.lowering.cond_graph import CondGraph, branches_of, computing
from hicache_compile.passes.lowering.guarded_cond import GuardedCond
from hicache_compile.passes.work import Rewrite
from hicache_compile.policy.guards import Guard


def both_branches(rewrite: Rewrite, guards: Sequence[Guard] = ()) -> fx.GraphModule:
    """One graph of all branches of ``rewrite``; ``guards``: those that decide in it.

    Raises:
        HiCacheError: nothing is cached; or passes of your own, and too many groups.
    """
    if guards:
        return GuardedCond(rewrite, guards).write()
    if rewrite.layout.groups and rewrite.layout.program_passes:
        return PerChoice(rewrite).write()
    if rewrite.layout.groups:
        return write_back(_PerSite(rewrite).write())
    return _Scheduled(rewrite).write()


class _Scheduled(CondGraph):
    """The step index decides: a chain of conds over the computed branches, the forecast last."""

    def __init__(self, rewrite: Rewrite) -> None:
        self.choices = branches_of(rewrite)
        super().__init__(rewrite, [rewrite.program(choice) for choice in (*self.choices, Choice.FORECAST)])

    def declared(self) -> dict[StateInput, torch.Tensor]:
        return {computing(choice): torch.empty((), dtype=torch.bool) for choice in self.choices}

    def outputs(self, part: Part) -> list[fx.Node]:
        return self._chain(part, self.choices)

    def _chain(self, part: Part, choices: Sequence[Choice]) -> list[fx.Node]:
        choice, *others = choices
        predicate = part.names.pop(computing(choice))
        chosen = part.branch(lambda inner: self._end(inner, choice))
        if others:
            rest = part.branch(lambda inner: self._chain(inner, others))
        else:
            rest = part.branch(lambda inner: self._end(inner, Choice.FORECAST))
        names = (str(choice), "rest" if others else str(Choice.FORECAST))
        return part.cond(predicate, chosen, rest, names)

    def _end(self, part: Part, choice: Choice) -> list[fx.Node]:
        outputs = part.inline(self.rewrite.program(choice))
        return part.owned([*outputs, *(part.names[state] for state in self.kept)])


class _PerSite(CondGraph):
    """Groups of sites are decided each by itself: one cond a site, on the predicate of its group."""

    def __init__(self, rewrite: Rewrite) -> None:
        super().__init__(rewrite, [rewrite.guarded])

    def declared(self) -> dict[StateInput, torch.Tensor]:
        return {StateInput(Role.COMPUTING, group): torch.empty((), dtype=torch.bool) for group in self.rewrite.groups}

    def outputs(self, part: Part) -> list[fx.Node]:
        outputs = part.inline(self.rewrite.guarded, self._site)
        return part.owned([*outputs, *(part.names[state] for state in self.kept)])

    def _site(self, part: Part, call: fx.Node, env: dict[fx.Node, fx.Node]) -> list[fx.Node]:
        """``call`` as a cond; the rings after it are what later parts read."""
        arguments: Any = call.args
        full, _, operands, carried, rings, position, weights = arguments
        rows = [weights] if isinstance(weights, fx.Node) else list(weights)
        scales: Any = call.kwargs.get("scales") or []
        own = scales or [None] * len(rings)
        parts: Any = call.kwargs.get("parts") or [None] * len(rings)
        read: list[Any] = [*operands, *(node for node in carried if node is not None), *rings, *scales, position, *rows]
        # A branch reads tensors: of a tuple, each element by itself.
        flat = [(node, index) for node in dict.fromkeys(read) for index in _elements(ops.value(node))]
        inner_names: Names = {
            place: env[node] if index is None else part.element(env[node], index)
            for place, (node, index) in enumerate(flat)
        }
        program = self.rewrite.guarded.get_submodule(str(full.target))
        assert isinstance(program, fx.GraphModule)

        def read_in(inner: Part) -> dict[fx.Node, fx.Node]:
            found: dict[fx.Node, list[fx.Node]] = {}
            for place, (node, _) in enumerate(flat):
                found.setdefault(node, []).append(inner.names[place])
            whole = {node for node, index in flat if index is None}
            return {node: made[0] if node in whole else inner.call(_as_tuple, *made) for node, made in found.items()}

        def computed(inner: Part) -> list[fx.Node]:
            mine = read_in(inner)
            values = dict(zip(placeholders(program), (mine[node] for node in operands), strict=True))
            slots = inner.run(program, values)
            after = {}
            for slot, stream, ring, scale in zip(slots, carried, rings, own, strict=True):
                value = slot if stream is None else inner.call(torch.sub, slot, mine[stream])
                for kept, given in to_remember(inner.call, mine[ring], mine.get(scale), value):
                    after[kept] = inner.remembered(kept, mine[position], given)
            return inner.owned([*slots, *(after[mine[kept]] for kept in (*rings, *scales))])

        def forecast_it(inner: Part) -> list[fx.Node]:
            mine = read_in(inner)
            dtypes: Any = call.kwargs.get("dtypes") or [None] * len(rings)
            each = rows * len(rings) if len(rows) == 1 else rows
            slots = []
            for stream, ring, row, dtype, scale, of in zip(carried, rings, each, dtypes, own, parts, strict=True):
                factors = to_forecast(inner.call, mine[row], mine.get(scale))
                made = inner.call(forecast, mine[ring], factors, *how(dtype, of))
                slots.append(made if stream is None else inner.call(torch.add, mine[stream], made))
            return inner.owned([*slots, *(mine[kept] for kept in (*rings, *scales))])

        site = Part(part.graph, inner_names, part.attributes)
        site.origin = part.origin
        predicate = part.names[StateInput(Role.COMPUTING, call.meta["group"])]
        number = sum(node.target is torch.ops.higher_order.cond for node in part.graph.nodes)
        names = (f"full_{number}", f"forecast_{number}")
        made = site.cond(predicate, site.branch(computed), site.branch(forecast_it), names)
        state: list[fx.Node] = [*rings, *scales]
        count = len(made) - len(state)
        for kept, after in zip(state, made[count:], strict=True):
            part.names[key_of(kept)] = env[kept] = after
        return made[:count]


def _elements(value: Any) -> Sequence[int | None]:
    return range(len(value)) if isinstance(value, tuple | list) else (None,)


def _as_tuple(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return values
