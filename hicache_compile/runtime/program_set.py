"""The programs of one layout: straight-line graphs, lowered when they are first needed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from hicache_compile.backends import Lowered, lower
from hicache_compile.backends.generated import generated_code
from hicache_compile.internals import compile_lock
from hicache_compile.operators.guard_state import TensorRule
from hicache_compile.passes.analysis.batch import Batch
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.choices import Choice
from hicache_compile.passes.graph.graphs import copy_graph, placeholders
from hicache_compile.passes.graph.inputs import KEPT, Role, StateInput, role_of, state_of
from hicache_compile.passes.graph.shapes import Bindings, concrete
from hicache_compile.passes.lowering.cond import both_branches
from hicache_compile.passes.lowering.pages import by_pages
from hicache_compile.passes.work import Rewrite
from hicache_compile.policy.guards import Guard, Numbers
from hicache_compile.policy.sparsity.phases import phases_of
from hicache_compile.runtime.deciders.device_rows import RowSpec
from hicache_compile.runtime.storage.rings import Shape

SIZES_KEPT = 64  # of the sizes that a dynamic graph was called with

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Program:
    """One lowered program and what it reads.

    Args:
        run: the lowered program.
        inputs: places among the denoiser's inputs.
        state: what else it reads, in order.
        kept: for each of ``state`` its place among what is kept, or -1.
        returns: what a probe hands over to the programs after it.
        after: what is kept, as it is after the step: the last outputs of a program without side effects.
        rows: by page: the batch dimension of what probes hand over; ``None``: it has none.
        code: what Inductor generated.
    """

    run: Lowered
    inputs: tuple[int, ...]
    state: tuple[StateInput, ...]
    kept: tuple[int, ...]
    returns: tuple[StateInput, ...] = ()
    after: tuple[StateInput, ...] = ()
    rows: Mapping[StateInput, int | None] = field(default_factory=dict)
    code: tuple[str, ...] = ()

    def on_inputs(self, *values: Any) -> Any:
        """Run a program that reads nothing else, on all inputs of the denoiser."""
        return self.run(*(values[place] for place in self.inputs))


class ProgramSet:
    """The programs of one layout and ring depth. ``cond``: one program holds every branch."""

    def __init__(self, rewrite: Rewrite, depth: int, cond: bool = False) -> None:
        self.rewrite = rewrite
        self.depth = depth
        self.programs: dict[object, Program] = {}
        programs = [*rewrite.programs.values(), *(rewrite.program(choice) for choice in _sparse_choices(rewrite))]
        nodes = [node for program in programs for node in placeholders(program)]
        kept = {state: node for node in nodes if (state := state_of(node)) is not None and state.role in KEPT}
        self._kept = {state: ops.value(kept[state]) for state in sorted(kept, key=lambda state: state.place)}
        self.place = {state: place for place, state in enumerate(self._kept)}
        self.rings = [value for state, value in self._kept.items() if state.role is Role.ANCHORS]
        self.stateless = not self._kept
        self.by_row = False  # all programs are known to run by page
        self.cond = cond and bool(self.rings)  # without anchors there is nothing to choose
        weights = [ops.value(node).dtype for node in nodes if role_of(node) is Role.WEIGHTS]
        self.weights_dtype = weights[0] if weights else torch.float32
        dynamic = any(isinstance(size, torch.SymInt) for value in self._kept.values() for size in value.shape)
        self._dynamic = dynamic
        self._shapes_at: dict[Hashable, dict[StateInput, Shape]] = {}  # by the sizes

    def shapes(self, bindings: Bindings) -> dict[StateInput, Shape]:
        """What is kept from step to step, at the sizes in ``bindings``: memory by name, then rings by slot."""
        sizes = tuple(bindings.items()) if self._dynamic else ()
        found = self._shapes_at.get(sizes)
        if found is None:  # sympy takes milliseconds, which a step must not
            if len(self._shapes_at) >= SIZES_KEPT:
                self._shapes_at.clear()
            found = self._shapes_at[sizes] = {
                state: (concrete(value.shape, bindings), value.dtype, value.device)
                for state, value in self._kept.items()
            }
        return found

    def rows(self, depth: int, offset: int) -> RowSpec:
        """Which row of weights and positions each ring reads; ``offset``: slots of the graphs before this one."""
        groups = tuple(self.rewrite.groups) or ("",)
        slots = [site.group for site in self.rewrite.sites for _ in site.slots]
        read = [state.slot for state in self._kept if state.role is Role.ANCHORS]
        apart = len(groups) > 1
        last = len(slots) - 1
        group_of = tuple(groups.index(slots[min(slot, last)]) if apart else 0 for slot in read)
        own = sum(slot <= last for slot in read)
        layout = self.rewrite.layout
        return RowSpec(depth, groups, group_of, layout.per_slot, own, offset, layout.rows)

    def at_start(self, uncached: bool) -> list[Choice]:
        """The programs that the first step of a run needs."""
        layout = self.rewrite.layout
        if layout.partitions is not None and self.rewrite.partitioned:
            return [Choice.FORECAST] if layout.partitions.distributed else [Choice.PLAIN, Choice.FORECAST]
        if uncached or self.stateless:
            return [Choice.PLAIN]
        return [Choice.EITHER] if self.cond else [*(stage.probe for stage in self.rewrite.stages), Choice.FULL]

    def program(self, choice: Choice, backend: str, mode: str | None, guards: Sequence[Guard] = ()) -> Program:
        """The program of ``choice``, lowered now if it was not yet. ``guards``: those that decide in the graph."""
        key: object = (choice, *(TensorRule(g, Numbers).signature for g in guards)) if guards else choice
        either = choice == Choice.EITHER
        return self._made(
            key,
            lambda: both_branches(self.rewrite, guards) if either else self.rewrite.program(choice),
            backend,
            mode,
        )

    def paged(self, choice: Choice, batch: Batch, capacity: int, backend: str, mode: str | None) -> Program:
        """The program of ``choice`` by pages of pools of ``capacity``, lowered now if it was not yet.

        Raises:
            NotByRowError: its rows cannot be told apart.
        """
        return self._made(
            (choice, "pages", capacity),
            lambda: by_pages(self.rewrite.program(choice), batch, capacity),
            backend,
            mode,
        )

    def _made(self, key: object, make: Callable[[], fx.GraphModule], backend: str, mode: str | None) -> Program:
        if key in self.programs:
            return self.programs[key]
        with compile_lock:  # Dynamo's own: one thread compiles at a time
            if key not in self.programs:
                graph = make()
                log.info("lowering %s to %s: %d nodes", key, backend, len(graph.graph.nodes))
                self.programs[key] = self._lowered(graph, backend, mode)
        return self.programs[key]

    def _lowered(self, graph: fx.GraphModule, backend: str, mode: str | None) -> Program:
        inputs = placeholders(graph)
        states = tuple(state for node in inputs if (state := state_of(node)) is not None and "input" not in node.meta)
        with generated_code() as code:
            # A compiler owns the graph it is given and may rewrite it; ours stays readable.
            run = lower(copy_graph(graph)[0], backend, mode)
        return Program(
            run,
            tuple(node.meta["input"] for node in inputs if "input" in node.meta),
            states,
            tuple(self.place.get(state, -1) for state in states),
            tuple(graph.meta.get("returns", ())),
            tuple(graph.meta.get("kept", ())),
            graph.meta.get("rows", {}),
            tuple(code),
        )


def _sparse_choices(rewrite: Rewrite) -> list[Choice]:
    """Choices whose programs together have all the memory of sparse steps, where they are made one by one."""
    sparsity = rewrite.layout.sparsity
    if sparsity is None or not rewrite.sparse or not (rewrite.layout.groups or rewrite.partitioned):
        return []
    groups = dict.fromkeys(["", *rewrite.groups])
    return [Choice.FULL.with_phases(tuple((group, phase) for group in groups)) for phase in phases_of(sparsity)]
