"""One captured graph: layout -> program set -> decider -> execute."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from torch import fx

from hicache_compile.errors import HiCacheError
from hicache_compile.operators.opaque import module_of
from hicache_compile.passes import Choice, rewrite
from hicache_compile.passes.analysis.batch import Batch, batch_of
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.cost import Cost, cost_of
from hicache_compile.passes.graph.graphs import placeholders
from hicache_compile.passes.graph.shapes import Bindings, Symbols
from hicache_compile.passes.trace import trace_rewrite
from hicache_compile.passes.transforms.partition_attention import PARTITIONED
from hicache_compile.policy.layout import Layout
from hicache_compile.policy.policy import Policy
from hicache_compile.runtime.budgeted_layout import BudgetedLayout
from hicache_compile.runtime.deciders import Decider, make_decider
from hicache_compile.runtime.deciders.base import Inputs
from hicache_compile.runtime.execute import execute
from hicache_compile.runtime.live import Live
from hicache_compile.runtime.per_thread import PerThread
from hicache_compile.runtime.places import same_place
from hicache_compile.runtime.program_set import Program, ProgramSet
from hicache_compile.runtime.replay.dispatch_modes import brought_back
from hicache_compile.runtime.replay.parameters import Parameters
from hicache_compile.runtime.replay.replay import GraphCall
from hicache_compile.runtime.replay.side_effects import assigned_anew
from hicache_compile.runtime.session import Session
from hicache_compile.runtime.step import Step
from hicache_compile.runtime.storage.rings import Rings
from hicache_compile.runtime.storage_of_step import storage_of


class CompiledGraph:
    """One captured graph of the denoiser, and everything compiled from it. Dynamo calls it once a step."""

    def __init__(self, captured: fx.GraphModule, sessions: PerThread[Session]) -> None:
        self.captured = captured
        self._sessions = sessions
        self.options = sessions.mine().options
        self.program_sets: dict[Layout, ProgramSet] = {}
        self.replayable = False
        self.by_row: set[Hashable] = set()  # sizes at which batches were made by row
        self._budgeted = BudgetedLayout(captured, self.options) if self.options.memory_budget is not None else None
        self._inputs = placeholders(captured)
        # What the denoiser itself writes (a call counter, running statistics) does not change what it is.
        written = assigned_anew(self._inputs)
        written |= {target for node in captured.graph.nodes for target in ops.mutated(node)}
        weights = [i for i, node in enumerate(self._inputs) if node.meta["weight"]]
        self._parameters = [i for i in weights if self._inputs[i] not in written]
        sizes = [str(getattr(ops.value(node), "shape", "")) for node in self._inputs if not node.meta["weight"]]
        self.opaque = [str(node.args[0]) for node in captured.graph.nodes if ops.op(node) == ops.OPAQUE]
        self.quantised = self.options.quantised_on_the_host
        self.signature = (len(captured.graph.nodes), *sizes)
        self._costs: dict[Hashable, list[Cost]] = {}
        self._symbols = Symbols(self._inputs)

    @property
    def session(self) -> Session:
        """That of this thread."""
        return self._sessions.mine()

    def __call__(self, *inputs: Any) -> Any:
        """Called by what Dynamo compiled."""
        weights = [inputs[i] for i in self._parameters]
        for name in self.opaque:  # by name: Dynamo may keep this graph for as long as it likes
            weights += module_of(name).weights()
        return self.replay(inputs, Parameters(weights))

    def replay(self, inputs: Sequence[Any], parameters: Parameters) -> Any:
        """The same, called directly: ``parameters`` are those among ``inputs``."""
        step = self.session.step
        if step is None:
            raise HiCacheError("a captured graph ran outside of its compiled denoiser: call the denoiser itself")
        step.graphs.append(self)
        outputs = step.compute(self, inputs, parameters)
        if self.replayable:
            step.calls.append(GraphCall(self.replay, parameters, inputs, outputs))
        return outputs

    def compute(self, step: Step, inputs: Sequence[Any], parameters: Parameters) -> Any:
        """Make ``step``, which all rows of the call are at."""
        live = self.live(step, self.bindings(inputs), self.session.live.get(self))
        self.session.live[self] = live
        programs = live.programs
        if programs.stateless or (step.uncached and live.uncached == Choice.PLAIN):
            step.choices.append((self, Choice.PLAIN, 0.0))
            with same_place(programs.rewrite.ranks, step, "uncached", communicates=True):
                return self._run(programs, inputs, None, step, Choice.PLAIN, {})[1]
        storage = storage_of(self, live, step, parameters)
        storage.next_step = -1  # an exception in the middle leaves the anchors incomplete
        outputs = execute(partial(self._run, programs, inputs, storage, step), programs, storage, step, self)
        storage.next_step = step.index + 1
        return outputs

    @cached_property
    def has_blocks(self) -> bool:
        """Whether some policy may cache something of it."""
        return bool(rewrite(self.captured, Layout("module")).block_nodes)

    @cached_property
    def batch(self) -> Batch:
        """Which inputs and outputs have rows.

        Raises:
            NotByRowError: rows cannot be told apart.
        """
        return batch_of(self.captured)

    def bindings(self, inputs: Sequence[Any]) -> Bindings:
        """The sizes of this call."""
        return self._symbols.bind(inputs)

    def live(self, step: Step, bindings: Bindings, known: Live | None) -> Live:
        """What the step runs with; ``known`` while nothing changes."""
        layout, why = self.layout(step.context.policy, step, bindings)
        if known is not None and known.layout is layout and known.bindings == bindings:
            return known
        programs = self.programs(layout)
        return Live(layout, programs, bindings, self._signature_of(programs, layout), why)

    def _signature_of(self, programs: ProgramSet, layout: Layout) -> tuple[object, ...]:
        """Where anchors belong and how they are kept: the same for every capture of a denoiser, whatever is symbolic
        in it.
        """
        made = programs.rewrite
        places = (*(site.name for site in made.sites), *made.partitioned, *made.sparse)
        depth = layout.depth if self.options.offload else programs.depth
        sparse = str(self.options.sparsity) if made.sparse else ""
        return (*places, str(self.quantised or ""), *([sparse] if sparse else []), depth)

    def _run(
        self,
        programs: ProgramSet,
        inputs: Sequence[Any],
        storage: Rings | None,
        step: Step,
        choice: Choice,
        data: Inputs,
    ) -> tuple[Program, Any]:
        """Run the program of ``choice``: on the denoiser's inputs, on what is kept, and on ``data``."""
        guards = step.context.policy.guards if choice == Choice.EITHER else ()
        program = programs.program(choice, self.options.backend, self.options.mode, guards)
        kept = storage.tensors if storage is not None else []
        arguments = [inputs[i] for i in program.inputs]
        arguments += [
            kept[place] if place >= 0 else data[state] for state, place in zip(program.state, program.kept, strict=True)
        ]
        if not step.modes:
            return program, program.run(*arguments)
        with brought_back(step.modes):
            return program, program.run(*arguments)

    def lower_now(self) -> None:
        """Lower what the step in progress needs, while Dynamo compiles: it may specialise a value and start again."""
        step = self.session.step
        if step is not None:
            step.lower(self)

    def lower(self, step: Step) -> None:
        """Lower what the first step of a run needs."""
        programs = self.programs(self.layout(step.context.policy, step, {})[0])
        for choice in programs.at_start(step.uncached):
            guards = step.context.policy.guards if choice == Choice.EITHER else ()
            programs.program(choice, self.options.backend, self.options.mode, guards)

    def lower_all(self, policy: Policy, num_steps: int) -> None:
        """Lower every program that a run of ``num_steps`` under ``policy``, which made the newest step, may need."""
        live = self.session.live.get(self)
        if live is None or live.programs.stateless:
            return
        decider = self._decider(policy, live, num_steps, 0)
        made = [state for context in self.session.contexts.values() for state in context.states.values()]
        page = next((state.page for state in made if state.page is not None), None)  # it was made by row
        one = live.programs.cond and live.programs.rings
        for choice in dict.fromkeys([Choice.EITHER] if one else decider.choices(num_steps)):
            guards = policy.guards if choice == Choice.EITHER else ()
            if page is not None:
                live.programs.paged(choice, self.batch, page.pool.capacity, self.options.backend, self.options.mode)
            else:
                live.programs.program(choice, self.options.backend, self.options.mode, guards)

    def layout(self, policy: Policy, step: Step | None = None, bindings: Bindings | None = None) -> tuple[Layout, str]:
        """Where to cut for ``policy``: as it says, or what the memory budget leaves room for, and then why."""
        if self._budgeted is None:
            return self.session.layout_of(policy), ""
        earlier = step.graphs[: -1 if step.graphs[-1:] == [self] else None] if step else []  # once for each call
        taken = sum(self.session.live[graph].nbytes for graph in earlier if graph in self.session.live)
        return self._budgeted(policy, bindings or {}, taken, max(1, self.session.live_contexts()))

    def programs(self, layout: Layout) -> ProgramSet:
        """The programs for ``layout``: shared by every layout that differs in no more than fewer anchors."""
        depth = 1 if self.options.offload else layout.depth
        exact = self.options.memory_budget is not None
        key = replace(layout, depth=depth if exact else 1)
        found = self.program_sets.get(key)
        if found is None or found.depth < depth:
            made = rewrite(self.captured, replace(layout, depth=depth))
            trace_rewrite(made, layout.scope)
            cond = self.options.cond and layout.partitions is None
            found = self.program_sets[key] = ProgramSet(made, depth, cond)
        return found

    def flops(self, choice: Choice, reused: float = 0.0) -> int:
        """FLOPs of the program of ``choice`` at the shapes last seen, of which attentions over partitions reused the
        share ``reused`` of the keys."""
        counted = [item for part in self.costs(choice) for item in part.flops.items()]
        partitioned = sum(count for name, count in counted if name.startswith(PARTITIONED))
        return sum(count for _, count in counted) - int(partitioned * reused)

    def costs(self, choice: Choice) -> list[Cost]:
        """What the programs of ``choice`` cost at the shapes last seen, in their order."""
        live = self.session.live[self]
        key = (live.layout, choice, *live.bindings.values())
        if key not in self._costs:
            self._costs[key] = [cost_of(part, live.bindings) for part in live.programs.rewrite.parts(choice)]
        return self._costs[key]

    def decider_of(self, live: Live, step: Step, start: int) -> Decider:
        """The decider of the run of ``step``, which starts over at ``start``."""
        earlier = [self.session.live[graph] for graph in step.graphs[:-1] if graph in self.session.live]
        offset = sum(len(other.programs.rings) for other in earlier)
        key = (self, live.layout, self.depth_of(live), step.context.policy, step.num_steps, start, offset)
        return self.session.shared_decider(
            key, lambda: self._decider(step.context.policy, live, step.num_steps, start, offset)
        )

    def _decider(self, policy: Policy, live: Live, num_steps: int | None, start: int, offset: int = 0) -> Decider:
        spec = live.programs.rows(self.depth_of(live), offset)
        return make_decider(policy, live.programs, num_steps, start, spec, self.options.sparsity)

    def depth_of(self, live: Live) -> int:
        """Anchors that are kept of a slot, wherever they are."""
        return live.layout.depth if self.options.offload else live.programs.depth
