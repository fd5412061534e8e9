"""What each row of a batch computes with, found before anything is decided."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from hicache_compile.passes.analysis.batch import Batch, NotByRowError
from hicache_compile.passes.graph.choices import Choice
from hicache_compile.passes.graph.shapes import Bindings
from hicache_compile.passes.lowering.pages import by_pages
from hicache_compile.policy.layout import Layout
from hicache_compile.runtime.compiled_graph import CompiledGraph
from hicache_compile.runtime.deciders.base import Decider, Decision
from hicache_compile.runtime.live import Live
from hicache_compile.runtime.options import CompileOptions
from hicache_compile.runtime.program_set import ProgramSet
from hicache_compile.runtime.replay.parameters import Parameters
from hicache_compile.runtime.rows.row import Row
from hicache_compile.runtime.storage.pages import Pool
from hicache_compile.runtime.storage.rings import Rings
from hicache_compile.runtime.storage_of_step import storage_of


@dataclass(slots=True)
class Part:
    """One row on its way through a step; ``storage``: ``None`` where nothing is cached."""

    row: Row
    live: Live
    storage: Rings | None = None
    pool: Pool | None = None
    decision: Decision = field(default_factory=lambda: Decision(Choice.PLAIN, "F"))

    @property
    def decider(self) -> Decider:
        assert self.storage is not None
        assert self.storage.decider is not None
        return self.storage.decider

    def put_back(self) -> None:
        """The programs failed: the step can be made again where nothing was measured, as it then writes over what it
        wrote, in the same places."""
        if self.storage is not None and not self.row.step.context.policy.guards:
            self.storage.next_step = self.row.step.index

    def alike(self, choice: Choice) -> Hashable:
        """What rows have in common that run as one program."""
        return id(self.live.programs), id(self.pool), choice


def check_options(options: CompileOptions, layout: Layout) -> None:
    """Raise ``NotByRowError`` where no batch can be made by row."""
    for given, what in (
        (options.offload, "anchors are kept on the CPU (offload=True)"),
        (options.cond, f"backend {options.backend!r} keeps every branch in one program"),
        (layout.partitions is not None, "attention is computed over partitions"),
        (layout.sparsity is not None, "computed steps are sparse (sparsity), and what they keep is of the whole batch"),
    ):
        if given:
            raise NotByRowError(what)


def check(graph: CompiledGraph, programs: ProgramSet, batch: Batch) -> None:
    """Raise ``NotByRowError`` unless every program of ``programs`` can be run by page."""
    check_options(graph.options, programs.rewrite.layout)
    if programs.by_row:
        return
    for choice in list(programs.rewrite.programs):
        by_pages(programs.rewrite.program(choice), batch, 2)
    programs.by_row = True


def begin(graph: CompiledGraph, row: Row, batch: Batch, bindings: Bindings) -> Part:
    """What ``row`` computes with; ``bindings``: the sizes of the whole batch."""
    alone = bindings | dict.fromkeys(batch.symbols, 1)
    live = graph.live(row.step, alone, row.session.live.get(graph))
    check(graph, live.programs, batch)
    return Part(row, live)


def find_anchors(graph: CompiledGraph, parts: Sequence[Part], parameters: Parameters, pool: Hashable) -> None:
    """Give each row that caches its page; ``pool``: see ``RowsStep``."""
    sets: dict[int, list[Part]] = {}
    for part in parts:
        part.row.step.graphs.append(graph)
        part.row.session.live[graph] = graph.session.live[graph] = part.live
        if part.live.programs.stateless or part.row.step.uncached:
            continue
        part.storage = storage_of(graph, part.live, part.row.step, parameters)
        part.storage.next_step = -1  # an exception in the middle leaves the anchors incomplete
        sets.setdefault(id(part.live.programs), []).append(part)
    for alike in sets.values():
        rings = [part.storage for part in alike if part.storage is not None]
        shared = graph.session.shared.pools.admit(rings, pool)
        for part in alike:
            part.pool = shared
