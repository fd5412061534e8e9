"""The step of a batch: the steps of its rows."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import groupby
from typing import Any

from hicache_compile.runtime.compiled_graph import CompiledGraph
from hicache_compile.runtime.replay.parameters import Parameters
from hicache_compile.runtime.rows.compute import compute, lower
from hicache_compile.runtime.rows.row import Row
from hicache_compile.runtime.step import Context, Step


class RowsStep(Step):
    """A call in which every row makes a step of its own run.

    Args:
        context: of the batch itself; it keeps which capture and which calls ran.
        rows: in the order of the batch.
        in_one_call: they are never called run by run.
    """

    __slots__ = ("in_one_call", "rows")

    def __init__(self, context: Context, rows: tuple[Row, ...], in_one_call: bool) -> None:
        super().__init__(context, min(row.step.index for row in rows), None)
        self.rows = rows
        self.in_one_call = in_one_call

    @property
    def pool(self) -> Hashable:
        """Whose pages they share: those of the samples of a context are no more than there are samples."""
        return (id(self.rows[0].session), self.rows[0].step.context.name) if self.in_one_call else None

    def lower(self, graph: CompiledGraph) -> None:
        lower(graph, self.rows, self.pool)

    def compute(self, graph: CompiledGraph, inputs: Sequence[Any], parameters: Parameters) -> Any:
        return compute(graph, self, self.rows, inputs, parameters, self.pool)

    def runs(self) -> list[list[Row]]:
        """The rows by the run they are of, in their order."""
        return [list(rows) for _, rows in groupby(self.rows, key=lambda row: id(row.session))]

    def invalidate(self) -> None:
        """It failed: a row goes on from anchors that are as they were before."""
        for row in self.rows:
            if row.step.has_written:
                row.step.invalidate()
            row.step.undo()

    def undo(self) -> None:
        super().undo()
        for row in self.rows:
            row.step.undo()

    def start_over(self) -> None:
        super().start_over()
        for row in self.rows:
            row.step.start_over()
