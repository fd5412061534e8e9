"""The outermost graph of ``torch.cond``: its inputs, and what it returns besides what the denoiser returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import fx

from hicache_compile.errors import HiCacheError
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.choices import Choice
from hicache_compile.passes.graph.graphs import copy_node, fake_mode_of, placeholders
from hicache_compile.passes.graph.inputs import KEPT, Role, StateInput, add_input
from hicache_compile.passes.lowering.branch_writer import Names, Part, key_of, reads_nothing
from hicache_compile.passes.work import Rewrite
from hicache_compile.policy.sparsity.phases import phases_of

COMPUTING = StateInput(Role.COMPUTING)
STEP, TABLE, RUN = StateInput(Role.STEP), StateInput(Role.TABLE), StateInput(Role.RUN)
POSITION, WEIGHTS, DRAW = StateInput(Role.POSITION), StateInput(Role.WEIGHTS), StateInput(Role.DRAW)


def parameters(guard: int) -> StateInput:
    return StateInput(Role.PARAMETERS, str(guard))


def remembered(guard: int) -> StateInput:
    return StateInput(Role.REMEMBERED, str(guard))


def computing(choice: Choice) -> StateInput:
    """The predicate of the branch of ``choice``."""
    return StateInput(Role.COMPUTING, "" if choice == Choice.FULL else str(choice))


def branches_of(rewrite: Rewrite) -> list[Choice]:
    """The branches of a graph in which the step index decides, but for the last, the forecast."""
    sparsity = rewrite.layout.sparsity
    phases = phases_of(sparsity) if sparsity is not None and rewrite.sparse else ()
    computed = [Choice.FULL, *(Choice.FULL.with_phases((("", phase),)) for phase in phases)]
    return [*computed, Choice.FORECAST.with_tokens()] if rewrite.tokenwise else computed


class CondGraph(ABC):
    """The outermost graph: its inputs, a part that makes the outputs, what is kept."""

    rows: tuple[StateInput, ...] = (POSITION, WEIGHTS, DRAW)  # inputs; where guards decide they are made in the graph

    def __init__(self, rewrite: Rewrite, used: Sequence[fx.GraphModule]) -> None:
        self.rewrite = rewrite
        self.given: Names = {}
        for program in used:
            for node in placeholders(program):
                self.given.setdefault(key_of(node), node)
        states = [key for key in self.given if isinstance(key, StateInput)]
        self.kept = sorted((key for key in states if key.role in KEPT), key=lambda key: key.place)
        if not any(key.role is Role.ANCHORS for key in self.kept):
            raise HiCacheError("cond: the policy must cache something to have two branches; nothing is")
        self.like = ops.value(next(self.given[key] for key in self.kept if key.role is Role.ANCHORS))

    @abstractmethod
    def declared(self) -> dict[StateInput, torch.Tensor]:
        """The inputs that decide, with example values."""

    @abstractmethod
    def outputs(self, part: Part) -> list[fx.Node]:
        """What the denoiser returns, then ``part.after`` of everything that is kept."""

    def write(self) -> fx.GraphModule:
        graph, names = fx.Graph(), Names()
        for place in sorted(key for key in self.given if isinstance(key, int)):
            names[place] = copy_node(graph, self.given[place], reads_nothing)
        with fake_mode_of(self.like), torch.no_grad():
            declared = self.declared()
        for state, example in declared.items():
            names[state] = add_input(graph, state, example)
        for state in (*self.rows, *self.kept):
            if state in self.given and state not in names:
                names[state] = copy_node(graph, self.given[state], reads_nothing)
        part = Part(graph, names)
        graph.output(tuple(self.outputs(part)))
        module = part.module()
        module.meta["kept"] = self.returned()
        return module

    def returned(self) -> list[StateInput]:
        return list(self.kept)
